"""Draws a scan with its location and a network's predictions (`locctx show`)."""

from nnunet_locctx.show.figure import check_output, draw
from nnunet_locctx.show.scan import Comparison, LocatedScan, compare_predictions, locate_scan

__all__ = ["Comparison", "LocatedScan", "check_output", "compare_predictions", "draw", "locate_scan"]
