"""One patient of the whole-body phantom: where the atlas body's places lie in them, their tissues, a canvas.

*Atlas* coordinates are millimetres along (R, A, S): right of the midline, in front of the body's axis, above the cut
through the upper thighs. *Patient* coordinates are millimetres LPS, as in DICOM.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter, map_coordinates

from nnunet_locctx.geometry import PATIENT_FROM_LPS
from nnunet_locctx.phantoms.storage import FloatArray

Mask = NDArray[np.bool_]

ATLAS_HEIGHT = 900.0
"""Millimetres from the upper thighs (0) to just above the head."""

SEGMENTS: tuple[float, ...] = (0.0, 130.0, 270.0, 410.0, 540.0, 670.0, 780.0, ATLAS_HEIGHT)
"""Atlas heights between which the body is stretched by a factor of its own."""

SCALE = (0.9, 1.1)
"""Range of a patient's overall size, and of the extra factors of width and depth."""

STRETCH = (0.82, 1.18)
"""Range of a segment's factor along the body."""

_TABLE = np.arange(-1500.0, 2500.0)  # atlas heights at which the maps are tabulated; beyond, nothing is drawn
_TEXTURE_STEP = 8.0  # mm
_TEXTURE_LOWER = np.array([-240.0, -170.0, -120.0])
_TEXTURE_SHAPE = (61, 44, 146)


@dataclass(frozen=True)
class BodyMap:
    """A smooth invertible map between atlas and patient.

    Height is stretched first, by a monotone curve; a cross-section is then scaled and shifted as a whole.

    Attributes:
        levels: (K,) patient height (mm) of each tabulated atlas height, increasing.
        sizes: (K, 2) patient mm per atlas mm along R and A.
        shifts: (K, 2) mm along R and A.
        position: (3,) mm LPS of atlas (0, 0, 0).
    """

    levels: FloatArray
    sizes: FloatArray
    shifts: FloatArray
    position: FloatArray

    def level(self, height: npt.ArrayLike) -> FloatArray:
        """Patient height in mm above atlas 0 (...) of atlas heights (...)."""
        return np.asarray(np.interp(np.asarray(height), _TABLE, self.levels))

    def height(self, level: npt.ArrayLike) -> FloatArray:
        """Atlas height (...) of patient heights (...), the inverse of :meth:`level`."""
        return np.asarray(np.interp(np.asarray(level), self.levels, _TABLE))

    def to_patient(self, atlas: npt.ArrayLike) -> FloatArray:
        """Atlas (..., 3) mm along (R, A, S) -> patient (..., 3) mm LPS."""
        atlas = np.asarray(atlas, dtype=np.float64)
        place = np.empty(atlas.shape)
        place[..., 2] = self.level(atlas[..., 2])
        for axis in range(2):
            size = np.interp(atlas[..., 2], _TABLE, self.sizes[:, axis])
            shift = np.interp(atlas[..., 2], _TABLE, self.shifts[:, axis])
            place[..., axis] = size * atlas[..., axis] + shift
        return np.asarray(place @ PATIENT_FROM_LPS + self.position)

    def to_atlas(self, patient: npt.ArrayLike) -> FloatArray:
        """Patient (..., 3) mm LPS -> atlas (..., 3) mm along (R, A, S), the inverse of :meth:`to_patient`."""
        place = (np.asarray(patient, dtype=np.float64) - self.position) @ PATIENT_FROM_LPS
        place[..., 2] = self.height(place[..., 2])
        for axis in range(2):
            size = np.interp(place[..., 2], _TABLE, self.sizes[:, axis])
            shift = np.interp(place[..., 2], _TABLE, self.shifts[:, axis])
            place[..., axis] = (place[..., axis] - shift) / size
        return place


@dataclass(frozen=True)
class Patient:
    """A patient: the map of the atlas into them, and what else differs between patients.

    Attributes:
        body: The map.
        fat: Thickness of the fat under the skin in mm.
        tissue: Offsets in HU of fat, muscle, bone and lung, in this order.
        contrast: HU that vessels, heart, liver, spleen and kidneys have more than without contrast agent, in units
            that each organ takes a share of.
        organ: Mean HU of the labelled organs.
        texture: (3, a, b, c) smooth noise of unit spread on an 8 mm atlas grid.
        seed: For the structures' own jitter.
    """

    body: BodyMap
    fat: float
    tissue: tuple[float, float, float, float]
    contrast: float
    organ: float
    texture: FloatArray
    seed: tuple[int, ...]

    def jitter(self) -> np.random.Generator:
        """A new generator for the structures' places and sizes; the same numbers each time."""
        return np.random.default_rng([*self.seed, 3])

    def texture_at(self, channel: int, atlas: FloatArray) -> FloatArray:
        """Smooth noise (...) at atlas places (..., 3) mm."""
        index = (atlas - _TEXTURE_LOWER) / _TEXTURE_STEP
        noise = map_coordinates(self.texture[channel], np.moveaxis(index, -1, 0), order=1, mode="nearest")
        return np.asarray(noise)


def draw_patient(seed: tuple[int, ...]) -> Patient:
    """The patient of a seed."""
    random = np.random.default_rng([*seed, 0])
    scale = random.uniform(*SCALE)
    stretch = random.uniform(*STRETCH, len(SEGMENTS) - 1)
    knots = np.concatenate([[_TABLE[0]], SEGMENTS, [_TABLE[-1]]])
    lengths = scale * np.diff(knots) * np.concatenate([[stretch[0]], stretch, [stretch[-1]]])
    at_knots = np.concatenate([[0.0], np.cumsum(lengths)])
    levels = PchipInterpolator(knots, at_knots - at_knots[1])(_TABLE)

    # A bent, unevenly thick body: a few mm and a few per cent that change slowly along it.
    bends = random.normal(0.0, (4.0, 7.0), (5, 2))
    widths = random.uniform(0.94, 1.06, (5, 1)) * scale * random.uniform(*SCALE, 2)
    places = np.linspace(0.0, ATLAS_HEIGHT, 5)
    within = np.clip(_TABLE, 0.0, ATLAS_HEIGHT)
    body = BodyMap(
        levels=levels,
        sizes=PchipInterpolator(places, widths)(within),
        shifts=PchipInterpolator(places, bends)(within),
        position=random.uniform(-300.0, 300.0, 3),  # the scanner's origin means nothing
    )
    texture = gaussian_filter(random.standard_normal((3, *_TEXTURE_SHAPE)), (0.0, 1.0, 1.0, 1.0))
    return Patient(
        body=body,
        fat=float(random.uniform(6.0, 20.0)),
        tissue=tuple(random.normal(0.0, (8.0, 8.0, 60.0, 25.0)).tolist()),
        contrast=float(random.uniform(0.0, 100.0)),
        organ=float(random.uniform(100.0, 140.0)),
        texture=texture / texture.std(),
        seed=seed,
    )


class Canvas:
    """Intensities at atlas places, painted structure by structure; later ones cover earlier ones.

    The places are kept sorted by height, so that a structure looks only at those on its levels.

    Args:
        atlas: (N, 3) mm along (R, A, S).

    Attributes:
        places: (N, 3) the sorted places.
        right, front, up: (N,) mm, their coordinates.
        values: (N,) HU.
        labels: (N,) label, 0 at first.
    """

    def __init__(self, atlas: FloatArray) -> None:
        self._order = np.argsort(atlas[:, 2], kind="stable")
        self.places = atlas[self._order]
        self.right, self.front, self.up = np.ascontiguousarray(self.places.T)
        self.values = np.zeros(len(atlas))
        self.labels = np.zeros(len(atlas), dtype=np.uint8)

    def unsorted(self) -> tuple[FloatArray, NDArray[np.uint8]]:
        """Values and labels in the order in which the places were given."""
        values, labels = np.empty_like(self.values), np.empty_like(self.labels)
        values[self._order] = self.values
        labels[self._order] = self.labels
        return values, labels

    def between(self, lowest: float, highest: float) -> slice:
        """The places from one height to another, in mm."""
        first, last = np.searchsorted(self.up, (lowest, highest))
        return slice(int(first), int(last))

    def depth(self, part: slice, centre: Sequence[float], radii: Sequence[float]) -> FloatArray:
        """Distance from an ellipsoid's centre at some places, 1 on its surface."""
        return np.asarray(
            np.sqrt(
                ((self.right[part] - centre[0]) / radii[0]) ** 2
                + ((self.front[part] - centre[1]) / radii[1]) ** 2
                + ((self.up[part] - centre[2]) / radii[2]) ** 2
            )
        )

    def ellipsoid(
        self,
        centre: Sequence[float],
        radii: Sequence[float],
        value: float,
        *,
        hollow: float = 0.0,
        label: int | None = None,
    ) -> None:
        """Paints an ellipsoid with axes along the body's.

        Args:
            centre: mm along (R, A, S).
            radii: Half axes in mm.
            value: HU.
            hollow: Only where the depth is at least this, 0 to 1: a shell.
            label: Also written, if given.
        """
        part = self.between(centre[2] - radii[2], centre[2] + radii[2])
        depth = self.depth(part, centre, radii)
        inside = (depth <= 1.0) & (depth >= hollow)
        self.values[part][inside] = value
        if label is not None:
            self.labels[part][inside] = label

    def tube(
        self,
        heights: Sequence[float],
        centres: Sequence[Sequence[float]],
        radii: Sequence[Sequence[float]],
        value: float,
        *,
        hollow: float = 0.0,
    ) -> tuple[slice, Mask]:
        """Paints a column along the body with elliptical cross-sections, and gives what it painted.

        Args:
            heights: (K,) increasing, mm; centres and radii are interpolated between.
            centres: (K, 2) mm along (R, A).
            radii: (K, 2) half axes in mm along (R, A).
            value: HU.
            hollow: As in :meth:`ellipsoid`, within the cross-section.
        """
        part = self.between(heights[0], heights[-1])
        up = self.up[part]
        total = np.zeros(len(up))
        for coordinate, centre, radius in zip(
            (self.right[part], self.front[part]), np.transpose(centres), np.transpose(radii), strict=True
        ):
            total += ((coordinate - np.interp(up, heights, centre)) / np.interp(up, heights, radius)) ** 2
        inside = (total <= 1.0) & (total >= hollow**2)
        self.values[part][inside] = value
        return part, inside
