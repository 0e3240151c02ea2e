"""The voxel grid of a case, and what its numbers say about axes and slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PATIENT_AXES = ("left-right", "posterior-anterior", "inferior-superior")

PATIENT_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
"""Patient axis (R, A, S) of a letter of an orientation code."""

SAME_SIZE = 0.01
"""Voxel sizes that differ by this fraction are the same, "another size" begins at five times that."""


class GridLike(Protocol):
    """What is compared; see :class:`Grid`."""

    @property
    def name(self) -> str: ...
    @property
    def orientation(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def spacing(self) -> tuple[float, float, float]: ...
    @property
    def extent(self) -> tuple[float, float, float]: ...


@dataclass(frozen=True)
class Grid:
    """The voxel grid of one case.

    Attributes:
        name: Case.
        orientation: Where the file's x, y and z axes grow to, such as ``"LPS"``; ``"none"`` without geometry.
        shape: Voxels along the file's x, y, z.
        spacing: Voxel size in mm along the patient axes (left-right, posterior-anterior, inferior-superior).
        extent: Length in mm along the patient axes.
    """

    name: str
    orientation: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    extent: tuple[float, float, float]


def axis_order(grid: GridLike) -> object:
    """Patient axis (R, A, S) of each file axis."""
    return tuple(PATIENT_AXIS[letter] for letter in grid.orientation)


def slice_axis(grid: GridLike) -> int | None:
    """The patient axis across the slices: two voxel sizes agree, the third is another. None: not so."""
    return odd_one(grid.spacing, SAME_SIZE)


def odd_one(values: Sequence[float], same: float) -> int | None:
    """The axis whose value is another than the two others, which agree within the fraction `same`; else None."""
    for axis in range(3):
        one, two = (values[other] for other in range(3) if other != axis)
        alike = abs(one - two) <= same * max(one, two)
        if alike and abs(values[axis] - one) > 5 * same * max(values[axis], one):
            return axis
    return None


def counts(grid: GridLike) -> tuple[int, int, int]:
    """Voxels along the patient axes."""
    counts = [0, 0, 0]
    for number, letter in zip(grid.shape, grid.orientation, strict=True):
        counts[PATIENT_AXIS[letter]] = number
    return counts[0], counts[1], counts[2]


def sizes(grid: GridLike) -> str:
    """Voxel sizes for people."""
    return (
        " x ".join(f"{size:.3g}" for size in grid.spacing)
        + " mm (left-right, posterior-anterior, inferior-superior)"
    )
