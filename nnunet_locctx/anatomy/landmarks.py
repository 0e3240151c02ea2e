"""The place of one scan that corresponds to a place of another."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_locctx.anatomy.places import PlaceFinder, within
from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import AnatomicalMap


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
    found = PlaceFinder(second).find(first.at(places))
    return Landmarks(found.millimetres, found.distances, within(frame, found.millimetres))
