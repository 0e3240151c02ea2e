"""From anatomical coordinates back to places of a scan, and places of one scan in another."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import AnatomicalMap

NEAREST = 32
"""Cells of the map with the nearest coordinates ..."""

CANDIDATES = 3
"""... and how many of them the search goes on from; in a folded map the nearest need not lead to the best."""

APART = 1.8
"""Least distance between these, in cells, so that they are not all around one place."""

STEPS = 20
"""Steps of the refinement, at most."""

CLOSE_MM = 0.02
"""Refinement ends here."""

LARGEST_CONDITION = 1e3
"""Largest condition number of a map's slopes; above it the coordinates do not tell places apart along a direction."""


@dataclass(frozen=True)
class Places:
    """Places of a scan.

    Attributes:
        millimetres: (N, 3) mm LPS.
        distances: (N,) mm: distance between the coordinates of the place and the requested ones, in mm by the map's
            slopes. 0 where the scan has the coordinates.
    """

    millimetres: Array
    distances: Array


class PlaceFinder:
    """Finds the places of a scan that have given coordinates.

    The nearest cells of the map are refined by damped Gauss-Newton steps on the map interpolated linearly, which goes
    on outside of it, so that places just beyond the scan are found as well.

    Args:
        scan_map: The scan's.

    Raises:
        ValueError: The scan could not be measured, or its map does not tell places apart.
    """

    def __init__(self, scan_map: AnatomicalMap) -> None:
        if scan_map.problem:
            raise ValueError(f"the scan has no anatomical coordinates: {scan_map.problem}")
        if not np.linalg.cond(scan_map.slopes) < LARGEST_CONDITION:
            raise ValueError(
                f"the map's slopes must tell places apart along every axis, got {scan_map.slopes.tolist()}"
            )
        self.map = scan_map
        self.to_millimetres = np.linalg.inv(scan_map.slopes)
        index = np.stack(
            np.meshgrid(*[np.arange(n) for n in scan_map.values.shape[1:]], indexing="ij"), axis=-1
        )
        self._cells = index.reshape(-1, 3) @ scan_map.affine[:3, :3].T + scan_map.affine[:3, 3]
        values = scan_map.values.reshape(3, -1).T.astype(np.float64)
        self._tree = cKDTree(values @ self.to_millimetres.T)
        self._steps = scan_map.affine[:3, :3] / 4  # columns: a quarter of a cell along each axis of the map
        self._cell = float(np.linalg.norm(scan_map.affine[:3, :3], axis=0).max())

    def find(self, coordinates: npt.ArrayLike) -> Places:
        """Places with coordinates (N, 3), or with the nearest ones that there are."""
        targets = np.asarray(coordinates, dtype=np.float64) @ self.to_millimetres.T
        starts = self._starts(targets)  # (N, CANDIDATES, 3)
        repeated = np.repeat(targets, starts.shape[1], axis=0)
        places = self._refine(starts.reshape(-1, 3), repeated)
        distances = np.linalg.norm(self._residual(places, repeated), axis=1).reshape(starts.shape[:2])
        best = np.arange(len(targets)), distances.argmin(axis=1)
        return Places(places.reshape(starts.shape)[best], distances[best])

    def _starts(self, targets: Array) -> Array:
        """(N, CANDIDATES, 3) centres of the nearest cells that are not beside each other."""
        distances, cells = self._tree.query(targets, k=min(NEAREST, len(self._cells)))
        places = self._cells[cells]  # (N, NEAREST, 3)
        rows = np.arange(len(targets))
        starts = []
        for _ in range(CANDIDATES):
            chosen = places[rows, distances.argmin(axis=1)]
            starts.append(chosen)
            distances = (
                distances + (np.linalg.norm(places - chosen[:, None], axis=2) < APART * self._cell) * 1e6
            )
        return np.stack(starts, axis=1)

    def _residual(self, places: Array, targets: Array) -> Array:
        return np.asarray(self.map.at(places) @ self.to_millimetres.T - targets)

    def _refine(self, places: Array, targets: Array) -> Array:
        """Levenberg-Marquardt, all points at once; a step is kept only where it comes closer."""
        places, residual = places.copy(), self._residual(places, targets)
        damping = np.full(len(places), 1e-3)
        active = np.arange(len(places))
        for _ in range(STEPS):
            active = active[np.linalg.norm(residual[active], axis=1) > CLOSE_MM]
            active = active[damping[active] < 1e3]
            if len(active) == 0:
                break
            jacobian = self._jacobian(places[active])
            transposed = jacobian.swapaxes(1, 2)
            normal = transposed @ jacobian + damping[active, None, None] * np.eye(3)
            step = -np.linalg.solve(normal, transposed @ residual[active, :, None])[..., 0]
            length = np.linalg.norm(step, axis=1, keepdims=True)
            step *= np.minimum(1, self._cell / np.maximum(length, 1e-12))
            moved = places[active] + step
            remaining = self._residual(moved, targets[active])
            closer = np.linalg.norm(remaining, axis=1) < np.linalg.norm(residual[active], axis=1)
            places[active[closer]], residual[active[closer]] = moved[closer], remaining[closer]
            damping[active] *= np.where(closer, 0.3, 10)
        return places

    def _jacobian(self, places: Array) -> Array:
        """(N, 3, 3): change of the coordinates, in mm, per mm LPS."""
        shifts = np.concatenate([self._steps.T, -self._steps.T])
        around = self.map.at(places[:, None] + shifts) @ self.to_millimetres.T
        changes = (around[:, :3] - around[:, 3:]).swapaxes(1, 2)
        return np.asarray(changes @ np.linalg.inv(2 * self._steps))


@dataclass(frozen=True)
class Landmarks:
    """Corresponding places.

    Attributes:
        millimetres: (N, 3) mm LPS in the second scan.
        distances: (N,) mm: by how much the anatomical coordinates of the two places differ. Small where the second scan
            has such a place; it does not say how good the regressor is.
        inside: (N,) bool: whether the place lies in the second scan. Where not, it is an extrapolation.
    """

    millimetres: Array
    distances: Array
    inside: npt.NDArray[np.bool_]


def find_landmarks(
    first: AnatomicalMap, second: AnatomicalMap, places: npt.ArrayLike, frame: Frame
) -> Landmarks:
    """Places of the second scan with the anatomical coordinates of places of the first.

    Args:
        first: The first scan's map.
        second: The second scan's.
        places: (N, 3) mm LPS in the first scan.
        frame: The second scan's.

    Raises:
        ValueError: One of the scans could not be measured.
    """
    if first.problem:
        raise ValueError(f"the scan has no anatomical coordinates: {first.problem}")
    corresponding = PlaceFinder(second).find(first.at(places))
    index = frame.index_from_millimetres(corresponding.millimetres)
    inside = ((index >= -0.5) & (index <= np.array(frame.shape) - 0.5)).all(axis=-1)
    return Landmarks(corresponding.millimetres, corresponding.distances, np.asarray(inside))
