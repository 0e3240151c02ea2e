"""A regressor file that the commands load, made from the one that knows."""

from pathlib import Path

import pytest

import nnunet_locctx.regression.anatomical  # noqa: F401 - registers itself before it is replaced
from nnunet_locctx.regression.registry import REGRESSORS
from tests.anatomy.warped_scans import KnowingRegressor


@pytest.fixture
def regressor_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(REGRESSORS, "anatomical", KnowingRegressor)
    file = tmp_path / "regressor.pt"
    file.write_bytes(KnowingRegressor().to_bytes())
    return file
