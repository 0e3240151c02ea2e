"""Location as a fraction of the preprocessed volume."""

from dataclasses import dataclass
from typing import ClassVar

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location.field import AffineField
from nnunet_locctx.location.measurement import Measurement
from nnunet_locctx.location.source import LocationSource, register


@register
@dataclass(frozen=True)
class VoxelSource(LocationSource):
    """Fraction of the volume, -0.5..0.5 along the patient's axes (R, A, S), voxel centres at ``(i + 0.5) / n
    - 0.5``.

    The volume is the preprocessed one, cropped to nonzero voxels: the coordinate depends on the field of
    view.
    """

    name: ClassVar[str] = "voxel"

    def field(self, frame: Frame, measured: Measurement | None = None) -> AffineField:
        return AffineField(frame.fraction_affine, frame.shape)
