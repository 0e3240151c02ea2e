"""The examples do what they say, on their own made-up scans."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An example as a module; the examples' folder is where Python starts it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("made_up", request.param):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(request.param)


@pytest.mark.parametrize("example", ["monai_prior"], indirect=True)
def test_the_prior_tells_the_sides_apart(example: ModuleType) -> None:
    located, unknown = example.main()
    assert located > 0.8
    assert unknown < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("example", ["torchio_patches"], indirect=True)
def test_torchios_patches_know_their_side(example: ModuleType, tmp_path: Path) -> None:
    assert example.main(tmp_path) > 0.8


@pytest.mark.parametrize("example", ["nifti_coordinates"], indirect=True)
def test_coordinates_of_a_nifti(example: ModuleType, tmp_path: Path) -> None:
    files = importlib.import_module("made_up").write_scans(tmp_path, 2)
    results = [example.main(scan["image"]) for scan in files]
    np.testing.assert_allclose(results[0]["voxel"], np.array([0.5 / 32, 0.5 / 16, 0.5 / 16]), atol=1e-6)
    # the second is stored from right to left: its middle voxel lies on the other side of the middle
    np.testing.assert_allclose(results[1]["voxel"], np.array([-0.5 / 32, 0.5 / 16, 0.5 / 16]), atol=1e-6)
    np.testing.assert_allclose(results[0]["scanner"] * 500, [80, 40, 40], atol=1e-4)
