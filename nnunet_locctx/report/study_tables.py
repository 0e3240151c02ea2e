"""The tables about the study itself: fairness, presets, methods, training, location, what is missing."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from nnunet_locctx.report.document import NOTHING, Table, percent
from nnunet_locctx.report.model import Study
from nnunet_locctx.report.training import epoch_series

LONGEST_MESSAGE = 600
"""Characters of a failed job's last lines that the table shows."""


def fairness_table(study: Study) -> Table | None:
    """What is the same for every method, and where it could not be."""
    entries = study.settings.get("fairness") or []
    if not entries:
        return None
    rows = [
        [
            str(entry.get("what", "")),
            "holds" if entry.get("holds") else "DOES NOT HOLD",
            str(entry.get("detail") or ""),
        ]
        for entry in entries
    ]
    return Table(
        "fairness", "What every method of the study shares.", ["what", "state", "detail"], rows, labels=3
    )


def preset_table(study: Study) -> Table:
    """Patch, spacing and coverage of each preset."""
    rows = [
        [
            one.name,
            one.description or NOTHING,
            _sizes(one.patch_size),
            str(one.batch_size or NOTHING),
            _sizes(one.spacing),
            _sizes(one.median_size),
            NOTHING if one.coverage is None else f"{100 * one.coverage:.3g}",
        ]
        for one in study.presets
    ]
    return Table(
        "presets",
        "Presets. Axes in array order. Coverage: patch over median volume.",
        [
            "preset",
            "description",
            "patch, voxels",
            "batch",
            "spacing, mm",
            "median volume, voxels",
            "coverage, %",
        ],
        rows,
        labels=2,
    )


def method_table(study: Study) -> Table:
    """Trainer, source of the location and options of each method."""
    rows = [
        [
            one.name + (" (baseline)" if one.name == study.baseline else ""),
            one.trainer,
            one.source or NOTHING,
            ", ".join(f"{key}: {value}" for key, value in one.options.items()) or NOTHING,
        ]
        for one in study.methods
    ]
    return Table(
        "methods", "Methods.", ["method", "trainer", "source of the location", "options"], rows, labels=4
    )


def training_table(study: Study) -> Table | None:
    """A row per run: parameters, time and how steady the last tenth of the training was."""
    rows, records = [], []
    for run in study.runs:
        found = [study.training[run.run, fold] for fold in study.folds if (run.run, fold) in study.training]
        if not found:
            continue
        seconds = [float(one["seconds"]) for one in found if isinstance(one.get("seconds"), int | float)]
        parameters = next((one["parameters"] for one in found if one.get("parameters")), None)
        ends = [_end(one) for one in found]
        means = [mean for mean, _ in ends if math.isfinite(mean)]
        steps = [step for _, step in ends if math.isfinite(step)]
        epochs = sorted({len(one.get("epochs") or ()) for one in found})
        devices = sorted({str(one.get("gpu") or one.get("device") or "?") for one in found})
        record: dict[str, object] = {
            "preset": run.preset,
            "method": run.method,
            "folds": len(found),
            "epochs": " or ".join(map(str, epochs)),
            "parameters": parameters,
            "seconds_per_fold": fmean(seconds) if seconds else math.nan,
            "pseudo_dice": fmean(means) if means else math.nan,
            "pseudo_dice_fold_sd": stdev(means) if len(means) > 1 else math.nan,
            "pseudo_dice_epoch_sd": fmean(steps) if steps else math.nan,
            "device": ", ".join(devices),
        }
        records.append(record)
        rows.append(
            [
                run.preset,
                run.method,
                str(len(found)),
                str(record["epochs"]),
                NOTHING if parameters is None else f"{parameters / 1e6:.3f}",
                duration(fmean(seconds)) if seconds else NOTHING,
                *(
                    percent(float(str(record[name])), 1)
                    for name in ("pseudo_dice", "pseudo_dice_fold_sd", "pseudo_dice_epoch_sd")
                ),
                str(record["device"]),
            ]
        )
    if not rows:
        return None
    return Table(
        "training",
        "Training. Time: mean of the folds, wall clock. Pseudo Dice: nnU-Net's estimate on validation "
        "patches, mean over the classes and over the last tenth of the epochs, then over folds; its standard "
        "deviation between folds, and from epoch to epoch in that last tenth (mean of the folds).",
        [
            "preset",
            "method",
            "folds",
            "epochs",
            "parameters, million",
            "time per fold",
            "pseudo Dice, %",
            "SD of folds",
            "SD of epochs",
            "device",
        ],
        rows,
        labels=2,
        records=records,
    )


def location_table(points: Sequence[Mapping[str, Any]]) -> Table | None:
    """A row per preset, method and kind of error: Dice at each amount; see :mod:`.figures.location`."""
    if not points:
        return None
    amounts = sorted({float(point["percent"]) for point in points})
    names = ("preset", "method", "kind", "axes")
    groups = list(dict.fromkeys(tuple(str(point[name]) for name in names) for point in points))
    rows = []
    for group in groups:
        line = {
            float(point["percent"]): point
            for point in points
            if tuple(str(point[name]) for name in names) == group
        }
        cases = max(int(point["cases"]) for point in line.values())
        cells = [percent(line[amount]["dice"], 1) if amount in line else NOTHING for amount in amounts]
        rows.append([*group, str(cases), *cells])
    return Table(
        "wrong_location",
        "Foreground Dice in % when the location is wrong by so many percent of the axis (LocBAM, section "
        "3.4). Mean over the classes of a case, both directions, then cases.",
        ["preset", "method", "error", "axes", "cases", *(f"{amount:g} %" for amount in amounts)],
        rows,
        labels=4,
        records=[dict(point) for point in points],
    )


def failure_table(study: Study) -> Table | None:
    """The jobs that failed."""
    if not study.failures:
        return None
    rows = [
        [
            one.job,
            one.run or NOTHING,
            one.fold or NOTHING,
            one.exit_status or NOTHING,
            _tail(one.message),
            one.log,
        ]
        for one in study.failures
    ]
    return Table(
        "failed",
        "Jobs that failed.",
        ["job", "run", "fold", "exit status", "last lines", "log"],
        rows,
        labels=6,
    )


def missing_table(study: Study) -> Table | None:
    """Results that are not there."""
    if not study.missing:
        return None
    rows = [[one.run or NOTHING, one.fold or NOTHING, one.what, one.why] for one in study.missing]
    return Table(
        "missing", "Results that are not there (yet).", ["run", "fold", "what", "why"], rows, labels=4
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _end(training: Mapping[str, Any]) -> tuple[float, float]:
    """Mean and standard deviation of the pseudo Dice over the last tenth of the epochs, at least one."""
    values = [value for value in epoch_series(training, "pseudo_dice")[1] if math.isfinite(value)]
    last = values[-max(1, len(values) // 10) :]
    if not last:
        return math.nan, math.nan
    return fmean(last), stdev(last) if len(last) > 1 else math.nan


def _sizes(sizes: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes) or NOTHING


def _tail(message: str) -> str:
    text = message.strip()
    return text if len(text) <= LONGEST_MESSAGE else "... " + text[-LONGEST_MESSAGE:]
