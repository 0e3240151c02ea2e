"""The registry of location sources."""

import abc
import dataclasses
from typing import Any, ClassVar

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location.field import LocationField
from nnunet_locctx.location.measurement import Measurement


class LocationSource(abc.ABC):
    """What a coordinate means. Subclasses are frozen dataclasses, whose fields are the source's options.

    Attributes:
        name: The value of the plans' ``location.source``.
        fitted: Whether the location is measured in each scan by a model fitted beforehand.
        neutral: Location (R, A, S) that says nothing, used by location dropout.
    """

    name: ClassVar[str]
    fitted: ClassVar[bool] = False
    neutral: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)

    @abc.abstractmethod
    def field(self, frame: Frame, measured: Measurement | None = None) -> LocationField:
        """The location of every voxel of a scan.

        Args:
            frame: The preprocessed array's.
            measured: What the fitted model found in the scan; fitted sources need it, others do not look at it.
        """


class FittedSource(LocationSource):
    """A source whose location is measured in each scan by a model fitted beforehand."""

    fitted: ClassVar[bool] = True

    def field(self, frame: Frame, measured: Measurement | None = None) -> LocationField:
        """The measured location; voxel fractions where the measurement has a problem.

        Raises:
            ValueError: There is no measurement, or one of another source.
        """
        if measured is None or measured.kind != self.name:
            got = "none" if measured is None else f"one of {measured.kind!r}"
            raise ValueError(f"the location source {self.name!r} needs a measurement of the scan, got {got}")
        return self.measured_field(frame, measured)

    @abc.abstractmethod
    def measured_field(self, frame: Frame, measured: Measurement) -> LocationField:
        """:meth:`field` with a measurement of this source."""


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
    if name not in SOURCES:
        raise ValueError(f"unknown location source {name!r}, known: {', '.join(sorted(SOURCES))}")
    allowed = [field.name for field in dataclasses.fields(SOURCES[name])]  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(
            f"location source {name!r} does not take {', '.join(unknown)}; "
            f"allowed: {', '.join(allowed) or 'no options'}"
        )
    return SOURCES[name](**options)
