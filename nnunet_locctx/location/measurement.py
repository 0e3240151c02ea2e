"""What a model fitted beforehand found in one scan, independent of plans and preprocessing."""

import abc
import io
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location.field import AXES, AffineField, LocationField, hide_axes

KINDS: "dict[str, type[Measurement]]" = {}


class Measurement(abc.ABC):
    """A scan's measured location, in the patient's millimetres (LPS), so that it serves every configuration.

    Attributes:
        kind: Name of the source that uses it.
        problem: Why the scan could not be measured; empty if it was. The location of such a scan is unknown.
        stamp: Stamp of the files it was measured in; empty in measurements of earlier versions.
        scan: Frame of the scan as it was read; None in measurements of earlier versions.
    """

    kind: ClassVar[str]
    problem: str
    stamp: str = ""
    scan: Frame | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        KINDS[cls.kind] = cls

    @abc.abstractmethod
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything of it, by name; :meth:`from_arrays` makes an equal one."""

    @classmethod
    @abc.abstractmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Measurement":
        """The inverse of :meth:`arrays`."""

    @abc.abstractmethod
    def measured_field(self, frame: Frame, **options: Any) -> LocationField:
        """The location of a preprocessed scan; not called where there is a problem.

        Args:
            frame: The preprocessed array's.
            options: The source's options.
        """

    def field(self, frame: Frame, **options: Any) -> LocationField:
        """The location of a preprocessed scan; unknown along all axes where the scan could not be measured."""
        if self.problem:
            return hide_axes(
                AffineField(frame.fraction_affine, frame.shape), dict.fromkeys(AXES, self.problem)
            )
        return self.measured_field(frame, **options)

    def to_bytes(self) -> bytes:
        """As the content of an .npz file."""
        buffer = io.BytesIO()
        named: dict[str, Any] = {**self.arrays(), "kind": self.kind, "problem": self.problem}
        if self.stamp:
            named["stamp"] = self.stamp
        if self.scan is not None:
            named |= {"scan_shape": np.array(self.scan.shape), "scan_affine": self.scan.affine_lps}
        np.savez_compressed(buffer, **named)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> "Measurement":
        """The inverse of :meth:`to_bytes`.

        Raises:
            ValueError: `data` is no measurement, or damaged.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                arrays = dict(stored)
            measurement = KINDS[str(arrays.pop("kind"))].from_arrays(arrays)
            measurement.problem = str(arrays["problem"])
            measurement.stamp = str(arrays.get("stamp", ""))
            if "scan_affine" in arrays:
                measurement.scan = Frame.from_affine(
                    arrays["scan_shape"].tolist(), arrays["scan_affine"], "LPS"
                )
        except Exception as error:  # zipfile, numpy and KeyError, all of which mean the same
            raise ValueError(f"not a measurement of a scan, or damaged: {error}") from error
        return measurement
