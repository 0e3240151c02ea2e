"""What was the same for every method of a study, looked up in what its jobs left, not claimed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx.study.model import Run, Study
from nnunet_locctx.study.train import FINGERPRINT

Entry = dict[str, Any]


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
        _seed(study, trained, known),
        _order(study, runs, trained),
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
                + " | ".join(f"{', '.join(names)}: {value}" for value, names in seen.items())
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


def _seed(study: Study, trained: Mapping[Any, Entry], known: str) -> Entry:
    seeds = sorted({record.get("seed") for record in trained.values()} | {study.seed}, key=str)
    problems = [f"seeds {', '.join(map(str, seeds))}"] if len(seeds) > 1 else []
    return _entry("the same seed of weights and patches", problems, f"seed {study.seed}; {known}")


def _order(study: Study, runs: Sequence[Run], trained: Mapping[Any, Entry]) -> Entry:
    problems = []
    if study.processes > 1:
        problems.append(
            f"{study.processes} processes augment at once: each is seeded, but the order of their patches is not fixed "
            "(processes: 1 fixes it)"
        )
    resumed = [f"{run}, fold {fold}" for (run, fold), record in trained.items() if record.get("resumed")]
    if resumed:
        problems.append(f"resumed trainings draw other patches from there on: {', '.join(resumed)}")
    perturbed = [
        run.slug
        for run in runs
        if any(
            {**run.preset.changes.get("location", {}), **run.method.options}.get(key)
            for key in ("jitter", "dropout")
        )
        and run.method.source is not None
    ]
    if perturbed:
        problems.append(f"jitter or dropout of the location draws numbers too: {', '.join(perturbed)}")
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
