"""The registry of location sources."""

import abc
import dataclasses
from typing import Any, ClassVar

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location.field import LocationField


class LocationSource(abc.ABC):
    """What a coordinate means. Subclasses are frozen dataclasses, whose fields are the source's options.

    Attributes:
        name: The value of the plans' ``location.source``.
        neutral: Location (R, A, S) that says nothing, used by location dropout.
    """

    name: ClassVar[str]
    neutral: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)

    @abc.abstractmethod
    def field(self, frame: Frame) -> LocationField:
        """The location of every voxel of the scan with this frame."""


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
