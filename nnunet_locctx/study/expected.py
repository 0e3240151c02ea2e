"""GPU hours that a study's trainings are expected to take, from a time that nnU-Net publishes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_locctx.study.definition import Study
from nnunet_locctx.study.runs import Run

HOURS, EPOCHS, PATCH, BATCH = 9.0, 1000, (128, 128, 128), 2
ASSUMPTION = (
    "9 h for 1000 epochs of nnU-Net's plain 3d_fullres on one A100 40GB PCIe (nnU-Net, "
    "documentation/resenc_presets.md), "
    "taken as 128^3 voxels x 2 and scaled by epochs and by voxels of a batch; the location blocks' own time, other "
    "networks, other GPUs and a slow disk are not in it"
)


@dataclass(frozen=True)
class Size:
    """Patch in voxels and patches per batch; None where only the plans will tell."""

    patch: tuple[int, ...] | None
    batch: int | None


def size_of(run: Run, study: Study, plans: Mapping[str, Any] | None) -> Size:
    """Size of a run's batches, from the study's plans if they are there, else from the preset."""
    if plans is not None and run.configuration in plans["configurations"]:
        from nnunet_locctx.nnunet.plans.planning import resolve

        resolved = resolve(dict(plans), run.configuration)
        return Size(tuple(resolved["patch_size"]), int(resolved["batch_size"]))
    patch = run.preset.changes.get("patch_size")
    return Size(None if patch is None else tuple(patch), run.preset.changes.get("batch_size"))


def expected_hours(size: Size, epochs: int) -> float:
    """Hours of one training on one A100; unknown sizes are taken as those of the published time."""
    voxels = float(np.prod(size.patch or PATCH)) * (size.batch or BATCH)
    return HOURS * epochs / EPOCHS * voxels / (float(np.prod(PATCH)) * BATCH)
