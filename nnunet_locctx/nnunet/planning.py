"""Adds configurations to nnU-Net's plans: another patch, batch size or spacing, and how location is used."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_locctx.nnunet.plans_file import (
    Plans,
    check_name,
    check_plans,
    derive_plans,
    is_derived,
    read_plans,
    renew,
    write_plans,
)
from nnunet_locctx.nnunet.topology import (
    FEWEST_STAGES,
    Topology,
    allowed_sizes,
    fit_architecture,
    plan_topology,
)

__all__ = [
    "Coverage",
    "add_configuration",
    "check_location",
    "coverage",
    "derive_plans",
    "plan_configuration",
    "read_plans",
    "resolve",
    "write_plans",
]

OWN_PLANS_SUFFIX = "_locctx"
TILE_STEP = 0.5
"""nnU-Net's sliding window moves by this fraction of the patch."""


def resolve(plans: Plans, name: str) -> dict[str, Any]:
    """A configuration with everything it inherits.

    Raises:
        ValueError: No such configuration, or inheritance goes in a circle.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if name not in plans["configurations"]:
        raise ValueError(
            f"the plans have no configuration {name!r}; they have {', '.join(plans['configurations'])}"
        )
    try:
        configuration: dict[str, Any] = PlansManager(deepcopy(plans)).get_configuration(name).configuration
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return configuration


def add_configuration(
    plans: Plans,
    base: str,
    name: str,
    *,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    spacing: Sequence[float] | None = None,
    location: Mapping[str, Any] | None = None,
    architecture: Mapping[str, Any] | None = None,
    keep_topology: bool = False,
    overwrite: bool = False,
) -> Plans:
    """Adds a configuration that inherits from another one and recomputes what depends on the changes.

    A new patch size or spacing brings the pooling nnU-Net would plan for it. A new spacing also brings a
    ``data_identifier`` of its own (the data must be preprocessed again) and a scaled ``median_image_size_in_voxels``.
    In a cascade the previous stage learns about its new successor.

    Args:
        plans: Plans of nnU-Net 2.8; not changed.
        base: The configuration to inherit from, such as ``"3d_fullres"``.
        name: Name of the new configuration.
        patch_size: Voxels, in the plans' axis order (that of the base's ``patch_size``). None: as the base; with a new
            spacing, not larger than the median volume and rounded up to what the new pooling needs, as nnU-Net does.
        batch_size: Patches per batch. None: as the base.
        spacing: Voxel size in mm, in the plans' axis order. None: as the base.
        location: The ``location`` key (:class:`~nnunet_locctx.nnunet.options.LocationOptions`), laid over the base's.
        architecture: Arguments of the planned network (``arch_kwargs``) to replace, such as
            ``{"features_per_stage": [16, 32, 64]}``; lists must have one entry per stage.
        keep_topology: Keep the base's strides and kernels whatever the patch size.
        overwrite: Replace a configuration of that name that differs.

    Returns:
        New plans with the configuration added.

    Raises:
        ValueError: Any value that is not allowed, naming it and what is; a patch size that the pooling does not divide,
            naming the nearest that it does.
    """
    check_plans(plans)
    check_name(name, "configuration's name")
    parent = resolve(plans, base)
    if name == base:
        raise ValueError(f"a configuration cannot inherit from itself; name and base are both {name!r}")
    rank = len(parent["patch_size"])
    added: dict[str, Any] = {"inherits_from": base}
    if batch_size is not None:
        added["batch_size"] = _whole(batch_size, "batch_size")
    if spacing is not None:
        spacing = _numbers(spacing, rank, "spacing")
        if not np.allclose(spacing, parent["spacing"], rtol=1e-6):
            added["spacing"] = spacing
            added["data_identifier"] = f"{plans['plans_name']}_{name}"
            added["median_image_size_in_voxels"] = _scaled(parent, spacing)
    if patch_size is not None:
        if len(patch_size) != rank:
            raise ValueError(f"patch_size needs {rank} numbers for {base!r}, got {list(patch_size)}")
        added["patch_size"] = [_whole(n, "patch_size") for n in patch_size]
    if "patch_size" in added or "spacing" in added:
        added.update(_topology(parent, added, keep_topology))
    if architecture:
        added["architecture"] = _with_arguments(
            added.get("architecture", parent["architecture"]), architecture
        )
    if location is not None:
        merged = _merged_location(parent.get("location", {}), location)
        check_location(merged)
        added["location"] = merged
    extended = deepcopy(plans)
    existing = extended["configurations"].get(name)
    if existing is not None and _without(existing, "next_stage") != added and not overwrite:
        differing = [key for key in {**existing, **added} if existing.get(key) != added.get(key)]
        raise ValueError(
            f"the plans {plans['plans_name']!r} already have a configuration {name!r} that differs in "
            f"{', '.join(differing)}; choose another name or replace it with --force (overwrite=True)"
        )
    if existing is not None and "next_stage" in existing:
        added["next_stage"] = existing["next_stage"]
    extended["configurations"][name] = added
    _join_cascade(extended, name)
    return extended


def check_location(location: Mapping[str, Any]) -> list[str]:
    """Checks the ``location`` key of a configuration against the package's blocks.

    Returns:
        The blocks that take it.

    Raises:
        ValueError: No block takes it; carries what each block says.
    """
    from nnunet_locctx.blocks import BLOCKS
    from nnunet_locctx.nnunet.options import LocationOptions

    configuration = {"location": dict(location)}
    LocationOptions.from_configuration(configuration)
    taking: list[str] = []
    reasons: dict[str, list[str]] = {}
    for block in BLOCKS:
        try:
            LocationOptions.from_configuration(configuration, block)
        except ValueError as error:
            reasons.setdefault(str(error), []).append(block)
        else:
            taking.append(block)
    if not taking:
        told = "; ".join(f"{', '.join(blocks)}: {reason}" for reason, blocks in reasons.items())
        raise ValueError(f"no block takes these location options. {told}")
    return taking


@dataclass(frozen=True)
class Coverage:
    """How much of the median training volume a patch sees; axis order of the plans.

    Attributes:
        patch_size: Voxels.
        spacing: Voxel size in mm.
        median_size: Voxels of the median training volume after resampling.
        fraction: Share of the volume's length that the patch covers, per axis, at most 1.
        patches: Positions of the sliding window in the median volume.
    """

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    median_size: tuple[float, ...]
    fraction: tuple[float, ...]
    patches: int

    def __str__(self) -> str:
        millimetres = [n * size for n, size in zip(self.patch_size, self.spacing, strict=True)]
        volume = [n * size for n, size in zip(self.median_size, self.spacing, strict=True)]
        what = "volume" if len(self.patch_size) == 3 else "slice"
        shares = " x ".join(f"{100 * share:.0f}%" for share in self.fraction)
        return "\n".join(
            [
                f"patch           {_times(self.patch_size)} voxels = {_times(millimetres)} mm",
                f"median {what:<9}{_times(self.median_size)} voxels = {_times(volume)} mm",
                f"the patch sees {shares} = {100 * float(np.prod(self.fraction)):.3g}% of the median {what}",
                f"the sliding window takes {_count(self.patches, 'position')}",
            ]
        )


def coverage(configuration: Mapping[str, Any]) -> Coverage:
    """How much of the median volume a patch of this configuration (inheritance resolved) sees."""
    patch = tuple(int(n) for n in configuration["patch_size"])
    median = tuple(float(n) for n in configuration["median_image_size_in_voxels"])
    steps = [
        int(np.ceil(max(0.0, size - n) / (n * TILE_STEP))) + 1 for size, n in zip(median, patch, strict=True)
    ]
    return Coverage(
        patch_size=patch,
        spacing=tuple(float(size) for size in configuration["spacing"]),
        median_size=median,
        fraction=tuple(min(1.0, n / size) for n, size in zip(patch, median, strict=True)),
        patches=int(np.prod(steps)),
    )


def plan_configuration(
    folder: Path,
    plans_name: str,
    base: str,
    name: str,
    *,
    own_plans_name: str | None = None,
    force: bool = False,
    **changes: Any,
) -> tuple[Plans, bool]:
    """Adds a configuration to a plans file of its own beside the original, which is never changed.

    Args:
        folder: The data set's folder in nnUNet_preprocessed.
        plans_name: The plans to start from, such as ``"nnUNetPlans"``, or a plans file that this function made.
        base: The configuration to inherit from.
        name: Name of the new configuration.
        own_plans_name: Name of the plans file written to; None: ``plans_name`` with ``_locctx`` behind it.
        force: Replace a configuration of that name, and renew plans whose original was planned anew.
        **changes: As for :func:`add_configuration`.

    Returns:
        The plans as written, and whether the file changed.

    Raises:
        ValueError: See :func:`add_configuration`, :func:`~nnunet_locctx.nnunet.plans_file.write_plans`.
    """
    source = read_plans(folder / f"{plans_name}.json")
    if own_plans_name is None:
        own_plans_name = plans_name if is_derived(source) else f"{plans_name}{OWN_PLANS_SUFFIX}"
    file = folder / f"{own_plans_name}.json"
    if is_derived(source) and own_plans_name == plans_name:
        plans = source
    elif file.exists():
        existing = read_plans(file)
        if not is_derived(existing):
            raise ValueError(
                f"{file} was not written by locctx and is left alone; choose another name with --plans-name"
            )
        plans = renew(existing, source, force=force)
    else:
        plans = derive_plans(source, own_plans_name)
    if not is_derived(source) and name in source["configurations"]:
        raise ValueError(
            f"{name!r} is a configuration of {plans_name!r} itself; choose another name for the new one"
        )
    plans = add_configuration(plans, base, name, overwrite=force, **changes)
    return plans, write_plans(plans, file)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be made of whole numbers above 0, got {value!r}")
    return int(value)


def _numbers(values: Sequence[float], rank: int, name: str) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) != rank or not np.isfinite(numbers).all() or min(numbers) <= 0:
        raise ValueError(f"{name} must be {rank} numbers above 0, got {list(values)}")
    return numbers


def _scaled(parent: Mapping[str, Any], spacing: Sequence[float]) -> list[int]:
    sizes = np.array(parent["median_image_size_in_voxels"]) * np.array(parent["spacing"]) / np.array(spacing)
    return [max(1, round(float(n))) for n in sizes]


def _topology(parent: Mapping[str, Any], added: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """Patch size and, where the pooling changes, architecture."""
    patch = added.get("patch_size")
    if patch is None:
        # nnU-Net plans no patch larger than the median volume
        median = added["median_image_size_in_voxels"]
        patch = [min(int(n), size) for n, size in zip(parent["patch_size"], median, strict=True)]
    spacing = added.get("spacing", parent["spacing"])
    kwargs = parent["architecture"]["arch_kwargs"]
    if "strides" not in kwargs or "kernel_sizes" not in kwargs:
        return {"patch_size": patch}  # not a U-Net with planned pooling
    planned = Topology(
        tuple(tuple(map(int, row)) for row in kwargs["strides"]),
        tuple(tuple(map(int, row)) for row in kwargs["kernel_sizes"]),
    )
    topology = planned if keep else plan_topology(spacing, patch)
    sizes = [] if topology.fits(patch) else allowed_sizes(spacing, patch, planned if keep else None)
    if not topology.trainable or not (topology.fits(patch) or sizes):
        raise ValueError(
            f"patch_size {patch} is too small: it can be pooled {len(topology.strides) - 1} times, and nnU-Net's deep "
            f"supervision needs {FEWEST_STAGES - 1}; take at least 16 voxels along two axes"
        )
    if not topology.fits(patch):
        if "patch_size" in added:
            raise ValueError(
                f"patch_size {patch} is not divisible by the network's total stride {list(topology.total_stride)}; "
                f"nearest allowed: {' or '.join(map(str, sizes))}"
            )
        patch = max(sizes)
        topology = planned if keep else plan_topology(spacing, patch)
    result: dict[str, Any] = {"patch_size": patch}
    if topology != planned:
        result["architecture"] = fit_architecture(parent["architecture"], topology)
    return result


def _with_arguments(architecture: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = dict(architecture["arch_kwargs"])
    unknown = sorted(set(arguments) - set(kwargs))
    if unknown:
        raise ValueError(
            f"the planned network does not take {', '.join(unknown)}; it takes {', '.join(kwargs)}"
        )
    kwargs.update(deepcopy(dict(arguments)))
    stages = kwargs.get("n_stages")
    for key in ("features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage", "n_blocks_per_stage"):
        value = kwargs.get(key)
        if stages is not None and isinstance(value, list | tuple) and len(value) != stages:
            raise ValueError(
                f"{key} needs one entry for each of the network's {stages} stages, got {list(value)}"
            )
    return {**architecture, "arch_kwargs": kwargs}


def _merged_location(inherited: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**inherited, **given}
    if isinstance(given.get("block"), Mapping) and isinstance(inherited.get("block"), Mapping):
        merged["block"] = {**inherited["block"], **given["block"]}
    return deepcopy(merged)


def _join_cascade(plans: Plans, name: str) -> None:
    """The previous stage predicts for the stages it knows (``next_stage``), so it must know the new one."""
    previous = resolve(plans, name).get("previous_stage")
    if previous is None or previous not in plans["configurations"]:
        return
    known = resolve(plans, previous).get("next_stage") or []
    known = [known] if isinstance(known, str) else list(known)
    if name not in known:
        plans["configurations"][previous]["next_stage"] = [*known, name]


def _without(configuration: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {k: value for k, value in configuration.items() if k != key}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
