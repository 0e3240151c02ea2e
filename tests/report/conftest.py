"""Shared by the report's tests."""

import pytest

from nnunet_locctx.report import statistics


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of resamples decides the intervals' third digit and most of the time."""
    monkeypatch.setattr(statistics, "RESAMPLES", 199)
