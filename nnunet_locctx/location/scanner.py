"""Location in millimetres."""

from dataclasses import dataclass
from typing import ClassVar

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location.field import AffineField
from nnunet_locctx.location.measurement import Measurement
from nnunet_locctx.location.source import LocationSource, register

MILLIMETRES_PER_UNIT = 500.0
"""Millimetres per unit of a scanner coordinate, so that an adult trunk spans about -0.5..0.5 like the
``voxel`` source."""


@register
@dataclass(frozen=True)
class ScannerSource(LocationSource):
    """Millimetres along the patient's axes (R, A, S), divided by :data:`MILLIMETRES_PER_UNIT`.

    Args:
        absolute: Scanner coordinates as the header has them. False: relative to the centre of the
            preprocessed volume.
    """

    name: ClassVar[str] = "scanner"
    absolute: bool = False

    def field(self, frame: Frame, measured: Measurement | None = None) -> AffineField:
        matrix = frame.absolute_affine if self.absolute else frame.centred_affine
        return AffineField(matrix / MILLIMETRES_PER_UNIT, frame.shape)
