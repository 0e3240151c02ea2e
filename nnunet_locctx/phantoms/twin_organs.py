"""A labelled CT phantom whose organs differ only in their position.

Every patient is an ellipsoid of soft tissue in air. Six organs lie in it, a left and a right one at three
levels. All six draw their size, shape, intensity and texture from one distribution, so nothing but the
position separates the classes. Further structures of the very same look are not labelled at all. Body size,
organ size, organ position, the field of view and the storage orientation differ from case to case, some scans
are stored slightly obliquely, and there is no landmark (spine, liver, ...) that would give the position away
inside a small patch.

Frames used here:

* *patient*: millimetres LPS (x grows to the patient's left, y to posterior, z to superior), as in DICOM and
  SimpleITK;
* *canonical array*: axes (x, y, z), index grows along L, P and S (up to the small rotation of an oblique
  scan);
* *stored array*: the canonical array with its axes permuted and flipped as the orientation code says. The
  letter of an axis names the direction in which its index grows: ``LPS`` is the canonical order, ``RAS`` what
  nibabel calls canonical.

The anatomy is drawn in the canonical array and then reordered, so one seed gives the same patient, noise
included, whatever the orientation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from nnunet_locctx.phantoms.storage import (
    ORIENTATIONS,
    FloatArray,
    Stored,
    Triple,
    check_count,
    check_storage,
    per_axis,
    store,
    triple,
    write_dataset,
)

AIR_HU = -1000.0
FAT_HU = -100.0
TISSUE_HU = 40.0
ORGAN_HU = 120.0

# Where an organ's centre lies in its body: fractions of the body's half axes along (L, P, S).
ORGANS: dict[str, Triple] = {
    "upper_left": (0.42, 0.25, 0.57),
    "upper_right": (-0.42, 0.25, 0.57),
    "middle_left": (0.42, 0.25, 0.0),
    "middle_right": (-0.42, 0.25, 0.0),
    "lower_left": (0.42, 0.25, -0.57),
    "lower_right": (-0.42, 0.25, -0.57),
}
"""Class name -> centre; the label of a class is its place in this table, counted from 1."""

LOOK_ALIKES: tuple[Triple, ...] = (
    (0.0, 0.25, 0.30),
    (0.0, 0.25, -0.30),
    (0.42, -0.50, 0.30),
    (-0.42, -0.50, 0.30),
    (0.42, -0.50, -0.30),
    (-0.42, -0.50, -0.30),
    (0.0, -0.50, 0.0),
)
"""Centres of the structures that look like organs and belong to the background."""

REGIONS: dict[str, tuple[int, ...]] = {"organs": (1, 2, 3, 4, 5, 6), "left": (1, 3, 5), "upper_left": (1,)}
"""Overlapping regions for region-based training, each part of the one before (labels as in `ORGANS`)."""
# the label nnU-Net paints for each region: one that belongs to it and to no later region
_REGION_ORDER = (2, 3, 1)

_BODY_HALF_AXIS = 0.42  # of the field of view
_ORGAN_RADIUS = 0.18  # of the body's smallest half axis
_SMALLEST_SIZE = 16  # voxels; below this an organ would be under a voxel in radius


@dataclass(frozen=True)
class Structure:
    """An ellipsoid with axes along the patient's axes.

    Attributes:
        label: Label in the segmentation; 0 for a look-alike.
        centre: Patient position in mm LPS.
        radii: Half axes in mm along (L, P, S).
        intensity: Mean intensity in HU.
    """

    label: int
    centre: Triple
    radii: Triple
    intensity: float


@dataclass(frozen=True)
class PhantomCase(Stored):
    """One scan of the phantom.

    Attributes:
        orientation: Orientation code of the stored axes, e.g. ``"PIR"``.
        structures: What was drawn, organs and look-alikes, in patient coordinates.
    """

    orientation: str
    structures: tuple[Structure, ...]


def make_phantom(
    folder: str | Path,
    dataset_id: int,
    *,
    cases: int = 20,
    test_cases: int = 5,
    size: int | Sequence[int] = 72,
    spacing: float | Sequence[float] = 3.0,
    channels: int = 1,
    regions: bool = False,
    ignore: bool = False,
    orientations: Sequence[str] = ORIENTATIONS,
    oblique: float = 6.0,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Writes a phantom dataset, ``Dataset<ID>_Phantom``, in nnU-Net's raw format.

    Arguments that are not named here, what is returned and what is raised: see
    :func:`~nnunet_locctx.phantoms.storage.write_dataset`.

    Args:
        folder: Usually ``$nnUNet_raw``.
        size: Nominal number of voxels along (left-right, posterior-anterior, inferior-superior), or one
            number for all three; at least 16. A case's own size differs from it by up to 8 % per axis.
        spacing: Voxel size in mm along the same three axes, or one number.
        channels: Number of image channels. Channel 0 is CT, every further one shows the same anatomy with
            another contrast and its own noise.
        regions: Declare overlapping regions (`REGIONS`) for region-based training.
        ignore: Leave some slices of the training cases unlabelled (nnU-Net's ignore label). The labels of
            test cases stay complete.
        orientations: Storage orientations to take in turn, three letters each.
        oblique: Every fifth scan is rotated against the patient by up to this many degrees about each axis, 0
            to 30.
        seed: Seed of the dataset. Case k depends on the seed, k and the arguments, not on the number of
            cases.
    """
    settings = _Settings.checked(size, spacing, channels, orientations, oblique, seed)

    def draw(number: int) -> PhantomCase:
        case = _draw_case(settings, number)
        if ignore and number < cases:
            return _unlabel_slices(case, settings.generator(number, stream=1))
        return case

    return write_dataset(
        folder,
        dataset_id,
        _description(channels, regions, ignore),
        "phantom",
        draw,
        cases=cases,
        test_cases=test_cases,
        overwrite=overwrite,
        progress=progress,
    )


def phantom_case(
    number: int = 0,
    *,
    size: int | Sequence[int] = 72,
    spacing: float | Sequence[float] = 3.0,
    channels: int = 1,
    orientations: Sequence[str] = ORIENTATIONS,
    oblique: float = 6.0,
    seed: int = 0,
) -> PhantomCase:
    """Draw case `number` (counted from 0) in memory; other arguments and errors as in `make_phantom`."""
    check_count("number", number, 0)
    return _draw_case(_Settings.checked(size, spacing, channels, orientations, oblique, seed), number)


@dataclass(frozen=True)
class _Settings:
    size: tuple[int, int, int]
    spacing: Triple
    channels: int
    orientations: tuple[str, ...]
    oblique: float
    seed: int

    @classmethod
    def checked(
        cls,
        size: int | Sequence[int],
        spacing: float | Sequence[float],
        channels: int,
        orientations: Sequence[str],
        oblique: float,
        seed: int,
    ) -> "_Settings":
        sizes = per_axis(size)
        if len(sizes) != 3:
            raise ValueError(
                f"size must be one number or three (left-right, posterior-anterior, "
                f"inferior-superior), got {size!r}"
            )
        for value in sizes:
            check_count("size", value, _SMALLEST_SIZE)
        steps = per_axis(spacing)
        if len(steps) != 3 or not all(math.isfinite(step) and step > 0 for step in steps):
            raise ValueError(f"spacing must be one or three finite numbers above 0 (mm), got {spacing!r}")
        check_count("channels", channels, 1)
        check_count("seed", seed, 0)
        check_storage(orientations, oblique)
        return cls(
            (int(sizes[0]), int(sizes[1]), int(sizes[2])),
            triple(steps),
            int(channels),
            tuple(orientations),
            float(oblique),
            int(seed),
        )

    def generator(self, number: int, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, number, stream])


def _draw_case(settings: _Settings, number: int) -> PhantomCase:
    random = settings.generator(number)
    spacing = np.asarray(settings.spacing)
    nominal = np.asarray(settings.size) * spacing
    shape = np.maximum(np.rint(settings.size * random.uniform(0.92, 1.08, 3)), 8).astype(int)
    # Drawn for every case, used for every fifth: what is drawn next must not
    # depend on that.
    angles = np.deg2rad(random.uniform(-settings.oblique, settings.oblique, 3)) * (number % 5 == 2)
    rotation = Rotation.from_euler("xyz", angles).as_matrix()
    centre = random.uniform(-40.0, 40.0, 3)  # the scanner's origin means nothing

    half_axes = _BODY_HALF_AXIS * nominal * random.uniform(0.90, 1.06) * random.uniform(0.97, 1.03, 3)
    body = centre + random.uniform(-0.03, 0.03, 3) * nominal
    structures = _place_structures(random, body, half_axes, ORGAN_HU + random.uniform(-10.0, 10.0))

    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    position = centre + ((index - (shape - 1) / 2) * spacing) @ rotation.T
    tissue, organ, labels = _paint(position, body, half_axes, structures)
    images = np.stack([_scan(random, tissue, organ, channel) for channel in range(settings.channels)])

    code = settings.orientations[number % len(settings.orientations)]
    stored = store(images, labels, spacing, centre, rotation, code)
    return PhantomCase(**vars(stored), orientation=code, structures=structures)


def _place_structures(
    random: np.random.Generator, body: FloatArray, half_axes: FloatArray, intensity: float
) -> tuple[Structure, ...]:
    """Organs and look-alikes of one patient; every structure draws from the same distributions."""
    structures = []
    places = [(label, place) for label, place in enumerate(ORGANS.values(), start=1)]
    places += [(0, place) for place in LOOK_ALIKES]
    for label, place in places:
        present = random.random() < 0.85 or label > 0
        centre = body + (np.asarray(place) + random.uniform(-0.04, 0.04, 3)) * half_axes
        radii = _ORGAN_RADIUS * half_axes.min() * random.uniform(0.86, 1.06) * random.uniform(0.93, 1.07, 3)
        hounsfield = intensity + random.uniform(-10.0, 10.0)
        if present:
            structures.append(Structure(label, triple(centre), triple(radii), float(hounsfield)))
    return tuple(structures)


def _paint(
    position: FloatArray, body: FloatArray, half_axes: FloatArray, structures: Sequence[Structure]
) -> tuple[FloatArray, NDArray[np.bool_], NDArray[np.uint8]]:
    """Noise-free HU, mask of organs and look-alikes, and labels at patient positions (x, y, z, 3)."""
    depth = (((position - body) / half_axes) ** 2).sum(-1)
    intensities = np.where(depth <= 1.0, np.where(depth <= 0.94**2, TISSUE_HU, FAT_HU), AIR_HU)
    organ = np.zeros(depth.shape, dtype=bool)
    labels = np.zeros(depth.shape, dtype=np.uint8)
    for structure in structures:
        inside = (((position - structure.centre) / structure.radii) ** 2).sum(-1) <= 1.0
        intensities[inside] = structure.intensity
        labels[inside] = structure.label
        organ |= inside
    return intensities, organ, labels


def _scan(
    random: np.random.Generator, tissue: FloatArray, organ: NDArray[np.bool_], channel: int
) -> NDArray[np.int16]:
    """One image channel: partial volume, texture inside organs, noise everywhere; int16."""
    contrast = tissue
    if channel > 0:  # air stays dark, organs turn darker than the tissue around them
        contrast = np.where(tissue <= FAT_HU, tissue, 2 * TISSUE_HU - tissue) / (1.0 + channel)
    blurred = gaussian_filter(contrast, 0.5)
    texture = gaussian_filter(random.standard_normal(tissue.shape), 1.0) * 40.0
    noise = random.standard_normal(tissue.shape) * 15.0
    values = np.rint(blurred + np.where(organ, texture, 0.0) + noise)
    scan: NDArray[np.int16] = np.clip(values, -1024, 3071).astype(np.int16)  # the range scanners store
    return scan


def _unlabel_slices(case: PhantomCase, random: np.random.Generator) -> PhantomCase:
    """The case with about a third of its slices along the last stored axis set to the ignore label."""
    labels = case.labels.copy()
    labels[:, :, random.random(labels.shape[2]) < 1 / 3] = len(ORGANS) + 1
    return replace(case, labels=labels)


def _description(channels: int, regions: bool, ignore: bool) -> dict[str, object]:
    labels: dict[str, object] = {"background": 0}
    if regions:
        labels.update({name: list(parts) for name, parts in REGIONS.items()})
    else:
        labels.update({name: label for label, name in enumerate(ORGANS, start=1)})
    if ignore:
        labels["ignore"] = len(ORGANS) + 1
    description: dict[str, object] = {
        "channel_names": {"0": "CT", **{str(k): f"contrast_{k}" for k in range(1, channels)}},
        "labels": labels,
        "file_ending": ".nii.gz",
        "name": "Phantom",
        "description": "Synthetic CT phantom: organs of equal look that only their position tells apart.",
    }
    if regions:
        description["regions_class_order"] = list(_REGION_ORDER)
    return description
