"""The tables of results: overview, comparison, classes, errors, postprocessing."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_locctx.report.comparison import Comparison, aligned
from nnunet_locctx.report.document import NOTHING, Table, count, p_value, percent, span
from nnunet_locctx.report.model import Study
from nnunet_locctx.report.scores import Scores, foreground
from nnunet_locctx.report.statistics import FEWEST_CASES, RESAMPLES, SEED


def overview(study: Study, rows: Sequence[Comparison], key: str, cases: str) -> Table:
    """Methods down, presets across: the mean foreground Dice and the gain, as in the papers' tables.

    Args:
        study: The study.
        rows: The comparisons.
        key: Of the table.
        cases: Which cases, in words.
    """
    presets = [preset.name for preset in study.presets if any(row.preset == preset.name for row in rows)]
    found = {(row.method, row.preset): row for row in rows}
    lines = []
    for method in study.methods:
        cells = [_overview_cell(found.get((method.name, preset))) for preset in presets]
        if any(cell != NOTHING for cell in cells):
            lines.append([method.name, *cells])
    return Table(
        key=key,
        caption=f"Mean foreground Dice in %, and in brackets the gain over {study.baselines} in points; "
        f"{cases}. * p < 0.05 after Holm's correction (details in the next table).",
        columns=["method", *presets],
        rows=lines,
        records=[
            {"method": row.method, "preset": row.preset, "dice": row.mean, "gain": row.gain} for row in rows
        ],
    )


def comparison_table(study: Study, rows: Sequence[Comparison], key: str, cases: str) -> Table:
    """A row per preset and method: mean, intervals, gain, test."""
    tested = sum(row.test is not None and math.isfinite(row.test.p) for row in rows)
    lines = [
        [
            row.preset,
            row.method,
            str(row.cases),
            percent(row.mean),
            span(row.interval.low, row.interval.high) if row.interval.known else f"n = {row.cases}",
            percent(row.gain, sign=True),
            span(row.gain_interval.low, row.gain_interval.high, sign=True),
            percent(row.relative, 2, sign=True),
            _test_words(row),
        ]
        for row in rows
    ]
    notes = []
    partial = [row for row in rows if row.test is not None and row.pairs < row.cases]
    if partial:
        named = ", ".join(f"{row.method} at {row.preset} ({row.pairs} of {row.cases})" for row in partial)
        notes.append(f"Gain and test over the cases that the baseline has too: {named}.")
    return Table(
        key=key,
        caption=f"Foreground Dice in %: mean over the classes of the class means; {cases}. Interval: 95%, "
        f"bootstrap over cases (BCa, {RESAMPLES} resamples, seed {SEED}; none below {FEWEST_CASES} cases). "
        f"Gain over {study.baselines}: in points with its interval, and relative to the baseline. p: Wilcoxon "
        "signed-rank, two-sided, paired by case, after Holm's correction over the "
        f"{count(tested, 'comparison')} of this table.",
        columns=[
            "preset",
            "method",
            "cases",
            "Dice, %",
            "95% interval",
            "gain, points",
            "95% interval of the gain",
            "gain, relative, %",
            "p (Holm)",
        ],
        rows=lines,
        labels=2,
        notes=notes,
        records=[_comparison_record(row) for row in rows],
    )


def class_table(study: Study, rows: Sequence[Comparison], preset: str, key: str, cases: str) -> Table:
    """Methods down, classes across: mean Dice of a preset, and the gain."""
    chosen = [row for row in rows if row.preset == preset]
    by_method = {row.method: row for row in chosen}
    classes = chosen[0].scores.classes
    lines, records = [], []
    for row in chosen:
        cells = []
        base = by_method.get(study.baseline_of(row.method))
        for place, name in enumerate(row.scores.classes):
            values = row.scores.values["dice"][:, [place]]
            mean, gain = float(foreground(values)), math.nan
            if base is not None and base is not row and name in base.scores.classes:
                mine, theirs = aligned(row.scores.chosen(row.scores.keys, [name]), base.scores)
                gain = float(foreground(mine)) - float(foreground(theirs))
            cells.append(
                percent(mean, 1) + (f" ({percent(gain, 1, sign=True)})" if math.isfinite(gain) else "")
            )
            records.append(
                {
                    "preset": preset,
                    "method": row.method,
                    "class": name,
                    "cases": int(np.isfinite(values).sum()),
                    "dice": mean,
                    "gain": gain,
                }
            )
        lines.append([row.method, percent(row.mean, 1), *cells])
    return Table(
        key=key,
        caption=f"{preset}: mean Dice in % per class (gain over {study.baselines} in points); {cases}. Cases "
        "in which a class is in neither truth nor prediction are left out.",
        columns=["method", "mean", *classes],
        rows=lines,
        records=records,
    )


def case_records(study: Study, found: Mapping[str, Scores]) -> list[dict[str, object]]:
    """A record per run, case and class, with every metric: for whoever wants to compute something else."""
    runs = {run.run: run for run in study.runs}
    return [
        {
            "preset": runs[name].preset,
            "method": runs[name].method,
            "fold": fold if fold >= 0 else None,
            "case": case,
            "class": class_name,
            **{metric: float(table[i, j]) for metric, table in scores.values.items()},
        }
        for name, scores in found.items()
        for i, (fold, case) in enumerate(scores.keys)
        for j, class_name in enumerate(scores.classes)
    ]


def _overview_cell(row: Comparison | None) -> str:
    if row is None or not math.isfinite(row.mean):
        return NOTHING
    if not math.isfinite(row.gain):
        return percent(row.mean)
    star = "*" if row.corrected < 0.05 else ""
    return f"{percent(row.mean)} ({percent(row.gain, sign=True)}{star})"


def _test_words(row: Comparison) -> str:
    if row.test is None:
        return NOTHING
    return row.test.reason or p_value(row.corrected)


def _comparison_record(row: Comparison) -> dict[str, object]:
    return {
        "preset": row.preset,
        "method": row.method,
        "cases": row.cases,
        "dice": row.mean,
        "dice_low": row.interval.low,
        "dice_high": row.interval.high,
        "gain": row.gain,
        "gain_low": row.gain_interval.low,
        "gain_high": row.gain_interval.high,
        "gain_relative": row.relative,
        "pairs": row.pairs,
        "p": row.test.p if row.test else math.nan,
        "p_holm": row.corrected,
        "test": row.test.reason if row.test else "",
    }
