"""One patient of the whole-body phantom: where the atlas body's places lie in them, and how their tissues look.

*Atlas* coordinates are millimetres along (R, A, S): right of the midline, in front of the body's axis, above the cut
through the upper thighs. *Patient* coordinates are millimetres LPS, as in DICOM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter, map_coordinates

from nnunet_locctx.geometry import PATIENT_FROM_LPS
from nnunet_locctx.phantoms.storage import FloatArray

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
        found = np.empty(atlas.shape)
        found[..., 2] = self.level(atlas[..., 2])
        for axis in range(2):
            size = np.interp(atlas[..., 2], _TABLE, self.sizes[:, axis])
            shift = np.interp(atlas[..., 2], _TABLE, self.shifts[:, axis])
            found[..., axis] = size * atlas[..., axis] + shift
        return np.asarray(found @ PATIENT_FROM_LPS + self.position)

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
        organ: Mean HU of the organs to be told apart.
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
        found = map_coordinates(self.texture[channel], np.moveaxis(index, -1, 0), order=1, mode="nearest")
        return np.asarray(found)


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
