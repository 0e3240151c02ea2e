"""Patients whose anatomy is a smooth warp of one atlas, scans of them in any storage, and a regressor that knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame
from nnunet_locctx.location import AnatomicalMap
from nnunet_locctx.regression.regressor import Regressor
from tests.geometry_cases import rotation, stored

UNIT = 400.0
"""Millimetres of the atlas per unit of a coordinate."""

CELL = 12.0
"""Millimetres between the cells of a map."""

ORGANS = {
    1: ((60.0, -10.0, 60.0), (55.0, 45.0, 40.0)),
    2: ((-70.0, 20.0, 70.0), (25.0, 20.0, 30.0)),
    3: ((20.0, 30.0, -60.0), (15.0, 15.0, 25.0)),
}
"""Label -> centre and half axes of an ellipsoid, atlas mm (LPS)."""


@dataclass(frozen=True)
class Patient:
    """A patient: place in mm LPS -> place in the atlas."""

    shift: np.ndarray
    scale: np.ndarray
    phase: np.ndarray

    @classmethod
    def number(cls, number: int) -> "Patient":
        random = np.random.default_rng(number)
        return cls(random.uniform(-40, 40, 3), random.uniform(0.88, 1.12, 3), random.uniform(0, 6, 3))

    def atlas(self, place: np.ndarray) -> np.ndarray:
        bent = 6 * np.sin(np.asarray(place)[..., [1, 2, 0]] / 70 + self.phase)
        return np.asarray((place - self.shift) * self.scale + bent)

    def place(self, atlas: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`atlas`."""
        place = atlas / self.scale + self.shift
        for _ in range(60):
            place = place + (atlas - self.atlas(place)) / self.scale
        return np.asarray(place)

    def map(self, frame: Frame) -> AnatomicalMap:
        """What a perfect regressor finds, in cells over the box around the scan."""
        ends = frame.millimetres(
            np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in frame.shape], indexing="ij"), -1)
        )
        lower, upper = ends.min(axis=(0, 1, 2)), ends.max(axis=(0, 1, 2))
        affine = np.diag([CELL, CELL, CELL, 1.0])
        affine[:3, 3] = lower
        shape = np.maximum(2, np.ceil((upper - lower) / CELL).astype(int) + 1)
        index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
        values = self.atlas(index * CELL + lower) @ PATIENT_FROM_LPS / UNIT
        slopes = PATIENT_FROM_LPS @ np.diag(self.scale) / UNIT
        return AnatomicalMap(np.moveaxis(values, -1, 0).astype(np.float32), affine, slopes)

    def labels(self, frame: Frame) -> np.ndarray:
        """Which organ each voxel of a scan belongs to."""
        index = np.stack(np.meshgrid(*[np.arange(n) for n in frame.shape], indexing="ij"), axis=-1)
        atlas = self.atlas(frame.millimetres(index))
        values = np.zeros(frame.shape, dtype=np.int16)
        for value, (centre, radii) in ORGANS.items():
            values[(((atlas - np.array(centre)) / np.array(radii)) ** 2).sum(axis=-1) < 1] = value
        return values


def whole_frame(number: int, spacing: float = 4.0, *, oblique: bool = True) -> Frame:
    """The frame of a scan that shows all organs of a patient, stored in a way of its own; shape z, y, x."""
    random = np.random.default_rng(100 + number)
    permutation = tuple(int(n) for n in random.permutation(3))
    flips = tuple(bool(flip) for flip in random.integers(0, 2, 3))
    turn = rotation(tuple(random.uniform(-0.15, 0.15, 3)) if oblique else (0.0, 0.0, 0.0))
    shape = tuple(int(n) for n in (np.array([330, 260, 360]) + random.integers(0, 60, 3)) / spacing)
    centre = Patient.number(number).place(np.array([0.0, 0.0, 20.0]))
    properties, array_shape = stored(permutation, flips, shape, (spacing,) * 3, centre, turn)  # type: ignore[arg-type]
    return Frame.from_properties(properties, array_shape)


def cut(frame: Frame, axis: int, first: int, stop: int) -> Frame:
    """A part of a scan along one array axis."""
    shape, lower = list(frame.shape), np.zeros(3)
    shape[axis], lower[axis] = stop - first, first
    affine = frame.affine_lps.copy()
    affine[:3, 3] = frame.millimetres(lower)
    return Frame.from_affine((shape[0], shape[1], shape[2]), affine, "LPS")


def save(voxels: npt.NDArray[Any], frame: Frame, file: Path) -> None:
    """Writes an array (z, y, x) as an image file."""
    image = sitk.GetImageFromArray(voxels)
    affine = frame.affine_lps[:3, :3][:, ::-1]
    image.SetSpacing(np.linalg.norm(affine, axis=0).tolist())
    image.SetDirection((affine / np.linalg.norm(affine, axis=0)).ravel().tolist())
    image.SetOrigin(frame.affine_lps[:3, 3].tolist())
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


def save_scan(number: int, frame: Frame, file: Path) -> None:
    """Writes a scan of a patient; its voxels say whose it is, which is what the regressor below looks at."""
    voxels = np.full(frame.shape, number, dtype=np.int16)
    voxels[0, 0, 1] += 1000  # something to compare a crop with
    save(voxels, frame, file)


class KnowingRegressor(Regressor):
    """Measures the map of the patient whose number the voxels hold; air (-1000) cannot be measured."""

    kind: ClassVar[str] = "anatomical"  # whose place it takes in the tests

    def __init__(self, channel: int = 0) -> None:
        self.channel = channel

    def measure(self, image: npt.NDArray[np.floating], frame: Frame) -> AnatomicalMap:
        number = int(np.median(image))
        if number < 0:
            return AnatomicalMap.unusable("no body was found")
        return Patient.number(number).map(frame)

    def state(self) -> dict[str, Any]:
        return {"channel": self.channel}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "KnowingRegressor":
        return cls(int(state["channel"]))
