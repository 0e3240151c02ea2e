"""Adds configurations to nnU-Net's plans: another patch, batch size or spacing, and how location is used."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_locctx.locks import one_at_a_time
from nnunet_locctx.names import check_known, check_options
from nnunet_locctx.nnunet.plans.coverage import Coverage, coverage
from nnunet_locctx.nnunet.plans.identifiers import data_identifier
from nnunet_locctx.nnunet.plans.plans_file import (
    Plans,
    check_name,
    check_plans,
    derive_plans,
    is_derived,
    read_plans,
    renew,
    write_plans,
)
from nnunet_locctx.nnunet.plans.topology import (
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
    "plan_configurations",
    "read_plans",
    "resolve",
    "write_plans",
]

OWN_PLANS_SUFFIX = "_locctx"


def resolve(plans: Plans, name: str) -> dict[str, Any]:
    """A configuration with everything it inherits.

    Raises:
        ValueError: No such configuration, or inheritance goes in a circle.
    """
    check_known([name], plans["configurations"], "configuration of the plans:")

    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

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
    batch_dice: bool | None = None,
    spacing: Sequence[float] | None = None,
    location: Mapping[str, Any] | None = None,
    architecture: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
    keep_topology: bool = False,
    overwrite: bool = False,
) -> Plans:
    """Adds a configuration that inherits from another one and recomputes what depends on the changes.

    A new patch size or spacing brings the pooling nnU-Net would plan for it. A new spacing also brings a
    ``data_identifier`` of its own, shared by all configurations that are preprocessed alike (the data must be
    preprocessed again), and a scaled ``median_image_size_in_voxels``.
    In a cascade the previous stage learns about its new successor.

    Args:
        plans: Plans of nnU-Net 2.8; not changed.
        base: The configuration to inherit from, such as ``"3d_fullres"``.
        name: Name of the new configuration.
        patch_size: Voxels, in the plans' axis order (that of the base's ``patch_size``). None: as the base; with a new
            spacing, not larger than the median volume and rounded up to what the new pooling needs, as nnU-Net does.
        batch_size: Patches per batch. None: as the base.
        batch_dice: Whether the Dice loss is that of the batch's patches taken together. Where small patches hold few of
            the classes, nnU-Net's Dice per patch rewards calling everything background. None: as the base.
        spacing: Voxel size in mm, in the plans' axis order. None: as the base.
        location: The ``location`` key (:class:`~nnunet_locctx.nnunet.options.LocationOptions`), laid over the base's.
        architecture: Arguments of the planned network (``arch_kwargs``) to replace, such as
            ``{"features_per_stage": [16, 32, 64]}``; lists must have one entry per stage.
        network: The ``network`` key, options of a network that replaces the planned one, laid over the base's. A
            configuration with this key, empty or not, is not bound to the pooling nnU-Net would plan: a patch size
            that this does not divide keeps the base's architecture, and is for the trainers that can take it.
        keep_topology: Keep the base's strides and kernels whatever the patch size.
        overwrite: Replace a configuration of that name that differs.

    Returns:
        New plans with the configuration added.

    Raises:
        ValueError: Any value that is not allowed, naming it and what is; a patch size that the pooling does not divide,
            naming the nearest that it does; with ``network``, if no trainer takes the configuration.
    """
    check_plans(plans)
    check_name(name, "configuration's name")
    parent = resolve(plans, base)
    if name == base:
        raise ValueError(f"a configuration cannot inherit from itself; name and base are both {name!r}")
    rank = len(parent["patch_size"])
    added: dict[str, Any] = {"inherits_from": base}
    if network is not None:
        if not isinstance(network, Mapping):
            raise ValueError(f"network must be a table of options, got {network!r}")
        added["network"] = deepcopy({**parent.get("network", {}), **network})
    if batch_size is not None:
        added["batch_size"] = _whole(batch_size, "batch_size")
    if batch_dice is not None:
        if not isinstance(batch_dice, bool):
            raise ValueError(f"batch_dice must be true or false, got {batch_dice!r}")
        added["batch_dice"] = batch_dice
    if spacing is not None:
        spacing = _numbers(spacing, rank, "spacing")
        if not np.allclose(spacing, parent["spacing"], rtol=1e-6):
            added["spacing"] = spacing
            added["data_identifier"] = data_identifier(plans, name, {**parent, "spacing": spacing})
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
            f"{', '.join(differing)}; choose another name or replace it with `locctx plan --force` (overwrite=True)"
        )
    if existing is not None and "next_stage" in existing:
        added["next_stage"] = existing["next_stage"]
    extended["configurations"][name] = added
    _join_cascade(extended, name)
    if "network" in {**parent, **added}:
        _check_trainers(resolve(extended, name))
    return extended


def check_location(location: Mapping[str, Any]) -> list[str]:
    """Checks the ``location`` key of a configuration against the package's blocks.

    Returns:
        The blocks that take it.

    Raises:
        ValueError: No block takes it; carries what each block says.
    """
    from nnunet_locctx.nnunet.options import LocationOptions

    configuration = {"location": dict(location)}
    LocationOptions.from_configuration(configuration)  # without torch, so that a mistake is told at once

    from nnunet_locctx.blocks import BLOCKS

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
        listed = "; ".join(f"{', '.join(blocks)}: {reason}" for reason, blocks in reasons.items())
        raise ValueError(f"no block takes these location options. {listed}")
    return taking


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
        folder: The dataset's folder in nnUNet_preprocessed.
        plans_name: The plans to start from, such as ``"nnUNetPlans"``, or a plans file that this function made.
        base: The configuration to inherit from.
        name: Name of the new configuration.
        own_plans_name: Name of the plans file written to; None: ``plans_name`` with ``_locctx`` behind it.
        force: Replace a configuration of that name, and renew plans whose original was planned anew.
        **changes: As for :func:`add_configuration`.

    Returns:
        The plans as written, and whether the file changed.

    Raises:
        ValueError: See :func:`add_configuration`, :func:`~nnunet_locctx.nnunet.plans.plans_file.write_plans`.
    """
    return plan_configurations(
        folder, plans_name, base, {name: changes}, own_plans_name=own_plans_name, force=force
    )


def plan_configurations(
    folder: Path,
    plans_name: str,
    base: str,
    configurations: Mapping[str, Mapping[str, Any]],
    *,
    own_plans_name: str | None = None,
    force: bool = False,
    dry: bool = False,
) -> tuple[Plans, bool]:
    """Adds several configurations at once, all or none. Two calls for one file come one after the other.

    Args:
        configurations: Name -> changes, as for :func:`add_configuration`.
        dry: Only refuse what cannot be added; nothing is written.

    The other arguments, what is returned and what is raised: see :func:`plan_configuration`.
    """
    source = read_plans(folder / f"{plans_name}.json")
    if own_plans_name is None:
        own_plans_name = plans_name if is_derived(source) else f"{plans_name}{OWN_PLANS_SUFFIX}"
    check_name(own_plans_name, "plans' name")
    file = folder / f"{own_plans_name}.json"

    def extended() -> Plans:
        source = read_plans(folder / f"{plans_name}.json")
        plans = source if file.stem == plans_name and is_derived(source) else _own_plans(source, file, force)
        for name, changes in configurations.items():
            if not is_derived(source) and name in source["configurations"]:
                raise ValueError(
                    f"{name!r} is a configuration of {plans_name!r} itself; choose another name for the new one"
                )
            plans = add_configuration(plans, base, name, overwrite=force, **changes)
        return plans

    plans = extended()  # what cannot be used is refused before the lock's file is made
    if dry:
        return plans, False
    # read, extended and written by one at a time: what another one adds meanwhile must not be lost
    with one_at_a_time(folder / f"{own_plans_name}.lock", file.name):
        plans = extended()
        return plans, write_plans(plans, file)


def _own_plans(source: Plans, file: Path, force: bool) -> Plans:
    """Our plans on top of a source, with what was added to them so far."""
    if not file.exists():
        return derive_plans(source, file.stem)
    existing = read_plans(file)
    if not is_derived(existing):
        raise ValueError(
            f"{file} was not written by locctx and is left alone; choose another name with --plans-name"
        )
    return renew(existing, source, force=force)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be made of whole numbers above 0, got {value!r}")
    return int(value)


def _numbers(values: Sequence[float], rank: int, name: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
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
    planned = Topology.of(kwargs)
    topology = planned if keep else plan_topology(spacing, patch)
    sizes = [] if topology.fits(patch) else allowed_sizes(spacing, patch, planned if keep else None)
    own_network = "patch_size" in added and "network" in {**parent, **added}
    if own_network and not (topology.trainable and topology.fits(patch)):
        return {"patch_size": patch}
    if not topology.trainable or not (topology.fits(patch) or sizes):
        raise ValueError(
            f"patch_size {patch} is too small: it can be pooled {len(topology.strides) - 1} times, and nnU-Net's deep "
            f"supervision needs {FEWEST_STAGES - 1}; take at least 16 voxels along two axes"
        )
    if not topology.fits(patch):
        if "patch_size" in added:
            raise ValueError(
                f"patch_size {patch} is not divisible by the network's total stride {list(topology.total_stride)}; "
                f"nearest allowed: {' or '.join(map(str, sizes))}. For trainers with a network of their own alone, add "
                "--network (network={})"
            )
        patch = max(sizes)
        topology = planned if keep else plan_topology(spacing, patch)
    result: dict[str, Any] = {"patch_size": patch}
    if topology != planned:
        result["architecture"] = fit_architecture(parent["architecture"], topology)
    return result


def _check_trainers(configuration: Mapping[str, Any]) -> None:
    from nnunet_locctx.nnunet.plans.suitability import suitable_trainers

    suitability = suitable_trainers(configuration)
    if not suitability.names:
        raise ValueError(f"no trainer takes this configuration. {suitability.explained()}")


def _with_arguments(architecture: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = dict(architecture["arch_kwargs"])
    check_options(arguments, kwargs, "the planned network")
    kwargs.update(deepcopy(dict(arguments)))
    stages = kwargs.get("n_stages")
    for key in ("features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage", "n_blocks_per_stage"):
        value = kwargs.get(key)
        if stages is not None and isinstance(value, list | tuple) and len(value) != stages:
            raise ValueError(
                f"{key} needs one entry for each of the network's {stages} stages, got {list(value)}"
            )
    return {**architecture, "arch_kwargs": kwargs}


def _merged_location(inherited: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**inherited, **changes}
    if isinstance(changes.get("block"), Mapping) and isinstance(inherited.get("block"), Mapping):
        merged["block"] = {**inherited["block"], **changes["block"]}
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
