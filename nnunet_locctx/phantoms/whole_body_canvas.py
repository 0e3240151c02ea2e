"""Painting gross anatomy at scattered atlas places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnunet_locctx.phantoms.storage import FloatArray

Mask = NDArray[np.bool_]


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
