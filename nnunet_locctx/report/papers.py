"""Compares the study with the numbers printed in papers.

``study/papers/*.json`` hold the printed tables: title, citation, metric and unit, a note on differences, ``convention``
(the evaluation that the metric needs, as in ``locctx evaluate --paper``), ``aliases`` (the paper's classes with
synonyms), and rows of method, preset, dataset and value. A row may have a class and ``parts``: ``postprocessing``,
``shift_percent`` (of a wrong location), ``bound`` (">" if the paper prints "more than"), ``coverage_percent``,
``baseline`` (the method that its gain refers to).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import nnunet_locctx.study
from nnunet_locctx.report.document import NOTHING, Table, number
from nnunet_locctx.report.results import BACKGROUND, VALIDATION, Results
from nnunet_locctx.report.statistics import by_case, foreground, paper_dice
from nnunet_locctx.resources import with_pages

FOLDER = Path(nnunet_locctx.study.__file__).parent / "papers"
METRICS = {
    "dice": "foreground Dice, %",
    "paper_dice": "the paper's Dice, %",
    "paper_hd95_voxels": "the paper's HD95, voxels",
}


@dataclass(frozen=True)
class Ours:
    """The study's value for a row of a paper.

    Attributes:
        value: Value in the paper's metric and unit; NaN if missing.
        dice: The study's foreground Dice in %.
        cases: Number of cases.
        why: Reason for a missing value.
    """

    value: float = math.nan
    dice: float = math.nan
    cases: int = 0
    why: str = ""


def paper_names() -> list[str]:
    """Names of the papers' tables in the package."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def read_paper(name: str) -> dict[str, Any]:
    """A paper's table."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content


def paper_table(study: Results, name: str) -> Table:
    """A paper's table beside the study's values; if the paper has classes, they are columns."""
    paper = read_paper(name)
    frame = _beside(study, paper)
    notes = [with_pages(paper["note"]), f"Here: {study.dataset}. Gains in the unit of the metric."]
    if ((frame["cases"] > 0) & frame["ours"].isna()).any():
        notes.append(
            f"The study's evaluation lacks the paper's measures (`paper: {paper.get('convention')}`): no value to "
            "compare."
        )
    caption = f"{paper['title']}. Paper: {paper['citation']}. Metric: {METRICS[paper['metric']]}."
    if (frame["class"] != "").any():
        caption += " In each cell: paper / here."
        shown = _across(frame)
    else:
        shown = _down(study, frame)
    records = frame[["dataset", "preset", "label", "class", "value", "ours", "gain", "our_gain"]]
    records = records.rename(
        columns={"label": "method", "value": "paper_value", "ours": "our_value", "gain": "paper_gain"}
    ).assign(our_dice_percent=frame["dice"], cases=frame["cases"], why_not=frame["why"])
    records.insert(0, "paper", name)
    return Table(f"paper_{name}", caption, shown, labels=3, notes=notes, records=records)


def printed_gains(study: Results) -> pd.DataFrame:
    """method, coverage in % and gain in points, from papers' tables of the same dataset that state a coverage."""
    names = [name for name in study.settings.get("papers") or () if name in paper_names()]
    rows = [row for name in names for row in _beside(study, read_paper(name)).to_dict("records")]
    frame = pd.DataFrame(rows, columns=["dataset", "method", "class", "coverage_percent", "gain"])
    frame = frame.loc[[same_dataset(name, study.dataset) for name in frame["dataset"]]]
    frame = frame[frame["class"] == ""].dropna(subset=["coverage_percent", "gain"])
    frame = frame.rename(columns={"coverage_percent": "coverage"})[["method", "coverage", "gain"]]
    return frame.drop_duplicates(["method", "coverage"], keep="last").sort_values("coverage")


def _beside(study: Results, paper: Mapping[str, Any]) -> pd.DataFrame:
    """A paper's rows with the fields of :class:`Ours` (its value as ``ours``), and the gains of both over the row's own
    baseline or the study's."""
    words = dict.fromkeys(("class", "postprocessing", "bound", "baseline"), "")
    numbers = dict.fromkeys(("shift_percent", "coverage_percent"), math.nan)
    frame = pd.DataFrame([{**words, **numbers, **row, **row.get("parts", {})} for row in paper["rows"]])
    frame["value"] = frame["value"].astype(float)
    ours = pd.DataFrame([find_ours(study, paper, row) for row in paper["rows"]])
    frame = frame.join(ours.rename(columns={"value": "ours"}))
    kinds = frame["postprocessing"].str.replace("_", " ")
    frame["label"] = frame["method"] + (", " + kinds).where(kinds != "", "")
    keys = ["dataset", "preset", "method", "class"]
    plain = (frame["postprocessing"] == "") & frame["shift_percent"].isna()
    bases = frame.loc[plain, [*keys, "value", "ours"]].drop_duplicates(keys, keep="last")
    named = frame["baseline"].where(frame["baseline"] != "", study.baseline)
    base = frame[keys].assign(method=named).merge(bases, how="left", on=keys)
    gains = frame["shift_percent"].isna() & ~(plain & (frame["method"] == named))
    frame["gain"] = (frame["value"] - base["value"]).where(gains)
    frame["our_gain"] = (frame["ours"] - base["ours"]).where(gains)
    frame["behind"] = frame["cases"].astype(str).where(frame["cases"] > 0, frame["why"])
    return frame


def _down(study: Results, frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a line per row of the paper."""
    shown = pd.DataFrame(
        {
            "dataset": frame["dataset"],
            "preset": frame["preset"],
            "method": frame["label"],
            "paper": (frame["bound"] + " ").str.lstrip() + frame["value"].map(number),
            "here": frame["ours"].map(number),
            "gain, paper": frame["gain"].map(_signed),
            "gain, here": frame["our_gain"].map(_signed),
            "foreground Dice, %": frame["dice"].map(number),
            "cases": frame["behind"],
        }
    )
    if frame["coverage_percent"].notna().any():
        own = 100 * frame["preset"].map(study.presets["coverage"]).astype(float)
        own = own.where([same_dataset(name, study.dataset) for name in frame["dataset"]])
        cells = frame["coverage_percent"].map(number) + " / " + own.map(number)
        shown.insert(3, "coverage, %: paper / here", cells)
    return shown


def _across(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a line per method of the paper; the columns are its mean and its classes."""
    names = ["dataset", "preset", "label"]
    frame = frame.assign(cell=frame["value"].map(number) + " / " + frame["ours"].map(number))
    cells = frame.drop_duplicates([*names, "class"], keep="last").pivot(
        index=names, columns="class", values="cell"
    )
    lines = frame[frame["class"] == ""]
    classes = frame.loc[frame["class"] != "", "class"].unique()
    grid = cells.reindex(pd.MultiIndex.from_frame(lines[names]))[["", *classes]].fillna(NOTHING)
    grid = grid.reset_index().assign(cases=lines["behind"].to_numpy())
    return grid.set_axis(["dataset", "preset", "method", "mean", *classes, "cases"], axis=1)


def _signed(value: float) -> str:
    return number(value, sign=True)


def find_ours(study: Results, paper: Mapping[str, Any], row: Mapping[str, Any]) -> Ours:
    """The study's value for a row of a paper, from the validation cases of all folds."""
    if not same_dataset(str(row["dataset"]), study.dataset):
        return Ours(why="other dataset")
    run = _find_run(study, row)
    if run is None:
        return Ours(why="not in the study")
    parts = row.get("parts", {})
    if "shift_percent" in parts:
        return _shifted(study, run, float(parts["shift_percent"]))
    scores = study.scores_of(run, parts.get("postprocessing") or VALIDATION)
    if scores.empty:
        return Ours(why="not there yet")
    aliases = paper.get("aliases", {})
    names = {name: _class_name(scores, name, others) for name, others in aliases.items()}
    if "class" in row:
        name = names.get(row["class"])
        if name is None:
            return Ours(why="no such class")
        return _measure(study, scores[scores["class"] == name], paper, one_class=True)
    # the paper's mean is over its own classes, which may be fewer than the trained ones
    if names and None not in names.values():
        scores = scores[scores["class"].isin([*names.values(), BACKGROUND])]
    return _measure(study, scores, paper, one_class=False)


def same_dataset(paper: str, ours: str) -> bool:
    """Whether two names mean one dataset, such as BTCV and ``Dataset007_BTCV``: one begins with the other, ignoring
    punctuation and case."""
    first, second = _plain(paper), _plain(re.sub(r"^Dataset\d+_", "", ours))
    return bool(first and second) and (first.startswith(second) or second.startswith(first))


def _class_name(scores: pd.DataFrame, name: str, others: Sequence[str]) -> str | None:
    """The study's name of a paper's class; None without one."""
    spellings = {_plain(spelling) for spelling in (name, *others)}
    return next((name for name in scores["class"].unique() if _plain(name) in spellings), None)


def _measure(study: Results, scores: pd.DataFrame, paper: Mapping[str, Any], *, one_class: bool) -> Ours:
    table = by_case(scores)
    dice, cases = 100 * float(foreground(table)), len(table)
    metric, convention = paper["metric"], paper.get("convention")
    if metric == "dice":
        return Ours(dice, dice, cases)
    if study.evaluation.get("paper") != convention or by_case(scores, metric).isna().all(axis=None):
        return Ours(dice=dice, cases=cases, why=f"the evaluation lacks paper: {convention}")
    if metric == "paper_dice":  # the conventions differ only in the mean over several classes
        return Ours(100 * paper_dice(scores, "gpe" if one_class else convention), dice, cases)
    return Ours(float(foreground(by_case(scores, metric))), dice, cases)


def _shifted(study: Results, run: str, percent: float) -> Ours:
    points = study.robustness[study.robustness["run"] == run].set_index(["kind", "axes", "percent"])
    dice = points["dice"].get(("shift", "axial", percent), math.nan)
    if math.isnan(dice):
        return Ours(why="not there yet")
    return Ours(100 * dice, 100 * dice, int(points["cases"]["shift", "axial", percent]))


def _find_run(study: Results, row: Mapping[str, Any]) -> str | None:
    """The run with the row's method and preset. A method with several sources is named ``LocBAM (voxel)`` and so on;
    the first one is taken."""
    runs = study.runs_at(row["preset"])["method"]
    exact = runs.index[runs == row["method"]]
    sourced = runs.index[runs.str.fullmatch(re.escape(row["method"]) + r" \([^()]*\)")]
    return next(iter([*exact, *sourced]), None)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", text.lower())
