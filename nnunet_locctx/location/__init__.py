"""Where a voxel is: sources of location and the fields they give for one scan.

A *source* (``voxel``, ``scanner``) is chosen once per training; its *field* for one scan yields the three
location channels of any box of the preprocessed array, in patient axes (R, A, S), also outside the volume.
"""

from nnunet_locctx.location.field import AffineField, LocationField
from nnunet_locctx.location.padding import extrapolate_padding
from nnunet_locctx.location.scanner import MILLIMETRES_PER_UNIT, ScannerSource
from nnunet_locctx.location.source import SOURCES, LocationSource, make_source
from nnunet_locctx.location.voxel import VoxelSource

LOCATION_CHANNELS = 3

__all__ = [
    "LOCATION_CHANNELS",
    "MILLIMETRES_PER_UNIT",
    "SOURCES",
    "AffineField",
    "LocationField",
    "LocationSource",
    "ScannerSource",
    "VoxelSource",
    "extrapolate_padding",
    "make_source",
]
