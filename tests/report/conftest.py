"""Shared by the report's tests."""

import pytest

from nnunet_locctx.report import cases, figures, statistics, style


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of resamples decides the intervals' third digit, and it and the pictures most of the time: they are
    drawn everywhere, and rendered where the page is tested."""
    monkeypatch.setattr(statistics, "RESAMPLES", 199)
    monkeypatch.setattr(style, "DPI", 50)
    if "page" not in request.module.__name__:
        for module in (figures, cases):
            monkeypatch.setattr(module, "to_svg", lambda figure: b"not rendered")
