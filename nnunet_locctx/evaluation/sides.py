"""Repairs left and right: learns how far each class reaches over the mid-plane, gives voxels beyond to the twin.

The direction from left to right is the mean, over training cases and pairs, of the vector between the two centroids.
The mid-plane of a case is perpendicular to it and passes through the centroid of all paired voxels, which does not
depend on the predicted side. A case that shows one side only (one kidney, half a head) has no such plane: its paired
voxels spread less from left to right than in training, and it is left alone.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.label_files import read_labels
from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.nnunet.data.workers import map_in_workers

SAMPLES = 1000
"""Largest number of voxels per class that a case contributes to the limits."""

REACH = 0.999
"""Share of a class's training voxels within its limit."""

MIXED = 0.1
"""A pair has no sides if more than this share of one class's training voxels is nearer to the twin's usual place."""

NARROW = 0.7
"""Smallest spread from left to right, relative to training, of a case whose mid-plane is known. Predictions of heads, a
warped CT and mouse brains have 0.8 to 1.2, one side of their labels alone 0.24 to 0.64."""


@dataclass(frozen=True)
class Sides:
    """Gives paired voxels on the wrong side to their twin; a picklable :class:`~.postprocessing.Change`.

    Attributes:
        normal: Unit vector from left to right, in LPS.
        paired: Labels whose common centroid lies on the mid-plane.
        limits: (left label, right label, limit of left, limit of right) of the pairs that lie on their sides in
            training. Limits are in mm from the case's mid-plane, positive to the right. Left voxels above the first
            limit become right, right voxels below the second limit become left.
        spread: Median over the training cases of the standard deviation of the paired voxels along `normal`, in mm.
    """

    normal: tuple[float, float, float]
    paired: tuple[int, ...]
    limits: tuple[tuple[int, int, float, float], ...]
    spread: float

    def __call__(self, segmentation: npt.NDArray[np.int32], frame: Frame) -> npt.NDArray[np.int32]:
        """(z, y, x) label values -> a copy with these voxels relabelled."""
        changed = segmentation.copy()
        voxels = np.argwhere(np.isin(segmentation, self.paired))
        if not len(voxels):
            return changed
        labels = segmentation[tuple(voxels.T)]
        across = places(voxels, frame) @ np.array(self.normal)
        if across.std() < NARROW * self.spread:
            return changed
        result = labels.copy()
        for left, right, left_limit, right_limit in self.limits:
            result[(labels == left) & (across > left_limit)] = right
            result[(labels == right) & (across < right_limit)] = left
        changed[tuple(voxels.T)] = result
        return changed


def places(voxels: npt.NDArray[np.integer], frame: Frame) -> Array:
    """(N, 3) voxels of an array as stored -> mm from their centroid, in LPS."""
    positions = voxels @ frame.affine_lps[:3, :3].T
    return np.asarray(positions - positions.mean(axis=0))


def paired_labels(classes: Classes) -> list[tuple[int, int]]:
    """(left, right) label values of the classes with twin names; regions are left out.

    Raises:
        ValueError: There are none.
    """
    named = [[classes.values[name] for name in pair] for pair in classes.pairs]
    pairs = [(left[0], right[0]) for left, right in named if len(left) == len(right) == 1]
    if not pairs:
        raise ValueError(
            "no two classes are named as the left and the right of one structure (kidney_left and kidney_right); got "
            f"{', '.join(classes.values)}"
        )
    return pairs


def learn_sides(
    files: Sequence[Path], pairs: Sequence[tuple[int, int]], reader: str, processes: int, *, progress: bool
) -> Sides:
    """Learns the direction and the limits from training labels.

    Args:
        files: Training labels.
        pairs: (left, right) label values.
        reader: Class name of nnU-Net's reader.
        processes: Worker processes.
        progress: Show a bar.

    Raises:
        ValueError: A file has no geometry, or no case has both twins of a pair.
    """
    paired = tuple(label for pair in pairs for label in pair)
    sample = functools.partial(_sample, reader=reader, labels=paired)
    sampled = list(map_in_workers(sample, files, processes, "learning the sides" if progress else None))
    offsets = [
        case[right].mean(axis=0) - case[left].mean(axis=0)
        for case, _ in sampled
        for left, right in pairs
        if left in case and right in case
    ]
    if not offsets:
        raise ValueError(f"none of {len(files)} training labels has both a left class and its right twin")
    normal = np.mean(offsets, axis=0)
    normal /= np.linalg.norm(normal)
    spreads = [float(np.sqrt(normal @ covariance @ normal)) for _, covariance in sampled]
    spread = float(np.median([own for own in spreads if own > 0]))
    # a training case with one side only has no mid-plane either
    cases = [case for (case, _), own in zip(sampled, spreads, strict=True) if own >= NARROW * spread]
    limits = []
    for left, right in pairs:
        across = [[case[label] @ normal for case in cases if label in case] for label in (left, right)]
        if all(across):
            lefts, rights = (np.concatenate(parts) for parts in across)
            between = (np.median(lefts) + np.median(rights)) / 2
            if max(np.mean(lefts > between), np.mean(rights < between)) > MIXED:
                continue  # the name does not show where the class lies
            upper, lower = float(np.quantile(lefts, REACH)), float(np.quantile(rights, 1 - REACH))
            middle = (upper + lower) / 2
            limits.append((left, right, max(upper, middle), min(lower, middle)))
    return Sides((float(normal[0]), float(normal[1]), float(normal[2])), paired, tuple(limits), spread)


def _sample(file: Path, reader: str, labels: Sequence[int]) -> tuple[dict[int, Array], Array]:
    """Label -> (N, 3) of its positions, as :func:`places` gives them; (3, 3) covariance of all positions."""
    scan = read_labels(file, reader)
    if not scan.frame.has_geometry:
        raise ValueError(f"{file} has no geometry: its left and right are not known")
    segmentation = scan.labels
    voxels = np.argwhere(np.isin(segmentation, labels))
    if not len(voxels):
        return {}, np.zeros((3, 3))
    values, positions = segmentation[tuple(voxels.T)], places(voxels, scan.frame)
    samples = {
        int(label): positions[values == label][:: int(np.ceil((values == label).sum() / SAMPLES))]
        for label in np.unique(values)
    }
    return samples, positions.T @ positions / len(positions)
