"""A scale from levels of the body that labels show."""

from collections.abc import Mapping

import numpy as np

from nnunet_locctx.geometry import Array
from nnunet_locctx.regression.body_part.curve import smooth
from nnunet_locctx.regression.body_part.regressor import BodyPartRegressor
from nnunet_locctx.regression.canonical import CanonicalScan


def anchored_scale(
    regressor: BodyPartRegressor,
    scans: Mapping[str, CanonicalScan],
    low: Mapping[str, float],
    high: Mapping[str, float],
) -> BodyPartRegressor:
    """The same regressor with another scale: 0 and 100 are the mean scores of two levels of the body.

    Args:
        regressor: Fitted.
        scans: By name, at the regressor's spacing; may hold more than those named below.
        low: Height in mm along S of the level of score 0 in each scan that shows it whole.
        high: As `low`, for score 100.

    Raises:
        ValueError: A level is in no scan, a name is of no scan, a height is not in its scan, or the upper level does
            not score higher.
    """
    found: dict[str, tuple[Array, Array]] = {}
    for name in sorted({*low, *high}):
        if name not in scans:
            raise ValueError(f"a level is given for {name!r}, which is none of the scans")
        slices = regressor.slices(scans[name])
        raw = regressor.raw_scores(slices)
        kept = np.isfinite(raw)
        if kept.sum() >= 2:
            found[name] = slices.positions[kept], smooth(slices.positions[kept], raw[kept])
    lowest, highest = (_mean_score(found, low, "lower"), _mean_score(found, high, "upper"))
    if not highest > lowest:
        raise ValueError(
            f"the upper level must score higher than the lower, got raw scores {highest:.3f} and {lowest:.3f}: "
            "are the two classes named in the right order?"
        )
    return regressor.with_scale(lowest, highest)


def _mean_score(found: Mapping[str, tuple[Array, Array]], heights: Mapping[str, float], which: str) -> float:
    """Mean raw score at the heights."""
    values = []
    for name, height in heights.items():
        if name not in found:
            continue  # no body in that scan
        positions, scores = found[name]
        margin = float(np.diff(positions).max())
        if not positions[0] - margin <= height <= positions[-1] + margin:
            raise ValueError(
                f"the {which} level of {name} lies at {height:g} mm, its body from {positions[0]:g} to "
                f"{positions[-1]:g} mm"
            )
        values.append(float(np.interp(height, positions, scores)))
    if not values:
        raise ValueError(f"the {which} level of the scale is in none of the scans")
    return float(np.mean(values))
