"""A trained model, taken apart: what the steps of a prediction give."""

import json
import multiprocessing
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_locctx.location import BodyPartCurve, Measurement, VoxelSource
from nnunet_locctx.nnunet.predicting.prediction import load_located_model
from nnunet_locctx.nnunet.predicting.preprocessing import LocationMixin
from tests.integration.workspace import ThreadsForProcesses, Workspace
from tests.nnunet.small_models import make_model

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """8 x 7 x 6 voxels (z, y, x) of 3, 2 and 1 mm."""
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(10, 1, (8, 7, 6)).astype(np.float32))
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "scan_0000.nii.gz"))
    return tmp_path / "scan_0000.nii.gz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "PriorHeadTrainer__nnUNetPlans__3d_fullres", "PriorHeadTrainer", axis=2)


def test_a_prepared_scan_says_where_it_lies(image: Path, folder: Path) -> None:
    model = load_located_model(folder, device="cpu")
    assert (model.fold, model.checkpoint, model.channels) == ("0", "checkpoint_final.pth", 1)
    assert model.source == VoxelSource()
    scan = model.prepare([image])
    assert scan.measured is None
    np.testing.assert_array_equal(scan.location, model.field(scan).box((0, 0, 0), (8, 7, 6)))
    np.testing.assert_array_equal(model.labels(scan.data) == 1, scan.location[2] > 0)
    # a view: what is written to it reaches the network
    scan.location[:] += 0.25
    np.testing.assert_array_equal(scan.data[3], scan.location[2])
    np.testing.assert_array_equal((model.labels(scan.data) == 1).sum(axis=(1, 2)), [0] * 2 + [42] * 6)


def test_export_is_on_the_grid_of_the_scan(image: Path, folder: Path, tmp_path: Path) -> None:
    model = load_located_model(folder, device="cpu")
    scan = model.prepare([image])
    model.export(model.logits(scan.data), scan, tmp_path / "out.nii.gz")
    written = sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    assert written.GetSize() == (6, 7, 8)
    assert written.GetSpacing() == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written).sum(axis=(1, 2)), [0] * 4 + [42] * 4)


def test_the_guides_script_for_windows_as_locbams(image: Path, folder: Path, tmp_path: Path) -> None:
    """docs/how-to/locbam.md: runs, predicts the validation cases of the fold and those only."""
    page = (REPOSITORY / "docs" / "how-to" / "locbam.md").read_text()
    (script,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "windows.py").write_text(script.replace('"cuda"', '"cpu"'))
    (tmp_path / "imagesTr").mkdir()
    image.rename(tmp_path / "imagesTr" / image.name)
    splits = tmp_path / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["other"], "val": ["scan"]}]))
    output = tmp_path / "windows"
    with Workspace(tmp_path / "nnunet").entered(1) as patch:
        patch.setattr(sys, "argv", ["windows.py", *map(str, (folder, tmp_path, splits, 0, output))])
        patch.setattr(multiprocessing, "get_context", lambda method=None: ThreadsForProcesses)
        runpy.run_path(str(tmp_path / "windows.py"), run_name="__main__")
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "scan.nii.gz")))
    np.testing.assert_array_equal(written.sum(axis=(1, 2)), [0] * 4 + [42] * 4)


def test_fitted_source(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement of the scan comes along, so that its location can be asked for again."""
    # 24 mm along the body, scores 40 to 88, so that -0.1 to 0.38 is said
    curve = BodyPartCurve(np.array([0.0, 0.0, 1.0]), np.array([0.0, 21.0]), np.array([40.0, 82.0]), 2.0)
    seen: list[tuple[int, ...]] = []

    def measure(self: object, data: np.ndarray, *_: object) -> Measurement:
        seen.append(data.shape)
        return curve

    monkeypatch.setattr(LocationMixin, "_measure", measure)
    folder = make_model(tmp_path / "fitted", "PriorHeadTrainer", axis=2, source="body_part")
    model = load_located_model(folder, device="cpu")
    scan = model.prepare([image])
    assert seen == [(1, 8, 7, 6)]
    assert isinstance(scan.measured, BodyPartCurve)
    np.testing.assert_allclose(scan.location[2][:, 0, 0], -0.1 + 0.06 * np.arange(8), atol=1e-6)
    np.testing.assert_allclose(scan.location, model.field(scan).box((0, 0, 0), (8, 7, 6)), atol=1e-6)


def test_fingerprint(folder: Path, tmp_path: Path) -> None:
    first = load_located_model(folder, device="cpu").fingerprint()
    assert load_located_model(folder, device="cpu", mirroring=True).fingerprint() == first
    folder.rename(tmp_path / "moved")
    assert load_located_model(tmp_path / "moved", device="cpu").fingerprint() == first
    plans = tmp_path / "moved" / "plans.json"
    plans.write_text(plans.read_text() + "\n")
    assert load_located_model(tmp_path / "moved", device="cpu").fingerprint() != first


class Caller:
    """What a stranger may put into a pickle."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_checkpoint_is_not_executed(folder: Path, tmp_path: Path) -> None:
    file, called = folder / "fold_0" / "checkpoint_final.pth", tmp_path / "called"
    content = torch.load(file, weights_only=False)
    numbers = {"logging": {"losses": [np.float32(1.5), np.float64(2)]}, "_best_ema": np.float32(0.5)}
    torch.save({**content, **numbers}, file)
    assert load_located_model(folder, device="cpu").fold == "0"
    torch.save({**content, "logging": Caller(called)}, file)
    with pytest.raises(ValueError, match=re.escape(f"{file} is broken, or holds what is not executed")):
        load_located_model(folder, device="cpu")
    assert not called.exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_a_broken_checkpoint_is_named(content: bytes, folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{file} is broken")):
        load_located_model(folder, device="cpu")
    torch.save({"network_weights": {}}, file)
    with pytest.raises(ValueError, match="is no checkpoint of nnU-Net: it has no init_args, trainer_name"):
        load_located_model(folder, device="cpu")


def test_devices_that_are_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="torch knows no device 'moon'; use cpu, cuda or cuda:N"):
        load_located_model(folder, device="moon")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda:1' is named, but torch finds no GPU"):
        load_located_model(folder, device="cuda:1")
