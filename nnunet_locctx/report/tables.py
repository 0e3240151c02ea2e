"""The report's tables: results, further measures, and the study itself."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nnunet_locctx.report.document import NOTHING, Table, count, duration, number, p_value, percent, span
from nnunet_locctx.report.results import POSTPROCESSINGS, VALIDATION, Results
from nnunet_locctx.report.statistics import (
    FEWEST_CASES,
    RELATIVE_FROM,
    RESAMPLES,
    SEED,
    mean_of_classes,
    paper_dice,
    swap_rates,
    with_base,
)
from nnunet_locctx.report.verdict import fewer

ERRORS = ["hd95_mm", "nsd", "volume_error_percent", "swap_rate", "off_region_ml"]
POSTPROCESSING_WORDS = {
    "sides": "sides repaired",
    "largest_component": "largest component",
    "atlas": "atlas mask",
}
LONGEST_MESSAGE = 600
"""Largest number of characters of a failed job's message in the table."""


def overview(study: Results, rows: pd.DataFrame, key: str, cases: str) -> Table:
    """A row per method, a column per preset: the mean foreground Dice and the gain, as in the papers' tables.

    Args:
        study: The study.
        rows: Rows of :func:`~nnunet_locctx.report.statistics.compare`.
        key: Name of the table.
        cases: Description of the cases for the caption.
    """
    cells = rows["dice"].map(percent) + _gains(rows["gain"], 2, np.where(rows["p_holm"] < 0.05, "*", ""))
    grid = rows.assign(cell=cells).pivot(index="method", columns="preset", values="cell")
    grid = grid.reindex(index=study.methods.index, columns=study.presets.index)
    grid = grid.dropna(how="all").dropna(how="all", axis=1).fillna(NOTHING)
    return Table(
        key=key,
        caption=f"Mean foreground Dice in %, and in brackets the gain over {study.baselines} in points; "
        f"{cases}. * p < 0.05 after Holm's correction (details in the next table).",
        shown=grid.reset_index(names="method"),
        records=rows[["method", "preset", "dice", "gain"]],
    )


def comparison_table(study: Results, rows: pd.DataFrame, key: str, cases: str) -> Table:
    """A row per preset and method: mean, intervals, gain, test."""
    span_of_gain = functools.partial(span, sign=True)
    several = "seeds" in rows
    shown = {
        "preset": rows["preset"],
        "method": rows["method"],
        "cases": rows["cases"].astype(str),
        "Dice, %": rows["dice"].map(percent),
    }
    if several:
        shown["seeds"] = rows["seeds"].astype(str)
        lowest, highest = (rows[f"dice_seed_{end}"].map(percent) for end in ("low", "high"))
        shown["min to max of the seeds, %"] = lowest + " to " + highest
    shown |= {
        "95% interval": _pairwise(span, rows["dice_low"], rows["dice_high"]).where(
            rows["dice_low"].notna(), "n = " + rows["cases"].astype(str)
        ),
        "gain, points": rows["gain"].map(_signed),
        "95% interval of the gain": _pairwise(span_of_gain, rows["gain_low"], rows["gain_high"]),
        "gain, relative, %": rows["gain_relative"].map(_signed),
        "p (Holm)": rows["test"].where(rows["test"] != "", rows["p_holm"].map(p_value)),
    }
    shared = [(rows["pairs"], rows["cases"], "cases that the baseline has too")]
    if several:
        seeds = pd.Series(len(study.seeds), rows.index)
        shared.append((rows["gain_seeds"], seeds, "seeds that method and baseline both have"))
    notes = []
    for have, of, what in shared:
        partial = rows[rows["base"].notna() & (have < of)]
        if len(partial):
            named = partial["method"] + " at " + partial["preset"]
            named += " (" + have[partial.index].astype(str) + " of " + of[partial.index].astype(str) + ")"
            notes.append(f"Gain and test over the {what}: {', '.join(named)}.")
    spread = " Min to max: the lowest and the highest Dice of a single seed." if several else ""
    return Table(
        key=key,
        caption=f"Foreground Dice in %: mean over the classes of the class means; {cases}. Interval: 95%, "
        f"bootstrap over cases (BCa, {RESAMPLES} resamples, seed {SEED}; none below {FEWEST_CASES} cases).{spread} "
        f"Gain over {study.baselines}: in points with its interval, and relative to the baseline where that is above "
        f"{percent(RELATIVE_FROM, 0)}%. p: Wilcoxon "
        "signed-rank, two-sided, paired by case, after Holm's correction over the "
        f"{count(int(rows['p'].notna().sum()), 'comparison')} of this table.",
        shown=pd.DataFrame(shown),
        labels=2,
        notes=notes,
        records=rows.drop(columns=["part", "run", "base", "folds", "p_least_alone"]),
    )


def class_table(study: Results, rows: pd.DataFrame, preset: str, key: str, cases: str) -> Table:
    """A row per method, a column per class: mean Dice and gain at a preset."""
    chosen = rows[rows["preset"] == preset]
    scores = with_base(study, chosen)
    names = ["preset", "method", "class"]
    frame = scores.groupby(names, sort=False)["dice"].agg(cases="count", dice="mean")
    paired = scores[scores["paired"]].groupby(names)[["dice_paired", "dice_base"]].mean()
    frame["gain"] = paired["dice_paired"] - paired["dice_base"]
    frame = frame.reset_index()
    cells = frame["dice"].map(_one_digit) + _gains(frame["gain"], 1)
    grid = frame.assign(cell=cells).pivot(index="method", columns="class", values="cell")
    grid = grid.reindex(index=chosen["method"], columns=frame["class"].unique()).fillna(NOTHING)
    grid.insert(0, "mean", [*map(_one_digit, chosen["dice"])], allow_duplicates=True)
    return Table(
        key=key,
        caption=f"{preset}: mean Dice in % per class (gain over {study.baselines} in points); {cases}. Cases "
        "in which a class is in neither truth nor prediction are left out.",
        shown=grid.reset_index(names="method"),
        records=frame,
    )


def error_table(study: Results, rows: pd.DataFrame, key: str, cases: str) -> Table:
    """A row per preset and method: surface distances, volume errors, swapped sides, distant false positives."""
    parts, convention = rows["part"].unique(), study.evaluation.get("paper")
    means = mean_of_classes(study.foreground_scores(*parts), ["run"])[ERRORS]
    entered = study.foreground_scores(*parts, each_seed=True)
    present = entered["reference_ml"] > 0
    lost = (present & entered["hd95_mm"].isna()).groupby(entered["run"]).sum()
    paper = [paper_dice(study.scores_of(row.run, row.part), convention) for row in rows.itertuples()]
    frame = means.reindex(rows["run"]).reset_index(drop=True).set_index(rows.index)
    frame = frame.assign(paper_dice=paper, hd95_undefined=rows["run"].map(lost))
    swaps = swap_rates(study, rows)
    frame["swap_rate_base"] = swaps["base"]
    entries = rows["run"].map(present.groupby(entered["run"]).sum())
    shown = {
        "HD95, mm": frame["hd95_mm"].map(lambda value: number(value, 1)),
        "HD95 undefined": frame["hd95_undefined"].astype(str) + " of " + entries.astype(str),
        "NSD, %": frame["nsd"].map(_one_digit),
        "volume error, %": frame["volume_error_percent"].map(lambda value: number(value, 1, sign=True)),
        "swaps, %": frame["swap_rate"].map(percent),
        "swaps, to the baseline's": _pairwise(fewer, swaps["own"], swaps["base"]).replace("", NOTHING),
        "off region, ml": frame["off_region_ml"].map(number),
        "paper Dice, %": frame["paper_dice"].map(percent),
    }
    at, far = (
        text.format(study.evaluation[name]) if isinstance(study.evaluation.get(name), int | float) else ""
        for name, text in (("tolerance_mm", " at {:g} mm"), ("off_region_mm", " (more than {:g} mm)"))
    )
    caption = (
        f"Further measures, mean over the classes of the class means; {cases}. HD95 is not defined where a class "
        "is not predicted at all: its mean leaves such entries out, and the next column counts them among the entries "
        f"with the class in the truth. NSD{at}. Swaps: share of the true voxels of left and right classes "
        f"that are predicted as the other side. Off region: volume predicted far from the true class{far}."
    )
    if convention:
        caption += f" Paper Dice: as the paper ({convention}) counts."
    else:  # no content for the last column
        del shown["paper Dice, %"]
    notes = []
    if not study.pairs:
        notes = ["The dataset has no left and right classes: no swaps."]
        del shown["swaps, %"], shown["swaps, to the baseline's"]
    names = rows[["preset", "method"]]
    return Table(key, caption, names.join(pd.DataFrame(shown)), 2, notes, records=names.join(frame))


def postprocessing_table(study: Results) -> Table | None:
    """A row per preset and method: Dice and swaps without and with each postprocessing; None without any."""
    kinds = [kind for kind in POSTPROCESSINGS if kind in study.scores["part"].to_numpy()]
    if not kinds:
        return None
    scores = study.foreground_scores(VALIDATION, *kinds)
    names = ["run", "part"]
    means = mean_of_classes(scores, names).unstack().rename(columns={VALIDATION: "none"})
    dice, swaps = (means[name].reindex(columns=["none", *kinds]) for name in ("dice", "swap_rate"))
    cases = scores.drop_duplicates([*names, "fold", "case"]).groupby(names).size().groupby("run").max()
    runs = study.runs[study.runs.index.isin(scores.loc[scores["part"] != VALIDATION, "run"])]
    runs = runs[["preset", "method"]]
    shown = runs.join(cases.astype(str).rename("cases")).join(
        dice.map(percent).rename(columns=POSTPROCESSING_WORDS)
    )
    caption = "Mean foreground Dice in % of the validation cases, without and with postprocessing (LocBAM, section 3.3)"
    if study.pairs:
        caption += ", and voxels of left and right classes predicted as the other side (swaps)"
        words = {kind: f"swaps, %: {POSTPROCESSING_WORDS.get(kind, kind)}" for kind in swaps.columns}
        shown = shown.join(swaps.map(percent).rename(columns=words))
        dice = dice.join(swaps.add_prefix("swap_rate_"))
    return Table("postprocessing", f"{caption}.", shown, labels=2, records=runs.join(dice))


def training_table(study: Results) -> Table | None:
    """A row per run and seed: parameters, time, memory, steadiness of the training's last tenth; None without any."""
    if study.trainings.empty:
        return None
    names = ["run", "seed", "fold"]
    last = study.epochs.dropna(subset="pseudo_dice").groupby(names)["pseudo_dice"]
    last = last.apply(lambda values: values.tail(max(1, len(values) // 10))).groupby(names)
    folds = study.trainings.join(last.agg(end="mean", steps="std"), on=names)
    frame = folds.groupby(["run", "seed"], sort=False).agg(
        folds=("fold", "size"),
        epochs=("epochs", lambda values: " or ".join(map(str, sorted(set(values))))),
        parameters=("parameters", "first"),
        seconds_per_fold=("seconds", "mean"),
        peak_memory_mb=("peak_memory", "max"),
        pseudo_dice=("end", "mean"),
        pseudo_dice_fold_sd=("end", "std"),
        pseudo_dice_epoch_sd=("steps", "mean"),
        device=("device", lambda values: ", ".join(sorted(set(values)))),
    )
    frame = study.runs[["preset", "method"]].join(frame.reset_index("seed"), how="inner")
    if len(study.seeds) == 1:
        frame = frame.drop(columns="seed")
    frame["peak_memory_mb"] /= 1e6
    words = {
        "parameters": "parameters, million",
        "seconds_per_fold": "time per fold",
        "peak_memory_mb": "peak memory, MB",
        "pseudo_dice": "pseudo Dice, %",
        "pseudo_dice_fold_sd": "SD of folds",
        "pseudo_dice_epoch_sd": "SD of epochs",
    }
    cells = {
        "parameters": (frame["parameters"].astype(float) / 1e6).map(lambda millions: number(millions, 3)),
        "seconds_per_fold": frame["seconds_per_fold"].map(duration),
        "peak_memory_mb": frame["peak_memory_mb"].map(lambda size: number(size, 0)),
        **{name: frame[name].map(_one_digit) for name in words if name.startswith("pseudo")},
    }
    return Table(
        "training",
        "Training. Time: mean of the folds, wall clock. Peak memory: of the training process, or of its GPU, above "
        "what it holds when the training begins; the largest of the folds. Pseudo Dice: nnU-Net's estimate on "
        "validation patches, mean over the classes and over the last tenth of the epochs, then over folds; its "
        "standard deviation between folds, and from epoch to epoch in that last tenth (mean of the folds).",
        frame.assign(**cells).rename(columns=words),
        labels=2,
        records=frame.astype({"parameters": "Int64"}),
    )


def location_table(study: Results) -> Table | None:
    """A row per preset, method and kind of error: Dice at each amount; None without results."""
    points = study.robustness.drop(columns="run")
    if points.empty:
        return None
    names = ["preset", "method", "kind", "axes"]
    groups = points.groupby(names, sort=False)["cases"].max().astype(str).to_frame()
    # an unknown location has no amount: its column comes last
    unknown = (points["kind"] == "unknown") & (points["percent"] > 0)
    amounts = points.assign(percent=points["percent"].mask(unknown, np.inf))
    dice = amounts.drop_duplicates([*names, "percent"], keep="last")
    dice = dice.pivot(index=names, columns="percent", values="dice")
    heads = ["unknown" if np.isinf(amount) else f"{amount:g} %" for amount in dice.columns]
    cells = dice.map(_one_digit).set_axis(heads, axis=1)
    return Table(
        "wrong_location",
        "Foreground Dice in % with a location that is wrong by this percentage of the axis (LocBAM, section "
        "3.4). Mean over the classes of a case, both directions, then cases.",
        groups.join(cells).reset_index().rename(columns={"kind": "error"}),
        labels=4,
        records=points,
    )


def fairness_table(study: Results) -> Table | None:
    """The conditions that all methods share, and the conditions that they do not share; None if not recorded."""
    entries = study.settings.get("fairness")
    if not entries:
        return None
    shown = pd.DataFrame(entries, columns=["what", "holds", "detail"], dtype=object)
    shown["holds"] = ["holds" if holds else "DOES NOT HOLD" for holds in shown["holds"]]
    shown = shown.rename(columns={"holds": "state"}).fillna("")
    return Table("fairness", "Conditions that are equal for every method of the study.", shown, labels=3)


def preset_table(study: Results) -> Table:
    """Patch, spacing and coverage of each preset."""
    presets = study.presets
    shown = {
        "description": [text or NOTHING for text in presets["description"]],
        "patch, voxels": presets["patch_size"].map(_sizes),
        "batch": [str(size or NOTHING) for size in presets["batch_size"]],
        "spacing, mm": presets["spacing"].map(_sizes),
        "median volume, voxels": presets["median_size"].map(_sizes),
        "coverage, %": [NOTHING if share is None else f"{100 * share:.3g}" for share in presets["coverage"]],
    }
    frame = pd.DataFrame(shown, index=presets.index).reset_index(names="preset")
    return Table(
        "presets", "Presets. Axes in array order. Coverage: patch over median volume.", frame, labels=2
    )


def method_table(study: Results) -> Table:
    """Trainer, source of the location and options of each method."""
    methods = study.methods
    shown = pd.DataFrame(
        {
            "method": methods.index.where(methods.index != study.baseline, f"{study.baseline} (baseline)"),
            "trainer": methods["trainer"].fillna(""),
            "source of the location": methods["source"].fillna(NOTHING),
            "options": [
                ", ".join(f"{key}: {value}" for key, value in (options or {}).items()) or NOTHING
                for options in methods["options"]
            ],
        }
    )
    return Table("methods", "Methods.", shown, labels=4)


def failure_table(study: Results) -> Table | None:
    """The failed jobs."""
    if study.failures.empty:
        return None
    message = study.failures["message"].str.strip()
    short = message.where(message.str.len() <= LONGEST_MESSAGE, "... " + message.str[-LONGEST_MESSAGE:])
    names = ["run", "fold", "exit_status"]
    shown = study.failures.assign(message=short, **study.failures[names].replace("", NOTHING))
    shown = shown.rename(columns={"exit_status": "exit status", "message": "last lines"})
    return Table("failed", "Failed jobs.", shown, labels=6)


def missing_table(study: Results) -> Table | None:
    """The missing results; None if the study is complete."""
    if study.missing.empty:
        return None
    shown = study.missing.assign(**study.missing[["run", "fold"]].replace("", NOTHING))
    return Table("missing", "Missing results.", shown, labels=4)


def _signed(value: float) -> str:
    return percent(value, sign=True)


def _one_digit(value: float) -> str:
    return percent(value, 1)


def _pairwise(write: Callable[[float, float], str], first: pd.Series, second: pd.Series) -> pd.Series:
    """A function applied to each pair of values."""
    return pd.Series([write(*pair) for pair in zip(first, second, strict=True)], first.index, dtype=object)


def _gains(gains: pd.Series, digits: int, star: Any = "") -> pd.Series:
    """Gains in brackets, to follow a mean; empty for a missing gain."""
    text = " (" + gains.map(lambda gain: percent(gain, digits, sign=True)) + star + ")"
    return text.where(gains.notna(), "")


def _sizes(sizes: Sequence[float] | None) -> str:
    return " x ".join(f"{size:g}" for size in sizes or ()) or NOTHING
