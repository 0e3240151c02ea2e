"""What a coordinate means: the registry of location sources, and those that need no measurement."""

import abc
import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location.field import AXES, AffineField, LocationField
from nnunet_locctx.location.measurement import Measurement
from nnunet_locctx.names import check_known, check_options

MILLIMETRES_PER_UNIT = 500.0
"""Millimetres per unit of a scanner coordinate, so that an adult trunk spans about -0.5..0.5 like the
``voxel`` source."""


class LocationSource(abc.ABC):
    """What a coordinate means. Subclasses are frozen dataclasses, whose fields are the source's options.

    Attributes:
        name: The value of the plans' ``location.source``.
        fitted: Whether the location is measured in each scan.
        needs_fit: Whether what measures it is a model fitted beforehand; else it is a rule, which needs no data.
        measures: What :meth:`extent` measures, in words.
    """

    name: ClassVar[str]
    fitted: ClassVar[bool] = False
    needs_fit: ClassVar[bool] = False
    measures: ClassVar[str] = "the scan"

    @property
    def axes_of_the_scan(self) -> tuple[str, ...]:
        """Axes along which a coordinate says where a voxel lies in :meth:`extent`, which the field of view cuts, rather
        than in the patient. Where that is much longer or shorter, the coordinate means another place."""
        return ()

    def extent(self, frame: Frame, measured: Measurement | None = None) -> Array:
        """(3,) length in mm along the patient's axes (R, A, S) of what a scan shows: that of its volume.

        Args:
            frame: The preprocessed array's.
            measured: See :meth:`field`.
        """
        return frame.extent

    def judged(self, coordinates: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """(points,) whether a place counts for the range of coordinates that a scan covers: everywhere.

        Args:
            coordinates: (points, 3) true coordinates; NaN where unknown.
        """
        return np.ones(len(coordinates), dtype=bool)

    @abc.abstractmethod
    def field(self, frame: Frame, measured: Measurement | None = None) -> LocationField:
        """The location of every voxel of a scan.

        Args:
            frame: The preprocessed array's.
            measured: What the fitted model found in the scan; fitted sources need it, others do not look at it.
        """


class FittedSource(LocationSource):
    """A source whose location is measured in each scan, as a rule by a model fitted beforehand."""

    fitted: ClassVar[bool] = True
    needs_fit: ClassVar[bool] = True

    def field(self, frame: Frame, measured: Measurement | None = None) -> LocationField:
        """The measured location; unknown where the measurement has a problem.

        Raises:
            ValueError: There is no measurement, or one of another source.
        """
        if measured is None or measured.kind != self.name:
            seen = "none" if measured is None else f"one of {measured.kind!r}"
            raise ValueError(f"the location source {self.name!r} needs a measurement of the scan, got {seen}")
        return measured.field(frame, **vars(self))


SOURCES: dict[str, type[LocationSource]] = {}


def register(source: type[LocationSource]) -> type[LocationSource]:
    """Class decorator: makes a source known by its name."""
    SOURCES[source.name] = source
    return source


def make_source(name: str, **options: Any) -> LocationSource:
    """The source of that name.

    Raises:
        ValueError: Unknown source or option.
    """
    check_known([name], sorted(SOURCES), "location source")
    allowed = [field.name for field in dataclasses.fields(SOURCES[name])]  # type: ignore[arg-type]
    check_options(options, allowed, f"location source {name!r}")
    return SOURCES[name](**options)


@register
@dataclasses.dataclass(frozen=True)
class VoxelSource(LocationSource):
    """Fraction of the volume, -0.5..0.5 along the patient's axes (R, A, S), voxel centres at ``(i + 0.5) / n
    - 0.5``.

    The volume is the preprocessed one, cropped to nonzero voxels: the coordinate depends on the field of
    view.
    """

    name: ClassVar[str] = "voxel"

    @property
    def axes_of_the_scan(self) -> tuple[str, ...]:
        return AXES

    def field(self, frame: Frame, measured: Measurement | None = None) -> AffineField:
        return AffineField(frame.fraction_affine, frame.shape)


@register
@dataclasses.dataclass(frozen=True)
class ScannerSource(LocationSource):
    """Millimetres along the patient's axes (R, A, S), divided by :data:`MILLIMETRES_PER_UNIT`.

    Args:
        absolute: Scanner coordinates as the header has them. False: relative to the centre of the
            preprocessed volume.
    """

    name: ClassVar[str] = "scanner"
    absolute: bool = False

    @property
    def axes_of_the_scan(self) -> tuple[str, ...]:
        return () if self.absolute else AXES

    def field(self, frame: Frame, measured: Measurement | None = None) -> AffineField:
        matrix = frame.absolute_affine if self.absolute else frame.centred_affine
        return AffineField(matrix / MILLIMETRES_PER_UNIT, frame.shape)
