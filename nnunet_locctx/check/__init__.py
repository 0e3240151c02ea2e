"""Is a raw dataset fit for training with location? Orientations, spacings, suspicious headers (`locctx check`)."""

from nnunet_locctx.check.dataset import check_dataset
from nnunet_locctx.check.report import DatasetReport, Finding, format_report

__all__ = ["DatasetReport", "Finding", "check_dataset", "format_report"]
