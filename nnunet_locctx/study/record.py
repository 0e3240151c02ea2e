"""``study.json`` in the work folder: the study, its values in the plans, and on what it ran; the report reads it."""

import json
import os
import platform
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from nnunet_locctx.nnunet.plans.presets import Preset
from nnunet_locctx.resources import studies_folder
from nnunet_locctx.study.cases import find_splits, labelled_tests
from nnunet_locctx.study.jobs import Job, Jobs
from nnunet_locctx.study.methods import ITERATIONS_PER_EPOCH, data_name
from nnunet_locctx.study.model import STUDY, Study
from nnunet_locctx.study.settings import read_object, write_json
from nnunet_locctx.study.train import FINGERPRINT

Plans = Mapping[str, Any]
Entry = dict[str, Any]
Records = Mapping[tuple[str, int], Mapping[str, Any]]
"""(Run, fold) -> training.json."""

PACKAGES = ("nnunet-locctx", "nnunetv2", "torch", "monai", "snakemake")


def write_study(jobs: Jobs) -> None:
    """Writes what is known of the study so far; values of the plans are null until they are made."""
    write_json(jobs.study.work / STUDY, describe(jobs))


def describe(jobs: Jobs) -> dict[str, Any]:
    """The content of ``study.json``."""
    study = jobs.study
    plans = study_plans(study)
    raw = json.loads((study.raw / "dataset.json").read_text(encoding="utf-8"))
    splits = find_splits(study)
    shipped = study.file.parent == studies_folder().resolve()
    as_asked = {"name", "title", "baseline", "folds", "epochs", "seeds", "device", "gpus", "papers"}
    return {
        "version": 2,
        "study": study.model_dump(mode="json", by_alias=True),
        "scans": jobs.scans,
        **study.model_dump(mode="json", include={*as_asked, "postprocessing"}),
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
        "test_cases": labelled_tests(study) if study.test else [],
        "made": {job.output: jobs.identity(job) for job in jobs.all()},
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


def study_plans(study: Study) -> Plans | None:
    """The study's plans, if they are made and hold what the study now asks."""
    from nnunet_locctx.nnunet.plans.plans_file import read_plans

    file = study.preprocessed / f"{study.plans}.json"
    plans = read_plans(file) if file.is_file() else None
    return plans if plans is not None and set(study.configurations) <= set(plans["configurations"]) else None


def _preset(preset: Preset, plans: Plans | None) -> dict[str, Any]:
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
    installed = {name: list(metadata.distributions(name=name)) for name in PACKAGES}
    return {name: distributions[0].version for name, distributions in installed.items() if distributions}


def fairness_of(study: Study, plans: Plans | None) -> list[Entry]:
    """One entry for each thing that should be the same: ``what``, ``holds``, ``detail``.

    Args:
        study: The study.
        plans: Its plans, None before they are made.
    """
    trainings = [(run, fold) for run in study.runs for fold in study.folds]
    outputs = {(run, fold): Job("train", {"run": run, "fold": str(fold)}).output for run, fold in trainings}
    records = {key: read_object(study.work / output) for key, output in outputs.items()}
    trained = {key: record for key, record in records.items() if record}
    seen = f"{len(trained)} of {len(records)} trainings looked at"
    seen = seen if trained else "as planned, no training is finished"
    patch = ("patch_size", "batch_size")
    return [
        _cases(study),
        _plan_values(study, plans, "the same preprocessed data at each preset", ("data_identifier",)),
        _plan_values(study, plans, "the same patch and batch size at each preset", patch),
        _iterations(study, trained, seen),
        _seeds(study, trained, seen),
        _order(study, trained),
        _recipes(study),
        _losses(study, plans),
        _augmentation(study),
        _devices(trained, seen),
    ]


def _entry(what: str, problems: Sequence[str], detail: str) -> Entry:
    return {"what": what, "holds": not problems, "detail": "; ".join(problems) if problems else detail}


def _names_by_value(named: Iterable[tuple[Hashable, str]]) -> dict[Any, list[str]]:
    """Value -> the names of what has it."""
    names: dict[Any, list[str]] = defaultdict(list)
    for value, name in named:
        names[value].append(name)
    return names


def _cases(study: Study) -> Entry:
    problems, compared = [], 0
    for fold in study.folds:
        files = {run.slug: run.model / f"fold_{fold}" / FINGERPRINT for run in study.runs.values()}
        fingerprints = {name: read_object(file).get("fingerprint", {}) for name, file in files.items()}
        splits = [(str(known["split"]), name) for name, known in fingerprints.items() if known.get("split")]
        compared += len(splits)
        groups = _names_by_value(splits).values()
        if len(groups) > 1:
            problems.append(f"fold {fold}: {' | '.join(', '.join(names) for names in groups)} differ")
    total = len(study.runs) * len(study.folds)
    detail = f"one splits_final.json; {compared} of {total} trainings compared with it"
    return _entry("the same cases to train and to validate with in each fold", problems, detail)


def _plan_values(study: Study, plans: Plans | None, what: str, keys: Sequence[str]) -> Entry:
    if plans is None:
        return _entry(what, [], "every method inherits from the preset's configuration; not planned yet")
    from nnunet_locctx.nnunet.plans.planning import resolve

    problems, details = [], []
    for preset in study.presets:
        runs = [run for run in study.runs.values() if run.preset.name == preset.name]
        resolved = {run.slug: resolve(dict(plans), run.configuration) for run in runs}
        groups = _names_by_value(
            (", ".join(str(resolved[run.slug][key]) for key in keys), run.method.name) for run in runs
        )
        details.append(f"{preset.name}: {' | '.join(groups)}")
        if len(groups) > 1:
            texts = [f"{', '.join(dict.fromkeys(names))}: {value}" for value, names in groups.items()]
            problems.append(f"{preset.name}: {' | '.join(texts)}")
    return _entry(what, problems, "; ".join(details))


def _iterations(study: Study, trained: Records, seen: str) -> Entry:
    planned = {run.method.name: run.method.epochs for run in study.runs.values()}
    done = sorted({int(record["iterations"]) for record in trained.values() if record.get("iterations")})
    problems = []
    if len(set(planned.values())) > 1:
        problems = [", ".join(f"{name}: {epochs} epochs" for name, epochs in planned.items())]
    elif len(done) > 1:
        problems = [f"trainings of {', '.join(map(str, done))} iterations"]
    length = f"{done[0]} iterations" if len(done) == 1 else f"{study.epochs} epochs"
    return _entry("the same number of iterations", problems, f"{length}; {seen}")


def _seeds(study: Study, trained: Records, seen: str) -> Entry:
    problems = [
        f"{run}, fold {fold}: trained with seed {record.get('seed')} instead of {study.runs[run].seed}"
        for (run, fold), record in trained.items()
        if record.get("seed") != study.runs[run].seed
    ]
    seed = "seeds" if len(study.seeds) > 1 else "seed"
    detail = f"{seed} {', '.join(map(str, study.seeds))}; {seen}"
    return _entry(f"the same {seed} of weights and patches", problems, detail)


def _order(study: Study, trained: Records) -> Entry:
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
    usual = "nnU-Net's: SGD, rate 0.01 falling to 0 (poly), momentum 0.99"
    return _entry("the same optimiser and learning rates", own, usual)


def _losses(study: Study, plans: Plans | None) -> Entry:
    from nnunet_locctx.nnunet.plans.planning import resolve
    from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
    from nnunet_locctx.nnunet.training.trainers import find_trainer

    problems = []
    for run in study.runs.values():
        trainer = find_trainer(run.method.trainer)
        if trainer is None:  # nnU-Net calls its variants by what they change
            problems += [f"{run.method.name}: {text}" for text in run.method.variants if "Loss" in text]
            continue
        terms = [] if getattr(trainer, "smooths", True) else ["Dice without smoothing"]
        terms += [vars(part)["loss_term"] for part in trainer.__mro__ if "loss_term" in vars(part)]
        if plans is not None and issubclass(trainer, LocatedTrainer):
            weight = trainer.location_options(resolve(dict(plans), run.configuration)).unlocated_weight
            terms += [f"what the network says without location (weight {weight:g})"] if weight else []
        if terms:
            problems.append(f"{run.method.name}: nnU-Net's with {', '.join(terms)}")
    return _entry("the same loss", list(dict.fromkeys(problems)), "nnU-Net's")


def _augmentation(study: Study) -> Entry:
    variants = (
        ", ".join(sorted({part.lower() for part in method.variants} - {"nnunetschedule"})) or "as nnU-Net"
        for method in study.methods
    )
    groups = _names_by_value(zip(variants, (method.name for method in study.methods), strict=True))
    problems = [f"{', '.join(names)}: {variant}" for variant, names in groups.items()]
    detail = next(iter(groups))
    return _entry(
        "the same augmentation and variant of the trainer", problems if len(groups) > 1 else [], detail
    )


def _devices(trained: Records, seen: str) -> Entry:
    devices = sorted({str(record.get("gpu") or record.get("device")) for record in trained.values()})
    problems = [f"trained on {' and '.join(devices)}"] if len(devices) > 1 else []
    return _entry("the same kind of device", problems, f"{', '.join(devices) or 'unknown'}; {seen}")
