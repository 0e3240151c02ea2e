"""Body part scores from the JSON files that the tool bpreg writes, one per scan.

Source: Schuhegger, "Body part regression for CT images", 2021 (arXiv:2110.09148), and the package bpreg 1.1.0.
"""

from nnunet_locctx.regression.bpreg.curve import curve_from_bpreg
from nnunet_locctx.regression.bpreg.files import BpregScores, find_files, read_scores
from nnunet_locctx.regression.bpreg.stack import StackOrder, file_frame, stack_order

__all__ = [
    "BpregScores",
    "StackOrder",
    "curve_from_bpreg",
    "file_frame",
    "find_files",
    "read_scores",
    "stack_order",
]
