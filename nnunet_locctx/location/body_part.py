"""Location along the body by body part scores."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location.field import NEVER_ZERO, LocationField, hide_axes, ramps
from nnunet_locctx.location.measurement import Measurement
from nnunet_locctx.location.source import FittedSource, register

HIGHEST_SCORE = 100.0
"""Body part scores run from 0 to this between two levels of the body, and beyond outside them."""

NEGLIGIBLE = 1e-7
"""Share of the largest slope."""

CROSS_SECTIONS = ("body", "scan")


@dataclass
class BodyPartCurve(Measurement):
    """Scores along one direction of a scan.

    Attributes:
        direction: (3,) unit vector in LPS, towards superior.
        positions: (K,) mm along the direction (dot product with a place in mm LPS), strictly increasing, K >= 2.
        scores: (K,), not decreasing, finite.
        slope: Score per mm with which the curve continues beyond both ends, above 0.
        cross_section: (K, 4) mm: the body's lower and upper edge along R, then along A, at each position; None if
            no body was found.
        problem: See :class:`Measurement`.
    """

    kind: ClassVar[str] = "body_part"
    direction: Array
    positions: Array
    scores: Array
    slope: float
    cross_section: Array | None = None
    problem: str = ""

    def __post_init__(self) -> None:
        if self.problem:
            return
        count = len(self.positions)
        if count < 2 or self.scores.shape != (count,) or not (np.diff(self.positions) > 0).all():
            raise ValueError(f"a curve needs 2 or more increasing positions with a score each, got {count}")
        if not (np.isfinite(self.positions).all() and np.isfinite(self.scores).all()):
            raise ValueError("positions and scores of a curve must be finite")
        if (np.diff(self.scores) < 0).any() or not self.slope > 0:
            raise ValueError(
                f"scores must not decrease towards superior and continue upwards, got slope {self.slope}"
            )
        if self.cross_section is not None and self.cross_section.shape != (count, 4):
            raise ValueError(f"the cross-section must be ({count}, 4), got {self.cross_section.shape}")

    @classmethod
    def unusable(cls, problem: str) -> "BodyPartCurve":
        """A scan that could not be scored."""
        nothing = np.zeros(0)
        return cls(np.array([0.0, 0.0, 1.0]), nothing, nothing, 0.0, None, problem)

    def score_at(self, position: npt.ArrayLike) -> Array:
        """Scores (...) at positions (...) in mm along the direction; beyond the ends linear, without a jump."""
        position = np.asarray(position, dtype=np.float64)
        inside = np.clip(position, self.positions[0], self.positions[-1])
        return np.asarray(np.interp(inside, self.positions, self.scores) + self.slope * (position - inside))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {
            "direction": np.asarray(self.direction),
            "positions": np.asarray(self.positions),
            "scores": np.asarray(self.scores),
            "slope": np.asarray(self.slope),
        }
        return arrays if self.cross_section is None else {**arrays, "cross_section": self.cross_section}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "BodyPartCurve":
        return cls(
            arrays["direction"],
            arrays["positions"],
            arrays["scores"],
            float(arrays["slope"]),
            arrays.get("cross_section"),
            str(arrays.get("problem", "")),
        )

    def measured_field(self, frame: Frame, cross_section: str = "body", **options: Any) -> LocationField:
        field = BodyPartField(frame, self, cross_section)
        if cross_section == "body" and self.cross_section is None:
            return hide_axes(field, dict.fromkeys(("R", "A"), "no body was found in the scan"))
        return field


class BodyPartField(LocationField):
    """Fractions of the cross-section along R and A, and ``score / 100 - 0.5`` along S.

    Args:
        frame: The preprocessed array's.
        curve: The scan's scores.
        cross_section: ``body``: fractions of the body's cross-section at that height; ``scan``, and where the curve has
            no cross-section: of the preprocessed volume.
    """

    def __init__(self, frame: Frame, curve: BodyPartCurve, cross_section: str) -> None:
        super().__init__(frame.shape)
        self.affine_matrix = frame.affine_lps[:3]
        self.curve = curve
        self.of_body = cross_section == "body" and curve.cross_section is not None
        # index -> mm along (R, A), or fraction of the volume
        self.rows = (frame.absolute_affine if self.of_body else frame.fraction_affine)[:2]

    def at(self, index: npt.ArrayLike) -> Array:
        index = np.asarray(index, dtype=np.float64)
        millimetres = index @ self.affine_matrix[:, :3].T + self.affine_matrix[:, 3]
        position = millimetres @ self.curve.direction
        across = [
            self._across(axis, index @ row[:3] + row[3], position) for axis, row in enumerate(self.rows)
        ]
        return np.stack([*across, self.curve.score_at(position) / HIGHEST_SCORE - 0.5], axis=-1)

    def sample(self, origin: Array, steps: Array, out: npt.NDArray[np.float32]) -> None:
        along = self.curve.direction @ self.affine_matrix
        # without rotation the position changes along one axis only, and so do the curves
        position = functools.reduce(
            np.add, ramps(along[:3] @ origin + along[3], _significant(along[:3]) @ steps, out.shape[1:])
        )
        for axis, row in enumerate(self.rows):
            place = functools.reduce(
                np.add, ramps(row[:3] @ origin + row[3], _significant(row[:3]) @ steps, out.shape[1:])
            )
            out[axis] = self._across(axis, place, position)
        out[0] += NEVER_ZERO
        out[2] = self.curve.score_at(position) / HIGHEST_SCORE - 0.5

    def _across(self, axis: int, place: Array, position: Array) -> Array:
        """The coordinate along R or A: a fraction of the body from mm, or what is a fraction already."""
        if not self.of_body:
            return place
        assert self.curve.cross_section is not None
        lower, upper = (
            np.interp(position, self.curve.positions, self.curve.cross_section[:, 2 * axis + end])
            for end in range(2)
        )
        return np.asarray((place - lower) / (upper - lower) - 0.5)


def _significant(slopes: Array) -> Array:
    """Slopes without a header's round-off, which over any scan stays below a thousandth of a voxel."""
    return np.where(np.abs(slopes) > NEGLIGIBLE * np.abs(slopes).max(), slopes, 0)


@register
@dataclass(frozen=True)
class BodyPartSource(FittedSource):
    """Body part scores along the body, fitted on the user's scans (``locctx fit body-part``).

    The third coordinate (S) is ``score / 100 - 0.5``; the same level of the body has the same coordinate in every
    field of view. The other two are fractions of the cross-section.

    Source: Schuhegger, "Body part regression for CT images", 2021 (arXiv:2110.09148).

    Args:
        cross_section: ``body``: R and A are fractions of the body's cross-section at that height, and unknown where no
            body is found; ``scan``: of the preprocessed volume.
    """

    name: ClassVar[str] = "body_part"
    cross_section: str = "body"

    def __post_init__(self) -> None:
        if self.cross_section not in CROSS_SECTIONS:
            raise ValueError(
                f"location.cross_section must be one of {', '.join(CROSS_SECTIONS)}, got {self.cross_section!r}"
            )

    @property
    def axes_of_the_scan(self) -> tuple[str, ...]:
        return ("R", "A") if self.cross_section == "scan" else ()
