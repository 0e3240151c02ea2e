"""A raw dataset of three tiny scans, as nnU-Net expects it."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tests.anatomical_cases import SPACING, scan

DATASET = "Dataset005_Tiny"


def write(file: Path, array: np.ndarray, spacing: float = 8.0) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([spacing] * 3)
    SimpleITK.WriteImage(image, str(file))


def enter(space: Path, patch: pytest.MonkeyPatch) -> Path:
    """Makes a space nnU-Net's; returns the folder of its raw dataset."""
    for name in ("raw", "preprocessed"):
        (space / name).mkdir(exist_ok=True)
        patch.setenv(f"nnUNet_{name}", str(space / name))
    return space / "raw" / DATASET


def write_dataset(folder: Path) -> Path:
    """A raw dataset of three scans of noise."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    label = np.zeros((10, 9, 8), dtype=np.uint8)
    label[3:5] = 1
    for number in range(3):
        image = random.normal(0, 100, (10, 9, 8)).astype(np.float32)
        write(folder / "imagesTr" / f"tiny_{number}_0000.nii.gz", image)
        write(folder / "labelsTr" / f"tiny_{number}.nii.gz", label)
    labels = {"background": 0, "organ": 1}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def write_bodies(folder: Path) -> Path:
    """The dataset with three bodies."""
    write_dataset(folder)
    for number in range(3):
        file = folder / "imagesTr" / f"tiny_{number}_0000.nii.gz"
        write_scan(file, (-160, -120, -200.0 + 50 * number), (40, 30, 20), number)
    return folder


def write_scan(file: Path, lower: tuple[float, float, float], shape: tuple[int, int, int], seed: int) -> None:
    """A scan of made-up anatomy, with the header that says where it lies."""
    made = scan(lower, shape, seed)
    image = SimpleITK.GetImageFromArray(made.image.transpose(2, 1, 0))
    image.SetSpacing([SPACING] * 3)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image.SetOrigin(made.affine[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(file))
