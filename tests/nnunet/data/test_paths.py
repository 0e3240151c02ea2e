from pathlib import Path

import pytest

from nnunet_locctx.nnunet.data.paths import dataset_folder, nnunet_folder, training_labels


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("Dataset003_Liver", "Dataset011_Heart", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "Dataset012_File").write_text("")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dataset", [3, "3", "003", "Dataset003_Liver"])
def test_dataset_by_id_or_name(raw: Path, dataset: str | int) -> None:
    assert dataset_folder("nnUNet_raw", dataset) == raw / "Dataset003_Liver"


def test_unknown_dataset(raw: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no dataset 12 in .*; there are Dataset003_Liver, Dataset011_Heart"
    ):
        dataset_folder("nnUNet_raw", "12")
    with pytest.raises(ValueError, match=r"no dataset Dataset004_Liver in .*did you mean Dataset003_Liver\?"):
        dataset_folder("nnUNet_raw", "Dataset004_Liver")


@pytest.mark.parametrize("dataset", ["Liver", "1234", "../x", ""])
def test_what_is_no_dataset(raw: Path, dataset: str) -> None:
    with pytest.raises(ValueError, match="given by its id"):
        dataset_folder("nnUNet_raw", dataset)


def test_two_datasets_with_one_id(raw: Path) -> None:
    (raw / "Dataset003_Other").mkdir()
    with pytest.raises(
        ValueError, match=r"2 datasets have the id 3 .*Dataset003_Liver, Dataset003_Other\. Give"
    ):
        dataset_folder("nnUNet_raw", 3)
    assert dataset_folder("nnUNet_raw", "Dataset003_Other") == raw / "Dataset003_Other"


def test_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(
        ValueError, match=r"nnUNet_preprocessed is not set.*set it with: export nnUNet_preprocessed="
    ):
        nnunet_folder("nnUNet_preprocessed")


def test_variable_that_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", "/nowhere")
    with pytest.raises(ValueError, match="nnUNet_results is '/nowhere', which is not a folder"):
        nnunet_folder("nnUNet_results")


def test_variable_of_nobody() -> None:
    with pytest.raises(ValueError, match="variable must be one of nnUNet_raw"):
        nnunet_folder("HOME")


def test_training_labels_that_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw" / "Dataset003_Liver"
    raw.mkdir(parents=True)
    assert training_labels(raw) == raw / "labelsTr"
    (raw / "dataset.json").write_text('{"labels": {}}')
    assert training_labels(raw) == raw / "labelsTr"
    (raw / "dataset.json").write_text('{"dataset": {"a": {"images": ["x/a.nii.gz"], "label": "y/a.nii.gz"}}}')
    assert training_labels(raw, tmp_path / "here") == tmp_path / "here" / "gt_segmentations"
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(ValueError, match="nnUNet_preprocessed is not set"):
        training_labels(raw)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    assert training_labels(raw) == tmp_path / "Dataset003_Liver" / "gt_segmentations"
    (raw / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json cannot be read"):
        training_labels(raw)
