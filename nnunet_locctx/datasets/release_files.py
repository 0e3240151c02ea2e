"""What the files of a release's case say: unreadable, other shapes or places, unexpected labels; a header's grid."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from nnunet_locctx.datasets.grids import PATIENT_AXIS, Grid
from nnunet_locctx.datasets.release import SourceCase
from nnunet_locctx.geometry import Frame, corner_distance
from nnunet_locctx.image_files import check_whole

UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    gzip.BadGzipFile,
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
)
"""What nibabel raises for files that are empty, cut off, or no NIfTI."""


def check_case(case: SourceCase, values: frozenset[int], channels: int, tolerance: float) -> list[str]:
    """Reads every voxel of a case's files.

    Args:
        case: Files that exist.
        values: Label values allowed.
        channels: Image channels; a single file must have them along its fourth axis if there are several.
        tolerance: Voxels by which the corners of two files of the case may lie apart.

    Returns:
        What is wrong, one sentence each, each naming the case.
    """
    problems: list[str] = []
    first: Any = None
    for file in case.files:
        label = file == case.label
        try:
            check_whole(file)
            image: Any = nibabel.load(file)
            voxels = _voxels(image, label=label)
        except UNREADABLE as error:
            problems.append(f"{case.name}: cannot be read: {file}: {_words(error).removeprefix(f'{file} ')}")
            continue
        axes = image.shape
        wanted = 4 if channels > 1 and len(case.images) == 1 and not label else 3
        if len(axes) != wanted or 0 in axes or (wanted == 4 and axes[3] != channels):
            expected = f"x, y, z, {channels}" if wanted == 4 else "x, y, z"
            problems.append(f"{case.name}: shape {axes} where ({expected}) is expected: {file}")
            continue
        if not _usable(image.affine):
            problems.append(f"{case.name}: header without a usable affine: {file}")
            continue
        if first is None:
            first = image
        else:
            problems += [f"{case.name}: {text}: {file}" for text in _differences(first, image, tolerance)]
        if label:
            unknown = sorted(_values(voxels) - {float(value) for value in values})
            if unknown:
                listed = ", ".join(f"{value:g}" for value in unknown[:8])
                allowed = ", ".join(map(str, sorted(values)))
                problems.append(f"{case.name}: label values {listed} where {allowed} are allowed: {file}")
    return problems


def read_grid(case: SourceCase) -> Grid | None:
    """Orientation, sizes and lengths from the first image's header; None if it cannot be read."""
    try:
        image: Any = nibabel.load(case.images[0])
        affine = np.asarray(image.affine, dtype=np.float64)
    except UNREADABLE:
        return None
    if image.ndim < 3 or 0 in image.shape or not _usable(affine):
        return None
    letters = "".join(nibabel.aff2axcodes(affine))
    sizes, shape = nibabel.affines.voxel_sizes(affine), image.shape[:3]
    spacing, extent = np.zeros(3), np.zeros(3)
    for axis, letter in enumerate(letters):
        spacing[PATIENT_AXIS[letter]] = sizes[axis]
        extent[PATIENT_AXIS[letter]] = sizes[axis] * shape[axis]
    return Grid(case.name, letters, shape, _three(spacing), _three(extent))


def relabel(source: Path, target: Path, mapping: dict[int, int]) -> None:
    """Writes a segmentation with other values (those not named become 0); the header's geometry stays as it is."""
    image: Any = nibabel.load(source)
    values = np.asanyarray(image.dataobj)
    result = np.zeros(values.shape, dtype=np.uint8)
    for old, new in mapping.items():
        result[values == old] = new
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(result, image.affine, header), target)


def clip_to_percentiles(source: Path, target: Path, lower: float, upper: float) -> None:
    """Writes a scan clipped to two percentiles (0 to 100) of its own voxels, as float32; the geometry stays."""
    image: Any = nibabel.load(source)
    values = np.asanyarray(image.dataobj).astype(np.float32)
    low, high = np.percentile(values, (lower, upper))
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values.clip(low, high), image.affine, header), target)


def _voxels(image: Any, *, label: bool) -> npt.NDArray[Any]:
    # an image's scaling to float64 is not needed to see that its data are whole
    return np.asanyarray(image.dataobj) if label else np.asanyarray(image.dataobj.get_unscaled())


def _usable(affine: npt.NDArray[np.float64] | None) -> bool:
    if affine is None or not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((lengths > 0).all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-4)


def _differences(one: Any, two: Any, tolerance: float) -> list[str]:
    shapes = one.shape[:3], two.shape[:3]
    if shapes[0] != shapes[1]:
        return [f"{shapes[1]} voxels, the first image has {shapes[0]}"]
    apart = corner_distance(Frame.from_nibabel(one), Frame.from_nibabel(two))
    if apart <= tolerance:
        return []
    return [f"another affine than the first image: corners up to {apart:.2g} voxels apart"]


def _values(voxels: npt.NDArray[Any]) -> set[float]:
    found: set[float] = set()
    for plane in np.moveaxis(voxels, -1, 0):  # np.unique of a whole scan would sort it
        found.update(map(float, np.unique(plane)))
    return found


def _three(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _words(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
