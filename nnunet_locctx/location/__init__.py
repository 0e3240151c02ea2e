"""Where a voxel is: sources of location and the fields they give for one scan.

A *source* (``voxel``, ``scanner``, ``body``, ``body_part``, ``anatomical``) is chosen once per training; its *field*
for one scan yields the three location channels of any box of the preprocessed array, in patient axes (R, A, S), also
outside the volume. The last three are *fitted*: a model (``body``: a rule) measures each scan beforehand, and the field
is made from its *measurement*. What is not known of a place is NaN: a *locator* knows which axes a model's plans use
and which coordinates its training has seen. Importing this loads no torch, so that commands know sources quickly.
"""

from nnunet_locctx.location.anatomical import AnatomicalMap, AnatomicalSource
from nnunet_locctx.location.body import BodyBox, BodySource
from nnunet_locctx.location.body_part import BodyPartCurve, BodyPartSource
from nnunet_locctx.location.field import AXES, AffineField, LocationField, hide_axes
from nnunet_locctx.location.locator import COORDINATE_TOLERANCE, EXTENT_TOLERANCE, Locator, TrainingRange
from nnunet_locctx.location.measurement import Measurement
from nnunet_locctx.location.source import (
    MILLIMETRES_PER_UNIT,
    SOURCES,
    FittedSource,
    LocationSource,
    ScannerSource,
    VoxelSource,
    make_source,
)

LOCATION_CHANNELS = len(AXES)

__all__ = [
    "AXES",
    "COORDINATE_TOLERANCE",
    "EXTENT_TOLERANCE",
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
    "Locator",
    "Measurement",
    "ScannerSource",
    "TrainingRange",
    "VoxelSource",
    "hide_axes",
    "make_source",
]
