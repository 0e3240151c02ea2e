"""Uses of anatomical positional embeddings: landmarks, organ boxes and crops (``locctx landmarks``, ``localize``,
``crop``).

All rest on one step: a place of one scan has coordinates in that scan's map, and the place of another scan with the
same coordinates corresponds to it.

Source of the idea: Goncharov et al., "Anatomical Positional Embeddings", MICCAI 2024 (arXiv:2409.10291).
"""

from nnunet_locctx.anatomy.crop import CropReport, ScanCrop, ScanGroup, crop_scans, format_report
from nnunet_locctx.anatomy.localize import LabelledScan, OrganBox, localize, sample_organs
from nnunet_locctx.anatomy.places import Landmarks, PlaceFinder, find_landmarks
from nnunet_locctx.anatomy.region import Region, StoredRegion, fit_region, read_region

__all__ = [
    "CropReport",
    "LabelledScan",
    "Landmarks",
    "OrganBox",
    "PlaceFinder",
    "Region",
    "ScanCrop",
    "ScanGroup",
    "StoredRegion",
    "crop_scans",
    "find_landmarks",
    "fit_region",
    "format_report",
    "localize",
    "read_region",
    "sample_organs",
]
