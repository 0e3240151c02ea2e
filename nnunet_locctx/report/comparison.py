"""Each run against its baseline at the same preset."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_locctx.report.model import Study
from nnunet_locctx.report.scores import Array, Scores, foreground, mean_known, shared_keys
from nnunet_locctx.report.statistics import (
    NO_INTERVAL,
    Interval,
    SignedRank,
    gain_interval,
    holm,
    mean_interval,
    signed_rank,
)


@dataclass(frozen=True)
class Comparison:
    """One method at one preset. Dice as fractions.

    Attributes:
        method: Its name.
        preset: Its name.
        cases: Cases with any Dice.
        mean: Mean foreground Dice: mean over the classes of the class means.
        interval: Of the mean.
        gain: Difference to the baseline over the cases that both have; NaN for the baseline and without one.
        gain_interval: Of the gain.
        relative: Gain over the baseline's mean on those cases.
        pairs: Cases that both have.
        test: On the cases' means over the classes.
        corrected: p after Holm's correction over the table; NaN if not tested.
        scores: What it was made from.
    """

    method: str
    preset: str
    cases: int
    mean: float
    interval: Interval
    gain: float
    gain_interval: Interval
    relative: float
    pairs: int
    test: SignedRank | None
    corrected: float
    scores: Scores

    def metric(self, name: str) -> float:
        """Mean of another metric, over the cases and then over the classes."""
        return float(foreground(self.scores.values[name]))


def compare(study: Study, found: Mapping[str, Scores]) -> list[Comparison]:
    """Compares all runs that have scores, in the order of presets and methods.

    Args:
        study: The study.
        found: Run -> scores.
    """
    rows = []
    for preset in study.presets:
        for run in study.at(preset.name):
            if run.run in found:
                base = study.find(study.baseline_of(run.method), preset.name)
                theirs = found.get(base.run) if base and base is not run else None
                rows.append(_compare(run.method, preset.name, found[run.run], theirs))
    corrected = holm([row.test.p if row.test else math.nan for row in rows])
    return [
        Comparison(**{**vars(row), "corrected": value}) for row, value in zip(rows, corrected, strict=True)
    ]


def aligned(scores: Scores, baseline: Scores, metric: str = "dice") -> tuple[Array, Array]:
    """Two (cases, classes) tables of the cases and classes that both have, in the same order."""
    keys = shared_keys(scores, baseline)
    classes = [name for name in scores.classes if name in baseline.classes]
    one, other = scores.chosen(keys, classes), baseline.chosen(keys, classes)
    return one.values[metric], other.values[metric]


def _compare(method: str, preset: str, scores: Scores, baseline: Scores | None) -> Comparison:
    values = scores.values["dice"]
    gain, relative, interval, test, pairs = math.nan, math.nan, NO_INTERVAL, None, 0
    if baseline is not None:
        mine, theirs = aligned(scores, baseline)
        pairs = len(mine)
        start = float(foreground(theirs))
        gain = float(foreground(mine)) - start
        relative = gain / start if start else math.nan
        interval = gain_interval(mine, theirs)
        test = signed_rank(mean_known(mine, axis=1), mean_known(theirs, axis=1))
    return Comparison(
        method=method,
        preset=preset,
        cases=int(np.isfinite(values).any(axis=1).sum()),
        mean=float(foreground(values)),
        interval=mean_interval(values),
        gain=gain,
        gain_interval=interval,
        relative=relative,
        pairs=pairs,
        test=test,
        corrected=math.nan,
        scores=scores,
    )
