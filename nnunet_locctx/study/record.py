"""``study.json`` in the work folder: the study, what it became in the plans, and on what it ran; read by the report."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from nnunet_locctx.files import write_atomically
from nnunet_locctx.nnunet.plans.presets import Preset
from nnunet_locctx.resources import studies_folder
from nnunet_locctx.study.cases import find_splits, raw_cases
from nnunet_locctx.study.jobs import Jobs
from nnunet_locctx.study.methods import ITERATIONS_PER_EPOCH
from nnunet_locctx.study.model import STUDY, Study
from nnunet_locctx.study.runs import Run, data_name
from nnunet_locctx.study.train import FINGERPRINT

Entry = dict[str, Any]

PACKAGES = ("nnunet-locctx", "nnunetv2", "torch", "monai", "snakemake")


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
        "seeds",
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
                "seed": run.seed,
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


def fairness_of(study: Study, plans: Mapping[str, Any] | None) -> list[Entry]:
    """One entry for each thing that should be the same: ``what``, ``holds``, ``detail``.

    Args:
        study: The study.
        plans: Its plans, None before they are made.
    """
    runs = list(study.runs.values())
    records = {
        (run.slug, fold): _read(study.work / "runs" / run.slug / f"fold_{fold}" / "training.json")
        for run in runs
        for fold in study.folds
    }
    trained = {key: record for key, record in records.items() if record}
    known = (
        "as planned, no training is finished"
        if not trained
        else f"{len(trained)} of {len(records)} trainings looked at"
    )
    return [
        _cases(study, runs),
        _plan_values(study, runs, plans, "the same preprocessed data at each preset", ("data_identifier",)),
        _plan_values(
            study, runs, plans, "the same patch and batch size at each preset", ("patch_size", "batch_size")
        ),
        _iterations(study, runs, trained, known),
        _seeds(study, trained, known),
        _order(study, trained),
        _recipes(study),
        _augmentation(study),
        _devices(trained, known),
    ]


def _read(file: Path) -> dict[str, Any]:
    """A JSON table; empty if there is none or it cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _entry(what: str, problems: Sequence[str], detail: str) -> Entry:
    return {"what": what, "holds": not problems, "detail": "; ".join(problems) if problems else detail}


def _cases(study: Study, runs: Sequence[Run]) -> Entry:
    problems, looked = [], 0
    for fold in study.folds:
        seen: dict[str, list[str]] = {}
        for run in runs:
            split = _read(run.model / f"fold_{fold}" / FINGERPRINT).get("fingerprint", {}).get("split")
            if split is not None:
                looked += 1
                seen.setdefault(str(split), []).append(run.slug)
        if len(seen) > 1:
            problems.append(f"fold {fold}: {' | '.join(', '.join(names) for names in seen.values())} differ")
    detail = f"one splits_final.json; {looked} of {len(runs) * len(study.folds)} trainings compared with it"
    return _entry("the same cases to train and to validate with in each fold", problems, detail)


def _plan_values(
    study: Study, runs: Sequence[Run], plans: Mapping[str, Any] | None, what: str, keys: Sequence[str]
) -> Entry:
    if plans is None:
        return _entry(what, [], "every method inherits from the preset's configuration; not planned yet")
    from nnunet_locctx.nnunet.plans.planning import resolve

    problems, seen_at = [], []
    for preset in study.presets:
        seen: dict[str, list[str]] = {}
        for run in runs:
            if run.preset.name == preset.name and run.configuration in plans["configurations"]:
                resolved = resolve(dict(plans), run.configuration)
                seen.setdefault(", ".join(str(resolved[key]) for key in keys), []).append(run.method.name)
        seen_at.append(f"{preset.name}: {' | '.join(seen)}")
        if len(seen) > 1:
            problems.append(
                f"{preset.name}: "
                + " | ".join(f"{', '.join(dict.fromkeys(names))}: {value}" for value, names in seen.items())
            )
    return _entry(what, problems, "; ".join(seen_at))


def _iterations(study: Study, runs: Sequence[Run], trained: Mapping[Any, Entry], known: str) -> Entry:
    planned = {run.method.name: run.method.epochs for run in runs}
    done = sorted({int(record["iterations"]) for record in trained.values() if record.get("iterations")})
    problems = []
    if len(set(planned.values())) > 1:
        problems.append(", ".join(f"{name}: {epochs} epochs" for name, epochs in planned.items()))
    if len(done) > 1 and not problems:
        problems.append(f"trainings of {', '.join(map(str, done))} iterations")
    told = f"{done[0]} iterations" if len(done) == 1 else f"{study.epochs} epochs"
    return _entry("the same number of iterations", problems, f"{told}; {known}")


def _seeds(study: Study, trained: Mapping[Any, Entry], known: str) -> Entry:
    problems = [
        f"{run}, fold {fold}: trained with seed {record.get('seed')} instead of {study.runs[run].seed}"
        for (run, fold), record in trained.items()
        if record.get("seed") != study.runs[run].seed
    ]
    several = "s" if len(study.seeds) > 1 else ""
    seeds = ", ".join(map(str, study.seeds))
    return _entry(
        f"the same seed{several} of weights and patches", problems, f"seed{several} {seeds}; {known}"
    )


def _order(study: Study, trained: Mapping[Any, Entry]) -> Entry:
    # jitter and dropout of the location draw from a generator of their own, which moves nobody else's numbers
    problems = []
    if study.processes > 1:
        problems.append(
            f"{study.processes} processes augment at once: each is seeded, but the order of their patches is not fixed "
            "(processes: 1 fixes it)"
        )
    resumed = [f"{run}, fold {fold}" for (run, fold), record in trained.items() if record.get("resumed")]
    if resumed:
        problems.append(f"resumed trainings draw other patches from there on: {', '.join(resumed)}")
    return _entry("the same patches in the same order", problems, "one seeded process augments")


def _recipes(study: Study) -> Entry:
    own = [f"{method.name}: {method.recipe}" for method in study.methods if method.recipe]
    return _entry(
        "the same optimiser and learning rates",
        own,
        "nnU-Net's: SGD, rate 0.01 falling to 0 (poly), momentum 0.99",
    )


def _augmentation(study: Study) -> Entry:
    kinds: dict[tuple[str, ...], list[str]] = {}
    for method in study.methods:
        kind = tuple(sorted({part.lower() for part in method.variants} - {"nnunetschedule"}))
        kinds.setdefault(kind, []).append(method.name)
    told = [f"{', '.join(names)}: {', '.join(kind) or 'as nnU-Net'}" for kind, names in kinds.items()]
    detail = next(iter(told)).split(": ")[-1] if len(told) == 1 else ""
    return _entry("the same augmentation and variant of the trainer", told if len(told) > 1 else [], detail)


def _devices(trained: Mapping[Any, Entry], known: str) -> Entry:
    devices = sorted({str(record.get("gpu") or record.get("device")) for record in trained.values()})
    problems = [f"trained on {' and '.join(devices)}"] if len(devices) > 1 else []
    return _entry("the same kind of device", problems, f"{', '.join(devices) or 'unknown'}; {known}")
