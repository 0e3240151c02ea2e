"""Tiny volumes in the folder layouts of the public releases."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

AMOS_LABELS = (
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gall bladder",
    "esophagus",
    "liver",
    "stomach",
)
AMOS_LABELS += (
    "arota",
    "postcava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
)
AMOS_LABELS += ("prostate/uterus",)

KITS = (0, 1, 2, 51, 88, 299, 400, 588)
"""Two of these are excluded in the paper."""

ACDC_PATIENTS = {1: (1, 12), 2: (1, 9), 5: (1, 13), 89: (1, 10), 90: (4, 11), 100: (1, 13)}
"""Patient -> end-diastolic and end-systolic frame."""


def affine(spacing: Sequence[float] = (0.8, 0.8, 3.0), code: str = "LPS", tilt: float = 0.0) -> Any:
    """Affine with the given voxel sizes (mm, file axes) and storage orientation; `tilt` degrees about x."""
    turn = nibabel.orientations.inv_ornt_aff(nibabel.orientations.axcodes2ornt(tuple(code)), (1, 1, 1))
    turn[:3, 3] = 0
    angle = np.radians(tilt)
    tilted = np.eye(4)
    tilted[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    result = tilted @ np.round(turn) @ np.diag([*spacing, 1.0])
    result[:3, 3] = (-11.5, 20.25, 7.0)
    return result


def volume(
    file: Path,
    values: Sequence[int] | None = None,
    *,
    shape: tuple[int, ...] = (8, 9, 6),
    where: Any = None,
    seed: int = 0,
) -> Path:
    """An image of noise, or (with `values`) a label that has exactly these values."""
    random = np.random.default_rng(seed)
    if values is None:
        data = random.normal(0, 100, shape).astype(np.int16)
    else:
        data = random.choice(np.array(values), shape).astype(np.uint8)
        data.ravel()[: len(values)] = values
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine() if where is None else where), file)
    return file


def btcv(folder: Path, *, tests: int = 20) -> Path:
    """All 30 training and the first of the 20 test scans, below Abdomen/RawData; odd grids in some."""
    raw = folder / "Abdomen" / "RawData"
    for number in (*range(1, 11), *range(21, 41)):
        where = affine((0.7, 0.7, 2.5 + number % 3), tilt=2.0 * (number % 2))
        volume(raw / "Training/img" / f"img{number:04d}.nii.gz", where=where, seed=number)
        label = raw / "Training/label" / f"label{number:04d}.nii.gz"
        volume(label, range(14), where=where, seed=number)
    for number in range(61, 61 + tests):
        volume(raw / "Testing/img" / f"img{number:04d}.nii.gz", seed=number)
    (raw / "Training/img/._img0001.nii.gz").write_bytes(b"macOS")
    return folder


def amos22(folder: Path) -> Path:
    """4 CT and 1 MR training scans, 2 CT and 1 MR validation scans, 1 CT and 1 MR test scan."""
    content: dict[str, Any] = {"labels": {str(value): name for value, name in enumerate(AMOS_LABELS)}}
    parts = {
        "training": ("Tr", (1, 4, 5, 410, 507)),
        "validation": ("Va", (2, 409, 540)),
        "test": ("Ts", (3, 600)),
    }
    for part, (ending, numbers) in parts.items():
        content[part] = []
        for number in numbers:
            file = f"amos_{number:04d}.nii.gz"
            volume(folder / f"images{ending}" / file, seed=number)
            entry = {"image": f"./images{ending}/{file}"}
            if part != "test":
                volume(folder / f"labels{ending}" / file, range(16), seed=number)
                entry["label"] = f"./labels{ending}/{file}"
            content[part].append(entry)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def kits23(folder: Path, numbers: Sequence[int] = KITS) -> Path:
    """Cases with the slices along the first axis, as the release stores them."""
    for number in numbers:
        case = folder / "dataset" / f"case_{number:05d}"
        where = affine((3.0, 0.8, 0.8), "IPL")
        volume(case / "imaging.nii.gz", shape=(6, 9, 9), where=where, seed=number)
        volume(case / "segmentation.nii.gz", range(4), shape=(6, 9, 9), where=where, seed=number)
        volume(
            case / "instances" / "kidney_instance-1_annotation-1.nii.gz", (0, 1), shape=(6, 9, 9), where=where
        )
    return folder


def acdc(folder: Path, *, tests: Sequence[int] = (101,), tests_labelled: bool = True) -> Path:
    """Some training patients and test patients."""
    for part, patients in (("training", ACDC_PATIENTS), ("testing", dict.fromkeys(tests, (1, 14)))):
        for number, frames in patients.items():
            name = f"patient{number:03d}"
            home = folder / "database" / part / name
            volume(home / f"{name}_4d.nii.gz", shape=(8, 9, 6, 3))
            (home / "Info.cfg").write_text(
                f"ED: {frames[0]}\nES: {frames[1]}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
            )
            for frame in frames:
                volume(home / f"{name}_frame{frame:02d}.nii.gz", seed=number + frame)
                if part == "training" or tests_labelled:
                    volume(home / f"{name}_frame{frame:02d}_gt.nii.gz", range(4), seed=number + frame)
    return folder


def brats2021(folder: Path, numbers: Sequence[int] = (0, 2, 3, 5, 6)) -> Path:
    """Cases of BraTS 2021."""
    for number in numbers:
        name = f"BraTS2021_{number:05d}"
        for channel, ending in enumerate(("flair", "t1", "t1ce", "t2")):
            volume(folder / name / f"{name}_{ending}.nii.gz", seed=10 * number + channel)
        volume(folder / name / f"{name}_seg.nii.gz", (0, 1, 2, 4), seed=number)
    return folder


def brain_tumour(folder: Path, numbers: Sequence[int] = (1, 2, 11, 12, 18, 20)) -> Path:
    """Cases of the Decathlon's Task01."""
    task = folder / "Task01_BrainTumour"
    for number in numbers:
        volume(task / "imagesTr" / f"BRATS_{number:03d}.nii.gz", shape=(8, 9, 6, 4), seed=number)
        volume(task / "labelsTr" / f"BRATS_{number:03d}.nii.gz", range(4), seed=number)
    volume(task / "imagesTs" / "BRATS_485.nii.gz", shape=(8, 9, 6, 4))
    (task / "dataset.json").write_text("{}")
    return folder
