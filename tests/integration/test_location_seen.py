"""The location that a network receives from stock prediction is the true one.

The network under test answers with the location it was given. Saved as probabilities, cut back and turned back
by nnU-Net to the scan's own voxels, that answer is compared with what SimpleITK says about each voxel.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch

from tests.integration.short_trainers import EchoTrainer, EchoUNet
from tests.integration.workspace import PATCH, Workspace

TRAINER = "EchoTrainer"
SPACING = 3.0  # the phantom's, so that nothing is resampled
CORNER = 5
"""Voxels from all three faces: there nnU-Net's Gaussian weights, and what they weight, are too small for float16."""

ORIENTATIONS: dict[str, Any] = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "PIR": np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "SRP": np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
}


def turned(direction: np.ndarray, degrees: float) -> np.ndarray:
    """The direction matrix turned about the patient's long axis."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    result: np.ndarray = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ direction
    return result


def scan(size: tuple[int, int, int], direction: np.ndarray, border: int = 0) -> SimpleITK.Image:
    """Noise of (x, y, z) voxels; with a border of zeros, which nnU-Net crops off."""
    noise = np.random.default_rng(0).normal(0, 100, size[::-1]).astype(np.float32)
    noise[noise == 0] = 1
    if border:
        inner = (slice(border, -border), slice(border + 1, None), slice(None, -border))
        kept = np.zeros_like(noise)
        kept[inner] = noise[inner]
        noise = kept
    image = SimpleITK.GetImageFromArray(noise)
    image.SetSpacing([SPACING] * 3)
    image.SetOrigin([-40.0, 25.0, 300.0])
    image.SetDirection(direction.ravel().tolist())
    return image


def true_fraction(image: SimpleITK.Image) -> tuple[np.ndarray, np.ndarray]:
    """(3, z, y, x) fraction of the non-zero box along (R, A, S), and (z, y, x) which of that box to check.

    From SimpleITK alone.
    """
    nonzero = SimpleITK.GetArrayFromImage(image) != 0
    box = [
        (int(np.nonzero(nonzero.any(axis=other))[0].min()), int(np.nonzero(nonzero.any(axis=other))[0].max()))
        for other in [(1, 2), (0, 2), (0, 1)]
    ]
    index = np.indices(nonzero.shape)
    to_face = [np.minimum(index[axis] - low, high - index[axis]) for axis, (low, high) in enumerate(box)]
    checked = (np.min(to_face, axis=0) >= 0) & (np.max(to_face, axis=0) >= CORNER)

    def place(x: float, y: float, z: float) -> np.ndarray:
        left, posterior, superior = image.TransformContinuousIndexToPhysicalPoint((x, y, z))
        return np.array([-left, -posterior, superior])

    centre = place(*[(low + high) / 2 for low, high in box[::-1]])
    origin = place(0, 0, 0)
    axes = np.stack([place(1, 0, 0), place(0, 1, 0), place(0, 0, 1)], axis=1) - origin[:, None]
    # of the bounding box along each patient axis
    extent = np.abs(axes) @ [high - low + 1 for low, high in box[::-1]]
    places = np.tensordot(axes, index[::-1], axes=1) + origin[:, None, None, None]
    return (places - centre[:, None, None, None]) / extent[:, None, None, None], checked


def check_close(echoed: np.ndarray, expected: np.ndarray) -> None:
    """Fractions equal but for float16, which leaves least at the edges of a volume; a voxel is 0.03 or more."""
    difference = np.abs(echoed - expected)
    assert difference.max() < 0.01
    assert np.quantile(difference, 0.99) < 1e-3


@pytest.fixture(scope="module")
def echo(phantom: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Model folders of the echo for three configurations, as a training would have written them."""
    space = phantom.with_results(tmp_path_factory.mktemp("echo"))
    for configuration in ("2d", "3d_fullres", "3d_cascade_fullres"):
        with space.entered():
            trainer = space.trainer(EchoTrainer, configuration)
            trainer.initialize()
            checkpoint = {
                "network_weights": trainer.network.state_dict(),
                "init_args": trainer.my_init_kwargs,
                "trainer_name": TRAINER,
                "inference_allowed_mirroring_axes": (0, 1) if configuration == "2d" else (0, 1, 2),
            }
            torch.save(checkpoint, Path(trainer.output_folder) / "checkpoint_final.pth")
        for name in ("dataset.json", "nnUNetPlans.json"):
            target = space.model(TRAINER, configuration) / name.replace("nnUNetPlans", "plans")
            shutil.copy(space.preprocessed / space.dataset / name, target)
    return space


def predict(
    echo: Workspace, image: SimpleITK.Image, folder: Path, configuration: str, options: str = ""
) -> tuple[np.ndarray, Any]:
    """(3, z, y, x) location that the prediction of this scan was made from, and the network that was asked."""
    (folder / "scans").mkdir(parents=True)
    SimpleITK.WriteImage(image, str(folder / "scans" / "scan_0000.nii.gz"))
    EchoTrainer.built.clear()
    echo.predict(
        folder / "predicted", TRAINER, configuration, f"-f 0 --save_probabilities {options}", folder / "scans"
    )
    probabilities = np.load(folder / "predicted" / "scan.npz")["probabilities"].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):  # outside the crop nnU-Net writes certain background
        location = (np.log(probabilities[:3]) - np.log(probabilities[3])) / EchoUNet.scale
    (network,) = EchoTrainer.built
    return location, network


SCANS = {
    **{name: ((20, 26, 30), direction, 0) for name, direction in ORIENTATIONS.items()},
    "oblique PIR": ((20, 26, 30), turned(ORIENTATIONS["PIR"], 8), 0),
    "cropped": ((26, 24, 28), ORIENTATIONS["RAS"], 2),
    "smaller than the patch": ((12, 22, 9), ORIENTATIONS["PIR"], 0),
}


@pytest.mark.parametrize(
    ("name", "configuration"),
    [(name, "3d_fullres") for name in SCANS]
    + [
        pytest.param(name, "2d", marks=[] if name in ("SRP", "cropped") else pytest.mark.slow)
        for name in SCANS
    ],
)
def test_every_voxel_gets_its_place_in_the_patient(
    name: str, configuration: str, echo: Workspace, tmp_path: Path
) -> None:
    """With nnU-Net's mirroring on: what the network hears about a voxel does not depend on the way it is flipped."""
    image = scan(*SCANS[name])
    echoed, _ = predict(echo, image, tmp_path, configuration)
    expected, checked = true_fraction(image)
    assert np.ptp(expected[:, checked], axis=1).min() > 0.8  # a location worth checking
    check_close(echoed[:, checked], expected[:, checked])


def test_orientations_agree_about_the_anatomy(echo: Workspace, tmp_path: Path) -> None:
    """One scan stored twice: the same patient position gets the same coordinate."""
    image = scan((20, 26, 30), ORIENTATIONS["LPS"])
    _, checked = true_fraction(image)
    again = SimpleITK.DICOMOrient(image, "PIR")
    first, _ = predict(echo, image, tmp_path / "first", "3d_fullres", "--disable_tta")
    second, _ = predict(echo, again, tmp_path / "second", "3d_fullres", "--disable_tta")
    for channel in range(3):
        stored = SimpleITK.GetImageFromArray(second[channel])
        stored.CopyInformation(again)
        back = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(stored, "LPS"))
        check_close(back[checked], first[channel, checked])


def test_padding_continues_the_location(echo: Workspace, tmp_path: Path) -> None:
    """A volume smaller than the patch is one patch: its border holds the places beyond the volume, not zeros."""
    size = (12, 16, 9)
    _, network = predict(echo, scan(size, ORIENTATIONS["LPS"]), tmp_path, "3d_fullres", "--disable_tta")
    (location,) = network.locations
    (seen,) = network.inputs
    transpose = echo.plans["transpose_forward"]
    shape = [size[::-1][axis] for axis in transpose]
    first = [(PATCH - n) // 2 for n in shape]  # nnU-Net pads the smaller half in front
    padded = (seen[0, 1:] == 0).all(0)
    assert int((~padded).sum()) == np.prod(size)
    index = np.indices([PATCH] * 3)
    for axis, stored in enumerate(transpose):
        channel = 2 - stored  # stored z, y, x of an LPS scan run along S, P, L
        sign = 1 if channel == 2 else -1  # (R, A) are (-L, -P)
        line = sign * ((index[axis] - first[axis] + 0.5) / shape[axis] - 0.5)
        np.testing.assert_allclose(location[0, channel], line, atol=1e-5)


def test_cascade_sees_image_then_location_then_previous_stage(echo: Workspace, tmp_path: Path) -> None:
    size = (PATCH, PATCH, PATCH)
    image = scan(size, ORIENTATIONS["LPS"])
    previous = np.random.default_rng(1).integers(0, 7, size[::-1]).astype(np.uint8)
    labels = SimpleITK.GetImageFromArray(previous)
    labels.CopyInformation(image)
    (tmp_path / "previous").mkdir()
    SimpleITK.WriteImage(labels, str(tmp_path / "previous" / "scan.nii.gz"))
    options = f"--disable_tta -prev_stage_predictions {tmp_path / 'previous'}"
    _, network = predict(echo, image, tmp_path / "cascade", "3d_cascade_fullres", options)
    (seen,) = network.inputs
    assert seen.shape == (1, 1 + 3 + 6, *size)
    transpose = echo.plans["transpose_forward"]
    for label in range(1, 7):
        np.testing.assert_array_equal(seen[0, 3 + label].numpy(), (previous == label).transpose(transpose))
    expected = true_fraction(image)[0].transpose(0, *[1 + axis for axis in transpose])
    np.testing.assert_allclose(seen[0, 1:4], expected, atol=1e-6)
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(echo.plans)
    stock, *_ = DefaultPreprocessor(verbose=False).run_case(
        [str(tmp_path / "cascade" / "scans" / "scan_0000.nii.gz")],
        None,
        plans,
        plans.get_configuration("3d_fullres"),
        str(echo.preprocessed / echo.dataset / "dataset.json"),
    )
    np.testing.assert_array_equal(seen[0, :1], stock)


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d", "3d_cascade_fullres"])
def test_a_scan_that_is_longer_than_any_in_training_has_an_unknown_level(
    configuration: str, echo: Workspace, tmp_path: Path
) -> None:
    """From the checkpoint through the preprocessing worker, the sliding window and mirroring to every patch, and into
    the line and the file that say so."""
    file = echo.model(TRAINER, configuration) / "fold_0" / "checkpoint_final.pth"
    before = file.read_bytes()
    checkpoint = torch.load(file, weights_only=False)
    # R, A and S of 40 to 100 mm; along S the scan has 150 mm
    checkpoint["network_weights"] |= {
        "location_range.ranges": torch.tensor([[-0.45, 0.45, 40.0, 100.0]] * 3),
        "location_range.geometry": torch.tensor(True),
    }
    torch.save(checkpoint, file)
    image = scan((14, 20, 50), ORIENTATIONS["LPS"])
    options = ""
    if configuration == "3d_cascade_fullres":
        labels = SimpleITK.Cast(image > 0, SimpleITK.sitkUInt8)
        (tmp_path / "previous").mkdir()
        SimpleITK.WriteImage(labels, str(tmp_path / "previous" / "scan.nii.gz"))
        options = f"-prev_stage_predictions {tmp_path / 'previous'}"
    try:
        _, network = predict(echo, image, tmp_path, configuration, options)
    finally:
        file.write_bytes(before)
    assert len(network.inputs) > 4
    for seen in network.inputs:
        unknown = torch.isnan(seen).flatten(2)
        padding = (seen[:, 1:3] == 0).all(1).flatten(1)
        assert not unknown[:, [0, 1, 2, *range(4, seen.shape[1])]].any()
        assert (unknown[:, 3] | padding).all()
    reason = "the scan spans 150 mm, those of training 40 to 100 mm"
    assert f"location of scan (voxel): R, A known; S unknown: {reason}\n" in echo.output
    content = json.loads((tmp_path / "predicted" / "location.json").read_text())
    assert content == {"scan": {"source": "voxel", "known": ["R", "A"], "unknown": {"S": reason}}}


def test_no_true_location_is_taken_for_padding(echo: Workspace, tmp_path: Path) -> None:
    """With odd sizes one voxel centre is the centre of the volume, where every coordinate is 0."""
    size = (15, 15, 15)
    _, network = predict(echo, scan(size, ORIENTATIONS["LPS"]), tmp_path, "3d_fullres", "--disable_tta")
    (seen,) = network.inputs
    assert int((seen[0, 1:] != 0).any(0).sum()) == np.prod(size)
