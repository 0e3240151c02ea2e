"""`nnunet_locctx.show`: what is drawn lies where it lies in the patient."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.cli import main
from nnunet_locctx.location import make_source
from nnunet_locctx.location.body import find_body
from nnunet_locctx.nnunet.data.class_places import SourcePlaces
from nnunet_locctx.nnunet.data.reading import read_scan
from nnunet_locctx.regression.body_part import fit_body_part
from nnunet_locctx.show import Comparison, LocatedScan, compare_predictions, draw, locate_scan
from nnunet_locctx.show.figure import plane_of_location
from nnunet_locctx.show.scan import checked_patch, nearest_voxel
from nnunet_locctx.show.sources import draw_sources
from nnunet_locctx.viewing import AXIAL, CORONAL, SAGITTAL, Slice, grey_levels
from tests.nnunet.small_models import make_model
from tests.regression.body_part_scans import OPTIONS, small_scan, small_scans


def write(file: Path, array: np.ndarray, code: str = "LPS") -> Path:
    """An array in LPS voxel order (z, y, x), stored in the orientation asked for."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((-20.0, 10.0, 5.0))
    sitk.WriteImage(sitk.DICOMOrient(image, code), str(file))
    return file


@pytest.fixture
def array() -> np.ndarray:
    """(z, y, x): bright at the patient's right (low x), anterior (low y), superior (high z) corner."""
    data = np.full((8, 7, 6), 100, dtype=np.float32)
    data[-1, 0, 0] = 1000
    return data


def located(tmp_path: Path, array: np.ndarray, code: str = "LPS", **options: Any) -> LocatedScan:
    return locate_scan([write(tmp_path / "scan_0000.nii.gz", array, code)], make_source("voxel"), **options)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SLA"])
def test_location_runs_from_patient_left_to_right(tmp_path: Path, array: np.ndarray, code: str) -> None:
    scan = located(tmp_path, array, code)
    index = nearest_voxel(scan.frame, (0, 0, 0))
    axial = plane_of_location(scan, Slice(scan.frame, AXIAL, index))
    assert axial.shape == (3, 7, 6)
    expected_r = 0.5 - (np.arange(6) + 0.5) / 6  # the first column is the patient's right
    expected_a = 0.5 - (np.arange(7) + 0.5) / 7
    np.testing.assert_allclose(axial[0], np.broadcast_to(expected_r, (7, 6)), atol=1e-6)
    np.testing.assert_allclose(axial[1], np.broadcast_to(expected_a[:, None], (7, 6)), atol=1e-6)
    assert np.ptp(axial[2]) == 0
    coronal = plane_of_location(scan, Slice(scan.frame, CORONAL, index))
    np.testing.assert_allclose(coronal[2][:, 0], 0.5 - (np.arange(8) + 0.5) / 8, atol=1e-6)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR"])
def test_a_patch_is_drawn_around_its_voxels(tmp_path: Path, array: np.ndarray, code: str) -> None:
    scan = located(tmp_path, array, code)
    corner = np.array(nearest_voxel(scan.frame, (0.49, 0.49, 0.49)), dtype=float)
    # the one voxel of the right, anterior, superior corner, 1 x 2 x 3 mm
    rectangle = Slice(scan.frame, AXIAL, (0, 0, 0)).rectangle(corner, np.ones(3))
    assert rectangle == pytest.approx((0, 0, 1, 2))
    rectangle = Slice(scan.frame, SAGITTAL, (0, 0, 0)).rectangle(corner, np.ones(3))
    assert rectangle == pytest.approx((0, 0, 2, 3))
    far = np.array(nearest_voxel(scan.frame, (-0.49, -0.49, -0.49)), dtype=float)
    rectangle = Slice(scan.frame, CORONAL, (0, 0, 0)).rectangle(far, np.ones(3))
    assert rectangle == pytest.approx((5, 21, 1, 3))


def test_border_of_zeros_is_cropped_as_nnunet_does(tmp_path: Path, array: np.ndarray) -> None:
    padded = np.pad(array, ((0, 0), (0, 0), (2, 1)))
    scan = located(tmp_path, padded)
    assert scan.frame.shape == array.shape
    assert nearest_voxel(scan.frame, (0.49, 0.49, 0.49)) == (7, 0, 0)
    assert scan.image[7, 0, 0] == 1000


def test_place_outside_the_volume(tmp_path: Path, array: np.ndarray) -> None:
    frame = located(tmp_path, array).frame
    assert nearest_voxel(frame, (-0.5, 0.5, -0.5)) == (0, 0, 5)
    with pytest.raises(ValueError, match=r"the place \[0.0, 0.8, 0.0\] lies outside"):
        nearest_voxel(frame, (0, 0.8, 0))


def test_place_of_interest(tmp_path: Path, array: np.ndarray) -> None:
    def index(scan: LocatedScan) -> tuple[int, int, int]:
        return nearest_voxel(scan.frame, scan.place_of_interest())

    assert index(located(tmp_path, array)) == (4, 3, 3)
    label = np.zeros(array.shape, dtype=np.uint8)
    label[5:8, 1:4, 0:3] = 2
    scan = located(tmp_path, array, label=write(tmp_path / "label.nii.gz", label))
    assert scan.label is not None
    assert scan.label.max() == 2
    assert index(scan) == (6, 2, 1)
    changed = label.astype(np.int32)
    changed[5, 3, :3] = 1
    assert index(compared(scan, label.astype(np.int32), changed)) == (5, 3, 0)


def compared(scan: LocatedScan, located: np.ndarray, replaced: np.ndarray) -> LocatedScan:
    return dataclasses.replace(scan, comparison=Comparison(located, replaced, "unknown location"))


class Drawn:
    """What `draw` handed to matplotlib."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from matplotlib.figure import Figure

        save = Figure.savefig

        def keep(figure: Figure, *arguments: Any, **options: Any) -> None:
            self.figure = figure
            save(figure, *arguments, **options)

        monkeypatch.setattr(Figure, "savefig", keep)

    @property
    def scans(self) -> list[Any]:
        """The panels that show the scan, in reading order."""
        return [panel for panel in self.figure.axes if panel.images and panel.images[0].cmap.name == "gray"]

    @property
    def legend(self) -> dict[str, Any]:
        legend = self.figure.legends[0]
        keys = zip(legend.get_texts(), legend.get_patches(), strict=True)
        return {text.get_text(): patch.get_edgecolor()[:3] for text, patch in keys}

    def outlined(self, panel: Any) -> list[Any]:
        """Colours of the outlines of a panel."""
        from matplotlib.contour import ContourSet

        drawn = [one for one in panel.get_children() if isinstance(one, ContourSet) and not one.filled]
        return [tuple(one.get_edgecolor()[0][:3]) for one in drawn]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a raw dataset, with the names of kidneys and liver."""
    labels = {"background": 0, "kidney_left": 1, "kidney_right": 2, "liver": 3}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "imagesTr").mkdir()
    return tmp_path


def test_scan_is_large_and_its_classes_have_names(folder: Path, drawn: Drawn) -> None:
    data = np.random.default_rng(0).normal(100, 50, size=(12, 14, 16)).astype(np.float32)
    label = np.zeros(data.shape, dtype=np.uint8)
    label[4:8, 3:10, 2:6], label[4:8, 3:10, 9:14] = 2, 1
    scan = locate_scan(
        [write(folder / "imagesTr" / "a_0000.nii.gz", data, "RAS")],
        make_source("scanner"),
        label=write(folder / "a.nii.gz", label, "RAS"),
        patch_size=(8, 8, 8),
    )
    other = np.where(scan.label == 1, 3, scan.label).astype(np.int32)
    assert scan.label is not None
    scan = compared(scan, scan.label, other)
    draw(scan, folder / "a.png")
    assert len(drawn.scans) == 9
    assert len(drawn.figure.axes) == 12
    # what is known to be CT is shown in one window, the same in all planes
    assert {panel.images[0].get_clim() for panel in drawn.scans} == {(-160, 240)}
    level = nearest_voxel(scan.frame, scan.place_of_interest())[0]
    np.testing.assert_array_equal(drawn.scans[0].images[0].get_array(), data[level])
    assert list(drawn.legend) == ["kidney_left", "kidney_right", "liver"]
    left, right, liver = drawn.legend.values()
    assert sum(left) > sum(right)  # light and dark
    assert set(drawn.outlined(drawn.scans[0])) == {left, right}
    assert set(drawn.outlined(drawn.scans[6])) == {liver, right}
    # letters are written outside the slice
    letters = {text.get_text(): text.get_position() for text in drawn.scans[1].texts}
    assert list(letters) == list("RLSI")
    assert letters["R"][0] < 0 < letters["L"][0]
    slices = sum(panel.get_position().height for panel in drawn.scans[::3])
    assert slices > 5 * drawn.figure.axes[-1].get_position().height


def test_window(tmp_path: Path, array: np.ndarray, drawn: Drawn) -> None:
    scan = located(tmp_path, array)
    assert (scan.channel, scan.names) == ("", {})
    draw(scan, tmp_path / "a.png")
    assert {panel.images[0].get_clim() for panel in drawn.scans} == {grey_levels(scan.image)}
    assert not drawn.figure.legends
    draw(scan, tmp_path / "a.svg", window=(-5, 5), at=(0, 0, 0))
    assert {panel.images[0].get_clim() for panel in drawn.scans} == {(-5, 5)}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"background": 0, "organ": 1}, {1: "organ", 2: "label 2"}),
        ({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, {1: "whole", 2: "core", 3: "ignore"}),
    ],
)
def test_names_of_label_values(folder: Path, array: np.ndarray, labels: Any, names: dict[int, str]) -> None:
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": labels}))
    values = np.zeros(array.shape, dtype=np.uint8)
    values[2, 3, 1:3] = 1, 2
    scan = located(folder / "imagesTr", array, label=write(folder / "label.nii.gz", values))
    assert scan.names == names


def test_description_that_cannot_be_used(folder: Path, array: np.ndarray) -> None:
    file = folder / "dataset.json"
    file.write_text('{"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}')
    with pytest.warns(UserWarning, match="classes are called by their numbers: .*nnU-Net 1's form"):
        assert located(folder / "imagesTr", array).channel == ""
    with pytest.raises(ValueError, match="nnU-Net 1's form"):
        located(folder, array, dataset_json=file)


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 8, 9)])
def test_flat_volumes_are_drawn_once(tmp_path: Path, drawn: Drawn, shape: tuple[int, int, int]) -> None:
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    draw(located(tmp_path, data, patch_size=(8, 8)), tmp_path / "flat.png")
    assert len(drawn.scans) == 1
    assert len(drawn.figure.axes) == 3  # and two channels of its location


def test_picture_without_geometry(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(1, 255, (8, 9), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a_0000.png"))
    from nnunet_locctx import geometry

    geometry._warn_no_geometry.cache_clear()
    with pytest.warns(UserWarning, match="follows the array axes"):
        scan = locate_scan([tmp_path / "a_0000.png"], make_source("voxel"))
    assert not scan.frame.has_geometry
    assert scan.frame.shape == (1, 8, 9)


def test_voxels_that_are_not_finite_are_drawn_as_nothing(tmp_path: Path, array: np.ndarray) -> None:
    array[0, 0, 0] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nrrd"))
    scan = locate_scan([tmp_path / "a.nrrd"], make_source("voxel"))
    assert scan.image[0, 0, 0] == 0


@pytest.mark.parametrize(("given", "made"), [((8, 9, 10), (8, 9, 10)), ((8, 9), (1, 8, 9))])
def test_patch_sizes(given: tuple[int, ...], made: tuple[int, ...]) -> None:
    assert checked_patch(given) == made


@pytest.mark.parametrize("patch", [(8,), (8, 0, 8), (1, 2, 3, 4)])
def test_patch_sizes_that_are_none(patch: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a patch needs two or three sizes"):
        checked_patch(patch)


def test_files_that_cannot_be_shown(tmp_path: Path, array: np.ndarray) -> None:
    voxel = make_source("voxel")
    with pytest.raises(ValueError, match="no file"):
        locate_scan([tmp_path / "none.nii.gz"], voxel)
    odd = write(tmp_path / "odd.nii", array)
    # a type of voxels that is none
    odd.write_bytes(odd.read_bytes()[:70] + b"\x0f\x27" + odd.read_bytes()[72:])
    odd.with_suffix(".nii.gz").write_bytes(gzip.compress(odd.read_bytes()))
    with pytest.raises(ValueError, match=r"nnU-Net cannot read .*odd\.nii\.gz.*SimpleITKIO: .*NibabelIO: "):
        locate_scan([odd.with_suffix(".nii.gz")], voxel)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no reader for files ending in '\.txt'"):
        locate_scan([tmp_path / "notes.txt"], voxel)
    label = write(tmp_path / "label.nii.gz", np.zeros((3, 3, 3), dtype=np.uint8))
    with pytest.raises(
        ValueError, match=r"the label has the shape \(3, 3, 3\) \(z, y, x\), the image \(8, 7, 6\)"
    ):
        located(tmp_path, array, label=label)


class TestModels:
    """Models whose weights decide the answer, so that what a location changes is known beforehand."""

    @pytest.fixture
    def trained(self, tmp_path: Path) -> Path:
        """A prior head that calls everything on the patient's right class 1 and the rest background."""
        return make_model(tmp_path / "PriorHeadTrainer__nnUNetPlans__3d_fullres", "PriorHeadTrainer")

    def test_unknown_location(self, image: Path, trained: Path) -> None:
        scan = compare_predictions([image], trained, device="cpu")
        assert scan.comparison is not None
        assert scan.patch_size == (16, 16, 16)
        assert scan.grid.shape == scan.comparison.located.shape
        # what is drawn is the scan as it was taken, not nnU-Net's normalised channel
        np.testing.assert_array_equal(scan.image, sitk.GetArrayFromImage(sitk.ReadImage(str(image))))
        assert scan.frame.shape == scan.image.shape
        np.testing.assert_allclose(scan.frame.extent, scan.grid.extent)
        np.testing.assert_allclose(scan.frame.centre, scan.grid.centre)
        right = scan.field.box((0, 0, 0), scan.grid.shape)[0] > 0
        np.testing.assert_array_equal(scan.comparison.located == 1, right)
        # without location the classes are equal and the first one wins
        assert not scan.comparison.replaced.any()
        np.testing.assert_array_equal(scan.comparison.changed, right)
        assert scan.comparison.replacement == "unknown location"

    def test_shifted_location(self, image: Path, trained: Path) -> None:
        scan = compare_predictions([image], trained, shift=(-0.2, 0, 0), device="cpu", fold="0")
        assert scan.comparison is not None
        right = scan.field.box((0, 0, 0), scan.grid.shape)[0]
        np.testing.assert_array_equal(scan.comparison.replaced == 1, right > 0.2)
        np.testing.assert_array_equal(scan.comparison.changed, (right > 0) & (right <= 0.2))
        assert scan.comparison.replacement == "location shifted by R -0.2, A +0, S +0"

    def test_with_label(self, image: Path, trained: Path, tmp_path: Path) -> None:
        label = write(tmp_path / "label.nii.gz", np.ones((8, 7, 6), dtype=np.uint8))
        scan = compare_predictions([image], trained, label=label, device="cpu")
        assert scan.label is not None
        assert scan.label.shape == scan.image.shape
        assert (scan.label == 1).all()

    def test_wrong_number_of_channels(self, image: Path, trained: Path) -> None:
        with pytest.raises(ValueError, match=r"takes 1 image files \(one per channel\), got 2"):
            compare_predictions([image, image], trained, device="cpu")

    def test_model_without_location(self, image: Path, tmp_path: Path) -> None:
        plain = make_model(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", "nnUNetTrainer")
        with pytest.raises(ValueError, match=r"was trained by nnUNetTrainer, which does not use location"):
            compare_predictions([image], plain, device="cpu")

    def test_second_stage_of_a_cascade(self, image: Path, tmp_path: Path) -> None:
        cascade = make_model(tmp_path / "m", "PriorHeadTrainer", previous_stage="3d_lowres")
        with pytest.raises(
            ValueError, match="needs predictions of '3d_lowres'; choose a model of the first stage"
        ):
            compare_predictions([image], cascade, device="cpu")

    def test_trainer_nobody_knows(self, image: Path, tmp_path: Path) -> None:
        model = make_model(tmp_path / "m", "PriorHeadTrainer", trainer_in_checkpoint="StrangeTrainer")
        with pytest.raises(ValueError, match=r"nnU-Net cannot load the model .*StrangeTrainer"):
            compare_predictions([image], model, device="cpu")

    @pytest.fixture
    def image(self, tmp_path: Path, array: np.ndarray) -> Path:
        return write(tmp_path / "scan_0000.nii.gz", array)

    def test_missing_scan(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no file"):
            compare_predictions([tmp_path / "x.nii.gz"], tmp_path)

    def test_not_a_model(self, image: Path, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"is not the folder of a trained model .*plans\.json and dataset\.json"
        ):
            compare_predictions([image], tmp_path)

    def test_no_such_fold(self, image: Path, model: Path) -> None:
        with pytest.raises(ValueError, match="has no fold '3'; it has 0"):
            compare_predictions([image], model, fold="3")

    def test_no_checkpoint(self, image: Path, model: Path) -> None:
        with pytest.raises(ValueError, match=r"has no checkpoint \(checkpoint_final\.pth.* in fold 0"):
            compare_predictions([image], model)

    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        folder = tmp_path / "PriorHeadTrainer__nnUNetPlans__3d_fullres"
        (folder / "fold_0").mkdir(parents=True)
        for name in ("plans.json", "dataset.json"):
            (folder / name).write_text("{}")
        return folder


@pytest.mark.parametrize(("channel", "modality"), [("CT", "ct"), ("T1", "mr")])
def test_the_body_is_measured_without_a_regressor(tmp_path: Path, channel: str, modality: str) -> None:
    scan = small_scan(9)
    image = sitk.GetImageFromArray(np.ascontiguousarray(scan.image.transpose(2, 1, 0)[:, ::-1, ::-1]))
    image.SetSpacing((8.0, 8.0, 8.0))
    file = tmp_path / "scan_0000.nii.gz"
    sitk.WriteImage(image, str(file))
    with pytest.raises(ValueError, match=r"a dataset\.json must name the channel"):
        locate_scan([file], make_source("body"))
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": channel}, "labels": {"background": 0}})
    )
    shown = locate_scan([file], make_source("body"))
    whole = read_scan([file])
    expected = find_body(whole.voxels[0], whole.frame, modality)
    assert not expected.problem
    places = shown.frame.millimetres([(0, 0, 0), (5, 7, 3)])
    np.testing.assert_allclose(
        shown.field.at([(0, 0, 0), (5, 7, 3)]),
        make_source("body").field(whole.frame, expected).at(whole.frame.index_from_millimetres(places)),
        atol=1e-6,
    )
    picture = tmp_path / "body.png"
    assert main(["show", str(file), "--source", "body", "-o", str(picture)]) == 0
    assert picture.is_file()


def test_coordinates_of_sources_have_a_unit_and_panels_are_equally_wide_in_mm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = np.zeros((4, 2, 3))
    places[:, 1] = 0.4, 0.1, np.nan
    places[:, 0, 2] = np.nan
    unit = np.array([150.0, 200.0, np.inf])
    seen = SourcePlaces(make_source("voxel"), ["a_left", "a_right"], places, np.ones(3), unit, {})
    drawn = Drawn(monkeypatch)
    draw_sources({"voxel": seen}, tmp_path / "sources.png")
    panels = drawn.figure.axes
    assert [panel.get_xlabel() for panel in panels] == [
        "left to right, 1 = 150 mm",
        "posterior to anterior, 1 = 200 mm",
        "inferior to superior",
    ]
    assert np.ptp(panels[0].get_xlim()) * 150 == pytest.approx(np.ptp(panels[1].get_xlim()) * 200)
    assert panels[1].get_xlim()[0] < 0 < 0.1 < panels[1].get_xlim()[1]


def test_fitted_source_shows_what_its_regressor_says(tmp_path: Path) -> None:
    # whose air is the 0 that nnU-Net crops away
    options = dataclasses.replace(OPTIONS, steps=60, modality="mr")
    scans = {
        name: dataclasses.replace(scan, image=np.maximum(scan.image + 900, 0))
        for name, scan in small_scans(3).items()
    }
    regressor = fit_body_part(scans, options, tmp_path / "fit", progress=False)
    stored = tmp_path / "regressor.pt"
    stored.write_bytes(regressor.to_bytes())
    body = np.maximum(small_scan(9).image + 900, 0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(body.transpose(2, 1, 0)[:, ::-1, ::-1]))
    image.SetSpacing((8.0, 8.0, 8.0))
    file = tmp_path / "scan_0000.nii.gz"
    source = make_source("body_part")
    for code in ("LPS", "SAR"):
        sitk.WriteImage(sitk.DICOMOrient(image, code), str(file))
        shown = locate_scan([file], source, regressor=stored)
        stored_scan = read_scan([file])
        whole = stored_scan.frame
        expected = source.field(whole, regressor.measure(stored_scan.voxels[0], whole))
        index = np.array([(0, 0, 0), (5, 7, 3), [n - 1 for n in shown.image.shape]])
        whole_index = whole.index_from_millimetres(shown.frame.millimetres(index))
        assert not np.allclose(whole_index, index)
        np.testing.assert_allclose(shown.field.at(index), expected.at(whole_index), atol=1e-6)
