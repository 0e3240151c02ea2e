"""Where a voxel is: sources of location and the fields they give for one scan.

A *source* (``voxel``, ``scanner``, ``body``, ``body_part``, ``anatomical``) is chosen once per training; its *field*
for one scan yields the three location channels of any box of the preprocessed array, in patient axes (R, A, S), also
outside the volume. The last three are *fitted*: a model (``body``: a rule) measures each scan beforehand, and the field
is made from its *measurement*.
"""

from nnunet_locctx.location.anatomical import AnatomicalMap, AnatomicalSource
from nnunet_locctx.location.body import BodyBox, BodySource
from nnunet_locctx.location.body_part import BodyPartCurve, BodyPartSource
from nnunet_locctx.location.field import AffineField, LocationField
from nnunet_locctx.location.measurement import Measurement
from nnunet_locctx.location.padding import extrapolate_padding
from nnunet_locctx.location.scanner import MILLIMETRES_PER_UNIT, ScannerSource
from nnunet_locctx.location.source import SOURCES, FittedSource, LocationSource, make_source
from nnunet_locctx.location.voxel import VoxelSource

LOCATION_CHANNELS = 3

__all__ = [
    "LOCATION_CHANNELS",
    "MILLIMETRES_PER_UNIT",
    "SOURCES",
    "AffineField",
    "AnatomicalMap",
    "AnatomicalSource",
    "BodyBox",
    "BodyPartCurve",
    "BodyPartSource",
    "BodySource",
    "FittedSource",
    "LocationField",
    "LocationSource",
    "Measurement",
    "ScannerSource",
    "VoxelSource",
    "extrapolate_padding",
    "make_source",
]
