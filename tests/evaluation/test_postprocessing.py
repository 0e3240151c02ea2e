"""Folders of predictions that are changed file by file."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.cli import main
from nnunet_locctx.evaluation import postprocessing
from nnunet_locctx.evaluation.folders import evaluate_folders
from nnunet_locctx.evaluation.postprocessing import largest_component
from nnunet_locctx.files import file_digest
from tests.broken_files import full_disk
from tests.evaluation.label_scans import STORAGES, box, describe, write

SHAPE = (12, 13, 14)


def prediction() -> np.ndarray:
    """Two components of each of two classes."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:5, 1:5, 1:5] = 1
    labels[8:10, 8:10, 8:10] = 1
    labels[6:8, 1:3, 1:3] = 2
    labels[10, 10, 1] = 2
    return labels


@pytest.fixture
def pred(tmp_path: Path) -> Path:
    folder = tmp_path / "pred"
    for case, storage in zip("abc", STORAGES, strict=False):
        write(folder / f"{case}.nii.gz", prediction(), (1.0, 2.0, 3.0), *storage)
    describe(folder, {"liver": 1, "spleen": 2})
    (folder / "plans.json").write_text("{}")
    return folder


def read(file: Path) -> np.ndarray:
    array: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    return array


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "postprocessing.jsonl").read_text().splitlines()]


def test_keeps_the_largest_and_the_geometry(pred: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = largest_component(pred, out, progress=False)
    assert sorted(file.name for file in files) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    for file in files:
        before, after = read(pred / file.name), read(file)
        assert np.array_equal(after == 1, (before == 1) & (after == 1))
        assert [(after == label).sum() for label in (1, 2)] == [64, 8]
        one, other = (nibabel.load(folder / file.name) for folder in (pred, out))
        np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)  # type: ignore[attr-defined]
        assert after.dtype == np.uint8
    assert json.loads((out / "dataset.json").read_text()) == json.loads((pred / "dataset.json").read_text())
    assert (out / "plans.json").is_file()
    assert [record["result"]["removed_voxels"] for record in records(out)] == [{"1": 8, "2": 1}] * 3
    # the folder is one of predictions again
    content = evaluate_folders(out, pred, tmp_path / "evaluation", progress=False)
    assert content["mean"]["liver"]["dice"] == pytest.approx(2 * 64 / (64 + 72))


def test_chosen_classes_and_regions(pred: Path, tmp_path: Path) -> None:
    given = [str(pred), "-o", str(tmp_path / "one"), "--classes", "spleen", "--quiet", "-np", "1"]
    assert main(["postprocess", "largest-component", *given]) == 0
    after = read(tmp_path / "one" / "a.nii.gz")
    assert [(after == label).sum() for label in (1, 2)] == [72, 8]
    describe(pred, {"both": [1, 2]})
    largest_component(pred, tmp_path / "region", progress=False)
    after = read(tmp_path / "region" / "a.nii.gz")
    assert [(after == label).sum() for label in (1, 2)] == [64, 0]


def test_is_not_done_again(pred: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    largest_component(pred, out, progress=False)
    changed: list[str] = []
    change = postprocessing._change

    def noted(source: Any, **options: Any) -> Any:
        changed.append(source.file.name)
        return change(source, **options)

    monkeypatch.setattr(postprocessing, "_change", noted)
    largest_component(pred, out, progress=False)
    assert changed == []
    (out / "a.nii.gz").unlink()
    (out / "b.nii.gz").write_bytes(b"damaged")
    write(pred / "c.nii.gz", box(SHAPE, (0, 0, 0), (3, 3, 3)))
    largest_component(pred, out, progress=False)
    assert changed == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert read(out / "c.nii.gz").sum() == 27
    largest_component(pred, out, classes=["liver"], progress=False)
    assert changed[3:] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert not [file for file in out.iterdir() if file.name.startswith(".")]


def test_a_full_disk_is_said_and_nothing_broken_is_kept(
    pred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (40, 40, 40), dtype=np.uint8)
    write(pred / "b.nii.gz", noise)
    out = tmp_path / "out"
    line = ["postprocess", "largest-component", str(pred), "-o", str(out), "--quiet", "-np", "1"]
    with full_disk(3000):
        assert main(line) == 2
    message = capsys.readouterr().err
    assert f"{out / 'b.nii.gz'} was not written whole" in message
    assert "Traceback" not in message
    assert sorted(file.name for file in out.iterdir()) == ["a.nii.gz", "postprocessing.jsonl"]
    assert [record["case"] for record in records(out)] == ["a"]
    assert main(line) == 0
    largest_component(pred, tmp_path / "at once", progress=False)
    for case in "abc":
        assert np.array_equal(read(out / f"{case}.nii.gz"), read(tmp_path / "at once" / f"{case}.nii.gz"))


def test_what_an_earlier_version_recorded_is_done_again(pred: Path, tmp_path: Path) -> None:
    """It recorded files that the disk had no space for."""
    out = tmp_path / "out"
    largest_component(pred, out, progress=False)
    whole = read(out / "a.nii.gz")
    (out / "a.nii.gz").write_bytes((out / "a.nii.gz").read_bytes()[:100])
    earlier = records(out)
    for record in earlier:
        del record["whole"]
        record["result"]["output"] = file_digest(out / f"{record['case']}.nii.gz")
    (out / "postprocessing.jsonl").write_text("".join(json.dumps(record) + "\n" for record in earlier))
    largest_component(pred, out, progress=False)
    assert np.array_equal(read(out / "a.nii.gz"), whole)


def test_bad_input(pred: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown class 'lung'; there are liver, spleen"):
        largest_component(pred, tmp_path / "out", classes=["lung"])
    with pytest.raises(ValueError, match="another folder"):
        largest_component(pred, pred)
    labels = tmp_path / "labelsTr"
    labels.mkdir()
    (labels / "a.nii.gz").write_bytes(b"the truth")
    with pytest.raises(ValueError, match=r"holds a\.nii\.gz, which locctx postprocess did not write"):
        largest_component(pred, labels)
    write(pred / "a.nii.gz", prediction() * 2)
    (pred / "b.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match="2 problems") as refused:
        largest_component(pred, tmp_path / "out", progress=False)
    assert "does not list there: 4" in str(refused.value)
    assert not (tmp_path / "out").exists()
