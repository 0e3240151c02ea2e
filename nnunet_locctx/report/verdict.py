"""The results in words: a sentence for each comparison, and suggestions for next steps."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from nnunet_locctx.report.document import count, number, p_value, percent
from nnunet_locctx.report.results import Results
from nnunet_locctx.report.statistics import ALPHA, RELATIVE_FROM, mean_of_classes, swap_rates

FEW_SWAPS = 0.001
"""Largest share of swapped voxels at which left and right count as separated."""


def verdict(study: Results, rows: pd.DataFrame) -> list[str]:
    """A sentence for each comparison.

    Args:
        study: The study.
        rows: As :func:`~nnunet_locctx.report.statistics.compare` returns them.
    """
    compared = rows[rows["gain"].notna()]
    swaps = swap_rates(study, compared)
    return [
        f"{_effect(study, row)}{_size(row)}{_chance(row, int(rows['p'].notna().sum()))}"
        f"{_seeds(study, row)}{_sides(*swaps.loc[row.Index])}."
        for row in compared.itertuples()
    ]


def next_steps(study: Results, rows: pd.DataFrame) -> list[str]:
    """Suggestions for further experiments.

    Args:
        study: The study.
        rows: As :func:`~nnunet_locctx.report.statistics.compare` returns them.
    """
    return [*_more_training(study, rows), *_other_methods(study, rows), *_left_and_right(study, rows)]


def fewer(rate: float, base: float) -> str:
    """The rate of swapped voxels relative to the baseline's, in words; empty without a baseline's rate."""
    if not (math.isfinite(rate) and base > 0):
        return ""
    if rate == 0:
        return "none left"
    ratio = base / rate
    if 1 / 1.05 < ratio < 1.05:
        return "as many"
    return f"{number(ratio, 1)} times fewer" if ratio >= 1 else f"{number(1 / ratio, 1)} times more"


def _effect(study: Results, row: Any) -> str:
    """The number of cases in which the method is better or worse."""
    subject = f"{row.method} against {study.baseline_of(row.method)}"
    where = f"At {row.preset}, {subject}" if len(study.presets) > 1 else subject
    if row.folds < len(study.folds) and row.part == "validation":
        where += f" ({row.folds} of {len(study.folds)} folds)"
    many = count(row.pairs, "case")
    if not row.better + row.worse:
        return f"{where}: no difference in {many}"
    if row.better >= row.worse:
        helped, verb, other = row.better, "helps", f"worse in {row.worse}"
    else:
        helped, verb, other = row.worse, "worse", f"better in {row.better}"
    if helped == row.pairs:
        return f"{where}: {verb} in {f'all {many}' if row.pairs > 1 else 'the one case'}"
    also = f" and is {other}" if row.better == row.worse else ""
    return f"{where}: {verb} in {helped} of {many}{also}"


def _size(row: Any) -> str:
    """The size of the gain; also relative to the baseline if its Dice is above :data:`~.statistics.RELATIVE_FROM`."""
    if not row.better + row.worse:
        return ""
    size = number(100 * abs(row.gain), 1)
    agrees = (row.gain > 0) == (row.better >= row.worse)
    by = f"by {size}" if agrees else f"but the mean {'rises' if row.gain > 0 else 'falls'} by {size}"
    text = (
        f", {by} points of Dice (from {percent(row.dice_base, 1)}% to {percent(row.dice_base + row.gain, 1)}%"
    )
    if math.isfinite(row.gain_relative):
        text += f", {percent(abs(row.gain_relative), 1)}% {'more' if row.gain > 0 else 'less'}"
    return text + ")"


def _chance(row: Any, tests: int) -> str:
    """The result of the test, or that no test can be significant."""
    changed = row.better + row.worse
    if not changed:
        return ""
    if not row.p_least < ALPHA:
        many = count(changed, "case") + (
            f" and {count(tests, 'comparison')}" if row.p_least_alone < ALPHA else ""
        )
        return f"; with {many} no test can reach {ALPHA:g}"
    p = p_value(row.p_holm)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    return f"; chance {'hardly explains it' if row.p_holm < ALPHA else 'may be the reason'} ({p})"


def _seeds(study: Results, row: Any) -> str:
    """The number of seeds whose own gain has the mean's sign."""
    if len(study.seeds) == 1 or not row.gain_seeds:
        return ""
    if row.gain_seeds > 1 and row.seeds_agree == row.gain_seeds:
        return f"; all {row.gain_seeds} seeds agree"
    return f"; {row.seeds_agree} of {count(row.gain_seeds, 'seed')} agree"


def _sides(rate: float, base: float) -> str:
    """The share of swapped voxels if there are any."""
    words = fewer(rate, base)
    if not words or max(rate, base) < FEW_SWAPS / 10:
        return ""
    return f"; swapped sides: {percent(rate)}% of the voxels instead of {percent(base)}% ({words})"


def _more_training(study: Results, rows: pd.DataFrame) -> Iterator[str]:
    if len(study.failures) or len(study.missing):
        yield "Finish the study: the command that started it takes up what failed or is missing."
    weak = rows[rows["dice_base"] <= RELATIVE_FROM].drop_duplicates(["base"])
    for row in weak.itertuples():
        yield (
            f"Train longer: at {row.preset} {study.baseline_of(row.method)} reaches {percent(row.dice_base, 1)}% Dice. "
            "A method that is ahead of that learns faster; it is not known which method ends better."
        )
    compared = rows[rows["gain"].notna()]
    if len(compared) and not (compared["p_least"] < ALPHA).all():
        tests = len(compared)
        needed = math.floor(math.log2(2 * tests / ALPHA)) + 1
        text = f"More cases: with {count(tests, 'comparison')} a test needs {needed} cases to reach {ALPHA:g}"
        # the number of folds of own splits is not known here
        own = study.settings.get("study", {}).get("splits")
        others = [] if own else [str(fold) for fold in range(5) if fold not in study.folds]
        yield text + (f"; the folds {', '.join(others)} have not been used." if others else ".")
    seed = study.seeds[0]
    if len(compared) and len(study.seeds) == 1 and isinstance(seed, int):
        yield (
            f"Another seed: everything is from seed {seed}; seeds: [{seed}, {seed + 1}] in the study file tells how "
            "much chance in training does, and trains nothing again."
        )


def _other_methods(study: Results, rows: pd.DataFrame) -> Iterator[str]:
    sources = study.methods["source"].dropna()
    located = rows[rows["method"].isin(sources.index) & rows["gain"].notna()]
    for preset, group in located.groupby("preset", sort=False):
        if (group["gain"] <= 0).all():
            used = ", ".join(dict.fromkeys(sources[group["method"]]))
            number_of = study.settings["dataset"].get("id", study.dataset)
            yield (
                f"Another source: at {preset} no method gains with {used}; locctx sources -d {number_of} says which "
                "source tells this dataset's classes apart."
            )


def _left_and_right(study: Results, rows: pd.DataFrame) -> Iterator[str]:
    if not study.pairs:
        return
    plain = study.methods["trainer"][study.methods["source"].isna()].astype(str)
    if not plain.str.contains("nomirroring", case=False).any():
        yield (
            "No mirroring: there are left and right classes, and no plain method that trains without mirroring. Add "
            "one with the trainer nnUNetTrainerNoMirroring: it may be all that is needed."
        )
    swaps = mean_of_classes(study.foreground_scores(*rows["part"].unique()), ["run"])["swap_rate"]
    if swaps.max() > FEW_SWAPS and "sides" not in study.scores["part"].to_numpy():
        yield (
            f"Repaired sides: up to {percent(float(swaps.max()))}% of the voxels are predicted as the other side; "
            "postprocessing: [sides] gives them to the twin without a new training."
        )
