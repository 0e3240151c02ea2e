"""What the phantoms share: storage orientations, writing scans, and datasets that are never half written.

A phantom is drawn in the *canonical array*: axes (x, y, z), the index grows along L, P and S (up to the small rotation
of an oblique scan). The *stored array* is the canonical one with its axes permuted and flipped as an orientation code
says: the letter of an axis names the direction in which its index grows.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from nnunet_locctx.files import drafting, write_atomically
from nnunet_locctx.image_files import write_sitk

FloatArray = NDArray[np.float64]

ORIENTATIONS: tuple[str, ...] = ("LPS", "RAS", "PIR", "LAS", "SRP", "RPI")
"""Storage orientations a dataset mixes by default."""

LARGEST_OBLIQUE = 30
"""Degrees by which a scan may be rotated against the patient."""

_AXIS_OF_LETTER = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


class StoredCase(Protocol):
    """A scan as it is written; attributes as in :class:`~nnunet_locctx.phantoms.twin_organs.PhantomCase`."""

    @property
    def images(self) -> NDArray[np.int16]: ...
    @property
    def labels(self) -> NDArray[np.uint8]: ...
    @property
    def spacing(self) -> tuple[float, float, float]: ...
    @property
    def origin(self) -> tuple[float, float, float]: ...
    @property
    def direction(self) -> FloatArray: ...


@dataclass(frozen=True)
class Stored:
    """Arrays and geometry in a storage orientation, see :func:`store`."""

    images: NDArray[np.int16]
    labels: NDArray[np.uint8]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: FloatArray


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


def rotation_matrix(angles: FloatArray) -> FloatArray:
    """Rotation matrix (3, 3) from angles about x, y and z in radians, applied in that order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


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
        spacing=(float(spacing[order[0]]), float(spacing[order[1]]), float(spacing[order[2]])),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=rotation[:, order] * signs,
    )


def write_case(case: StoredCase, name: str, image_folder: Path, label_folder: Path) -> None:
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


def new_dataset(folder: str | Path, dataset_id: int, name: str, overwrite: bool) -> Path:
    """The folder ``Dataset<ID>_<name>`` of a dataset to write.

    Raises:
        FileExistsError: It exists and `overwrite` is off.
    """
    target = Path(folder) / f"Dataset{dataset_id:03d}_{name}"
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target} exists already; choose another dataset_id (seen {dataset_id}) or pass overwrite=True"
        )
    return target


@contextlib.contextmanager
def written_at_once(target: Path, description: Mapping[str, object]) -> Iterator[Path]:
    """A hidden folder beside `target` to write a dataset into.

    At the end of the block it gets `description` as dataset.json and takes the place of `target`; after an error,
    an interruption included, it is removed and `target` is as before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with drafting(target) as partial:
        partial.mkdir()
        yield partial
        write_atomically(partial / "dataset.json", (json.dumps(description, indent=2) + "\n").encode())
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
