"""A labelled whole-body-like CT phantom of which every scan shows another part, 30-100 % of the body.

Purpose: location that is learned from anatomy, against location that follows the field of view. A patient is an atlas
body (:mod:`~nnunet_locctx.phantoms.whole_body_anatomy`) under a smooth map of their own: overall size, width and depth
differ, and along the body every segment is stretched by a factor of its own, so that an organ's height is no linear
function of the body's.

Ten organs (`ORGANS`), a right and a left one at five levels, draw their size, shape, intensity and texture from one
distribution and lie in muscle; further structures of the very same look are not labelled. Only the place tells them
apart. The field of view, voxel size, storage orientation and the scanner's origin differ from case to case; some scans
are stored slightly obliquely. An organ outside the field of view is absent.

Atlas coordinates are those of :mod:`~nnunet_locctx.phantoms.whole_body_patient`, stored arrays and orientation codes
those of :mod:`~nnunet_locctx.phantoms.storage`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from nnunet_locctx.geometry import PATIENT_FROM_LPS
from nnunet_locctx.phantoms.storage import (
    ORIENTATIONS,
    FloatArray,
    Stored,
    Triple,
    check_count,
    check_storage,
    orientation_axes,
    per_axis,
    store,
    triple,
    write_dataset,
)
from nnunet_locctx.phantoms.whole_body_anatomy import ORGANS, paint, paint_organs
from nnunet_locctx.phantoms.whole_body_patient import ATLAS_HEIGHT, BodyMap, Canvas, Patient, draw_patient

Range = tuple[float, float]

__all__ = ["ATLAS_HEIGHT", "ORGANS", "WholeBodyCase", "make_whole_body", "whole_body_case"]

_HALF_WIDTHS = np.array([182.0, 116.0])  # atlas mm along R and A that every field of view holds
_MARGIN = (10.0, 40.0)  # mm of air around them
_NOISE = 12.0  # HU

IN_PLANE: Range = (4.0, 6.0)
"""Voxel size along R and A in mm."""

SLICES: Range = (4.0, 8.0)
"""Voxel size along S in mm."""

FRACTION: Range = (0.3, 1.0)
"""Share of the body's height that a field of view takes."""

SMALLEST_FRACTION = 0.05
SMALLEST_SPACING = 0.5  # mm
LARGEST_SPACING = 30.0  # mm; an organ is about as large


@dataclass(frozen=True)
class WholeBodyCase(Stored):
    """One scan of the phantom, of one channel; labels are values of `ORGANS`.

    Attributes:
        orientation: Orientation code of the stored axes, e.g. ``"PIR"``.
        crop: Lower and upper end of the field of view, as shares of the patient's height (upper thighs 0, head 1).
        body: The patient's map.
    """

    orientation: str
    crop: Range
    body: BodyMap

    @property
    def fraction(self) -> float:
        """Share of the patient's height that the field of view takes."""
        return self.crop[1] - self.crop[0]

    def canonical(self, index: FloatArray) -> FloatArray:
        """True atlas place in mm along (R, A, S), (..., 3), of stored indices (..., 3) in voxels."""
        return self.body.to_atlas(self.frame.millimetres(index))


@dataclass(frozen=True)
class Settings:
    """Ranges from which the cases of a dataset are drawn."""

    in_plane: Range
    slices: Range
    fraction: Range
    orientations: tuple[str, ...]
    oblique: float
    seed: int

    @classmethod
    def checked(
        cls,
        in_plane: Range,
        slices: Range,
        fraction: Range,
        orientations: Sequence[str],
        oblique: float,
        seed: int,
    ) -> "Settings":
        check_count("seed", seed, 0)
        check_storage(orientations, oblique)
        return cls(
            _range("in_plane", in_plane, SMALLEST_SPACING, LARGEST_SPACING, "mm"),
            _range("slices", slices, SMALLEST_SPACING, LARGEST_SPACING, "mm"),
            _range("fraction", fraction, SMALLEST_FRACTION, 1.0, "of the body's height"),
            tuple(orientations),
            float(oblique),
            int(seed),
        )


@dataclass(frozen=True)
class Fixed:
    """Properties of one case that are given instead of drawn; None: drawn."""

    crop: Range | None = None
    spacing: Triple | None = None
    orientation: str | None = None

    @classmethod
    def checked(
        cls, crop: Range | None, spacing: float | Sequence[float] | None, orientation: str | None
    ) -> "Fixed":
        if orientation is not None:
            orientation_axes(orientation)
        if crop is not None:
            crop = lower, upper = _range("crop", crop, 0.0, 1.0, "of the patient's height")
            if upper - lower < SMALLEST_FRACTION:
                raise ValueError(f"crop must span at least {SMALLEST_FRACTION} of the height, got {crop!r}")
        steps = None
        if spacing is not None:
            sizes = per_axis(spacing)
            if len(sizes) != 3 or not all(SMALLEST_SPACING <= size <= LARGEST_SPACING for size in sizes):
                raise ValueError(
                    f"spacing must be one or three numbers from {SMALLEST_SPACING:g} to {LARGEST_SPACING:g} (mm), "
                    f"got {spacing!r}"
                )
            steps = triple(sizes)
        return cls(crop, steps, orientation)


def _range(name: str, value: Range, smallest: float, largest: float, unit: str) -> Range:
    ends = [float(end) for end in value]
    if (
        len(ends) != 2
        or not all(math.isfinite(end) for end in ends)
        or not smallest <= ends[0] <= ends[1] <= largest
    ):
        raise ValueError(
            f"{name} must be two numbers, smaller first, from {smallest:g} to {largest:g} ({unit}), got {value!r}"
        )
    return ends[0], ends[1]


def make_whole_body(
    folder: str | Path,
    dataset_id: int,
    *,
    cases: int = 20,
    test_cases: int = 10,
    in_plane: Range = IN_PLANE,
    slices: Range = SLICES,
    fraction: Range = FRACTION,
    orientations: Sequence[str] = ORIENTATIONS,
    oblique: float = 6.0,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Writes a whole-body phantom dataset, ``Dataset<ID>_WholeBody``, in nnU-Net's raw format.

    Arguments that are not named here, what is returned and what is raised: see
    :func:`~nnunet_locctx.phantoms.storage.write_dataset`.

    Args:
        folder: Usually ``$nnUNet_raw``.
        in_plane: Smallest and largest voxel size in mm along R and A; a case has one for both.
        slices: Smallest and largest voxel size in mm along S.
        fraction: Smallest and largest share of the body's height in a field of view; uniform between.
        orientations: Storage orientations to take in turn, three letters each.
        oblique: Every fifth scan is rotated against the patient by up to this many degrees about each axis, 0 to 30.
        seed: Seed of the dataset. Case k depends on the seed, k and the arguments, not on the number of cases.
    """
    settings = Settings.checked(in_plane, slices, fraction, orientations, oblique, seed)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: label for label, name in enumerate(ORGANS, start=1)}},
        "file_ending": ".nii.gz",
        "name": "WholeBody",
        "description": "Synthetic whole-body-like CT: organs of equal look in random fields of view.",
    }
    return write_dataset(
        folder,
        dataset_id,
        description,
        "whole_body",
        lambda number: _draw_case(settings, number, Fixed()),
        cases=cases,
        test_cases=test_cases,
        overwrite=overwrite,
        progress=progress,
    )


def whole_body_case(
    number: int = 0,
    *,
    in_plane: Range = IN_PLANE,
    slices: Range = SLICES,
    fraction: Range = FRACTION,
    orientations: Sequence[str] = ORIENTATIONS,
    oblique: float = 6.0,
    seed: int = 0,
    crop: Range | None = None,
    spacing: float | Sequence[float] | None = None,
    orientation: str | None = None,
) -> WholeBodyCase:
    """Draws case `number` (counted from 0) in memory.

    The same number and seed are the same patient, at the same place in the scanner, whatever the other arguments.

    Args:
        number: The case.
        in_plane: As in :func:`make_whole_body`, like the arguments that follow.
        slices: See there.
        fraction: See there.
        orientations: See there.
        oblique: See there.
        seed: See there.
        crop: The field of view's lower and upper end as shares of the patient's height (0 to 1, the whole body),
            instead of a random one.
        spacing: Voxel size in mm along (R, A, S), or one for all, instead of a random one.
        orientation: Storage orientation, instead of the number's own.

    Raises:
        TypeError: `number` or `seed` is no whole number.
        ValueError: An argument is out of range.
    """
    check_count("number", number, 0)
    settings = Settings.checked(in_plane, slices, fraction, orientations, oblique, seed)
    return _draw_case(settings, number, Fixed.checked(crop, spacing, orientation))


def _draw_case(settings: Settings, number: int, fixed: Fixed) -> WholeBodyCase:
    seed = (settings.seed, number)
    patient = draw_patient(seed)
    # Everything is drawn whether it is used or not: what is drawn next must not depend on that.
    random = np.random.default_rng([*seed, 1])
    in_plane, height = random.uniform(*settings.in_plane), random.uniform(*settings.slices)
    share = random.uniform(*settings.fraction)
    start = random.uniform(0.0, 1.0 - share)
    angles = np.deg2rad(random.uniform(-settings.oblique, settings.oblique, 3)) * (number % 5 == 2)
    margins = random.uniform(*_MARGIN, (2, 2))

    crop = fixed.crop or (start, start + share)
    spacing = np.array(fixed.spacing or (in_plane, in_plane, height))
    code = fixed.orientation or settings.orientations[number % len(settings.orientations)]
    rotation = Rotation.from_euler("xyz", angles).as_matrix()
    body = patient.body
    whole = float(body.level(ATLAS_HEIGHT))
    sizes = body.sizes.max(axis=0)  # of the whole patient: a crop does not change the field of view's width
    lower = np.array([*(-_HALF_WIDTHS * sizes - margins[0]), crop[0] * whole])
    upper = np.array([*(_HALF_WIDTHS * sizes + margins[1]), crop[1] * whole])
    centre = body.position + PATIENT_FROM_LPS @ ((lower + upper) / 2)
    shape = np.maximum(np.rint((upper - lower) / spacing), 2).astype(int)

    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)
    position = centre + ((index - (shape - 1) / 2) * spacing) @ rotation.T
    values, labels = _anatomy(body.to_atlas(position), patient)
    noise = np.random.default_rng([*seed, 2]).standard_normal(tuple(shape)) * _NOISE
    scan = gaussian_filter(values.reshape(shape), 0.5) + noise  # partial volume
    image = np.clip(np.rint(scan), -1024, 3071).astype(np.int16)  # the range scanners store
    stored = store(image[None], labels.reshape(shape), spacing, centre, rotation, code)
    return WholeBodyCase(**vars(stored), orientation=code, crop=crop, body=body)


def _anatomy(atlas: FloatArray, patient: Patient) -> tuple[FloatArray, NDArray[np.uint8]]:
    """Noise-free HU and labels (N,) at atlas places (N, 3)."""
    canvas = Canvas(atlas)
    paint(canvas, patient)
    paint_organs(canvas, patient)
    return canvas.unsorted()
