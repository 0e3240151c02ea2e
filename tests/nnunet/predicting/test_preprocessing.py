"""Prediction's preprocessing: the location of every voxel is the place where its intensity was measured.

The scans' intensities are their own scanner coordinates (mm), so nnU-Net's reading, transposing, cropping
and resampling carry the truth along.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import MILLIMETRES_PER_UNIT, AnatomicalMap, TrainingRange
from nnunet_locctx.nnunet.predicting.location_file import RECORD
from nnunet_locctx.nnunet.predicting.preprocessing import (
    LocatedConfiguration,
    locate,
    located_preprocessor,
)
from tests.broken_files import BROKEN
from tests.geometry_cases import PERMUTATIONS, rotation, sitk_properties
from tests.nnunet.small_plans import configuration, plans

LocatedPreprocessor = located_preprocessor(DefaultPreprocessor)

LIFT = 1000.0
"""Added to the intensities, so that no voxel of the body is cropped as zero."""


def write_scan(folder: Path, direction: np.ndarray, spacing: tuple[float, float, float]) -> list[str]:
    """Three files, one for each patient coordinate (R, A, S) in mm; a border of zeros around the body."""
    image = sitk.Image([14, 17, 15], sitk.sitkFloat64)
    image.SetSpacing(spacing)
    image.SetOrigin((-31.0, 22.0, 5.0))
    image.SetDirection(direction.ravel().tolist())
    index = np.stack(np.meshgrid(*[np.arange(n) for n in image.GetSize()], indexing="ij"), axis=-1)
    lps = np.array([image.TransformIndexToPhysicalPoint(i) for i in index.reshape(-1, 3).tolist()]).reshape(
        index.shape
    )
    patient = lps * [-1, -1, 1] + LIFT
    for border in ((slice(2),), (slice(None), slice(-3, None)), (slice(None), slice(None), slice(1))):
        patient[border] = 0
    files = []
    for channel in range(3):
        part = sitk.GetImageFromArray(patient[..., channel].T)
        part.CopyInformation(image)
        files.append(str(folder / f"scan_{channel:04d}.nii.gz"))
        sitk.WriteImage(part, files[-1])
    return files


def preprocess(files: list[str], transpose: tuple[int, ...], spacing: list[float], **location: Any) -> Any:
    made = plans({"3d": configuration(channels=3, spacing=spacing, location=location)}, transpose)
    manager = PlansManager(made)
    located = locate(manager.get_configuration("3d"))
    preprocessor = located.preprocessor_class(verbose=False)
    return preprocessor.run_case(files, None, manager, located, {"labels": {"background": 0, "a": 1}})


@pytest.mark.parametrize("permutation", PERMUTATIONS)
@pytest.mark.parametrize("flip", [np.diag([1.0, 1, 1]), np.diag([-1.0, 1, -1])], ids=["straight", "flipped"])
def test_intensities_that_are_coordinates(
    tmp_path: Path, permutation: tuple[int, int, int], flip: np.ndarray
) -> None:
    direction = (rotation((0.1, -0.05, 0.2)) @ flip)[:, list(permutation)]
    files = write_scan(tmp_path, direction, (1.5, 2.0, 3.0))
    data, _, properties = preprocess(files, permutation, [2.2, 1.7, 2.6], source="scanner", absolute=True)
    assert data.dtype == np.float32
    assert data.shape[0] == 6
    assert min(properties["shape_after_cropping_and_before_resampling"]) < 14
    inside = (slice(None), *[slice(2, -2)] * 3)
    expected = data[:3][inside] - LIFT
    np.testing.assert_allclose(data[3:][inside] * MILLIMETRES_PER_UNIT, expected, atol=2e-3)


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("flip", [np.diag([1.0, 1, 1]), np.diag([-1.0, -1, 1])], ids=["LPS", "RAS"])
def test_channels_in_one_file_of_four_dimensions(tmp_path: Path, flip: np.ndarray, ending: str) -> None:
    """The direction of such a file is 4 x 4; its spatial part says where the patient's sides are."""
    direction = rotation((0.1, -0.05, 0.2)) @ flip
    files = write_scan(tmp_path, direction, (1.5, 2.0, 3.0))
    joined = str(tmp_path / f"joined_0000.{ending}")
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(file) for file in files]), joined)
    data, _, _ = preprocess([joined], (0, 1, 2), [2.2, 1.7, 2.6], source="scanner", absolute=True)
    assert data.shape[0] == 6
    inside = (slice(None), *[slice(2, -2)] * 3)
    np.testing.assert_allclose(data[3:][inside] * MILLIMETRES_PER_UNIT, data[:3][inside] - LIFT, atol=2e-3)


def test_voxel_fractions_follow_the_cropped_volume(tmp_path: Path) -> None:
    files = write_scan(tmp_path, np.eye(3), (2.0, 2.0, 2.0))
    data, _, _ = preprocess(files, (0, 1, 2), [2.0, 2.0, 2.0])
    location = data[3:]
    n = np.array(location.shape[:0:-1])
    for channel, sign in enumerate((-1, -1, 1)):
        line = location[channel].transpose(2, 1, 0)[
            tuple(slice(None) if a == channel else 0 for a in range(3))
        ]
        np.testing.assert_allclose(line, sign * ((np.arange(n[channel]) + 0.5) / n[channel] - 0.5), atol=1e-6)


def test_the_configuration_takes_the_preprocessor_to_spawned_workers() -> None:
    manager = PlansManager(plans({"3d": configuration()})).get_configuration("3d")
    assert manager.preprocessor_class is DefaultPreprocessor
    located = locate(manager)
    assert located is manager
    located.carried.training = TrainingRange(np.zeros((3, 2)), np.ones((3, 2)), True)
    copied = pickle.loads(pickle.dumps(locate(located)))
    assert isinstance(copied, LocatedConfiguration)
    assert copied.preprocessor_class is LocatedPreprocessor
    assert copied.locator.training is not None
    np.testing.assert_array_equal(copied.locator.training.extents, 1)


def test_another_preprocessor_is_extended_too() -> None:
    class Other(DefaultPreprocessor):
        pass

    made = located_preprocessor(Other)
    assert issubclass(made, Other)
    assert made.__name__ == "LocatedOther"


def run_npy(data: np.ndarray, properties: dict[str, Any], **changes: Any) -> Any:
    manager = PlansManager(plans({"3d": configuration()}))
    located = locate(ConfigurationManager(configuration(**changes)))
    return LocatedPreprocessor(verbose=False).run_case_npy(
        data, None, properties, manager, located, {"labels": {"a": 1}}
    )


def test_one_slice_and_empty_scans_pass() -> None:
    data, _, _ = run_npy(np.ones((1, 1, 9, 9), np.float32), sitk_properties((1, 9, 9), (1.0, 1.0, 2.0)))
    assert data.shape[0] == 4
    np.testing.assert_allclose(data[3], 0, atol=1e-7)
    empty, _, _ = run_npy(np.zeros((1, 6, 6, 6), np.float32), sitk_properties((6, 6, 6)))
    assert np.isfinite(empty).all()


def test_what_is_not_known_of_a_scan_is_nan_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_scan(tmp_path, np.eye(3), (2.0, 2.0, 2.0))
    made = plans({"3d": configuration(channels=3, location={"axes": ["A", "S"]})})
    located = locate(PlansManager(made).get_configuration("3d"))
    located.carried.training = TrainingRange(
        np.tile([-0.45, 0.45], (3, 1)), np.tile([10.0, 15.0], (3, 1)), True
    )
    preprocessor = located.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(
        files, None, PlansManager(made), located, {"labels": {"a": 1}}
    )
    assert np.isnan(data[3:]).all(axis=(1, 2, 3)).tolist() == [True, True, True]
    line = (
        "location of scan (voxel): R unknown: the plans leave it out; A, S unknown: the scan spans 28 mm, "
        "those of training 10 to 15 mm; a plain model may do better where nothing is known\n"
    )
    assert capsys.readouterr().out == line
    assert properties[RECORD]["known"] == []
    assert np.isfinite(data[:3]).all()


def with_voxel(value: float) -> np.ndarray:
    data = np.ones((1, 6, 6, 6), np.float32)
    data[0, 1, 2, 3] = value
    return data


@pytest.mark.parametrize(
    ("data", "properties", "message"),
    [
        (with_voxel(np.nan), {}, "1 voxels that are NaN or infinite"),
        (with_voxel(np.inf), {}, "1 voxels that are NaN or infinite"),
        (np.ones((1, 0, 6, 6), np.float32), {}, r"at least one voxel per axis, got \(1, 0, 6, 6\)"),
        (np.ones((6, 6, 6), np.float32), {}, r"shape \(channels, x, y, z\)"),
        (np.ones((1, 1, 6, 6), np.float32), {}, "thinner than half a voxel of the configuration's spacing"),
        (with_voxel(1), {"spacing": [0.0, 1.0, 1.0]}, "spacing must be three numbers above 0 mm"),
        (
            with_voxel(1),
            sitk_properties((6, 6, 6), direction=np.zeros((3, 3))),
            "voxel sizes must be above 0 mm",
        ),
    ],
)
def test_scans_that_are_refused(data: np.ndarray, properties: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_npy(data, sitk_properties((6, 6, 6)) | properties)


def test_a_bad_scan_among_many_is_named(tmp_path: Path) -> None:
    files = write_scan(tmp_path, np.eye(3), (1.5, 2.0, 3.0))
    scan = sitk.ReadImage(files[0])
    array = sitk.GetArrayFromImage(scan).astype(np.float32)
    array[6, 6, 6] = np.nan
    broken = sitk.GetImageFromArray(array)
    broken.CopyInformation(scan)
    files[0] = files[0].replace(".nii.gz", ".nrrd")  # ITK reads zeros where NIfTI says NaN
    sitk.WriteImage(broken, files[0])
    with pytest.raises(ValueError, match=rf"^{re.escape(files[0])}: the scan has 1 voxels"):
        preprocess(files, (0, 1, 2), [2.2, 1.7, 2.6], source="voxel")


def test_a_scan_of_which_cropping_leaves_too_little() -> None:
    data = np.zeros((1, 12, 14, 16), np.float32)
    data[0, 5:7, 3:9, 4:12] = 1
    properties = sitk_properties((12, 14, 16))
    with pytest.raises(ValueError, match=r"a scan of \[2, 6, 8\] voxels \(without zeros around\)"):
        run_npy(data, properties, spacing=[5.0, 1.0, 1.0])
    assert run_npy(np.zeros_like(data), properties, spacing=[5.0, 1.0, 1.0])[0].shape[1] == 2


@pytest.mark.parametrize("kind", BROKEN)
def test_a_scan_that_is_not_whole(tmp_path: Path, kind: str) -> None:
    """ITK would predict from zeros where voxels are missing."""
    files = write_scan(tmp_path, np.eye(3), (1.5, 2.0, 3.0))
    make, words = BROKEN[kind]
    Path(files[1]).write_bytes(make(Path(files[1]).read_bytes()))
    with pytest.raises(ValueError, match=re.escape(f"{files[1]} {words}")):
        preprocess(files, (0, 1, 2), [2.2, 1.7, 2.6], source="voxel")
    # nor from the previous stage's prediction
    manager = PlansManager(plans({"3d": configuration(channels=1, spacing=[2.2, 1.7, 2.6])}))
    located = locate(manager.get_configuration("3d"))
    with pytest.raises(ValueError, match=re.escape(f"{files[1]} {words}")):
        located.preprocessor_class(verbose=False).run_case(
            [files[0]], files[1], manager, located, {"labels": {"background": 0, "a": 1}}
        )


class MillimetreRegressor:
    """Measures a scan by where its frame says that it lies."""

    channel = 0

    def measure(self, image: np.ndarray, frame: Frame) -> AnatomicalMap:
        corners = np.stack(np.meshgrid(*[(0, n - 1) for n in image.shape], indexing="ij"), axis=-1)
        places = frame.millimetres(corners) / 100
        steps = np.diag([*(np.array(image.shape, dtype=np.float64) - 1), 1])
        slopes = np.eye(3) / 100
        return AnatomicalMap(np.moveaxis(places, -1, 0).astype(np.float32), frame.affine_lps @ steps, slopes)


def test_properties_may_be_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several models are given one properties dict: what the first one's preprocessing left in it moves nothing."""
    data = np.zeros((1, 9, 12, 15), np.float32)
    data[0, 3:8, 2:6, 5:14] = 1 + np.arange(5 * 4 * 9).reshape(5, 4, 9)
    properties = sitk_properties((9, 12, 15), (1.0, 2.0, 3.0), (-20.0, 30.0, 5.0))
    manager = PlansManager(plans({"3d": configuration(location={"source": "anatomical"})}))
    runs = []
    for _ in range(3):
        located = locate(
            ConfigurationManager(configuration(location={"source": "anatomical"}, spacing=[1.5, 1.0, 2.0]))
        )
        monkeypatch.setattr(located.carried, "open", MillimetreRegressor)
        processed, _, properties = LocatedPreprocessor(verbose=False).run_case_npy(
            data, None, properties, manager, located, {"labels": {"a": 1}}
        )
        runs.append(processed)
        # the voxels in front of which nnU-Net cut: the place of the first voxel that is left
        frame = Frame.from_properties(properties, processed.shape[1:])
        np.testing.assert_allclose(processed[1:, 0, 0, 0] * 100, frame.millimetres([0, 0, 0]), atol=1e-2)
    for again in runs[1:]:
        np.testing.assert_array_equal(again, runs[0])
