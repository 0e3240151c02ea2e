"""The resolved study, ``study.json``: what was asked, what it became in the plans, and on what it ran."""

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_locctx.resources import studies_folder
from nnunet_locctx.study.definition import Study
from nnunet_locctx.study.fairness import fairness_of
from nnunet_locctx.study.runs import data_name, runs_of
from nnunet_locctx.study.splits import find_splits, raw_cases
from nnunet_locctx.study.trainer_names import ITERATIONS_PER_EPOCH
from nnunet_locctx.study.work_folder import WorkFolder, write_json

PACKAGES = ("nnunet-locctx", "nnunetv2", "torch", "monai", "snakemake")


def write_study(study: Study) -> None:
    """Writes what is known of the study so far; values of the plans are null until they are made."""
    write_json(WorkFolder(study.work).study, describe(study))


def describe(study: Study) -> dict[str, Any]:
    """The content of ``study.json``."""
    plans = study_plans(study)
    raw = json.loads((study.raw / "dataset.json").read_text(encoding="utf-8"))
    splits = find_splits(study)
    return {
        "version": 1,
        "name": study.name,
        "title": study.title,
        "file": _called(study.file),
        "dataset": {"id": int(study.dataset[7:10]), "name": study.dataset, "raw": str(study.raw)},
        "labels": raw["labels"],
        "channels": raw["channel_names"],
        "baseline": study.baseline,
        "methods": [
            {
                "name": method.name,
                "trainer": method.trainer.name,
                "source": method.source,
                "against": method.against,
                "options": {
                    **method.options,
                    **({} if method.network is None else {"network": method.network}),
                },
            }
            for method in study.methods
        ],
        "presets": [_preset(study, preset.name, plans) for preset in study.presets],
        "folds": list(study.folds),
        "epochs": study.epochs,
        "iterations_per_epoch": ITERATIONS_PER_EPOCH,
        "seed": study.seed,
        "device": study.device,
        "gpus": study.gpus,
        "papers": list(study.papers),
        "postprocessing": list(study.postprocessing),
        "robustness": None if study.robustness is None else {"presets": list(study.robustness.presets)},
        "cases": {} if splits is None else {str(fold): splits[fold] for fold in study.folds},
        "test_cases": raw_cases(study.raw, "Ts") if study.test else [],
        "runs": [
            {
                "run": run.slug,
                "method": run.method.name,
                "preset": run.preset.name,
                "trainer": run.method.trainer.name,
                "plans": study.plans,
                "configuration": run.configuration,
                "model": str(run.model),
            }
            for run in runs_of(study)
        ],
        "fairness": fairness_of(study, plans),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {"system": platform.platform(), "processors": os.cpu_count()},
    }


def study_plans(study: Study) -> Mapping[str, Any] | None:
    """The study's plans, if they are made and hold what the study now asks."""
    from nnunet_locctx.nnunet.plans.plans_file import read_plans

    file = study.preprocessed / f"{study.plans}.json"
    if not file.is_file():
        return None
    plans = read_plans(file)
    wanted = {run.configuration for run in runs_of(study)} | {preset.name for preset in study.presets}
    return plans if wanted <= set(plans["configurations"]) else None


def _called(file: Path) -> str:
    """How `locctx study` was given the file: those of the package have a name."""
    shipped = file.parent.resolve() == studies_folder().resolve()
    return file.stem if shipped else str(file)


def _preset(study: Study, name: str, plans: Mapping[str, Any] | None) -> dict[str, Any]:
    preset = study.preset(name)
    found: dict[str, Any] = {
        "name": name,
        "description": preset.description,
        "data": data_name(preset),
    }
    if plans is None:
        asked = {key: preset.changes.get(key) for key in ("patch_size", "batch_size", "spacing")}
        return {**found, **asked, "median_size": None, "coverage": None}
    from nnunet_locctx.nnunet.plans.coverage import coverage
    from nnunet_locctx.nnunet.plans.planning import resolve

    resolved = resolve(dict(plans), name)
    seen = coverage(resolved)
    return {
        **found,
        "patch_size": list(seen.patch_size),
        "batch_size": int(resolved["batch_size"]),
        "spacing": list(seen.spacing),
        "median_size": list(seen.median_size),
        "coverage": min(1.0, seen.patch_to_volume),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
