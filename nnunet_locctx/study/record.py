"""``study.json`` in the work folder: the study, what it became in the plans, and on what it ran; read by the report."""

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from nnunet_locctx.files import write_atomically
from nnunet_locctx.nnunet.plans.presets import Preset
from nnunet_locctx.resources import studies_folder
from nnunet_locctx.study.cases import find_splits, raw_cases
from nnunet_locctx.study.fairness import fairness_of
from nnunet_locctx.study.jobs import Jobs
from nnunet_locctx.study.methods import ITERATIONS_PER_EPOCH
from nnunet_locctx.study.model import STUDY, Run, Study, data_name

PACKAGES = ("nnunet-locctx", "nnunetv2", "torch", "monai", "snakemake")

HOURS, EPOCHS, PATCH, BATCH = 9.0, 1000, (128, 128, 128), 2
ASSUMPTION = (
    "9 h for 1000 epochs of nnU-Net's plain 3d_fullres on one A100 40GB PCIe (nnU-Net, "
    "documentation/resenc_presets.md), "
    "taken as 128^3 voxels x 2 and scaled by epochs and by voxels of a batch; the location blocks' own time, other "
    "networks, other GPUs and a slow disk are not in it"
)


def write_study(jobs: Jobs) -> None:
    """Writes what is known of the study so far; values of the plans are null until they are made."""
    jobs.study.work.mkdir(parents=True, exist_ok=True)
    write_atomically(jobs.study.work / STUDY, (json.dumps(describe(jobs), indent=1) + "\n").encode())


def describe(jobs: Jobs) -> dict[str, Any]:
    """The content of ``study.json``."""
    study = jobs.study
    plans = study_plans(study)
    raw = json.loads((study.raw / "dataset.json").read_text(encoding="utf-8"))
    splits = find_splits(study)
    shipped = study.file.parent == studies_folder().resolve()
    same = (
        "name",
        "title",
        "baseline",
        "folds",
        "epochs",
        "seed",
        "device",
        "gpus",
        "papers",
        "postprocessing",
    )
    return {
        "version": 2,
        "study": study.model_dump(mode="json", by_alias=True),
        "scans": jobs.scans,
        **study.model_dump(mode="json", include=set(same)),
        "file": study.file.stem if shipped else str(study.file),  # as `locctx study` takes it
        "dataset": {"id": int(study.number), "name": study.dataset, "raw": str(study.raw)},
        "labels": raw["labels"],
        "channels": raw["channel_names"],
        "methods": [
            {
                **method.model_dump(include={"name", "trainer", "source", "against"}),
                "options": method.options | ({} if method.network is None else {"network": method.network}),
            }
            for method in study.methods
        ],
        "presets": [_preset(preset, plans) for preset in study.presets],
        "iterations_per_epoch": ITERATIONS_PER_EPOCH,
        "robustness": None if study.robustness is None else {"presets": study.robustness.presets},
        "cases": {} if splits is None else {str(fold): splits[fold] for fold in study.folds},
        "test_cases": list(raw_cases(study.raw, "Ts")) if study.test else [],
        "runs": [
            {
                "run": run.slug,
                "method": run.method.name,
                "preset": run.preset.name,
                "trainer": run.method.trainer,
                "plans": study.plans,
                "configuration": run.configuration,
                "model": str(run.model),
            }
            for run in study.runs.values()
        ],
        "fairness": fairness_of(study, plans),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {"system": platform.platform(), "processors": os.cpu_count()},
    }


def study_plans(study: Study) -> Mapping[str, Any] | None:
    """The study's plans, if they are made and hold what the study now asks."""
    from nnunet_locctx.nnunet.plans.plans_file import read_plans

    file = study.preprocessed / f"{study.plans}.json"
    plans = read_plans(file) if file.is_file() else None
    return plans if plans is not None and set(study.configurations) <= set(plans["configurations"]) else None


def _preset(preset: Preset, plans: Mapping[str, Any] | None) -> dict[str, Any]:
    described = {"name": preset.name, "description": preset.description, "data": data_name(preset)}
    if plans is None:
        asked = {key: preset.changes.get(key) for key in ("patch_size", "batch_size", "spacing")}
        return {**described, **asked, "median_size": None, "coverage": None}
    from nnunet_locctx.nnunet.plans.coverage import coverage
    from nnunet_locctx.nnunet.plans.planning import resolve

    resolved = resolve(dict(plans), preset.name)
    covered = coverage(resolved)
    return {
        **described,
        "patch_size": list(covered.patch_size),
        "batch_size": int(resolved["batch_size"]),
        "spacing": list(covered.spacing),
        "median_size": list(covered.median_size),
        "coverage": min(1.0, covered.patch_to_volume),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def batch_of(run: Run, plans: Mapping[str, Any] | None) -> tuple[tuple[int, ...] | None, int | None]:
    """A run's patch in voxels and patches per batch, from the study's plans or the preset; None where neither tells."""
    values: Mapping[str, Any] = run.preset.changes
    if plans is not None:
        from nnunet_locctx.nnunet.plans.planning import resolve

        values = resolve(dict(plans), run.configuration)
    patch = values.get("patch_size")
    return None if patch is None else tuple(patch), values.get("batch_size")


def expected_hours(patch: tuple[int, ...] | None, batch: int | None, epochs: int) -> float:
    """Hours of one training on one A100; unknown sizes are taken as those of the published time."""
    voxels = float(np.prod(patch or PATCH)) * (batch or BATCH)
    return HOURS * epochs / EPOCHS * voxels / (float(np.prod(PATCH)) * BATCH)
