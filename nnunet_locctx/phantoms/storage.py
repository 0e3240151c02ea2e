"""Parts shared by the phantoms: storage orientations, writing scans, and datasets that are never half written.

A phantom is drawn in the *canonical array*: axes (x, y, z), the index grows along L, P and S (up to the small rotation
of an oblique scan). The *stored array* is the canonical one with its axes permuted and flipped as an orientation code
says: the letter of an axis names the direction in which its index grows.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_locctx.files import drafting, write_atomically
from nnunet_locctx.geometry import Frame
from nnunet_locctx.image_files import write_sitk

FloatArray = NDArray[np.float64]
Triple = tuple[float, float, float]

ORIENTATIONS: tuple[str, ...] = ("LPS", "RAS", "PIR", "LAS", "SRP", "RPI")
"""Storage orientations a dataset mixes by default."""

LARGEST_OBLIQUE = 30
"""Degrees by which a scan may be rotated against the patient."""

_AXIS_OF_LETTER = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Stored:
    """One scan of a phantom in its storage orientation.

    Attributes:
        images: int16 array (C, i, j, k) over the stored axes; channel 0 is CT in HU.
        labels: uint8 array (i, j, k) over the stored axes.
        spacing: Voxel size in mm along the stored axes.
        origin: Patient position (mm LPS) of the centre of voxel (0, 0, 0).
        direction: (3, 3); column m is the patient direction (unit vector, LPS) of stored axis m.
    """

    images: NDArray[np.int16]
    labels: NDArray[np.uint8]
    spacing: Triple
    origin: Triple
    direction: FloatArray

    @property
    def frame(self) -> Frame:
        """The stored array's frame."""
        affine = np.eye(4)
        affine[:3, :3] = self.direction * np.asarray(self.spacing)
        affine[:3, 3] = self.origin
        return Frame.from_affine(self.labels.shape, affine, "LPS")


def orientation_axes(code: str) -> list[tuple[int, int]]:
    """Canonical axis and sign of each stored axis.

    Args:
        code: Three letters, one each of L/R, P/A and S/I; a letter names the direction in which the index
            grows.

    Returns:
        For each stored axis the canonical axis (0 = left, 1 = posterior, 2 = superior) and +1 or -1.

    Raises:
        ValueError: `code` is no orientation.
    """
    axes = [_AXIS_OF_LETTER.get(letter) for letter in code]
    known = [axis for axis in axes if axis is not None]
    if len(axes) != 3 or sorted(axis for axis, _ in known) != [0, 1, 2]:
        raise ValueError(f"an orientation has one letter each of L/R, P/A and S/I, e.g. 'RAS', got {code!r}")
    return known


def check_count(name: str, value: object, smallest: int, largest: int | None = None) -> None:
    """Raises TypeError for what is no whole number and ValueError for one out of range."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < smallest or (largest is not None and value > largest):
        allowed = f"at least {smallest}" if largest is None else f"{smallest} to {largest}"
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_storage(orientations: Sequence[str], oblique: float) -> None:
    """Raises ValueError for orientations or a rotation (degrees) that no dataset can be stored with."""
    if isinstance(orientations, str) or not orientations:
        raise ValueError(
            f"orientations must be a non-empty list of codes such as 'LPS', got {orientations!r}"
        )
    for code in orientations:
        orientation_axes(code)
    if not 0 <= oblique <= LARGEST_OBLIQUE:
        raise ValueError(f"oblique must be 0 to {LARGEST_OBLIQUE} degrees, got {oblique!r}")


def triple(values: Sequence[float] | FloatArray) -> Triple:
    """Three numbers."""
    first, second, third = (float(value) for value in values)
    return first, second, third


def per_axis(value: float | Sequence[float]) -> list[float]:
    """One number for all axes, or as many as there are."""
    return [value] * 3 if isinstance(value, (int, float, np.number)) else list(value)


def store(
    images: NDArray[np.int16],
    labels: NDArray[np.uint8],
    spacing: FloatArray,
    centre: FloatArray,
    rotation: FloatArray,
    code: str,
) -> Stored:
    """Reorders canonical arrays into a storage orientation.

    Args:
        images: (C, x, y, z), canonical.
        labels: (x, y, z), canonical.
        spacing: (3,) voxel size in mm along the canonical axes.
        centre: (3,) mm LPS of the array's centre.
        rotation: (3, 3); column m is the direction (unit vector, LPS) of canonical axis m.
        code: Orientation code.
    """
    shape = np.array(labels.shape)
    axes = orientation_axes(code)
    order = [axis for axis, _ in axes]
    signs = np.array([sign for _, sign in axes])
    flipped = tuple(m for m, (_, sign) in enumerate(axes) if sign < 0)
    # Canonical index of stored voxel (0, 0, 0): the far end of every axis that is flipped.
    corner = np.zeros(3)
    for axis, sign in axes:
        corner[axis] = shape[axis] - 1 if sign < 0 else 0
    origin = centre + rotation @ ((corner - (shape - 1) / 2) * spacing)
    return Stored(
        images=np.ascontiguousarray(
            np.flip(images.transpose(0, *(axis + 1 for axis in order)), tuple(m + 1 for m in flipped))
        ),
        labels=np.ascontiguousarray(np.flip(labels.transpose(order), flipped)),
        spacing=triple(spacing[order]),
        origin=triple(origin),
        direction=rotation[:, order] * signs,
    )


def write_case(case: Stored, name: str, image_folder: Path, label_folder: Path) -> None:
    """Writes ``<name>_0000.nii.gz`` and so on, and the labels ``<name>.nii.gz``; makes the folders."""
    image_folder.mkdir(exist_ok=True)
    label_folder.mkdir(exist_ok=True)
    arrays: dict[Path, NDArray[Any]] = {
        image_folder / f"{name}_{channel:04d}.nii.gz": image for channel, image in enumerate(case.images)
    }
    arrays[label_folder / f"{name}.nii.gz"] = case.labels
    for path, array in arrays.items():
        image: Any = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))  # SimpleITK's arrays run (k, j, i)
        image.SetSpacing(case.spacing)
        image.SetOrigin(case.origin)
        image.SetDirection(case.direction.ravel().tolist())
        write_sitk(image, path)


def write_dataset(
    folder: str | Path,
    dataset_id: int,
    description: Mapping[str, Any],
    prefix: str,
    draw: Callable[[int], Stored],
    *,
    cases: int,
    test_cases: int,
    overwrite: bool,
    progress: bool,
) -> Path:
    """Writes a dataset in nnU-Net's raw format, to a hidden folder first: after an error, an interruption included,
    what was there is as before.

    Args:
        folder: Where datasets live; made if absent.
        dataset_id: nnU-Net's number of the dataset, 1 to 999.
        description: Of dataset.json, without ``numTraining``; its ``name`` is that of the dataset.
        prefix: Of the cases' names.
        draw: Number of a case, counted from 0 -> the case. The first `cases` are training cases.
        cases: Number of training cases, at least 1.
        test_cases: Number of held-out cases (``imagesTs``, ``labelsTs``); 0 writes neither folder.
        overwrite: Replace an existing dataset of that name.
        progress: Show a progress bar.

    Returns:
        The dataset's folder.

    Raises:
        FileExistsError: The dataset exists and `overwrite` is off.
        TypeError: An argument that counts something is no whole number.
        ValueError: An argument is out of range.
    """
    check_count("dataset_id", dataset_id, 1, 999)
    check_count("cases", cases, 1)
    check_count("test_cases", test_cases, 0)
    target = Path(folder) / f"Dataset{dataset_id:03d}_{description['name']}"
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target} exists already; choose another dataset_id (seen {dataset_id}) or pass overwrite=True"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {**description, "numTraining": cases, "licence": "made by nnunet_locctx, free of rights"}
    with drafting(target) as partial:
        partial.mkdir()
        for number in tqdm(range(cases + test_cases), desc=prefix, unit="scan", disable=not progress):
            part = "Tr" if number < cases else "Ts"
            name = f"{prefix}_{number:03d}"
            write_case(draw(number), name, partial / f"images{part}", partial / f"labels{part}")
        write_atomically(partial / "dataset.json", (json.dumps(content, indent=2) + "\n").encode())
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
    return target
