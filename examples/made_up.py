"""Scans for the examples: two balls that look alike, of which only the side tells which is which."""

from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (32, 16, 16)


def write_scans(folder: Path, count: int) -> list[dict[str, Path]]:
    """Writes CTs and labels (1: left ball, 2: right ball) as NIfTI; every other scan is stored from right to left.

    Returns:
        The files of each scan: ``image`` and ``label``.
    """
    random = np.random.default_rng(0)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    files = []
    for number in range(count):
        label = np.zeros(SHAPE, dtype=np.uint8)
        for value, x in ((1, 8), (2, 24)):  # x grows towards the patient's right
            centre = np.array([x, 8, 8]) + random.integers(-2, 3, 3)
            label[np.linalg.norm(index - centre, axis=-1) < 4] = value
        hounsfield = np.where(label > 0, 100, -50) + random.normal(0, 15, SHAPE)
        affine = np.diag([5.0, 5.0, 5.0, 1.0])
        if number % 2:
            hounsfield, label = hounsfield[::-1], label[::-1]
            affine[0] = (-5.0, 0.0, 0.0, 5.0 * (SHAPE[0] - 1))
        paths = {name: folder / f"{name}_{number}.nii.gz" for name in ("image", "label")}
        nib.save(nib.Nifti1Image(hounsfield.astype(np.int16), affine), paths["image"])
        nib.save(nib.Nifti1Image(label, affine), paths["label"])
        files.append(paths)
    return files


def mean_dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Of the two balls."""
    scores = [
        2 * ((predicted == c) & (truth == c)).sum() / ((predicted == c).sum() + (truth == c).sum())
        for c in (1, 2)
    ]
    return float(np.mean(scores))
