"""`locctx robustness` on models whose weights decide the answer."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from matplotlib.figure import Figure

from nnunet_locctx.cli import main
from nnunet_locctx.evaluation.robustness import Robustness, list_cases, load_models
from nnunet_locctx.evaluation.robustness_report import CURVE, collect, draw_curves, to_markdown, write_report
from nnunet_locctx.evaluation.wrong_location import UNCHANGED, Change, Design, wrong_location
from nnunet_locctx.location.locator import Locator
from nnunet_locctx.nnunet.predicting.prediction import LocatedModel
from tests.integration.workspace import Workspace
from tests.nnunet.small_models import make_model

SHAPE = (8, 7, 6)  # z, y, x; 3, 2 and 1 mm
SHIFTS = Design(amounts=(0, 25), kinds=("shift",))


def write(file: Path, array: np.ndarray, code: str) -> None:
    """An array in LPS voxel order, stored in the orientation asked for."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(sitk.DICOMOrient(image, code), str(file))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two scans with the upper half (S above 0) as label, stored in different orientations."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    random = np.random.default_rng(0)
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[4:] = 1
    for case, code in (("a", "LPS"), ("b", "RAI")):
        image = random.normal(10, 1, SHAPE).astype(np.float32)
        write(tmp_path / "images" / f"{case}_0000.nii.gz", image, code)
        write(tmp_path / "labels" / f"{case}.nii.gz", label, code)
    return tmp_path


def robustness(scans: Path, models: list[Path], design: Design, output: str = "out") -> Robustness:
    loaded = load_models(models, device="cpu")
    return Robustness(loaded, scans / "images", scans / "labels", design, scans / output)


def finished(scans: Path, models: list[Path], design: Design) -> Robustness:
    run = robustness(scans, models, design)
    run.run(progress=False)
    return run


def halves(slices: int) -> float:
    """Dice of the upper `slices` of 8 slices with the upper half."""
    return 2 * min(slices, 4) / (slices + 4)


@pytest.fixture
def by_height(tmp_path: Path) -> Path:
    """Calls class 1 what lies above the middle along S."""
    return make_model(tmp_path / "PriorHeadTrainer__nnUNetPlans__3d_fullres", "PriorHeadTrainer", axis=2)


@pytest.fixture
def by_side(tmp_path: Path) -> Path:
    """Calls class 1 what lies right of the middle."""
    return make_model(tmp_path / "PriorHeadTrainer__side__3d_fullres", "PriorHeadTrainer", axis=0)


class TestDice:
    def test_shift(self, scans: Path, by_height: Path) -> None:
        run = finished(scans, [by_height], SHIFTS)
        (one,) = run.models
        for case in run.cases:
            assert run.dice(one, case, UNCHANGED) == {"organ": 1.0}
            for axes in ("axial", "all"):
                # 25 percent are two of eight slices; applied twice they would be four
                upwards = run.dice(one, case, Change("shift", axes, 25.0))
                downwards = run.dice(one, case, Change("shift", axes, -25.0))
                assert upwards["organ"] == pytest.approx(halves(6))
                assert downwards["organ"] == pytest.approx(halves(2))

    def test_axial_concerns_one_channel(self, scans: Path, by_side: Path) -> None:
        run = finished(scans, [by_side], Design(amounts=(0, 50), sign="plus"))
        (one,) = run.models
        (axial, noise) = (
            run.dice(one, run.cases[1], Change(kind, "axial", 50.0)) for kind in ("shift", "noise")
        )
        assert axial == noise == run.dice(one, run.cases[1], UNCHANGED)
        # everything is called class 1
        everywhere = run.dice(one, run.cases[1], Change("shift", "all", 50.0))
        assert everywhere["organ"] == pytest.approx(2 / 3)
        assert axial["organ"] == pytest.approx(1 / 2)

    def test_noise(self, scans: Path, by_height: Path) -> None:
        run = finished(scans, [by_height], Design(amounts=(50,), kinds=("noise",), axes=("axial",), seed=3))
        (one,) = run.models
        for case in run.cases:
            scan = run.models[one].prepare(case.images)
            change = Change("noise", "axial", 50.0)
            wrong = wrong_location(scan.location, scan.frame, (1, 1, 1), change, case=case.name, seed=3)
            called, true = wrong[2] > 0, scan.location[2] > 0
            expected = 2 * (called & true).sum() / (called.sum() + true.sum())
            assert run.dice(one, case, change)["organ"] == pytest.approx(expected)
            assert 0 < expected < 1

    def test_millimetres(self, scans: Path, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m", "PriorHeadTrainer", axis=2, source="scanner")
        run = finished(scans, [model], SHIFTS)
        upwards = run.dice(*run.models, run.cases[0], Change("shift", "axial", 25.0))
        assert upwards["organ"] == pytest.approx(halves(6))

    @pytest.mark.parametrize("mirroring", [False, True])
    @pytest.mark.filterwarnings("default")  # nnU-Net's command
    def test_no_change_is_what_nnunet_predicts(self, scans: Path, tmp_path: Path, mirroring: bool) -> None:
        torch.manual_seed(3)
        folder = make_model(tmp_path / "CoordConvTrainer__nnUNetPlans__3d_fullres", "CoordConvTrainer")
        # stored with its slices along another axis, so that it is resampled
        write(
            scans / "images" / "c_0000.nii.gz",
            np.random.default_rng(1).normal(10, 1, (18, 20, 19)).astype(np.float32),
            "RIA",
        )
        write(
            scans / "labels" / "c.nii.gz",
            np.repeat(np.arange(18) > 8, 380).reshape(18, 20, 19).astype(np.uint8),
            "RIA",
        )
        options = "" if mirroring else "--disable_tta"
        Workspace(tmp_path / "nnunet").run(
            f"nnUNetv2_predict_from_modelfolder -i {scans / 'images'} -o {tmp_path / 'predicted'} -m {folder} -f 0 "
            f"-device cpu -npp 1 -nps 1 {options}"
        )
        models = load_models([folder], device="cpu", mirroring=mirroring)
        run = Robustness(models, scans / "images", scans / "labels", Design(amounts=(0,)), tmp_path / "out")
        run.run(progress=False)
        for case in run.cases:
            predicted, label = (
                sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
                for file in (tmp_path / "predicted" / case.label.name, case.label)
            )
            assert 0 < predicted.sum() < predicted.size
            dice = 2 * (predicted & label).sum() / (predicted.sum() + label.sum())
            assert run.dice(*models, case, UNCHANGED)["organ"] == pytest.approx(dice, abs=1e-12)

    def test_a_class_that_is_nowhere(self, scans: Path, by_height: Path) -> None:
        write(scans / "labels" / "a.nii.gz", np.zeros(SHAPE, dtype=np.uint8), "LPS")
        run = finished(scans, [by_height], Design(amounts=(0, 100), kinds=("shift",), axes=("axial",)))
        assert math.isnan(run.dice(*run.models, run.cases[0], Change("shift", "axial", -100.0))["organ"])
        points, _ = collect(run)
        assert points["cases"].tolist()[0] == 2
        assert points["dice"].tolist()[0] == pytest.approx(0.5)
        # case a: 0 upwards and undefined downwards; case b: all and nothing called class 1
        assert points["dice"].tolist()[1] == pytest.approx((0 + (2 / 3 + 0) / 2) / 2)


class TestResuming:
    @pytest.fixture
    def predicted(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Grows by one with every prediction."""
        made: list[int] = []
        true = LocatedModel.logits

        def counting(self: LocatedModel, data: np.ndarray) -> object:
            made.append(1)
            return true(self, data)

        monkeypatch.setattr(LocatedModel, "logits", counting)
        return made

    def test_nothing_is_predicted_twice(
        self, scans: Path, by_height: Path, predicted: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = robustness(scans, [by_height], SHIFTS)
        add = run.records.add

        def stop_after_seven(what: dict[str, object], result: object) -> None:
            if len(run.records) == 7:
                raise KeyboardInterrupt
            add(what, result)

        monkeypatch.setattr(run.records, "add", stop_after_seven)
        with pytest.raises(KeyboardInterrupt):
            run.run(progress=False)
        assert len(predicted) == 8
        finished(scans, [by_height], SHIFTS)
        assert len(predicted) == 8 + 2 * 5 - 7
        finished(scans, [by_height], SHIFTS)
        assert len(predicted) == 11
        # new amounts alone are predicted
        finished(scans, [by_height], Design(amounts=(0, 25, 50), kinds=("shift",), axes=("axial",)))
        assert len(predicted) == 11 + 2 * 2

    def test_one_prediction_for_all_shifts_that_leave_the_axis_unknown(
        self, scans: Path, by_height: Path, predicted: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        design = Design(amounts=(0, 25, 50, 100), kinds=("shift", "unknown"), axes=("axial",))
        run = robustness(scans, [by_height], design)

        def beyond_the_scan_is_unknown(locator: Locator, location: np.ndarray, true: np.ndarray) -> None:
            if np.abs(location[2]).max() > 0.5:
                location[2] = np.nan

        monkeypatch.setattr(Locator, "hide_unseen", beyond_the_scan_is_unknown)
        run.run(progress=False)
        assert len(predicted) == 2 * 2  # true, S unknown
        points = collect(run)[0]["dice"].droplevel(["model", "axes"])
        assert points["shift"].tolist()[1:] == [points["unknown"].iloc[1]] * 3
        assert points["shift"].iloc[0] == 1

    def test_what_gives_other_results_is_predicted_again(
        self, scans: Path, by_height: Path, predicted: list[int]
    ) -> None:
        design = Design(amounts=(0, 25), kinds=("noise",), axes=("axial",))
        finished(scans, [by_height], design)
        assert len(predicted) == 4
        other_seed = Design(amounts=(0, 25), kinds=("noise",), axes=("axial",), seed=1)
        finished(scans, [by_height], other_seed)
        assert len(predicted) == 4 + 2
        file = by_height / "fold_0" / "checkpoint_final.pth"
        checkpoint = torch.load(file, weights_only=False)
        torch.save({**checkpoint, "current_epoch": 5}, file)
        finished(scans, [by_height], design)
        assert len(predicted) == 6 + 4
        label, other = sorted((scans / "labels").iterdir())[:2]
        label.write_bytes(other.read_bytes())
        finished(scans, [by_height], design)
        assert len(predicted) == 10 + 2


class TestReport:
    def test_files(self, scans: Path, by_height: Path, by_side: Path) -> None:
        run = finished(scans, [by_height, by_side], Design(amounts=(0, 25)))
        files = write_report(run)
        assert [file.suffix for file in files] == [".md", ".csv", ".json", ".png"]
        assert {*(scans / "out").iterdir()} == {*files, scans / "out" / "robustness.jsonl"}
        text = files[0].read_text()
        name = by_height.name  # both have the same trainer
        expected = (halves(6) + halves(2)) / 2
        assert "mean over the classes and then over 2 cases" in text
        assert "Location shifted by a constant, mean of both directions:" in text
        assert "| model | error | 0 % | 25 % |" in text
        assert f"| {name} | along the body | 1.000 | {expected:.3f} |" in text
        assert f"| {by_side.name} | along the body | 0.500 | 0.500 |" in text
        assert f"- {name}: {by_height}, fold 0, checkpoint_final.pth, source `voxel`" in text
        rows = list(csv.DictReader(files[1].read_text().splitlines()))
        assert len(rows) == 2 * 2 * 2 * 2
        assert rows[1] == {
            "model": name,
            "change": "shift",
            "axes": "axial",
            "percent": "25",
            "dice": f"{expected:.6g}",
            "deviation": "0",
            "cases": "2",
            "organ": f"{expected:.6g}",
        }
        content = json.loads(files[2].read_text())
        assert content["cases"] == ["a", "b"]
        assert content["points"][1]["per_class"] == {"organ": pytest.approx(expected)}
        assert files[3].read_bytes().startswith(b"\x89PNG")

    def test_one_case_has_no_deviation(self, scans: Path, by_height: Path) -> None:
        (scans / "images" / "b_0000.nii.gz").unlink()
        run = finished(scans, [by_height], Design(amounts=(0,), kinds=("shift",), axes=("axial",)))
        files = write_report(run)
        assert "then over 1 case." in files[0].read_text()
        assert json.loads(files[2].read_text())["points"][0]["deviation"] is None
        assert next(csv.DictReader(files[1].read_text().splitlines()))["deviation"] == ""


class TestCommand:
    def line(self, scans: Path, *models: Path) -> list[str]:
        given = [word for model in models for word in ("--model", str(model))]
        folders = ["-i", str(scans / "images"), "-l", str(scans / "labels"), "-o", str(scans / "out")]
        return ["robustness", *given, *folders, "--device", "cpu", "--quiet"]

    def test_results(
        self, scans: Path, by_height: Path, by_side: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = "--name height --name side --amounts 0 25 --axes axial --changes shift --sign plus --fold 0"
        assert main([*self.line(scans, by_height, by_side), *options.split()]) == 0
        printed = capsys.readouterr()
        assert "| height | along the body | 1.000 | 0.800 |" in printed.out
        assert "shifted by a constant, towards +:" in printed.out
        assert f"wrote {scans / 'out' / 'robustness.png'}" in printed.out
        assert printed.err == ""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ("--fold 3", "has no fold '3'; it has 0"),
            ("--amounts 5 -1", "percentages of 0 or more"),
            ("--name a --name b", "1 models need as many different names"),
            ("--device moon", "--device must be cpu, cuda (also cuda:1) or mps, got 'moon'"),
            ("--seed -1", "seed must be 0 or more"),
            ("--model /nowhere", "/nowhere is not the folder of a trained model"),
            ("--model MODEL", "was given more than once"),
            ("-i /nowhere", "there is no folder /nowhere"),
            ("-l /nowhere", "there is no folder /nowhere"),
            ("-i MODEL", "has no files that end in .nii.gz"),
            ("-l IMAGES", "lacks labels: a.nii.gz, b.nii.gz"),
            ("-i LABELS", "has 0 files named"),
            ("-o MODEL/plans.json", "plans.json is a file"),
        ],
    )
    def test_unusable_input(
        self, scans: Path, by_height: Path, options: str, words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = sorted(scans.rglob("*"))
        for name, folder in (
            ("MODEL", by_height),
            ("IMAGES", scans / "images"),
            ("LABELS", scans / "labels"),
        ):
            options = options.replace(name, str(folder))
        assert main([*self.line(scans, by_height), *options.split()]) == 2
        printed = capsys.readouterr()
        assert words in printed.err
        assert printed.out == ""
        assert sorted(scans.rglob("*")) == before

    def test_models_that_cannot_be_used(
        self, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        plain = make_model(tmp_path / "plain", "nnUNetTrainer")
        cascade = make_model(tmp_path / "cascade", "PriorHeadTrainer", previous_stage="3d_lowres")
        for model, words in (
            (plain, "was trained by nnUNetTrainer, which does not use location"),
            (cascade, "needs predictions of '3d_lowres'; choose a model of the first stage"),
        ):
            assert main(self.line(scans, model)) == 2
            assert words in capsys.readouterr().err
        assert not (scans / "out").exists()

    def test_models_of_two_data_sets(self, scans: Path, by_height: Path, by_side: Path) -> None:
        file = by_side / "dataset.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "labels": {"background": 0, "kidney": 1}}))
        with pytest.raises(ValueError, match=r"differ in their classes: \{'organ': 1\} and \{'kidney': 1\}"):
            load_models([by_height, by_side], device="cpu")

    def test_a_label_of_another_size(
        self, scans: Path, by_height: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(scans / "labels" / "b.nii.gz", np.zeros((8, 7, 5), dtype=np.uint8), "RAI")
        assert main([*self.line(scans, by_height), "--amounts", "0"]) == 2
        assert "b.nii.gz has (8, 7, 5) voxels (z, y, x), its image (8, 7, 6)" in capsys.readouterr().err

    @pytest.mark.parametrize("file", ["labels/a.nii.gz", "images/a_0000.nii.gz"])
    def test_a_file_that_is_cut_off(
        self, scans: Path, by_height: Path, file: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (scans / file).write_bytes((scans / file).read_bytes()[:-10])
        assert main([*self.line(scans, by_height), "--amounts", "0"]) == 2
        assert f"{scans / file} is cut off" in capsys.readouterr().err

    def test_too_many_files_of_a_case(self, scans: Path) -> None:
        image = scans / "images" / "a_0000.nii.gz"
        (scans / "images" / "a_0001.nii.gz").write_bytes(image.read_bytes())
        with pytest.raises(ValueError, match=r"case 'a' of .* has 2 files .*, the model takes 1"):
            list_cases(scans / "images", scans / "labels", ".nii.gz", 1)


def test_an_unknown_location_has_one_column_whatever_the_amounts() -> None:
    dice = {0.0: 0.9, 10.0: 0.5, 50.0: 0.5}
    keys = [("LocCtx", kind, "axial", amount) for kind in ("unknown", "shift") for amount in dice]
    points = pd.DataFrame({"dice": [*dice.values()] * 2}, pd.MultiIndex.from_tuples(keys, names=CURVE))
    text = to_markdown(points, {"cases": ["a"], "sign": "both", "models": []})
    assert (
        "| model | error | 0 % | unknown |\n|---|---|---:|---:|\n| LocCtx | along the body | 0.900 | 0.500 |\n"
        in text
    )
    assert "| model | error | 0 % | 10 % | 50 % |" in text


@pytest.mark.parametrize(("models", "amounts"), [(1, (0.0,)), (9, (0.0, 1.0, 5.0, 100.0))])
@pytest.mark.parametrize("dice", [0.0, 1.0, float("nan")])
def test_any_number_of_curves_is_drawn(models: int, amounts: tuple[float, ...], dice: float) -> None:
    names = [f"model {number}" for number in range(models)]
    index = pd.MultiIndex.from_product([names, ("shift", "noise"), ("axial", "all"), amounts], names=CURVE)
    picture = draw_curves(pd.DataFrame({"dice": dice}, index=index).reset_index())
    assert picture.startswith(b"\x89PNG")


def test_an_unknown_location_stands_at_no_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    index = pd.MultiIndex.from_product(
        [["a"], ("shift", "unknown"), ("axial",), (0.0, 10.0, 50.0)], names=CURVE
    )
    draw_curves(pd.DataFrame({"dice": 0.5}, index=index).reset_index())
    shift, unknown = drawn[0].axes
    assert [text.get_text() for text in shift.get_xticklabels()] == ["0", "10", "50"]
    assert [text.get_text() for text in unknown.get_xticklabels()] == ["true", "unknown"]
    assert len(np.asarray(unknown.lines[0].get_ydata())) == 2
