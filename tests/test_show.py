"""`nnunet_locctx.show`: what is drawn lies where it lies in the patient."""

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import make_source
from nnunet_locctx.nnunet.data.reading import read_any
from nnunet_locctx.regression.body_part import fit_body_part
from nnunet_locctx.show import Comparison, LocatedScan, compare_predictions, draw, read_scan
from nnunet_locctx.show.figure import VIEWS, Slice
from nnunet_locctx.show.scan import checked_patch
from tests.nnunet.small_models import make_model
from tests.regression.body_part_scans import OPTIONS, small_scan, small_scans

AXIAL, CORONAL, SAGITTAL = VIEWS


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
    return read_scan([write(tmp_path / "scan_0000.nii.gz", array, code)], make_source("voxel"), **options)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SLA"])
def test_slices_lie_as_the_patient_does(tmp_path: Path, array: np.ndarray, code: str) -> None:
    scan = located(tmp_path, array, code)
    index = scan.index_at((0.49, 0.49, 0.49))  # right, anterior, superior
    assert scan.image[index] == 1000
    for view in VIEWS:
        plane = Slice(scan, view, index).of(scan.image)
        # axial and coronal with the right at the left, sagittal with the anterior at the left: always the first corner
        assert plane[0, 0] == 1000
        assert np.count_nonzero(plane == 1000) == 1
    assert Slice(scan, AXIAL, index).of(scan.image).shape == (7, 6)
    assert Slice(scan, CORONAL, index).of(scan.image).shape == (8, 6)
    assert Slice(scan, SAGITTAL, index).of(scan.image).shape == (8, 7)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SLA"])
def test_location_runs_from_patient_left_to_right(tmp_path: Path, array: np.ndarray, code: str) -> None:
    scan = located(tmp_path, array, code)
    index = scan.index_at((0, 0, 0))
    axial = Slice(scan, AXIAL, index).location()
    assert axial.shape == (3, 7, 6)
    expected_r = 0.5 - (np.arange(6) + 0.5) / 6  # the first column is the patient's right
    expected_a = 0.5 - (np.arange(7) + 0.5) / 7
    np.testing.assert_allclose(axial[0], np.broadcast_to(expected_r, (7, 6)), atol=1e-6)
    np.testing.assert_allclose(axial[1], np.broadcast_to(expected_a[:, None], (7, 6)), atol=1e-6)
    assert np.ptp(axial[2]) == 0
    coronal = Slice(scan, CORONAL, index).location()
    np.testing.assert_allclose(coronal[2][:, 0], 0.5 - (np.arange(8) + 0.5) / 8, atol=1e-6)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR"])
def test_a_patch_is_drawn_around_its_voxels(tmp_path: Path, array: np.ndarray, code: str) -> None:
    scan = located(tmp_path, array, code)
    corner = np.array(scan.index_at((0.49, 0.49, 0.49)), dtype=float)
    # the one voxel of the right, anterior, superior corner, 1 x 2 x 3 mm
    rectangle = Slice(scan, AXIAL, (0, 0, 0)).rectangle(corner, np.ones(3))
    assert rectangle == pytest.approx((0, 0, 1, 2))
    rectangle = Slice(scan, SAGITTAL, (0, 0, 0)).rectangle(corner, np.ones(3))
    assert rectangle == pytest.approx((0, 0, 2, 3))
    far = np.array(scan.index_at((-0.49, -0.49, -0.49)), dtype=float)
    rectangle = Slice(scan, CORONAL, (0, 0, 0)).rectangle(far, np.ones(3))
    assert rectangle == pytest.approx((5, 21, 1, 3))


def test_border_of_zeros_is_cropped_as_nnunet_does(tmp_path: Path, array: np.ndarray) -> None:
    padded = np.pad(array, ((0, 0), (0, 0), (2, 1)))
    scan = located(tmp_path, padded)
    assert scan.frame.shape == array.shape
    assert scan.index_at((0.49, 0.49, 0.49)) == (7, 0, 0)
    assert scan.image[7, 0, 0] == 1000


def test_place_outside_the_volume(tmp_path: Path, array: np.ndarray) -> None:
    scan = located(tmp_path, array)
    assert scan.index_at((-0.5, 0.5, -0.5)) == (0, 0, 5)
    with pytest.raises(ValueError, match=r"the place \[0, 0.8, 0\] lies outside"):
        scan.index_at((0, 0.8, 0))


def test_centre_of_interest(tmp_path: Path, array: np.ndarray) -> None:
    assert located(tmp_path, array).centre_of_interest() == (4, 3, 3)
    label = np.zeros(array.shape, dtype=np.uint8)
    label[5:8, 1:4, 0:3] = 2
    scan = located(tmp_path, array, label=write(tmp_path / "label.nii.gz", label))
    assert scan.label is not None
    assert scan.label.max() == 2
    assert scan.centre_of_interest() == (6, 2, 1)
    changed = label.astype(np.int32)
    changed[5, 3, :3] = 1
    differing = LocatedScan(**{**vars(scan), "comparison": Comparison(label.astype(np.int32), changed, "x")})
    assert differing.centre_of_interest() == (5, 3, 0)


def test_picture_is_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    data = random.normal(size=(12, 14, 16)).astype(np.float32)
    label = (data > 1).astype(np.uint8)
    scan = read_scan(
        [write(tmp_path / "a_0000.nii.gz", data, "RAS")],
        make_source("scanner"),
        label=write(tmp_path / "a.nii.gz", label, "RAS"),
        patch_size=(8, 8, 8),
    )
    other = np.where(random.random(label.shape) > 0.5, scan.label, 0).astype(np.int32)
    assert scan.label is not None
    scan = LocatedScan(**{**vars(scan), "comparison": Comparison(scan.label, other, "unknown location")})
    draw(scan, tmp_path / "a.png")
    import matplotlib.image

    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert picture.shape[1] > picture.shape[0] > 500  # seven columns, three rows
    assert picture[..., :3].std() > 0.1


def test_flat_volumes_are_drawn(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(1, 1, 9)).astype(np.float32)
    draw(located(tmp_path, data, patch_size=(8, 8)), tmp_path / "flat.png")
    assert (tmp_path / "flat.png").is_file()


def test_picture_without_geometry(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(1, 255, (8, 9), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a_0000.png"))
    from nnunet_locctx import geometry

    geometry._warn_no_geometry.cache_clear()
    with pytest.warns(UserWarning, match="follows the array axes"):
        scan = read_scan([tmp_path / "a_0000.png"], make_source("voxel"))
    assert not scan.frame.has_geometry
    assert scan.frame.shape == (1, 8, 9)


def test_voxels_that_are_not_finite_are_drawn_as_nothing(tmp_path: Path, array: np.ndarray) -> None:
    array[0, 0, 0] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nrrd"))
    scan = read_scan([tmp_path / "a.nrrd"], make_source("voxel"))
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
        read_scan([tmp_path / "none.nii.gz"], voxel)
    odd = write(tmp_path / "odd.nii", array)
    odd.write_bytes(
        odd.read_bytes()[:70] + b"\x0f\x27" + odd.read_bytes()[72:]
    )  # a type of voxels that is none
    odd.with_suffix(".nii.gz").write_bytes(gzip.compress(odd.read_bytes()))
    with pytest.raises(ValueError, match=r"nnU-Net cannot read .*odd\.nii\.gz.*SimpleITKIO: .*NibabelIO: "):
        read_scan([odd.with_suffix(".nii.gz")], voxel)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no reader for files ending in '\.txt'"):
        read_scan([tmp_path / "notes.txt"], voxel)
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
        assert scan.frame.shape == scan.image.shape == scan.comparison.located.shape
        right = scan.field.box((0, 0, 0), scan.frame.shape)[0] > 0
        np.testing.assert_array_equal(scan.comparison.located == 1, right)
        # without location the classes are equal and the first one wins
        assert not scan.comparison.replaced.any()
        np.testing.assert_array_equal(scan.comparison.changed, right)
        assert scan.comparison.replacement == "unknown location"

    def test_shifted_location(self, image: Path, trained: Path) -> None:
        scan = compare_predictions([image], trained, shift=(-0.2, 0, 0), device="cpu", fold="0")
        assert scan.comparison is not None
        right = scan.field.box((0, 0, 0), scan.frame.shape)[0]
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


@pytest.mark.parametrize("code", ["LPS", "SAR"])
def test_fitted_source_shows_what_its_regressor_says(tmp_path: Path, code: str) -> None:
    options = dataclasses.replace(
        OPTIONS, steps=60, modality="mr"
    )  # whose air is the 0 that nnU-Net crops away
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
    sitk.WriteImage(sitk.DICOMOrient(image, code), str(file))
    source = make_source("body_part")
    shown = read_scan([file], source, regressor=stored)
    data, properties = read_any([file])
    whole = Frame.from_properties(properties, data.shape[1:])
    expected = source.field(whole, regressor.measure(data[0], whole))
    index = np.array([(0, 0, 0), (5, 7, 3), [n - 1 for n in shown.image.shape]])
    there = whole.index_from_millimetres(shown.frame.millimetres(index))
    assert not np.allclose(there, index)
    np.testing.assert_allclose(shown.field.at(index), expected.at(there), atol=1e-6)
