"""Warnings about a configuration that does not fit its data, given before anything is preprocessed or trained."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_locctx.nnunet.data.fitted import COMMANDS, PREFIX, REGRESSOR, WITHOUT_FIT
from nnunet_locctx.nnunet.plans.plans_file import Plans
from nnunet_locctx.nnunet.plans.presets import MadeFor
from nnunet_locctx.nnunet.plans.suitability import Suitability
from nnunet_locctx.nnunet.plans.topology import Topology

FOLDS = 5
FEWEST_CASES_FOR_A_TEST = 6
"""The two-sided Wilcoxon signed-rank test of n pairs cannot fall below 2^(1 - n): 0.0625 for 5, 0.031 for 6."""

DOWNSAMPLING = 2.0


def misfits(
    folder: Path,
    plans: Plans,
    configuration: Mapping[str, Any],
    suitable: Suitability,
    made_for: MadeFor | None = None,
) -> list[str]:
    """Sentences on what does not fit; none if all does.

    Args:
        folder: The dataset's folder in nnUNet_preprocessed. Its ``dataset.json`` is read if it is there.
        plans: The plans of the configuration.
        configuration: Inheritance resolved.
        suitable: The trainers that take the configuration, and why the others do not.
        made_for: What the preset expects; None: a configuration without preset.
    """
    made_for = made_for or MadeFor()
    return [
        *_patch(configuration),
        *_voxels(plans, configuration, made_for),
        *_images(folder, configuration, made_for),
        *_location(folder, configuration),
        *_cases(folder),
        *_trainers(suitable, made_for),
    ]


def description(folder: Path) -> dict[str, Any]:
    """The dataset's ``dataset.json``, of which nnU-Net puts a copy beside the plans; empty if it is not there."""
    try:
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _patch(configuration: Mapping[str, Any]) -> Iterator[str]:
    """nnU-Net itself rounds a patch up to what the pooling needs; more than that is background."""
    patch, median = configuration["patch_size"], configuration["median_image_size_in_voxels"]
    kwargs = configuration["architecture"]["arch_kwargs"]
    strides = Topology.of(kwargs).total_stride if "strides" in kwargs else (1,) * len(patch)
    longer = [
        f"{axis} ({length} voxels, the volume has {size:g})"
        for axis, (length, size, stride) in enumerate(zip(patch, median, strides, strict=True))
        if length > -(-size // stride) * stride
    ]
    if longer:
        yield f"The patch is longer than the median volume along axis {', '.join(longer)}: the rest of it is padding."


def _voxels(plans: Plans, configuration: Mapping[str, Any], made_for: MadeFor) -> Iterator[str]:
    spacing = configuration["spacing"]
    measured = plans.get("original_median_spacing_after_transp", spacing)[-len(spacing) :]
    for axis, (new, old) in enumerate(zip(spacing, measured, strict=True), start=3 - len(spacing)):
        if old / new > made_for.upsampling * 1.01:
            yield (
                f"Axis {axis} is resampled from {old:.3g} mm (median of the scans) to {new:.3g} mm: {old / new:.2g} "
                "times as many voxels as were measured."
            )
        elif new / old > DOWNSAMPLING * 1.01:
            yield (
                f"Axis {axis} is resampled from {old:.3g} mm (median of the scans) to {new:.3g} mm: what is smaller "
                "than that is lost."
            )


def _images(folder: Path, configuration: Mapping[str, Any], made_for: MadeFor) -> Iterator[str]:
    schemes = configuration["normalization_schemes"]
    names = description(folder).get("channel_names", {}).values()
    listed = f" ({', '.join(map(str, names))})" if names else ""
    if made_for.channels is not None and len(schemes) != made_for.channels:
        yield f"The preset is for {_count(made_for.channels, 'channel')}, the scans have {len(schemes)}{listed}."
    ct = "CTNormalization" in schemes
    if made_for.modality == "CT" and not ct:
        yield (
            f"The preset is for CT; no channel of the scans{listed} is normalised as CT ({', '.join(schemes)}). If "
            'they are CT, name the channel "CT" in dataset.json and plan again.'
        )
    if made_for.modality == "MR" and ct:
        yield f"The preset is for MR; the scans{listed} are CT."


def source_to_fit(folder: Path, configuration: Mapping[str, Any]) -> str:
    """The source that `locctx fit` must fit before a training; empty if the source needs no fit or has one."""
    source = configuration.get("location", {}).get("source")
    by_fit = source in COMMANDS and source not in WITHOUT_FIT
    return COMMANDS[source] if by_fit and not (folder / (PREFIX + source) / REGRESSOR).is_file() else ""


def _location(folder: Path, configuration: Mapping[str, Any]) -> Iterator[str]:
    if source_to_fit(folder, configuration):
        source = configuration["location"]["source"]
        command = f"locctx fit {COMMANDS[source]} -d {int(folder.name[7:10])}"
        yield f"The location source {source!r} is not fitted on this dataset yet: {command}"


def _cases(folder: Path) -> Iterator[str]:
    cases = description(folder).get("numTraining")
    if not isinstance(cases, int) or cases >= FEWEST_CASES_FOR_A_TEST:
        return
    if cases < FOLDS:
        yield f"{_count(cases, 'training case')} cannot be split into nnU-Net's {FOLDS} folds."
    else:
        yield (
            f"{_count(cases, 'training case')}: a paired test over them (Wilcoxon) cannot fall below "
            f"p = {2 ** (1 - cases):g}, so no difference between methods can be shown."
        )


def _trainers(suitable: Suitability, made_for: MadeFor) -> Iterator[str]:
    for reason, names in suitable.reasons.items():
        refused = [name for name in made_for.trainers if name in names]
        if refused:
            yield f"{', '.join(refused)} {'does' if len(refused) == 1 else 'do'} not take it: {reason}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
