"""The report's statistics: bootstrap intervals over cases, Wilcoxon signed-rank tests, Holm's correction.

- Interval: 95%, bootstrap over cases (Efron 1987: bias-corrected and accelerated, BCa; the plain percentile interval
  where BCa is not defined, as when all cases are equal), 9999 resamples, seed 0, ``scipy.stats.bootstrap``.
- Test: Wilcoxon 1945, two-sided, on the cases' paired differences, differences of 0 left out, ``scipy.stats.wilcoxon``.
- Correction: Holm 1979, over all comparisons of a table.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_locctx.report.scores import Array, foreground

LEVEL = 0.95
RESAMPLES = 9999
SEED = 0
FEWEST_CASES = 5
"""Fewer cases say too little about their spread for an interval."""

FEWEST_DIFFERENCES = 6
"""With fewer the smallest two-sided p is 2 / 2**5 = 0.06: the test could not show anything at 0.05."""

BATCH_NUMBERS = 20_000_000
"""Numbers that one batch of resamples may hold: 160 MB."""


@dataclass(frozen=True)
class Interval:
    """An interval; NaN at both ends if there are too few cases."""

    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is one."""
        return math.isfinite(self.low) and math.isfinite(self.high)


NO_INTERVAL = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class SignedRank:
    """A test's result.

    Attributes:
        n: Pairs that differ.
        p: Two-sided; NaN if not tested.
        reason: Why it was not tested, or empty.
    """

    n: int
    p: float
    reason: str = ""


def mean_interval(values: Array) -> Interval:
    """Of the foreground mean.

    Args:
        values: (cases, classes), NaN where undefined.
    """
    return _bootstrap(values, lambda chosen: foreground(values[chosen]))


def gain_interval(values: Array, baseline: Array) -> Interval:
    """Of the difference of two foreground means over the same cases, which are drawn together.

    Args:
        values: (cases, classes) of a method.
        baseline: The same of the baseline, cases in the same order.
    """
    return _bootstrap(values, lambda chosen: foreground(values[chosen]) - foreground(baseline[chosen]))


def signed_rank(values: Array, baseline: Array) -> SignedRank:
    """Tests the paired differences of two methods.

    Args:
        values: (cases,) of a method; NaN where undefined.
        baseline: (cases,) of the baseline.
    """
    from scipy.stats import wilcoxon

    differences = values - baseline
    differences = differences[np.isfinite(differences)]
    changed = differences[differences != 0]
    n = len(changed)
    if len(differences) and not n:
        return SignedRank(0, math.nan, f"not tested: equal in all {len(differences)} cases")
    if n < FEWEST_DIFFERENCES:
        return SignedRank(n, math.nan, f"not tested: n = {n}")
    return SignedRank(n, float(wilcoxon(changed).pvalue))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction.

    Args:
        values: p values; NaN ones were not tested and do not count.

    Returns:
        Corrected ones in the same order, at most 1; NaN stays NaN.
    """
    tested = sorted((value, place) for place, value in enumerate(values) if not math.isnan(value))
    corrected = [math.nan] * len(values)
    least = 0.0
    for rank, (value, place) in enumerate(tested):
        least = max(least, min(1.0, value * (len(tested) - rank)))
        corrected[place] = least
    return corrected


def _bootstrap(values: Array, statistic: Callable[[np.ndarray], Array]) -> Interval:
    from scipy.stats import bootstrap

    known = np.flatnonzero(np.isfinite(values).any(axis=1))
    if len(known) < FEWEST_CASES:
        return NO_INTERVAL
    batch = max(1, BATCH_NUMBERS // max(1, values.size))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns where BCa is not defined; then its ends are NaN
            found = bootstrap(
                (known,),
                # the resampled cases are the last axis
                lambda chosen, axis: statistic(chosen),
                n_resamples=RESAMPLES,
                confidence_level=LEVEL,
                method=method,
                batch=batch,
                random_state=SEED,
            ).confidence_interval
        interval = Interval(float(found.low), float(found.high))
        if interval.known:
            return interval
    return NO_INTERVAL
