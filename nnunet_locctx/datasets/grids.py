"""Finds cases whose voxel grid is unlike the other cases of a dataset: signs of a corrupted header.

The LocBAM paper leaves nine KiTS23 cases out by hand because orientation or spacing are corrupted; its rule is not
published. This module uses robust statistics over the dataset: medians and median absolute deviations of logarithms,
and shares of cases. A deviation that more than :data:`RARE` of the cases have counts as a property of the dataset and
is not reported. All limits are this project's choices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PATIENT_AXES = ("left-right", "posterior-anterior", "inferior-superior")

PATIENT_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
"""Letter of an orientation code -> patient axis (R, A, S)."""

SAME_SIZE = 0.01
"""Voxel sizes count as equal up to this relative difference, and as different from five times it."""

FEWEST_CASES = 5
"""Smallest number of cases in which an unusual one can be told."""

RARE = 0.1
"""Largest share of the cases with a deviation that is reported; a single case always is."""

LOST_SHARE = 0.2
"""The same share for voxels of exactly 1 mm. In LiTS, a known example, 20 of 131 cases have them."""

COMMON = 0.9
"""Smallest share of agreeing cases from which a differing case is reported."""

SPACING_FACTOR = 5.0
EXTENT_FACTOR = 4.0
"""Smallest factor from the median that is reported ..."""

DEVIATIONS = 6.0
"""... if it is also at least this many robust standard deviations of the logarithm."""

SLICE_MM = (0.4, 10.0)
"""Slice distances from thin to thick series, which are never reported, whatever the median."""

LONGEST_MM = (1000.0, 1000.0, 2300.0)
"""Longest scan along each patient axis: no scanner's field of view is wider than 1 m, no patient longer than 2.3 m."""


def three(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """An array (3,) as a tuple."""
    return float(values[0]), float(values[1]), float(values[2])


@dataclass(frozen=True)
class Grid:
    """The voxel grid of one case.

    Attributes:
        name: Case.
        orientation: Patient directions of the file's x, y and z axes, such as ``"LPS"``; ``"none"`` without geometry.
        shape: Voxels along the file's x, y, z.
        spacing: Voxel size in mm along the patient axes (left-right, posterior-anterior, inferior-superior).
        extent: Length in mm along the patient axes.
    """

    name: str
    orientation: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    extent: tuple[float, float, float]


@dataclass(frozen=True)
class Unusual:
    """A deviation of one case from the other cases.

    Attributes:
        case: Name of the case.
        kind: ``voxel size``, ``extent``, ``axes``, ``slices`` or ``direction``.
        message: The observation, the values of the other cases, and a possible meaning.
    """

    case: str
    kind: str
    message: str


def unusual_grids(grids: Sequence[Grid]) -> list[Unusual]:
    """Compares the grids of a dataset's cases.

    Args:
        grids: One per case, in any order. With fewer than five only lengths that no body has are reported.
    """
    unusual = _impossible_lengths(grids)
    if len(grids) < FEWEST_CASES:
        return unusual
    flagged: set[tuple[str, int]] = set()
    unusual += _far_off(grids, flagged, "voxel size", SPACING_FACTOR)
    unusual += _far_off(grids, flagged, "extent", EXTENT_FACTOR)
    unusual += _lost_sizes(grids)
    oriented = [grid for grid in grids if len(grid.orientation) == 3]
    unusual += _unlike(oriented, axis_order, "axes", _axes_message)
    unusual += _unlike(oriented, lambda grid: grid.orientation, "direction", _direction_message, axis_order)
    unusual += _unlike(grids, slice_axis, "slices", _slices_message)
    unusual += _mixed_up_sizes(oriented)
    return sorted(unusual, key=lambda item: item.case)


def _impossible_lengths(grids: Sequence[Grid]) -> list[Unusual]:
    return [
        Unusual(
            grid.name,
            "extent",
            f"{grid.extent[axis]:.0f} mm long {name}: no scan of a patient is longer than {LONGEST_MM[axis]:.0f} mm. "
            "Is the voxel size right?",
        )
        for grid in grids
        for axis, name in enumerate(PATIENT_AXES)
        if len(grid.orientation) == 3 and grid.extent[axis] > LONGEST_MM[axis]
    ]


def _far_off(grids: Sequence[Grid], flagged: set[tuple[str, int]], kind: str, factor: float) -> list[Unusual]:
    """Voxel sizes or extents far from the median; a (case, axis) in `flagged` is not reported again."""
    lengths = np.log([grid.spacing if kind == "voxel size" else grid.extent for grid in grids])
    median, deviation = robust(lengths)
    limit = np.maximum(math.log(factor), DEVIATIONS * deviation)
    across = Counter(axis for axis in map(slice_axis, grids) if axis is not None).most_common(1)
    slices = across[0][0] if kind == "voxel size" and across else None
    unusual = []
    for axis, name in enumerate(PATIENT_AXES):
        for sign in (1, -1):
            far = np.flatnonzero(sign * (lengths[:, axis] - median[axis]) > limit[axis])
            if len(far) > max(1, RARE * len(grids)):
                continue
            for case in map(int, far):
                key = grids[case].name, axis
                ordinary = axis == slices and SLICE_MM[0] <= grids[case].spacing[axis] <= SLICE_MM[1]
                if ordinary or key in flagged:
                    continue
                flagged.add(key)
                length, usual = math.exp(lengths[case, axis]), math.exp(median[axis])
                message = f"{kind} {name} {length:.4g} mm, the dataset's median is {usual:.4g} mm"
                unusual.append(Unusual(key[0], kind, message))
    return unusual


def robust(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Median and robust standard deviation (1.4826 times the median absolute deviation) along the first axis."""
    median = np.median(values, axis=0)
    return np.asarray(median), np.asarray(1.4826 * np.median(np.abs(values - median), axis=0))


def _lost_sizes(grids: Sequence[Grid]) -> list[Unusual]:
    """Voxels of exactly 1 mm in a few cases while no other case is near 1 mm: the default of a lost header."""
    spacing = np.array([grid.spacing for grid in grids])
    lost = np.flatnonzero((spacing == 1).all(axis=1))
    near = (np.abs(spacing - 1) < 5 * SAME_SIZE).all(axis=1).sum()
    if near > len(lost) or len(lost) > max(1, LOST_SHARE * len(grids)):
        return []
    message = "voxels of exactly 1 x 1 x 1 mm, as in hardly any other case: the size may have been lost"
    return [Unusual(grids[case].name, "voxel size", message) for case in map(int, lost)]


def _unlike(
    grids: Sequence[Grid],
    feature: Callable[[Grid], object],
    kind: str,
    message: Callable[[Grid, Grid, str], str],
    among: Callable[[Grid], object] | None = None,
) -> list[Unusual]:
    """Cases that differ in a feature (None: undefined) that nearly all share; `among` limits the compared cases."""
    compared = [grid for grid in grids if feature(grid) is not None]
    if among is not None and compared:
        usual = Counter(map(among, compared)).most_common(1)[0][0]
        compared = [grid for grid in compared if among(grid) == usual]
    if len(compared) < FEWEST_CASES:
        return []
    value, number = Counter(map(feature, compared)).most_common(1)[0]
    if number < COMMON * len(compared):
        return []
    example = next(grid for grid in compared if feature(grid) == value)
    share = f"{number} of {len(compared)} cases"
    return [
        Unusual(grid.name, kind, message(grid, example, share)) for grid in compared if feature(grid) != value
    ]


def _axes_message(grid: Grid, usual: Grid, share: str) -> str:
    return (
        f"its axes run {grid.orientation}, those of {share} in the order of {usual.orientation}: "
        "are the axes of the header in the order of the voxels?"
    )


def _direction_message(grid: Grid, usual: Grid, share: str) -> str:
    return f"its axes grow to {grid.orientation}, those of {share} to {usual.orientation}: is the direction right?"


def _slices_message(grid: Grid, usual: Grid, share: str) -> str:
    own, common = slice_axis(grid), slice_axis(usual)
    assert own is not None
    assert common is not None
    return (
        f"its voxels of {sizes(grid)} say that the slices follow each other {PATIENT_AXES[own]}, in {share} they do "
        f"{PATIENT_AXES[common]}"
    )


def _mixed_up_sizes(grids: Sequence[Grid]) -> list[Unusual]:
    """Cases in which the number of voxels and the voxel size disagree on the slice axis."""
    pairs = []
    for grid in grids:
        by_number, by_size = odd_one(counts(grid), 0.0), slice_axis(grid)
        if by_number is not None and by_size is not None:
            pairs.append((grid, by_number, by_size))
    odd = [pair for pair in pairs if pair[1] != pair[2]]
    if len(pairs) < FEWEST_CASES or len(odd) > (1 - COMMON) * len(pairs):
        return []
    return [
        Unusual(
            grid.name,
            "slices",
            f"{' x '.join(str(n) for n in counts(grid))} voxels of {sizes(grid)}: by their number the slices follow "
            f"each other {PATIENT_AXES[number]}, by their size {PATIENT_AXES[size]}. Are the sizes in the right order?",
        )
        for grid, number, size in odd
    ]


def axis_order(grid: Grid) -> object:
    """Patient axis (R, A, S) of each file axis."""
    return tuple(PATIENT_AXIS[letter] for letter in grid.orientation)


def slice_axis(grid: Grid) -> int | None:
    """The patient axis across the slices: the axis whose voxel size differs from two equal ones; None without one."""
    return odd_one(grid.spacing, SAME_SIZE)


def odd_one(values: Sequence[float], same: float) -> int | None:
    """The axis whose value differs while the two others agree within the fraction `same`; None without one."""
    for axis in range(3):
        first, second = (values[a] for a in range(3) if a != axis)
        alike = abs(first - second) <= same * max(first, second)
        if alike and abs(values[axis] - first) > 5 * same * max(values[axis], first):
            return axis
    return None


def counts(grid: Grid) -> tuple[int, int, int]:
    """Voxels along the patient axes."""
    counts = [0, 0, 0]
    for number, letter in zip(grid.shape, grid.orientation, strict=True):
        counts[PATIENT_AXIS[letter]] = number
    return counts[0], counts[1], counts[2]


def sizes(grid: Grid) -> str:
    """Voxel sizes as text."""
    return f"{' x '.join(f'{size:.3g}' for size in grid.spacing)} mm ({', '.join(PATIENT_AXES)})"
