"""Boxes around the organs of a scan, from a few scans in which they are labelled."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_locctx.anatomy.places import PlaceFinder
from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import AnatomicalMap

SAMPLE = 500
"""Voxels of an organ that are carried over, besides its outermost ones."""

STIFFNESS_MM = 10.0
"""An organ smaller than this is carried over as a whole; larger ones are stretched and turned as well."""

OUTLIER = 3.0
"""Places further from the organ's fit than this times the median distance ..."""

OUTLIER_MM = 3.0
"""... and this are replaced by the fit."""

DIRECTIONS = np.array([d for d in itertools.product((-1, 0, 1), repeat=3) if any(d)], dtype=np.float64)


@dataclass(frozen=True)
class OrganSample:
    """An organ of a labelled scan.

    Attributes:
        millimetres: (N, 3) mm LPS of voxel centres, the outermost ones among them.
        voxel: (3, 3) mm LPS, columns: edges of a voxel.
        cut: Whether the organ reaches the scan's border, so that a part of it may be missing.
    """

    millimetres: Array
    voxel: Array
    cut: bool


@dataclass(frozen=True)
class LabelledScan:
    """A scan with labels.

    Attributes:
        name: The case's.
        map: Its anatomical map.
        organs: Sample of each organ that it has.
    """

    name: str
    map: AnatomicalMap
    organs: Mapping[str, OrganSample]


@dataclass(frozen=True)
class OrganBox:
    """A box around an organ.

    Attributes:
        lower: (3,) index of the box's lower faces, array axis order; the scan's own lower face is at -0.5.
        upper: (3,) index of its upper faces.
        outside: Share of the box outside the scan.
        spread: Median distance in mm between the faces that single labelled scans give and the box; None from a single
            one.
        scans: Labelled scans it was made from.
        cut: Whether the organ reaches the border in all of them, so that the box may be too small.
    """

    lower: Array
    upper: Array
    outside: float
    spread: float | None
    scans: int
    cut: bool

    def voxels(self, frame: Frame) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """First voxel and the one after the last of the part in the scan, array axis order; None if there is none."""
        sizes = np.array(frame.shape)
        first = np.rint(self.lower + 0.5).astype(int)
        stop = np.maximum(np.rint(self.upper + 0.5).astype(int), first + 1)
        first, stop = np.clip(first, 0, sizes), np.clip(stop, 0, sizes)
        if (stop <= first).any():
            return None
        return tuple(int(n) for n in first), tuple(int(n) for n in stop)

    def millimetres(self, frame: Frame) -> tuple[Array, Array]:
        """Least and largest mm LPS of the whole box, what lies outside the scan included."""
        places = frame.millimetres(list(itertools.product(*zip(self.lower, self.upper, strict=True))))
        return places.min(axis=0), places.max(axis=0)


def sample_organs(
    labels: npt.NDArray[np.integer], frame: Frame, organs: Mapping[str, Sequence[int]]
) -> dict[str, OrganSample]:
    """Samples the organs of a labelled scan; those that it does not have are left out.

    Args:
        labels: (i, j, k) as stored.
        frame: Its geometry.
        organs: Label values of each organ.

    Raises:
        ValueError: Labels and frame do not fit.
    """
    if labels.shape != frame.shape:
        raise ValueError(f"labels of shape {labels.shape} do not fit their scan, {frame.shape}")
    random = np.random.default_rng(0)
    samples = {}
    for name, values in organs.items():
        index = np.argwhere(np.isin(labels, list(values)))
        if len(index) == 0:
            continue
        outermost = (index @ (DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)).T).argmax(
            axis=0
        )
        drawn = random.choice(len(index), size=min(SAMPLE, len(index)), replace=False)
        chosen = index[np.unique(np.concatenate([outermost, drawn]))]
        cut = bool((index.min(axis=0) == 0).any() or (index.max(axis=0) == np.array(labels.shape) - 1).any())
        samples[name] = OrganSample(frame.millimetres(chosen), frame.affine_lps[:3, :3], cut)
    return samples


def localize(
    scans: Sequence[LabelledScan], scan_map: AnatomicalMap, frame: Frame, organs: Sequence[str]
) -> dict[str, OrganBox]:
    """Boxes around organs in a new scan.

    Each labelled scan gives a box: the places that correspond to the organ's voxels, single failures replaced by a fit
    to the others. The boxes' faces are combined by their median. Scans that show a part of the organ only are left out
    if others show all of it.

    Args:
        scans: The labelled scans.
        scan_map: The new scan's.
        frame: The new scan's.
        organs: The organs; those that no labelled scan has are left out.

    Raises:
        ValueError: The new scan could not be measured.
    """
    finder = PlaceFinder(scan_map)
    boxes = {}
    for organ in organs:
        usable = [scan for scan in scans if organ in scan.organs and not scan.map.problem]
        complete = [scan for scan in usable if not scan.organs[organ].cut]
        if not usable:
            continue
        faces = np.stack([_faces(scan, organ, finder, frame) for scan in complete or usable])  # (scans, 2, 3)
        middle = np.median(faces, axis=0)
        apart = np.median(np.abs(faces - middle), axis=0) * frame.spacing
        boxes[organ] = OrganBox(
            lower=middle[0],
            upper=middle[1],
            outside=_outside(middle, frame),
            spread=float(apart.mean()) if len(faces) > 1 else None,
            scans=len(faces),
            cut=not complete,
        )
    return boxes


def _faces(scan: LabelledScan, organ: str, finder: PlaceFinder, frame: Frame) -> Array:
    """(2, 3) index of the lower and upper faces of the organ's box."""
    sample = scan.organs[organ]
    corresponding = finder.find(scan.map.at(sample.millimetres)).millimetres
    index = frame.index_from_millimetres(without_outliers(sample.millimetres, corresponding))
    half = np.abs(np.linalg.inv(frame.affine_lps[:3, :3]) @ sample.voxel).sum(axis=1) / 2
    return np.stack([index.min(axis=0) - half, index.max(axis=0) + half])


def without_outliers(places: Array, corresponding: Array) -> Array:
    """Corresponding places with single failures replaced.

    A displacement that changes linearly with the place is fitted robustly; how much it may change is limited for small
    organs, whose few voxels do not determine it.

    Args:
        places: (N, 3) mm.
        corresponding: (N, 3) mm, the places that correspond to them.
    """
    displacement = corresponding - places
    kept = np.ones(len(places), dtype=bool)
    fitted = displacement
    centre = np.median(displacement, axis=0)
    distance = np.linalg.norm(displacement - centre, axis=1)
    for _ in range(5):
        kept = distance <= max(OUTLIER * float(np.median(distance)), OUTLIER_MM)
        middle, mean = places[kept].mean(axis=0), displacement[kept].mean(axis=0)
        relative = places[kept] - middle
        normal = relative.T @ relative + len(relative) * STIFFNESS_MM**2 * np.eye(3)
        change = np.linalg.solve(normal, relative.T @ (displacement[kept] - mean))
        fitted = mean + (places - middle) @ change
        distance = np.linalg.norm(displacement - fitted, axis=1)
    kept = distance <= max(OUTLIER * float(np.median(distance)), OUTLIER_MM)
    return np.where(kept[:, None], corresponding, places + fitted)


def _outside(faces: Array, frame: Frame) -> float:
    clipped = np.clip(faces, -0.5, np.array(frame.shape) - 0.5)
    return float(1 - np.prod(clipped[1] - clipped[0]) / np.prod(faces[1] - faces[0]))
