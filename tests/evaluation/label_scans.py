"""Label files of one anatomy, stored in many ways."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from tests.geometry_cases import rotation, stored

STORAGES: list[tuple[tuple[int, int, int], tuple[bool, bool, bool], tuple[float, float, float]]] = [
    ((0, 1, 2), (False, False, False), (0, 0, 0)),
    ((2, 0, 1), (True, False, True), (0, 0, 0)),
    ((1, 2, 0), (False, True, False), (0, 0, 0)),
    ((1, 0, 2), (True, True, False), (0, 0, 0)),
]
"""Permutation and flips of the axes, and angles."""


def store(
    labels: np.ndarray,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    permutation: tuple[int, int, int] = (0, 1, 2),
    flips: tuple[bool, bool, bool] = (False, False, False),
    angles: tuple[float, float, float] = (0, 0, 0),
    centre: tuple[float, float, float] = (10.0, -20.0, 30.0),
) -> tuple[np.ndarray, dict[str, Any]]:
    """The stored array (z, y, x) and nnU-Net's properties of labels (L, P, S)."""
    properties, shape = stored(
        permutation,
        flips,
        labels.shape,  # type: ignore[arg-type]
        spacing,
        np.array(centre),
        rotation(angles),
    )
    array = np.flip(
        np.transpose(labels, permutation), [axis for axis, flipped in enumerate(flips) if flipped]
    )
    array = np.ascontiguousarray(array.transpose(2, 1, 0))
    assert array.shape == shape
    return array, properties


def write(file: Path, labels: np.ndarray, *args: Any, **kwargs: Any) -> Path:
    """Writes what :func:`store` makes."""
    array, properties = store(labels, *args, **kwargs)
    image = sitk.GetImageFromArray(array)
    stuff = properties["sitk_stuff"]
    image.SetSpacing(stuff["spacing"])
    image.SetOrigin(stuff["origin"])
    image.SetDirection(stuff["direction"])
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))
    return file


def describe(folder: Path, labels: Mapping[str, Any], ending: str = ".nii.gz") -> Path:
    """Writes ``dataset.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "dataset.json"
    content = {"labels": {"background": 0, **labels}, "file_ending": ending, "channel_names": {"0": "CT"}}
    file.write_text(json.dumps(content))
    return file


def box(shape: tuple[int, int, int], lower: tuple[int, ...], upper: tuple[int, ...]) -> np.ndarray:
    """A mask (uint8)."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))] = 1
    return mask
