"""The scores of one run on a list of cases, as arrays."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.measures import MEASURES, PAPER_MEASURES

Array = npt.NDArray[np.float64]
Key = tuple[int, str]

METRICS = (*MEASURES, *PAPER_MEASURES)
"""Columns of evaluation.json, with their units; Dice, NSD and swap rate are fractions."""

BACKGROUND = "background"
NO_FOLD = -1
"""The fold of test cases, which belong to none."""


@dataclass(frozen=True)
class Scores:
    """What `locctx evaluate` measured, case by case.

    Attributes:
        keys: Fold (:data:`NO_FOLD` for test cases) and name of each case, in order.
        classes: Foreground classes.
        values: Metric -> (cases, classes), NaN where undefined.
        background: Metric -> (cases,), of the background; only what a paper's metric needs, else NaN.
    """

    keys: tuple[Key, ...]
    classes: tuple[str, ...]
    values: Mapping[str, Array]
    background: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.keys)

    def has(self, metric: str) -> bool:
        """Whether the metric is known anywhere."""
        return bool(np.isfinite(self.values[metric]).any())

    def chosen(self, keys: Sequence[Key], classes: Sequence[str] | None = None) -> "Scores":
        """The scores of these cases (and classes), in this order.

        Raises:
            ValueError: One is not there.
        """
        rows = [self.keys.index(key) for key in keys]
        names = self.classes if classes is None else tuple(classes)
        columns = [self.classes.index(name) for name in names]
        return Scores(
            tuple(keys),
            names,
            {metric: table[np.ix_(rows, columns)] for metric, table in self.values.items()},
            {metric: column[rows] for metric, column in self.background.items()},
        )

    def paper_dice(self, convention: object) -> float:
        """Mean ``paper_dice``, NaN if there is none.

        Args:
            convention: ``gpe``: over the cases of a class, then over the classes. Otherwise as LocBAM's evaluation:
                over the classes of a case, background included, then over the cases.
        """
        table = self.values["paper_dice"]
        if convention == "gpe":
            return float(foreground(table))
        per_case = mean_known(np.column_stack([table, self.background["paper_dice"]]), axis=1)
        return float(mean_known(per_case, axis=0))


def from_rows(rows: Iterable[tuple[int, Mapping[str, Any]]], classes: Sequence[str]) -> Scores:
    """Gathers rows of evaluation.json.

    Args:
        rows: Fold and row; a row has ``case``, ``class`` and metrics, null where undefined.
        classes: Names of the foreground classes, in order.
    """
    names = tuple(name for name in classes if name != BACKGROUND)
    found: dict[tuple[Key, str], Mapping[str, Any]] = {}
    for fold, row in rows:
        found[(fold, str(row["case"])), str(row["class"])] = row
    keys = tuple(sorted({key for key, _ in found}))
    nothing: Mapping[str, Any] = {}
    values = {
        metric: np.array(
            [[_number(found.get((key, name), nothing).get(metric)) for name in names] for key in keys],
            dtype=np.float64,
        ).reshape(len(keys), len(names))
        for metric in METRICS
    }
    background = {
        metric: np.array([_number(found.get((key, BACKGROUND), nothing).get(metric)) for key in keys])
        for metric in METRICS
    }
    return Scores(keys, names, values, background)


def shared_keys(first: Scores, second: Scores) -> list[Key]:
    """Cases that both have."""
    theirs = set(second.keys)
    return [key for key in first.keys if key in theirs]


def mean_known(values: Array, axis: int) -> Array:
    """Mean over an axis of what is not NaN; NaN where nothing is left."""
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def foreground(values: Array) -> Array:
    """(..., cases, classes) -> (...): mean over the classes of the class means, as nnU-Net's foreground_mean."""
    return mean_known(mean_known(values, axis=-2), axis=-1)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
