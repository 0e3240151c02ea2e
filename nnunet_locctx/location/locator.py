"""Which axes of a scan's location are known to a model: what its plans use and its training has seen."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import zoom

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location.field import AXES, LocationField, hide_axes
from nnunet_locctx.location.measurement import Measurement
from nnunet_locctx.location.source import LocationSource

COORDINATE_TOLERANCE = 1 / 8
"""Of the width of training's range: by how much a scan's coordinates may exceed it. Up to about there a wrong
coordinate is better than none: with 18 abdominal CTs at 6.4 mm, FiLM and one seed, Dice was 0.409 with the level
unknown, 0.445 and 0.300 with the level wrong by 10 and 25 %; the two cross at 14 %."""

EXTENT_TOLERANCE = 1 / 4
"""By how much a scan may be longer than the longest of training, or the shortest longer than it. Where coordinates are
those of the scan, a field of view that is a quarter longer at one end shifts them by 10 % on average."""

CENTRAL = (0.05, 0.95)
"""Quantiles between which a scan's coordinates are taken to lie: near the top of a head, a fraction of the body's
cross-section takes any value."""

SAMPLES = 16
"""Points along each axis at which a scan's coordinates are looked at."""


LEFT_OUT = "the plans leave it out"
"""Why an axis is unknown that the plans do not use; the only reason that says nothing about a scan."""


@dataclass(frozen=True)
class TrainingRange:
    """What the location of a model's training cases covers.

    Attributes:
        coordinates: (3, 2) lowest and highest coordinate along each axis, without each scan's outer tenth
            (:data:`CENTRAL`); NaN along an axis that was known in no case.
        extents: (3, 2) length in mm of the shortest and the longest scan along each axis.
        geometry: Whether the scans had a direction and an origin.
    """

    coordinates: Array
    extents: Array
    geometry: bool

    def __post_init__(self) -> None:
        for name, value in (("coordinates", self.coordinates), ("extents", self.extents)):
            if value.shape != (3, 2) or not np.isfinite(value[~np.isnan(value)]).all():
                raise ValueError(f"the {name} of a training range must be (3, 2), got {value.tolist()}")

    @classmethod
    def over(cls, cases: Iterable[tuple[Frame, LocationField]]) -> "TrainingRange":
        """The range over training cases. Where some scans have a geometry and others have none, it is that of those
        that have one; the others' location is unknown.

        Args:
            cases: Each case's frame and location, at least one.
        """
        seen: dict[bool, list[tuple[Array, Array]]] = {True: [], False: []}
        for frame, field in cases:
            seen[frame.has_geometry].append((_central_range(_coordinates(field)), frame.extent))
        geometry = bool(seen[True])
        ranges, extents = (np.stack(values) for values in zip(*seen[geometry], strict=True))
        # fmin and fmax pass over NaN, the range of an axis that is unknown in a case
        coordinates = [np.fmin.reduce(ranges[..., 0]), np.fmax.reduce(ranges[..., 1])]
        return cls(np.stack(coordinates, 1), np.stack([extents.min(0), extents.max(0)], 1), geometry)

    def unseen(self, source: LocationSource, frame: Frame, field: LocationField) -> dict[str, str]:
        """Axis -> why a scan's location along it is not one that training has seen.

        Args:
            source: Where the location comes from.
            frame: The scan's.
            field: Its location.
        """
        if frame.has_geometry != self.geometry:
            has, had = ("a", "none") if frame.has_geometry else ("no", "one")
            return dict.fromkeys(
                AXES, f"the scan has {has} direction and origin, the scans of training had {had}"
            )
        reasons = self.unseen_coordinates(_coordinates(field))
        for axis, extent, (shortest, longest) in zip(AXES, frame.extent, self.extents, strict=True):
            allowed = shortest / (1 + EXTENT_TOLERANCE), longest * (1 + EXTENT_TOLERANCE)
            if axis in source.axes_of_the_scan and not allowed[0] <= extent <= allowed[1]:
                reasons[axis] = (
                    f"the scan spans {extent:.0f} mm, those of training {shortest:.0f} to {longest:.0f} mm"
                )
        return reasons

    def unseen_coordinates(self, coordinates: npt.NDArray[np.floating]) -> dict[str, str]:
        """Axis -> why its coordinates are not in the range of training; unknown coordinates are not looked at.

        Args:
            coordinates: (points, 3) spread over a scan.
        """
        reasons: dict[str, str] = {}
        for axis, (low, high), (lowest, highest) in zip(
            AXES, _central_range(coordinates), self.coordinates, strict=True
        ):
            slack = COORDINATE_TOLERANCE * (highest - lowest)
            if np.isnan(lowest):
                reasons[axis] = "the axis was unknown in training"
            elif low < lowest - slack or high > highest + slack:
                reasons[axis] = (
                    f"its coordinates run from {low:.2f} to {high:.2f}, in training from {lowest:.2f} to {highest:.2f}"
                )
        return reasons


@dataclass(frozen=True)
class Locator:
    """Gives a scan the location that a model takes: a coordinate is true and of a kind that training has seen, or NaN.

    Attributes:
        source: What a coordinate means.
        axes: Names of the axes in use (:data:`~nnunet_locctx.location.AXES`); the others are unknown in every scan.
        training: What training has seen; None: everything, as in models of earlier versions.
    """

    source: LocationSource
    axes: tuple[str, ...] = AXES
    training: TrainingRange | None = None

    def field(self, frame: Frame, measured: Measurement | None = None) -> LocationField:
        """The location of a scan, and why which of its axes are unknown.

        Args:
            frame: The preprocessed array's.
            measured: What the fitted model found in the scan; fitted sources need it.
        """
        field = self.source.field(frame, measured)
        field = hide_axes(field, {axis: LEFT_OUT for axis in AXES if axis not in self.axes})
        if self.training is None:
            return field
        return hide_axes(field, self.training.unseen(self.source, frame, field))

    def hide_unseen(self, location: npt.NDArray[np.float32]) -> None:
        """Makes the axes of a changed location (3, *shape), along which training has not seen it, unknown in place."""
        if self.training is None:
            return
        # at the centres of the cells that `_coordinates` looks at
        factors = [SAMPLES / n for n in location.shape[1:]]
        sampled = [
            zoom(axis, factors, order=1, mode="nearest", grid_mode=True) for axis in location
        ]  # NaN spreads
        coordinates = np.stack(sampled, axis=-1).reshape(-1, 3)
        location[[AXES.index(axis) for axis in self.training.unseen_coordinates(coordinates)]] = np.nan


def _coordinates(field: LocationField) -> Array:
    """(points, 3) location at the centres of a coarse grid of cells that fill the volume."""
    centres = [(np.arange(SAMPLES) + 0.5) / SAMPLES * n - 0.5 for n in field.shape]
    return field.at(np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1)).reshape(-1, 3)


def _central_range(coordinates: npt.NDArray[np.floating]) -> Array:
    """(3, 2) quantiles of the coordinates (points, 3) along each axis; NaN where they are unknown."""
    return np.quantile(np.asarray(coordinates, dtype=np.float64), CENTRAL, axis=0).T
