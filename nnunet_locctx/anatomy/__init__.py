"""Uses of anatomical positional embeddings: landmarks, organ boxes and crops (``locctx landmarks``, ``localize``,
``crop``).

All rest on one step: a place of one scan has coordinates in that scan's map, and the place of another scan with the
same coordinates corresponds to it.

Source of the idea: Goncharov et al., "Anatomical Positional Embeddings", MICCAI 2024 (arXiv:2409.10291).
"""

from nnunet_locctx.anatomy.crop import ScanGroup, crop_scans
from nnunet_locctx.anatomy.landmarks import Landmarks, find_landmarks
from nnunet_locctx.anatomy.localize import LabelledScan, OrganBox, localize, sample_organs
from nnunet_locctx.anatomy.places import PlaceFinder
from nnunet_locctx.anatomy.region import Region, fit_region
from nnunet_locctx.anatomy.region_file import StoredRegion, read_region
from nnunet_locctx.anatomy.report import CropReport, ScanCrop, format_report

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
