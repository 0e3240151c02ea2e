"""Writes the report of a study: tables, figures and a page, from the results in its work folder."""

from nnunet_locctx.report.sections import write_report

__all__ = ["write_report"]
