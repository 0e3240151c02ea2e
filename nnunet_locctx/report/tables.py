"""The report's tables: of results, of what Dice does not show, and of the study itself."""

from collections.abc import Sequence
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
"""Characters of a failed job's last lines that the table shows."""


def overview(study: Results, rows: pd.DataFrame, key: str, cases: str) -> Table:
    """Methods down, presets across: the mean foreground Dice and the gain, as in the papers' tables.

    Args:
        study: The study.
        rows: The comparisons.
        key: Of the table.
        cases: Which cases, in words.
    """
    cells = rows["dice"].map(percent) + _gains(rows["gain"], 2, np.where(rows["p_holm"] < 0.05, "*", ""))
    grid = rows.assign(cell=cells).pivot(index="method", columns="preset", values="cell")
    grid = grid.reindex(
        index=_present(study.methods, grid.index), columns=_present(study.presets, grid.columns)
    )
    grid = grid.fillna(NOTHING)
    return Table(
        key=key,
        caption=f"Mean foreground Dice in %, and in brackets the gain over {study.baselines} in points; "
        f"{cases}. * p < 0.05 after Holm's correction (details in the next table).",
        shown=grid[(grid != NOTHING).any(axis=1)].reset_index(names="method"),
        records=rows[["method", "preset", "dice", "gain"]],
    )


def comparison_table(study: Results, rows: pd.DataFrame, key: str, cases: str) -> Table:
    """A row per preset and method: mean, intervals, gain, test."""
    shown = pd.DataFrame(
        {
            "preset": rows["preset"],
            "method": rows["method"],
            "cases": rows["cases"].astype(str),
            "Dice, %": rows["dice"].map(percent),
            "95% interval": [
                f"n = {row.cases}" if np.isnan(row.dice_low) else span(row.dice_low, row.dice_high)
                for row in rows.itertuples()
            ],
            "gain, points": rows["gain"].map(_signed),
            "95% interval of the gain": [
                span(*ends, sign=True) for ends in zip(rows["gain_low"], rows["gain_high"], strict=True)
            ],
            "gain, relative, %": rows["gain_relative"].map(_signed),
            "p (Holm)": rows["test"].where(rows["test"] != "", rows["p_holm"].map(p_value)),
        }
    )
    spread = ""
    if "seeds" in rows:
        ends = zip(rows["dice_seed_low"], rows["dice_seed_high"], strict=True)
        shown.insert(4, "seeds", rows["seeds"].astype(str))
        shown.insert(
            5, "min to max of the seeds, %", [f"{percent(low)} to {percent(high)}" for low, high in ends]
        )
        spread = " Min to max: the lowest and the highest Dice that a seed alone has."
    partial = rows[rows["base"].notna() & (rows["pairs"] < rows["cases"])]
    named = ", ".join(
        f"{one.method} at {one.preset} ({one.pairs} of {one.cases})" for one in partial.itertuples()
    )
    return Table(
        key=key,
        caption=f"Foreground Dice in %: mean over the classes of the class means; {cases}. Interval: 95%, "
        f"bootstrap over cases (BCa, {RESAMPLES} resamples, seed {SEED}; none below {FEWEST_CASES} cases).{spread} "
        f"Gain over {study.baselines}: in points with its interval, and relative to the baseline where that is above "
        f"{percent(RELATIVE_FROM, 0)}%. p: Wilcoxon "
        "signed-rank, two-sided, paired by case, after Holm's correction over the "
        f"{count(int(rows['p'].notna().sum()), 'comparison')} of this table.",
        shown=shown,
        labels=2,
        notes=[f"Gain and test over the cases that the baseline has too: {named}."] if named else [],
        records=rows.drop(columns=["part", "run", "base", "folds", "p_least_alone"]),
    )


def class_table(study: Results, rows: pd.DataFrame, preset: str, key: str, cases: str) -> Table:
    """Methods down, classes across: mean Dice of a preset, and the gain."""
    chosen = rows[rows["preset"] == preset]
    scores = with_base(study, chosen)
    names = ["preset", "method", "class"]
    frame = scores.groupby(names, sort=False)["dice"].agg(cases="count", dice="mean")
    paired = scores[scores["paired"]].groupby(names)[["dice", "dice_base"]].mean()
    frame["gain"] = paired["dice"] - paired["dice_base"]
    frame = frame.reset_index()
    cells = frame["dice"].map(lambda one: percent(one, 1)) + _gains(frame["gain"], 1)
    grid = frame.assign(cell=cells).pivot(index="method", columns="class", values="cell")
    grid = grid.reindex(index=chosen["method"], columns=frame["class"].unique()).fillna(NOTHING)
    grid.insert(0, "mean", [percent(one, 1) for one in chosen["dice"]], allow_duplicates=True)
    return Table(
        key=key,
        caption=f"{preset}: mean Dice in % per class (gain over {study.baselines} in points); {cases}. Cases "
        "in which a class is in neither truth nor prediction are left out.",
        shown=grid.reset_index(names="method"),
        records=frame,
    )


def error_table(study: Results, rows: pd.DataFrame, key: str, cases: str) -> Table:
    """A row per preset and method: distances, surfaces, laterality, false positives far off."""
    tolerance, off = (study.evaluation.get(name) for name in ("tolerance_mm", "off_region_mm"))
    at, far = _words(" at {:g} mm", tolerance), _words(" (more than {:g} mm)", off)
    convention = study.evaluation.get("paper")
    scores = study.foreground_scores(*rows["part"].unique())
    frame = mean_of_classes(scores, ["run"])[ERRORS].reindex(rows["run"])
    frame["paper_dice"] = [
        paper_dice(study.scores_of(row.run, row.part), convention) for row in rows.itertuples()
    ]
    entered = study.foreground_scores(*rows["part"].unique(), each_seed=True)
    present = entered["reference_ml"] > 0
    entries = present.groupby(entered["run"]).sum()
    frame["hd95_undefined"] = (present & entered["hd95_mm"].isna()).groupby(entered["run"]).sum()
    frame["swap_rate_base"] = frame["swap_rate"].reindex(rows["base"]).to_numpy()
    shown = pd.DataFrame(
        {
            "HD95, mm": frame["hd95_mm"].map(lambda one: number(one, 1)),
            "HD95 undefined": frame["hd95_undefined"].astype(str) + " of " + entries.astype(str),
            "NSD, %": frame["nsd"].map(lambda one: percent(one, 1)),
            "volume error, %": frame["volume_error_percent"].map(lambda one: number(one, 1, sign=True)),
            "swaps, %": frame["swap_rate"].map(percent),
            "swaps, to the baseline's": frame[["swap_rate", "swap_rate_base"]].apply(
                lambda both: fewer(*both) or NOTHING, axis=1
            ),
            "off region, ml": frame["off_region_ml"].map(number),
            "paper Dice, %": frame["paper_dice"].map(percent),
        }
    ).reindex(rows["run"])
    caption = (
        f"Further measures, mean over the classes of the class means; {cases}. HD95 is not defined where a class "
        "is not predicted at all: its mean leaves such entries out, and the next column counts them among the entries "
        f"with the class in the truth. NSD{at}. Swaps: share of the true voxels of left and right classes "
        f"that are predicted as the other side. Off region: volume predicted far from the true class{far}."
    )
    if convention:
        caption += f" Paper Dice: as the paper ({convention}) counts."
    else:  # nothing to show in the last column
        shown = shown.drop(columns="paper Dice, %")
    if not study.pairs:
        shown = shown.drop(columns=["swaps, %", "swaps, to the baseline's"])
    notes = [] if study.pairs else ["The dataset has no left and right classes: no swaps."]
    shown, frame = _beside_names(rows, shown), _beside_names(rows, frame)
    return Table(key, caption, shown, labels=2, notes=notes, records=frame)


def postprocessing_table(study: Results) -> Table | None:
    """A row per preset and method: Dice and swaps before and after each postprocessing; None if there was none."""
    kinds = [kind for kind in POSTPROCESSINGS if kind in study.scores["part"].to_numpy()]
    if not kinds:
        return None
    scores = study.foreground_scores(VALIDATION, *kinds)
    names = ["run", "part"]
    both = (
        mean_of_classes(scores, names)[["dice", "swap_rate"]].unstack().rename(columns={VALIDATION: "none"})
    )
    means, swaps = (both[name].reindex(columns=["none", *kinds]) for name in ("dice", "swap_rate"))
    cases = scores.drop_duplicates([*names, "fold", "case"]).groupby(names).size().groupby("run").max()
    runs = study.runs[study.runs.index.isin(scores.loc[scores["part"] != VALIDATION, "run"])]
    shown = means.map(percent).rename(columns=POSTPROCESSING_WORDS)
    if study.pairs:
        words = {kind: f"swaps, %: {POSTPROCESSING_WORDS.get(kind, kind)}" for kind in swaps.columns}
        shown = shown.join(swaps.map(percent).rename(columns=words))
        means = means.join(swaps.add_prefix("swap_rate_"))
    shown.insert(0, "cases", cases.astype(str))
    runs = runs.reset_index(names="run")
    return Table(
        key="postprocessing",
        caption="Mean foreground Dice in % of the validation cases, without and with postprocessing (LocBAM, "
        "section 3.3)"
        + (
            ", and voxels of left and right classes predicted as the other side (swaps)."
            if study.pairs
            else "."
        ),
        shown=_beside_names(runs, shown.reindex(runs["run"])),
        labels=2,
        records=_beside_names(runs, means.reindex(runs["run"])),
    )


def training_table(study: Results) -> Table | None:
    """A row per run and seed: parameters, time and how steady the last tenth of the training was."""
    if study.trainings.empty:
        return None
    last = study.epochs.dropna(subset="pseudo_dice").groupby(["run", "seed", "fold"])["pseudo_dice"]
    last = last.apply(lambda values: values.tail(max(1, len(values) // 10))).groupby(["run", "seed", "fold"])
    folds = study.trainings.join(last.agg(end="mean", steps="std"), on=["run", "seed", "fold"])
    frame = folds.groupby(["run", "seed"], sort=False).agg(
        folds=("fold", "size"),
        epochs=("epochs", lambda values: " or ".join(map(str, sorted(set(values))))),
        parameters=("parameters", "first"),
        seconds_per_fold=("seconds", "mean"),
        pseudo_dice=("end", "mean"),
        pseudo_dice_fold_sd=("end", "std"),
        pseudo_dice_epoch_sd=("steps", "mean"),
        device=("device", lambda values: ", ".join(sorted(set(values)))),
    )
    frame = study.runs[["preset", "method"]].join(frame.reset_index("seed"), how="inner")
    shown = pd.DataFrame(
        {
            "preset": frame["preset"],
            "method": frame["method"],
            "seed": frame["seed"].astype(str),
            "folds": frame["folds"].astype(str),
            "epochs": frame["epochs"],
            "parameters, million": (frame["parameters"].astype(float) / 1e6).map(lambda one: number(one, 3)),
            "time per fold": frame["seconds_per_fold"].map(duration),
            "pseudo Dice, %": frame["pseudo_dice"].map(lambda one: percent(one, 1)),
            "SD of folds": frame["pseudo_dice_fold_sd"].map(lambda one: percent(one, 1)),
            "SD of epochs": frame["pseudo_dice_epoch_sd"].map(lambda one: percent(one, 1)),
            "device": frame["device"],
        }
    )
    if len(study.seeds) == 1:
        shown, frame = (table.drop(columns="seed") for table in (shown, frame))
    return Table(
        "training",
        "Training. Time: mean of the folds, wall clock. Pseudo Dice: nnU-Net's estimate on validation "
        "patches, mean over the classes and over the last tenth of the epochs, then over folds; its standard "
        "deviation between folds, and from epoch to epoch in that last tenth (mean of the folds).",
        shown,
        labels=2,
        records=frame.astype({"parameters": "Int64"}),
    )


def location_points(study: Results) -> pd.DataFrame:
    """A row per measured point: preset, method, kind, axes, percent, dice (NaN if undefined), deviation, cases."""
    points = []
    for run in study.runs.itertuples():
        content = study.robustness.get(run.Index, {})
        several = len(content.get("models") or ()) > 1
        for point in content.get("points") or ():
            name = f"{run.method}: {point['model']}" if several else run.method
            points.append({**point, "preset": run.preset, "method": name, "cases": point.get("cases") or 0})
    names, numbers = ["preset", "method", "kind", "axes"], ["percent", "dice", "deviation"]
    return pd.DataFrame(points, columns=[*names, *numbers, "cases"]).astype(dict.fromkeys(numbers, float))


def location_table(points: pd.DataFrame) -> Table | None:
    """A row per preset, method and kind of error: Dice at each amount."""
    if points.empty:
        return None
    names = ["preset", "method", "kind", "axes"]
    groups = points.groupby(names, sort=False)["cases"].max().astype(str).to_frame()
    # an unknown location is the same, whatever the amount: it stands behind all errors
    unknown = (points["kind"] == "unknown") & (points["percent"] > 0)
    amounts = points.assign(percent=points["percent"].mask(unknown, np.inf))
    dice = amounts.drop_duplicates([*names, "percent"], keep="last").pivot(
        index=names, columns="percent", values="dice"
    )
    cells = dice.map(lambda one: percent(one, 1)).rename(
        columns=lambda amount: "unknown" if np.isinf(amount) else f"{amount:g} %"
    )
    return Table(
        "wrong_location",
        "Foreground Dice in % when the location is wrong by so many percent of the axis (LocBAM, section "
        "3.4). Mean over the classes of a case, both directions, then cases.",
        groups.join(cells).reset_index().rename(columns={"kind": "error"}),
        labels=4,
        records=points,
    )


def fairness_table(study: Results) -> Table | None:
    """What is the same for every method, and where it could not be."""
    entries = study.settings.get("fairness")
    if not entries:
        return None
    shown = pd.DataFrame(entries, columns=["what", "holds", "detail"], dtype=object)
    shown["holds"] = ["holds" if holds else "DOES NOT HOLD" for holds in shown["holds"]]
    shown = shown.rename(columns={"holds": "state"}).fillna("")
    return Table("fairness", "What every method of the study shares.", shown, labels=3)


def preset_table(study: Results) -> Table:
    """Patch, spacing and coverage of each preset."""
    shown = pd.DataFrame(
        {
            "preset": study.presets.index,
            "description": [text or NOTHING for text in study.presets["description"]],
            "patch, voxels": [_sizes(sizes) for sizes in study.presets["patch_size"]],
            "batch": [str(size or NOTHING) for size in study.presets["batch_size"]],
            "spacing, mm": [_sizes(sizes) for sizes in study.presets["spacing"]],
            "median volume, voxels": [_sizes(sizes) for sizes in study.presets["median_size"]],
            "coverage, %": [
                NOTHING if share is None else f"{100 * share:.3g}" for share in study.presets["coverage"]
            ],
        }
    )
    return Table(
        "presets", "Presets. Axes in array order. Coverage: patch over median volume.", shown, labels=2
    )


def method_table(study: Results) -> Table:
    """Trainer, source of the location and options of each method."""
    shown = pd.DataFrame(
        {
            "method": [
                name + (" (baseline)" if name == study.baseline else "") for name in study.methods.index
            ],
            "trainer": study.methods["trainer"].fillna(""),
            "source of the location": study.methods["source"].fillna(NOTHING),
            "options": [
                ", ".join(f"{key}: {value}" for key, value in (options or {}).items()) or NOTHING
                for options in study.methods["options"]
            ],
        }
    )
    return Table("methods", "Methods.", shown, labels=4)


def failure_table(study: Results) -> Table | None:
    """The jobs that failed."""
    if study.failures.empty:
        return None
    message = study.failures["message"].str.strip()
    short = message.where(message.str.len() <= LONGEST_MESSAGE, "... " + message.str[-LONGEST_MESSAGE:])
    names = ["run", "fold", "exit_status"]
    shown = study.failures.assign(message=short, **study.failures[names].replace("", NOTHING))
    shown = shown.rename(columns={"exit_status": "exit status", "message": "last lines"})
    return Table("failed", "Jobs that failed.", shown, labels=6)


def missing_table(study: Results) -> Table | None:
    """Results that are not there."""
    if study.missing.empty:
        return None
    shown = study.missing.assign(**study.missing[["run", "fold"]].replace("", NOTHING))
    return Table("missing", "Results that are not there (yet).", shown, labels=4)


def _signed(value: float) -> str:
    return percent(value, sign=True)


def _gains(gains: pd.Series, digits: int, star: Any = "") -> pd.Series:
    """Gains in brackets behind a mean; nothing where there is none."""
    text = " (" + gains.map(lambda one: percent(one, digits, sign=True)) + star + ")"
    return text.where(gains.notna(), "")


def _present(frame: pd.DataFrame, names: pd.Index) -> pd.Index:
    """Those of a frame's names that are among `names`, in the frame's order."""
    return frame.index[frame.index.isin(names)]


def _beside_names(rows: pd.DataFrame, columns: pd.DataFrame) -> pd.DataFrame:
    """Preset and method of each row, then the columns of another frame with the same rows."""
    return pd.concat(
        [rows[["preset", "method"]].reset_index(drop=True), columns.reset_index(drop=True)], axis=1
    )


def _sizes(sizes: Sequence[float] | None) -> str:
    return " x ".join(f"{size:g}" for size in sizes or ()) or NOTHING


def _words(text: str, size: object) -> str:
    return text.format(size) if isinstance(size, int | float) else ""
