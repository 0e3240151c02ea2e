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

import nnunet_locctx.study
from nnunet_locctx.report.model import Run, Study
from nnunet_locctx.report.scores import Scores, foreground

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


def find_ours(study: Study, paper: Mapping[str, Any], row: Mapping[str, Any]) -> Ours:
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
    scores = study.postprocessed.get((run.run, kind)) if kind else study.validation.get(run.run)
    if scores is None:
        return Ours(math.nan, math.nan, 0, "not there yet")
    aliases = paper.get("aliases", {})
    names = {wanted: _class_name(scores, wanted, aliases.get(wanted, ())) for wanted in aliases}
    if "class" in row:
        name = names.get(row["class"])
        if name is None:
            return Ours(math.nan, math.nan, 0, "no such class")
        return _measure(study, scores.chosen(scores.keys, [name]), paper, one_class=True)
    # the paper's mean is over its own classes, which may be fewer than were trained
    known = [name for name in names.values() if name is not None]
    if names and len(known) == len(names):
        scores = scores.chosen(scores.keys, known)
    return _measure(study, scores, paper, one_class=False)


def same_dataset(paper: str, ours: str) -> bool:
    """Whether ``Dataset007_BTCV`` is the paper's BTCV: one name begins with the other, signs and case aside."""
    first, second = _plain(paper), _plain(re.sub(r"^Dataset\d+_", "", ours))
    return bool(first and second) and (first.startswith(second) or second.startswith(first))


def _class_name(scores: Scores, wanted: str, others: Sequence[str]) -> str | None:
    spellings = {_plain(name) for name in (wanted, *others)}
    return next((name for name in scores.classes if _plain(name) in spellings), None)


def _measure(study: Study, scores: Scores, paper: Mapping[str, Any], *, one_class: bool) -> Ours:
    dice = 100 * float(foreground(scores.values["dice"]))
    metric, convention = paper["metric"], paper.get("convention")
    if metric == "dice":
        return Ours(dice, dice, len(scores))
    if study.evaluation.get("paper") != convention or not scores.has(metric):
        return Ours(math.nan, dice, len(scores), f"the evaluation lacks paper: {convention}")
    if metric == "paper_dice" and convention == "locbam" and not one_class:
        value = scores.paper_dice(convention)
    else:
        value = float(foreground(scores.values[metric]))
    return Ours(value * (100 if metric == "paper_dice" else 1), dice, len(scores))


def _shifted(study: Study, run: Run, percent: float) -> Ours:
    points = study.robustness.get(run.run, {}).get("points", ())
    for point in points:
        if (point["kind"], point["axes"], point["percent"]) == ("shift", "axial", percent) and point[
            "dice"
        ] is not None:
            value = 100 * float(point["dice"])
            return Ours(value, value, int(point["cases"]))
    return Ours(math.nan, math.nan, 0, "not there yet")


def _find_run(study: Study, row: Mapping[str, Any]) -> Run | None:
    """By name; a method with several sources is called ``LocBAM (voxel)`` and so on, and its first one is taken."""
    runs = study.at(row["preset"])
    exact = [run for run in runs if run.method == row["method"]]
    sourced = [run for run in runs if re.fullmatch(re.escape(row["method"]) + r" \([^()]*\)", run.method)]
    return next(iter([*exact, *sourced]), None)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", text.lower())
