"""Makes a curve along the body from raw slice scores.

The order of the steps follows Schuhegger, "Body part regression for CT images", 2021 (arXiv:2110.09148): smooth, cut
tails with implausible slopes, fit a line, judge its slope. The robust line, the monotone curve and the continuation are
from this project.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression
from scipy.stats import theilslopes

from nnunet_locctx.geometry import Array
from nnunet_locctx.location import BodyPartCurve
from nnunet_locctx.location.body_part import HIGHEST_SCORE

SMOOTHING_MM = 10.0
"""Standard deviation of the smoothing along the body."""

LEAST_SLICES = 4
"""Smallest number of slices with a score."""

SHORT_MM = 60.0
"""Smallest length of a scan whose slope is measured: score noise of 5 mm over 60 mm is already 10 % of the slope."""

END_MM = 20.0
"""Length at each end in which slices may be trimmed also at scores from 0 to 100."""

FARTHEST = 15.0
"""Largest believable distance of a slice's score from the robust line, in points: about three times the spread over
patients of the least certain levels (up to 5.4 points in the publication's table)."""

STEEPEST = 2.1
"""Largest plausible slope between neighbouring slices, as a multiple of the expected one (the publication's 99.5 %
quantile over training scans, 0.25 against a mean of 0.118 per mm)."""

FALLING = -0.3
"""Smallest plausible slope, as the same multiple (the 0.5 % quantile, -0.037 against 0.118 per mm)."""

FLAT = 0.1
"""Smallest plausible slope at scores below 0 or above 100, where scores level off for lack of training data."""

SLOPE_TOLERANCE = 0.28
"""Largest plausible deviation of a scan's slope from the expected one, as a share of it (as in the publication)."""


LEEWAY = 8.0
"""Further allowed error of the rise over a scan, in points. Both ends of a scan err (the standard deviation of a level
is 1.3 to 5.4 points in the publication's table; 3 at both ends make 4.2, and twice this is allowed), which affects the
slope of a short scan more. The location of a rejected scan is unknown."""


@dataclass(frozen=True)
class Line:
    """A robust line through scores (Theil-Sen)."""

    slope: float
    offset: float

    @classmethod
    def through(cls, positions: Array, scores: Array) -> "Line":
        """Fits positions in mm (K,) to scores (K,), K >= 2."""
        slope, offset, _, _ = theilslopes(scores, positions)
        return cls(float(slope), float(offset))

    def at(self, positions: Array) -> Array:
        return self.offset + self.slope * positions


def make_curve(
    direction: npt.ArrayLike,
    positions: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    expected_slope: float,
    tolerance: float = SLOPE_TOLERANCE,
    cross_section: Array | None = None,
) -> BodyPartCurve:
    """The curve of a scan; an unusable one states the reason.

    Args:
        direction: (3,) in LPS, towards superior, of any length.
        positions: (K,) mm along the direction, finite and all different, in any order.
        scores: (K,) scores, from 0 to 100 between the two levels that define the scale; NaN for a slice without a
            score.
        expected_slope: Points per mm of a usual scan.
        tolerance: Largest deviation of the scan's slope from the expected one, as a share of it; short scans may
            deviate more (:data:`LEEWAY`).
        cross_section: (K, 4) mm, see :class:`~nnunet_locctx.location.BodyPartCurve`.

    Raises:
        ValueError: Shapes do not match, positions are not finite and different, or the expected slope is not above 0.
    """
    positions = np.asarray(positions, dtype=np.float64)
    scores = np.asarray(scores, dtype=np.float64)
    direction = _unit(direction)
    if positions.ndim != 1 or scores.shape != positions.shape:
        raise ValueError(
            f"positions and scores must be two lists of one length, got {positions.shape} and {scores.shape}"
        )
    if not (np.isfinite(expected_slope) and expected_slope > 0):
        raise ValueError(f"the expected slope must be above 0 points per mm, got {expected_slope}")
    if not np.isfinite(positions).all() or len(np.unique(positions)) < len(positions):
        raise ValueError("the positions of the slices must be finite and all different")
    order = np.argsort(positions)
    positions, scores = positions[order], scores[order]
    if cross_section is not None:
        cross_section = np.asarray(cross_section, dtype=np.float64)[order]
    valid = np.isfinite(scores)
    if valid.sum() < LEAST_SLICES:
        return BodyPartCurve.unusable(
            f"{valid.sum()} of {len(scores)} slices have a score, at least {LEAST_SLICES} are needed"
        )
    valid[valid] = (
        np.abs(scores[valid] - Line.through(positions[valid], scores[valid]).at(positions[valid])) <= FARTHEST
    )
    if valid.sum() < LEAST_SLICES:
        return BodyPartCurve.unusable(
            f"{len(scores) - valid.sum()} of {len(scores)} scores lie far off a line"
        )
    places, smoothed = positions[valid], smooth(positions[valid], scores[valid])
    kept = trusted(places, smoothed, expected_slope)
    if kept.sum() < LEAST_SLICES:
        return BodyPartCurve.unusable(
            f"{kept.sum()} of {len(scores)} slices have a plausible score, at least {LEAST_SLICES} are needed"
        )
    problem = judge(places, smoothed, expected_slope, tolerance)
    places, smoothed = places[kept], smoothed[kept]
    # tails that level off make the line too flat; the trimmed scan may be too steep for its length: one must pass
    problem = problem and judge(places, smoothed, expected_slope, tolerance)
    if problem:
        return BodyPartCurve.unusable(problem)
    if places[-1] - places[0] < SHORT_MM:
        slope = expected_slope
        smoothed = Line(slope, float(np.median(smoothed - slope * places))).at(places)
    else:
        slope = continuation(places, smoothed, expected_slope, tolerance)
        smoothed = np.asarray(isotonic_regression(smoothed).x)
    # trimmed and missing slices get scores from the curve, so that they keep their cross-section
    curve = BodyPartCurve(direction, places, smoothed, slope)
    return BodyPartCurve(direction, positions, curve.score_at(positions), slope, cross_section)


def judge(positions: Array, scores: Array, expected_slope: float, tolerance: float) -> str:
    """A sentence if the slope of a scan's scores is implausible; empty if it is plausible or the scan is too short.

    Args:
        positions: (K,) mm, increasing.
        scores: (K,).
        expected_slope: Points per mm of a usual scan.
        tolerance: Largest deviation from it, as a share of it; :data:`LEEWAY` comes on top.
    """
    length = positions[-1] - positions[0]
    if length < SHORT_MM:
        return ""
    slope = Line.through(positions, scores).slope
    observed = f"{slope:.4f} points per mm over {length:.0f} mm, expected {expected_slope:.4f}"
    allowed = tolerance * expected_slope + LEEWAY / length
    if slope < 0 and abs(slope + expected_slope) <= allowed:
        return f"scores fall towards superior, as if the slices were reversed ({observed})"
    if slope < FLAT * expected_slope or abs(slope - expected_slope) > allowed:
        return f"implausible slope of the scores ({observed}, give or take {allowed:.4f})"
    return ""


def continuation(positions: Array, scores: Array, expected_slope: float, tolerance: float) -> float:
    """Slope with which a curve continues beyond its ends, points per mm.

    The slope of a robust line, shrunk towards the expected slope. The weights follow from the uncertainties: half of
    :data:`LEEWAY` over the scan's length for the line, half the tolerance for the expected slope.

    Args:
        positions: (K,) mm, increasing.
        scores: (K,).
        expected_slope: Points per mm of a usual scan.
        tolerance: As in :func:`judge`.
    """
    expected_variance = (tolerance / 2 * expected_slope) ** 2
    variance = (LEEWAY / 2 / (positions[-1] - positions[0])) ** 2
    slope = Line.through(positions, scores).slope
    weight = expected_variance / (expected_variance + variance)
    return max(expected_slope + weight * (slope - expected_slope), FLAT * expected_slope)


def smooth(positions: Array, scores: Array, sigma: float = SMOOTHING_MM) -> Array:
    """Scores (K,) at increasing positions (K,) in mm, smoothed with a Gaussian.

    Only the difference from a robust line is smoothed, so that the ends of a rising curve do not bend towards its
    middle.
    """
    line = Line.through(positions, scores).at(positions)
    weights = np.exp(-0.5 * ((positions[:, None] - positions[None]) / sigma) ** 2)
    return np.asarray(line + weights @ (scores - line) / weights.sum(axis=1))


def trusted(positions: Array, scores: Array, expected_slope: float) -> npt.NDArray[np.bool_]:
    """(K,) bool: False in a tail from its innermost implausible slope on outwards.

    A tail consists of the slices whose robust line is below 0 or above 100, and of those within :data:`END_MM` of an
    end.

    Args:
        positions: (K,) mm, increasing.
        scores: (K,) smoothed.
        expected_slope: Points per mm of a usual scan.
    """
    ratio = np.diff(scores) / np.diff(positions) / expected_slope
    usual = Line.through(positions, scores).at(positions)
    within = np.flatnonzero((usual >= 0) & (usual <= HIGHEST_SCORE))
    if len(within) == 0:  # all slices are outside the scale: take the closest one
        within = np.array([np.abs(usual - HIGHEST_SCORE / 2).argmin()])
    lowest = max(within[0], int(np.searchsorted(positions, positions[0] + END_MM)))
    highest = min(within[-1], int(np.searchsorted(positions, positions[-1] - END_MM, side="right")) - 1)
    kept = np.ones(len(scores), dtype=bool)
    if lowest >= highest:  # there is nothing between the tails
        return kept
    beyond = (usual[:-1] < 0) | (usual[1:] > HIGHEST_SCORE)
    outlier = (ratio > STEEPEST) | (ratio < np.where(beyond, FLAT, FALLING))
    below, above = np.flatnonzero(outlier[:lowest]), highest + np.flatnonzero(outlier[highest:])
    if len(below):
        kept[: below[-1] + 1] = False
    if len(above):
        kept[above[0] + 1 :] = False
    return kept


def _unit(direction: npt.ArrayLike) -> Array:
    vector = np.asarray(direction, dtype=np.float64)
    length = float(np.linalg.norm(vector))
    if vector.shape != (3,) or not np.isfinite(length) or length == 0:
        raise ValueError(
            f"the direction must be three finite numbers that are not all 0, got {vector.tolist()}"
        )
    return np.asarray(vector / length)
