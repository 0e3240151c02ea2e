"""The fitted body part regressor, which measures a scan's curve of scores."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import BodyPartCurve
from nnunet_locctx.location.body_part import HIGHEST_SCORE
from nnunet_locctx.regression.body_part.curve import SLOPE_TOLERANCE, make_curve, smooth
from nnunet_locctx.regression.body_part.network import SliceRegressor
from nnunet_locctx.regression.body_part.options import BodyPartOptions
from nnunet_locctx.regression.body_part.slices import ScanSlices, as_input, take_slices
from nnunet_locctx.regression.canonical import CanonicalScan, to_canonical
from nnunet_locctx.regression.regressor import Regressor

SUPERIOR = (0.0, 0.0, 1.0)
"""Direction of the body's axis in LPS."""

BATCH = 64
"""Slices per forward pass."""

SPREADS = 3.0
"""Number of standard deviations of the training scans' slopes that is tolerated, if it exceeds the publication's
tolerance."""


class BodyPartRegressor(Regressor):
    """Scores every axial slice of a scan: 0 and 100 are two levels of the body, slices outside them score beyond.

    Source: Schuhegger, "Body part regression for CT images", 2021 (arXiv:2110.09148), with a smaller network.

    Args:
        options: Options of the fit.
        network: Network from a slice to a raw score.
        lowest: Raw score that becomes 0.
        highest: Raw score that becomes 100.
        raw_slope: Median slope of the training scans, raw score per mm.
        raw_spread: Standard deviation of that slope over the training scans.
    """

    kind: ClassVar[str] = "body_part"

    def __init__(
        self,
        options: BodyPartOptions,
        network: SliceRegressor,
        *,
        lowest: float,
        highest: float,
        raw_slope: float,
        raw_spread: float,
    ) -> None:
        if not highest > lowest:
            raise ValueError(
                f"the level of score 100 must lie above that of score 0, got {highest} and {lowest}"
            )
        if not raw_slope > 0:
            raise ValueError(f"scores must rise towards superior, got a slope of {raw_slope} per mm")
        self.options = options
        self.channel = options.channel
        self.network = network.eval()
        self.lowest, self.highest = lowest, highest
        self.raw_slope, self.raw_spread = raw_slope, raw_spread

    @property
    def expected_slope(self) -> float:
        """Points per mm of a usual scan."""
        return HIGHEST_SCORE * self.raw_slope / (self.highest - self.lowest)

    @property
    def tolerance(self) -> float:
        """Largest plausible deviation from the expected slope, as a share of it."""
        return max(SLOPE_TOLERANCE, SPREADS * self.raw_spread / self.raw_slope)

    def slices(self, scan: CanonicalScan) -> ScanSlices:
        """The slices of a scan as input of this regressor."""
        options = self.options
        if not np.allclose(scan.spacing, options.spacing, rtol=1e-3):
            raise ValueError(
                f"the scan has voxels of {scan.spacing.tolist()} mm, the regressor needs {options.spacing:g} mm"
            )
        return take_slices(scan, options.modality, options.window, options.side)

    def raw_scores(self, slices: ScanSlices) -> Array:
        """(K,) scores of the network; NaN for slices of air."""
        scores = np.full(len(slices.positions), np.nan)
        scores[slices.usable] = score_images(self.network, slices.images[slices.usable])
        return scores

    def scores(self, scan: CanonicalScan) -> tuple[Array, Array]:
        """Scores slice by slice, before smoothing and trimming.

        Args:
            scan: Scan at the regressor's spacing.

        Returns:
            Positions (K,) in mm along S, and scores (K,) on the 0 to 100 scale, NaN for slices of air.
        """
        slices = self.slices(scan)
        return slices.positions, self._scaled(self.raw_scores(slices))

    def measure(self, image: npt.NDArray[np.floating], frame: Frame) -> BodyPartCurve:
        """See :meth:`~nnunet_locctx.regression.regressor.Regressor.measure`."""
        if frame.shape[frame.array_axes[2]] < 2:
            return BodyPartCurve.unusable("a single axial slice does not show where in the body it lies")
        try:
            scan = to_canonical(image, frame, self.options.spacing)
        except ValueError as error:
            return BodyPartCurve.unusable(str(error))
        slices = self.slices(scan)
        if not slices.usable.any():
            return BodyPartCurve.unusable("no body found in the scan, air only")
        return make_curve(
            SUPERIOR,
            slices.positions,
            self._scaled(self.raw_scores(slices)),
            expected_slope=self.expected_slope,
            tolerance=self.tolerance,
            cross_section=slices.cross_section,
        )

    def state(self) -> dict[str, Any]:
        return {
            "options": asdict(self.options),
            "weights": {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()},
            "lowest": self.lowest,
            "highest": self.highest,
            "raw_slope": self.raw_slope,
            "raw_spread": self.raw_spread,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "BodyPartRegressor":
        state = dict(state)
        options = BodyPartOptions(**state.pop("options"))
        network = SliceRegressor()
        network.load_state_dict(state.pop("weights"))
        return cls(options, network, **state)

    def _scaled(self, raw: Array) -> Array:
        return HIGHEST_SCORE * (raw - self.lowest) / (self.highest - self.lowest)


@torch.no_grad()
def score_images(network: SliceRegressor, images: npt.NDArray[np.uint8]) -> Array:
    """Raw scores (K,) of stored slices (K, side, side)."""
    parts = [network(as_input(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    return torch.cat(parts).double().numpy() if parts else np.zeros(0)


def anchored_scale(
    regressor: BodyPartRegressor,
    scans: Mapping[str, CanonicalScan],
    low: Mapping[str, float],
    high: Mapping[str, float],
) -> BodyPartRegressor:
    """The same regressor with another scale: 0 and 100 are the mean scores of two levels of the body.

    Args:
        regressor: A fitted regressor.
        scans: Name -> scan at the regressor's spacing; may hold further scans.
        low: Height in mm along S of the level of score 0 in each scan that shows it whole.
        high: Height in mm along S of the level of score 100, likewise.

    Raises:
        ValueError: A level is in no scan, a name belongs to no scan, a height is outside its scan, or the upper level
            does not score higher.
    """
    scores: dict[str, tuple[Array, Array]] = {}
    for name in sorted({*low, *high}):
        if name not in scans:
            raise ValueError(f"a level is given for {name!r}, which is none of the scans")
        slices = regressor.slices(scans[name])
        raw = regressor.raw_scores(slices)
        kept = np.isfinite(raw)
        if kept.sum() >= 2:
            scores[name] = slices.positions[kept], smooth(slices.positions[kept], raw[kept])
    lowest, highest = _mean_score(scores, low, "lower"), _mean_score(scores, high, "upper")
    if not highest > lowest:
        raise ValueError(
            f"the upper level must score higher than the lower, got raw scores {highest:.3f} and {lowest:.3f}: "
            "are the two classes named in the right order?"
        )
    return BodyPartRegressor(
        regressor.options,
        regressor.network,
        lowest=lowest,
        highest=highest,
        raw_slope=regressor.raw_slope,
        raw_spread=regressor.raw_spread,
    )


def _mean_score(scans: Mapping[str, tuple[Array, Array]], heights: Mapping[str, float], which: str) -> float:
    """Mean raw score at the heights, in scans given as positions and scores."""
    values = []
    for name, height in heights.items():
        if name not in scans:
            continue  # the scan shows no body
        positions, scores = scans[name]
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
