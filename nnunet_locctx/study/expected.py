"""How long a study will take: a line for each run, by a published time and by steps that are timed on this machine."""

import json
import textwrap
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from nnunet_locctx.study.jobs import Job
from nnunet_locctx.study.methods import ITERATIONS_PER_EPOCH, Run
from nnunet_locctx.study.model import Study
from nnunet_locctx.study.preparing import expected_plans

MINUTES, EPOCHS, PATCH, BATCH = 9 * 60.0, 1000, (128, 128, 128), 2
ASSUMPTION = (
    "9 h for 1000 epochs of nnU-Net's plain 3d_fullres on one A100 40GB PCIe (nnU-Net, "
    "documentation/resenc_presets.md), taken as 128^3 voxels x 2 and scaled by epochs and by voxels of a batch"
)
NOT_IN_IT = "as busy as it is now; loss, augmentation, validation and a slow disk are not in it"

PATIENCE = 120.0
"""Seconds after which no further run is timed; the others are scaled from those that were, by voxels of a batch."""


def batch_of(run: Run, plans: Mapping[str, Any] | None) -> tuple[tuple[int, ...] | None, int | None]:
    """A run's patch in voxels and patches per batch, from the study's plans or the preset; None if unknown."""
    values: Mapping[str, Any] = run.preset.changes
    if plans is not None:
        from nnunet_locctx.nnunet.plans.planning import resolve

        values = resolve(dict(plans), run.configuration)
    patch = values.get("patch_size")
    return None if patch is None else tuple(patch), values.get("batch_size")


def expected_minutes(patch: tuple[int, ...] | None, batch: int | None, epochs: int) -> float:
    """Minutes of one training on one A100; unknown sizes are taken as those of the published time."""
    return MINUTES * epochs / EPOCHS * _voxels(patch, batch) / _voxels(None, None)


def report_expected(study: Study, jobs: Iterable[Job]) -> Iterator[str]:
    """How long the trainings will take, a line for each run; each is timed for some seconds. Nothing is written.

    Args:
        study: The study.
        jobs: The jobs that are to run.
    """
    plans = expected_plans(study)
    folds = Counter(job.names["run"] for job in jobs if job.kind == "train")
    runs = {slug: run for slug, run in study.runs.items() if folds[slug]}
    if not runs:
        return
    yield from (
        "",
        "minutes of the trainings:",
        f"{'run':<44}{'folds':>6}{'one A100':>12}{'this machine':>16}",
    )
    seconds = _timed_steps(study, runs.values(), plans)
    totals = np.zeros(2)
    for slug, run in runs.items():
        patch, batch = batch_of(run, plans)
        steps = run.method.epochs * ITERATIONS_PER_EPOCH
        of_one = [expected_minutes(patch, batch, run.method.epochs), next(seconds) * steps / 60]
        minutes = folds[slug] * np.array(of_one)
        totals += minutes
        size = "planned patch" if patch is None else " x ".join(map(str, patch))
        size += ", planned batch" if batch is None else f", batch {batch}"
        yield f"{study.title_of(run):<44}{folds[slug]:>6}{_cells(minutes)}   {size}"
    yield f"{'total':<44}{sum(folds.values()):>6}{_cells(totals)}"
    unplanned = any(None in batch_of(run, plans) for run in runs.values())
    sentences = [
        f"one A100: {ASSUMPTION}; other networks and location blocks are not in it"
        + ("; a patch or batch that is not planned yet is taken as 128^3 x 2" if unplanned else ""),
        "this machine: known once the dataset is planned (nnUNetv2_plan_experiment, or --only plan)",
    ]
    if np.isfinite(totals[1]):
        sentences[1] = f"this machine ({study.device}): 5 steps timed with random patches; {NOT_IN_IT}"
    elif plans is not None:
        sentences[1] = f"this machine: it has no {study.device}, or not every run could be timed"
    for sentence in sentences:
        yield textwrap.fill(sentence, 120)


def _timed_steps(study: Study, runs: Collection[Run], plans: Mapping[str, Any] | None) -> Iterator[float]:
    """Seconds of a step of each run; NaN where they cannot be measured."""
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if plans is None or not available[study.device]:
        yield from [float("nan")] * len(runs)
        return
    from nnunet_locctx.nnunet.training.timing import step_seconds

    torch.set_num_threads(study.processes)  # as the trainings
    description = json.loads((study.raw / "dataset.json").read_text(encoding="utf-8"))
    rates: list[float] = []
    known: dict[tuple[str, str], float] = {}
    begun = time.monotonic()
    for run in runs:
        voxels = _voxels(*batch_of(run, plans))
        if (run.method.name, run.preset.name) in known:  # of another seed
            yield known[run.method.name, run.preset.name]
            continue
        if time.monotonic() - begun > PATIENCE and rates:
            yield float(np.mean(rates)) * voxels
            continue
        try:
            seconds = step_seconds(plans, run.configuration, run.method.trainer, description, study.device)
        except (ValueError, RuntimeError, MemoryError):  # RuntimeError: torch's for a lack of memory
            yield float("nan")
            continue
        rates.append(seconds / voxels)
        known[run.method.name, run.preset.name] = seconds
        yield seconds


def _voxels(patch: tuple[int, ...] | None, batch: int | None) -> float:
    return float(np.prod(patch or PATCH)) * (batch or BATCH)


def _cells(minutes: Any) -> str:
    texts = [
        "-" if np.isnan(value) else f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in minutes
    ]
    return f"{texts[0]:>12}{texts[1]:>16}"
