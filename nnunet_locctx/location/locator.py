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
coordinate was better than none: with 18 abdominal CTs at 6.4 mm, FiLM and one seed, Dice was 0.409 with the level
unknown, 0.445 and 0.300 with the level wrong by 10 and 25 %; the two cross at 14 %. Networks that have learned what to
say without location (``unlocated_weight``) do better without from about 8 % on."""

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
        coordinates: (3, 2) lowest and highest coordinate along each axis, of what the source judges
            (:meth:`~nnunet_locctx.location.LocationSource.judged`), without each scan's outer tenth (:data:`CENTRAL`);
            NaN along an axis that was known in no case.
        extents: (3, 2) length in mm of the shortest and the longest scan along each axis, or of the body in it, as the
            source measures it (:meth:`~nnunet_locctx.location.LocationSource.extent`).
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
    def over(cls, locator: "Locator", cases: Iterable[tuple[Frame, Measurement | None]]) -> "TrainingRange":
        """The range over training cases. Where some scans have a geometry and others have none, it is that of those
        that have one; the others' location is unknown.

        Args:
            locator: Gives the cases their location.
            cases: Each case's frame and what was found in it (:meth:`Locator.field`), at least one.
        """
        seen: dict[bool, list[tuple[Array, Array]]] = {True: [], False: []}
        for frame, measured in cases:
            coordinates = _coordinates(locator.field(frame, measured))
            judged = _judged(locator.source, coordinates, coordinates)
            seen[frame.has_geometry].append((_central_range(judged), locator.source.extent(frame, measured)))
        geometry = bool(seen[True])
        ranges, extents = (np.stack(values) for values in zip(*seen[geometry], strict=True))
        return cls(_widest(ranges[..., 0], ranges[..., 1]), _widest(extents, extents), geometry)

    def unseen(
        self, source: LocationSource, frame: Frame, extent: Array, field: LocationField
    ) -> dict[str, str]:
        """Axis -> why a scan's location along it is not one that training has seen.

        Args:
            source: Where the location comes from.
            frame: The scan's.
            extent: Its length, as the source measures it.
            field: Its location.
        """
        if frame.has_geometry != self.geometry:
            has, had = ("a", "none") if frame.has_geometry else ("no", "one")
            return dict.fromkeys(
                AXES, f"the scan has {has} direction and origin, the scans of training had {had}"
            )
        coordinates = _coordinates(field)
        reasons = self.unseen_coordinates(_judged(source, coordinates, coordinates))
        for axis, length, (shortest, longest) in zip(AXES, extent, self.extents, strict=True):
            if axis not in source.axes_of_the_scan:
                continue
            # not where there is no length, NaN
            if length < shortest / (1 + EXTENT_TOLERANCE) or length > longest * (1 + EXTENT_TOLERANCE):
                reasons[axis] = (
                    f"{source.measures} spans {length:.0f} mm, those of training {shortest:.0f} to {longest:.0f} mm"
                )
        return reasons

    def unseen_coordinates(self, coordinates: npt.NDArray[np.floating]) -> dict[str, str]:
        """Axis -> why its coordinates are not in the range of training; unknown coordinates are not looked at.

        Args:
            coordinates: (points, 3) spread over what a source judges of a scan.
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
        extent = self.source.extent(frame, measured)
        return hide_axes(field, self.training.unseen(self.source, frame, extent, field))

    def hide_unseen(self, location: npt.NDArray[np.float32], true: npt.NDArray[np.float32]) -> None:
        """Makes the axes of a changed location, along which training has not seen it, unknown in place.

        Args:
            location: (3, *shape).
            true: Likewise, before the change: says where the body is.
        """
        if self.training is None:
            return
        changed = _judged(self.source, _sampled(true), _sampled(location))
        location[[AXES.index(axis) for axis in self.training.unseen_coordinates(changed)]] = np.nan


def _coordinates(field: LocationField) -> Array:
    """(points, 3) location at the centres of a coarse grid of cells that fill the volume."""
    centres = [(np.arange(SAMPLES) + 0.5) / SAMPLES * n - 0.5 for n in field.shape]
    return field.at(np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1)).reshape(-1, 3)


def _sampled(location: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(points, 3) location (3, *shape) at the centres of the cells that :func:`_coordinates` looks at; NaN spreads."""
    factors = [SAMPLES / n for n in location.shape[1:]]
    channels = [zoom(channel, factors, order=1, mode="nearest", grid_mode=True) for channel in location]
    return np.stack(channels, axis=-1).reshape(-1, 3)


def _judged(
    source: LocationSource, places: npt.NDArray[np.floating], coordinates: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
    """The coordinates of the points (points, 3) whose true places the source judges; all, where it judges none."""
    judged = source.judged(places)
    return coordinates[judged] if judged.any() else coordinates


def _widest(lowest: Array, highest: Array) -> Array:
    """(3, 2) lowest and highest of (cases, 3) each; fmin and fmax pass over NaN, what is unknown in a case."""
    return np.stack([np.fmin.reduce(lowest), np.fmax.reduce(highest)], axis=1)


def _central_range(coordinates: npt.NDArray[np.floating]) -> Array:
    """(3, 2) quantiles of the coordinates (points, 3) along each axis; NaN where they are unknown."""
    return np.quantile(np.asarray(coordinates, dtype=np.float64), CENTRAL, axis=0).T
