"""The papers' own numbers, and the study's beside them.

``study/papers/*.json`` hold the tables as printed in the papers: title, citation, metric and unit, a note on what
differs, ``convention`` (how the evaluation must count, as in ``locctx evaluate --paper``), ``aliases`` (the paper's
classes with other names of theirs), and rows of method, preset, data set and value. A row may have a class and
``parts``: ``postprocessing``, ``shift_percent`` (of a wrong location), ``bound`` (">": the paper says more than),
``coverage_percent``, ``baseline`` (the method that its gain counts from).
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
from nnunet_locctx.report.results import BACKGROUND, VALIDATION, Results
from nnunet_locctx.report.statistics import by_case, foreground, paper_dice

FOLDER = Path(nnunet_locctx.study.__file__).parent / "papers"
METRICS = {
    "dice": "foreground Dice, %",
    "paper_dice": "the paper's Dice, %",
    "paper_hd95_voxels": "the paper's HD95, voxels",
}


@dataclass(frozen=True)
class Ours:
    """The study's value for a row of a paper, in the paper's unit; NaN where it has none, and why.

    Attributes:
        value: By the paper's metric.
        dice: Our foreground Dice in %.
        cases: Behind them.
        why: Reason for a missing value.
    """

    value: float
    dice: float
    cases: int
    why: str = ""


def paper_names() -> list[str]:
    """Names of the papers' tables that the package has."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def read_paper(name: str) -> dict[str, Any]:
    """A paper's table.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in paper_names():
        raise ValueError(f"papers: there is no table {name!r}; known are {', '.join(paper_names())}")
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content


def find_ours(study: Results, paper: Mapping[str, Any], row: Mapping[str, Any]) -> Ours:
    """The study's value for a row of a paper, of the validation cases of all folds."""
    if not same_dataset(str(row["dataset"]), study.dataset):
        return Ours(math.nan, math.nan, 0, "other data set")
    run = _find_run(study, row)
    if run is None:
        return Ours(math.nan, math.nan, 0, "not in the study")
    parts = row.get("parts", {})
    if "shift_percent" in parts:
        return _shifted(study, run, float(parts["shift_percent"]))
    kind = parts.get("postprocessing")
    scores = study.scores_of(run, kind or VALIDATION)
    if scores.empty:
        return Ours(math.nan, math.nan, 0, "not there yet")
    aliases = paper.get("aliases", {})
    names = {wanted: _class_name(scores, wanted, aliases.get(wanted, ())) for wanted in aliases}
    if "class" in row:
        name = names.get(row["class"])
        if name is None:
            return Ours(math.nan, math.nan, 0, "no such class")
        return _measure(study, scores[scores["class"] == name], paper, one_class=True)
    # the paper's mean is over its own classes, which may be fewer than were trained
    known = [name for name in names.values() if name is not None]
    if names and len(known) == len(names):
        scores = scores[scores["class"].isin([*known, BACKGROUND])]
    return _measure(study, scores, paper, one_class=False)


def same_dataset(paper: str, ours: str) -> bool:
    """Whether ``Dataset007_BTCV`` is the paper's BTCV: one name begins with the other, signs and case aside."""
    first, second = _plain(paper), _plain(re.sub(r"^Dataset\d+_", "", ours))
    return bool(first and second) and (first.startswith(second) or second.startswith(first))


def _class_name(scores: pd.DataFrame, wanted: str, others: Sequence[str]) -> str | None:
    spellings = {_plain(name) for name in (wanted, *others)}
    return next((name for name in scores["class"].unique() if _plain(name) in spellings), None)


def _measure(study: Results, scores: pd.DataFrame, paper: Mapping[str, Any], *, one_class: bool) -> Ours:
    table = by_case(scores)
    dice, cases = 100 * float(foreground(table)), len(table)
    metric, convention = paper["metric"], paper.get("convention")
    if metric == "dice":
        return Ours(dice, dice, cases)
    if study.evaluation.get("paper") != convention or by_case(scores, metric).isna().all(axis=None):
        return Ours(math.nan, dice, cases, f"the evaluation lacks paper: {convention}")
    if metric == "paper_dice" and convention == "locbam" and not one_class:
        value = paper_dice(scores, convention)
    else:
        value = float(foreground(by_case(scores, metric)))
    return Ours(value * (100 if metric == "paper_dice" else 1), dice, cases)


def _shifted(study: Results, run: str, percent: float) -> Ours:
    points = study.robustness.get(run, {}).get("points", ())
    for point in points:
        if (point["kind"], point["axes"], point["percent"]) == ("shift", "axial", percent) and point[
            "dice"
        ] is not None:
            value = 100 * float(point["dice"])
            return Ours(value, value, int(point["cases"]))
    return Ours(math.nan, math.nan, 0, "not there yet")


def _find_run(study: Results, row: Mapping[str, Any]) -> str | None:
    """By name; a method with several sources is called ``LocBAM (voxel)`` and so on, and its first one is taken."""
    runs = study.runs_at(row["preset"])["method"]
    exact = runs.index[runs == row["method"]]
    sourced = runs.index[runs.str.fullmatch(re.escape(row["method"]) + r" \([^()]*\)")]
    return next(iter([*exact, *sourced]), None)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", text.lower())
