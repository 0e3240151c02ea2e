"""`locctx evaluate`: folders in, tables out."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_locctx.cli import main
from nnunet_locctx.evaluation import folders
from nnunet_locctx.evaluation.folders import evaluate_folders, read_evaluation, summarise_cases, to_table
from nnunet_locctx.evaluation.measures import Settings
from tests.evaluation.label_scans import STORAGES, describe, write

LABELS = {"L kidney": 1, "R kidney": 2, "liver": 3}
SPACING = (2.0, 1.5, 3.0)
SHAPE = (18, 14, 12)


def anatomy() -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction (L, P, S)."""
    true = np.zeros(SHAPE, dtype=np.uint8)
    true[12:16, 3:8, 2:7] = 1
    true[2:6, 3:8, 2:7] = 2
    true[2:12, 8:13, 6:11] = 3
    predicted = true.copy()
    predicted[12, 3:8, 2:7] = 2  # a slab of the left kidney
    predicted[3:12, 8:13, 6:12] = 3
    predicted[2, 8:13] = 0
    return true, predicted


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two cases in `pred` and `gt`."""
    true, predicted = anatomy()
    for number, case in enumerate(("a", "b")):
        write(tmp_path / "gt" / f"{case}.nii.gz", true, SPACING, *STORAGES[number])
        write(tmp_path / "pred" / f"{case}.nii.gz", predicted, SPACING, *STORAGES[number])
    describe(tmp_path / "pred", LABELS)
    (tmp_path / "pred" / "summary.json").write_text("{}")
    return tmp_path


def evaluate(data: Path, **options: Any) -> dict[str, Any]:
    return evaluate_folders(data / "pred", data / "gt", data / "out", progress=False, **options)


class TestValues:
    def test_storage_changes_nothing(self, tmp_path: Path) -> None:
        true, predicted = anatomy()
        for number, storage in enumerate([*STORAGES, ((2, 1, 0), (True, False, True), (0.2, -0.1, 0.3))]):
            for folder, labels in (("gt", true), ("pred", predicted)):
                write(tmp_path / folder / f"case_{number}.nrrd", labels, SPACING, *storage)
        describe(tmp_path, LABELS, ".nrrd")  # above the predictions
        content = evaluate(tmp_path, paper=True)
        for name in [*LABELS, "background"]:
            rows = [row for row in content["cases"] if row["class"] == name]
            assert len(rows) == 5
            for row in rows[1:]:
                for measure, value in rows[0].items():
                    if isinstance(value, float):
                        assert row[measure] == pytest.approx(value, rel=1e-5)
                    elif measure != "case":
                        assert row[measure] == value
        assert content["mean"]["L kidney"]["swap_rate"] == 0.25
        assert content["mean"]["L kidney"]["reference_ml"] == pytest.approx(100 * 9 / 1000)

    def test_means(self, data: Path) -> None:
        write(data / "pred" / "b.nii.gz", np.where(anatomy()[1] == 3, 0, anatomy()[1]), SPACING, *STORAGES[1])
        content = evaluate(data)
        dice = {(row["case"], row["class"]): row["dice"] for row in content["cases"]}
        assert dice["b", "liver"] == 0
        assert content["mean"]["liver"]["dice"] == pytest.approx(dice["a", "liver"] / 2)
        assert content["mean"]["liver"]["hd95_mm"] == next(
            row["hd95_mm"] for row in content["cases"] if row["hd95_mm"] and row["class"] == "liver"
        )
        assert content["presence"]["liver"] == {"both": 1, "missing": 1, "spurious": 0, "absent": 0}
        means = [content["mean"][name]["dice"] for name in LABELS]
        assert content["foreground"]["dice"] == pytest.approx(sum(means) / 3)

    def test_the_papers_orders_of_taking_means(self) -> None:
        rows = [
            {"case": case, "class": name, **dict.fromkeys(Settings(paper="gpe").measures), "presence": "both"}
            for case in "ab"
            for name in ("x", "y")
        ]
        for row, value in zip(rows, (1.0, 0.0, 0.5, None), strict=True):
            row["paper_dice"] = value
        by_case = summarise_cases(rows, ["x", "y"], Settings(paper="locbam"))["paper"]["paper_dice"]
        by_class = summarise_cases(rows, ["x", "y"], Settings(paper="gpe"))["paper"]["paper_dice"]
        assert by_case == pytest.approx((0.5 + 0.5) / 2)
        assert by_class == pytest.approx((0.75 + 0.0) / 2)

    def test_files_agree(self, data: Path) -> None:
        content = evaluate(data, paper="locbam")
        assert read_evaluation(data / "out") == json.loads(json.dumps(content))
        with (data / "out" / "evaluation.csv").open() as stream:
            lines = list(csv.DictReader(stream))
        assert len(lines) == len(content["cases"]) == 8
        for line, row in zip(lines, content["cases"], strict=True):
            assert (line["case"], line["class"]) == (row["case"], row["class"])
            for name in content["definitions"]:
                value = row[name]
                shown = line[name]
                if isinstance(value, float):
                    assert float(shown) == pytest.approx(value, rel=1e-6)
                else:
                    assert shown == ("" if value is None else str(value))
        text = (data / "out" / "evaluation.md").read_text()
        assert all(sentence in text for sentence in content["definitions"].values())

    @pytest.mark.slow
    def test_workers_change_nothing(self, data: Path, workers_at_once: None) -> None:
        alone = evaluate(data)
        together = evaluate_folders(data / "pred", data / "gt", data / "two", processes=2, progress=False)
        assert alone["cases"] == together["cases"]


class TestResume:
    @pytest.fixture
    def measured(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Cases, as they are measured."""
        done: list[str] = []
        measure: Callable[..., Any] = folders._measure

        def noted(files: Any, **options: Any) -> Any:
            done.append(files[0].case)
            if len(done) == stop:
                raise KeyboardInterrupt
            return measure(files, **options)

        stop = 2
        monkeypatch.setattr(folders, "_measure", noted)
        return done

    def test_goes_on(self, data: Path, measured: list[str]) -> None:
        with pytest.raises(KeyboardInterrupt):
            evaluate(data)
        assert not (data / "out" / "evaluation.json").exists()
        first = evaluate(data)
        assert measured == ["a", "b", "b"]
        assert evaluate(data) == first
        # written again with the same content
        os.utime(data / "pred" / "a.nii.gz", (1, 1))
        assert evaluate(data) == first
        assert measured == ["a", "b", "b"]
        write(data / "pred" / "a.nii.gz", anatomy()[0], SPACING, *STORAGES[0])
        changed = evaluate(data)
        assert measured[3:] == ["a"]
        assert [row["dice"] for row in changed["cases"][:3]] == [1, 1, 1]
        assert changed["cases"][3:] == first["cases"][3:]
        evaluate(data, tolerance_mm=1)
        assert measured[4:] == ["a", "b"]


class TestBadInput:
    def test_everything_that_is_wrong_is_said_at_once(self, data: Path) -> None:
        true = anatomy()[0]
        bad: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
            "shape": (true[1:], {}),
            "moved": (true, {"centre": (10.0, -20.0, 31.0)}),
            "turned": (true, {"angles": (0.1, 0.0, 0.0)}),
            "unknown": (np.where(true == 3, 7, true), {}),
            "halves": (true * np.float32(0.5), {}),
            "nan": (np.where(true == 3, np.nan, true).astype(np.float32), {}),
        }
        for name, (prediction, kwargs) in bad.items():
            write(data / "gt" / f"{name}.nii.gz", true, SPACING)
            write(data / "pred" / f"{name}.nii.gz", prediction, SPACING, **kwargs)
        write(data / "gt" / "broken.nii.gz", true)
        (data / "pred" / "broken.nii.gz").write_bytes(b"no image")
        with pytest.raises(ValueError, match="7 problems") as refused:
            evaluate(data)
        message = str(refused.value)
        for name, words in {
            "shape": "differ in shape, (12, 14, 17) and (12, 14, 18)",
            "moved": "different places, by up to 0.667 voxels",
            "turned": "different places",
            "unknown": "labels that dataset.json does not list there: 7",
            "halves": "no whole numbers: 0.5",
            "nan": "NaN",
            "broken": "is not compressed although its name ends in .gz",
        }.items():
            (line,) = [line for line in message.splitlines() if line.startswith(f"case {name}:")]
            assert words in line
        assert not (data / "out").exists()

    def test_missing_cases(self, data: Path) -> None:
        write(data / "gt" / "c.nii.gz", anatomy()[0], SPACING)
        (data / "gt" / "b.nii.gz").unlink()
        with pytest.raises(ValueError, match="2 problems") as refused:
            evaluate(data)
        assert f"case c is not in {data / 'pred'}" in str(refused.value)
        assert f"case b is not in {data / 'gt'}" in str(refused.value)
        assert not (data / "out").exists()
        with pytest.raises(ValueError, match="1 problem"):
            evaluate(data, predicted_only=True)  # a prediction without reference stays an error
        content = evaluate(data, cases=["a"])
        assert {row["case"] for row in content["cases"]} == {"a"}
        (data / "pred" / "b.nii.gz").unlink()
        assert {row["case"] for row in evaluate(data, predicted_only=True)["cases"]} == {"a"}

    def test_ignore_label_is_the_references_alone(self, data: Path) -> None:
        describe(data / "pred", {**LABELS, "ignore": 4})
        write(data / "gt" / "a.nii.gz", np.where(anatomy()[0] == 3, 4, anatomy()[0]), SPACING, *STORAGES[0])
        assert evaluate(data)["settings"]["ignore_label"] == 4
        write(data / "pred" / "a.nii.gz", np.where(anatomy()[0] == 3, 4, anatomy()[0]), SPACING, *STORAGES[0])
        with pytest.raises(ValueError, match=r"pred.*does not list there: 4"):
            evaluate(data)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pairs": [("L kidney", "spleen")]}, "unknown class 'spleen'"),
            ({"pairs": [["liver"]]}, "a pair is two different classes"),
            ({"paper": "other"}, "paper must be one of locbam, gpe"),
            ({"tolerance_mm": -1}, "tolerance_mm"),
            ({"cases": []}, "no case"),
            ({"cases": ["z"]}, "case z is not in"),
            ({"cases": ["A"]}, r"case A is not in \S+pred \(did you mean a\?\)"),
            ({"processes": 0}, "at least 1"),
            ({"dataset_json": Path("nowhere.json")}, "no dataset.json"),
            ({"dataset_json": {"labels": LABELS}}, "lacks file_ending"),
            ({"dataset_json": {"labels": LABELS, "file_ending": ".nrrd"}}, "no files that end in .nrrd"),
        ],
    )
    def test_options(self, data: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            evaluate(data, **options)
        assert not (data / "out").exists()

    def test_folders(self, data: Path) -> None:
        with pytest.raises(ValueError, match="there is no folder"):
            evaluate_folders(data / "pred", data / "none", data / "out")
        (data / "pred" / "dataset.json").unlink()
        with pytest.raises(ValueError, match=r"no dataset\.json; looked for"):
            evaluate(data)

    def test_read(self, data: Path) -> None:
        with pytest.raises(ValueError, match="cannot be read"):
            read_evaluation(data)
        file = data / "other.json"
        file.write_text("[]")
        with pytest.raises(ValueError, match="is no evaluation"):
            read_evaluation(file)
        content = evaluate(data)
        file.write_text(json.dumps({**content, "version": 2}))
        with pytest.raises(ValueError, match="version 2"):
            read_evaluation(file)


class TestCommand:
    def test_prints_the_table(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        given = f"evaluate {data / 'pred'} {data / 'gt'} -o {data / 'out'} --quiet -np 1".split()
        assert main([*given, "--paper", "gpe", "--pairs", "L kidney=R kidney"]) == 0
        text = capsys.readouterr().out
        content = read_evaluation(data / "out")
        assert content["pairs"] == [["L kidney", "R kidney"]]
        assert content["settings"]["paper"] == "gpe"
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert len(table) == 2 + 3 + 1
        assert len({len(line) for line in table}) == 1
        assert f"{content['foreground']['dice']:.3f}" in table[-1]
        assert f"paper_dice as the paper takes the mean: {content['paper']['paper_dice']:.4f}" in text

    def test_wrong_files_are_told_without_torch(self, data: Path) -> None:
        (data / "pred" / "b.nii.gz").write_bytes(b"damaged")
        line = f"evaluate {data / 'pred'} {data / 'gt'} -o {data / 'out'} --quiet"
        code = (
            f"import sys; from nnunet_locctx.cli import main; status = main({line.split()!r}); "
            "print(status, [name for name in ('torch', 'monai') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "2 []\n"
        assert "b.nii.gz" in done.stderr

    def test_the_dataset_can_be_named(
        self, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = data / "Dataset007_Tiny"
        folder.mkdir()
        (data / "pred" / "dataset.json").rename(folder / "dataset.json")
        monkeypatch.setenv("nnUNet_raw", str(data))
        line = f"evaluate {data / 'pred'} {data / 'gt'} -o {data / 'out'} --quiet -np 1"
        assert main(line.split()) == 2
        assert "Give it: -d ID or --dataset-json FILE" in capsys.readouterr().err
        assert main([*line.split(), "-d", "7"]) == 0
        assert read_evaluation(data / "out")["settings"]["dataset_json"] == str(folder / "dataset.json")


def test_small_structures_and_what_does_not_suit_them(tmp_path: Path) -> None:
    true, predicted = anatomy()
    size = (0.1, 0.1, 0.1)
    write(tmp_path / "gt" / "a.nii.gz", true, size)
    write(tmp_path / "pred" / "a.nii.gz", predicted, size)
    describe(tmp_path / "pred", LABELS)
    content = evaluate(tmp_path)
    heads, _, kidney, *_ = (line.split(" | ") for line in to_table(content).splitlines())
    row = dict(zip((head.strip("| ") for head in heads), (cell.strip("| ") for cell in kidney), strict=True))
    # 100 voxels of 0.001 mm3, a slab of 25 called the other side
    assert (row["reference mm3"], row["error mm3"], row["error %"]) == ("0.100", "-0.0250", "-25.0")
    assert row["swaps %"] == "25.0"
    tolerance, region = content["warnings"]
    assert "tolerance of 2 mm is 20 voxels (0.1 x 0.1 x 0.1 mm, a)" in tolerance
    assert tolerance.endswith("--tolerance-mm 0.2 is two")
    assert "the scan is 1.8 mm long" in region
    assert region.endswith("--off-region-mm 0.18 is a tenth")
    assert tolerance in (tmp_path / "out" / "evaluation.md").read_text()
    assert evaluate(tmp_path, tolerance_mm=0.2, off_region_mm=0.2)["warnings"] == []


def test_regions_and_png(tmp_path: Path) -> None:
    """Two-dimensional images without geometry, and classes that are regions."""
    from skimage.io import imsave

    true = np.zeros((20, 24), dtype=np.uint8)
    true[4:12, 4:12], true[6:10, 6:10] = 1, 2
    for folder, array in (("gt", true), ("pred", np.roll(true, 2, 0))):
        (tmp_path / folder).mkdir()
        imsave(tmp_path / folder / "a.png", array, check_contrast=False)
    describe(tmp_path / "gt", {"whole": [1, 2], "core": [2]}, ".png")
    content = evaluate(tmp_path)
    assert content["classes"] == {"whole": [1, 2], "core": [2]}
    assert content["mean"]["whole"]["dice"] == pytest.approx(0.75)
    assert content["mean"]["core"]["dice"] == pytest.approx(0.5)
    assert content["mean"]["core"]["hd95_mm"] == 2
