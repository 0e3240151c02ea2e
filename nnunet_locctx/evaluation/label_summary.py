"""Summarises a segmentation in numbers: place, size, pieces and side of each class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.geometry import PATIENT_FROM_LPS, Array, Frame

SAMPLES = 20000
"""Largest number of a class's voxels from which its place and its side of the mid-plane are computed."""

ENDS = (0.05, 0.95)
"""Quantiles of a class's voxels along an axis that count as its ends; a few stray voxels do not move them."""


@dataclass(frozen=True)
class LabelSummary:
    """Numbers of one segmentation, C classes and P pairs of twins in the order of :func:`summarise_labels`.

    Attributes:
        frame: Frame of the file.
        centres: (C, 3) centroids in mm along the patient's axes (R, A, S); NaN for an absent class.
        reach: (C, 2, 3) :data:`ENDS` of the class along R, A and S in mm; NaN for an absent class.
        volumes: (C,) ml; 0 for an absent class.
        strays: (C,) fraction of the volume outside the largest piece; voxels that touch at a corner belong to one
            piece, as in nnU-Net's postprocessing. NaN for an absent class.
        stray_mm: (C,) distance in mm from the bounding box of the largest piece, mean over all voxels of the class: 0
            inside of it. NaN for an absent class.
        cut: (C, 3) whether the class reaches an outer face of the scan that is perpendicular to R, A or S.
        across: (P, 3) fraction of the pair's voxels on the twin's side of the mid-plane, assuming that the left class
            has the lower coordinate along R, A or S; NaN unless both are present. The mid-plane is perpendicular to
            that axis and passes through the median of the pairs' common centroids, which do not depend on the labelled
            side.
    """

    frame: Frame
    centres: Array
    reach: Array
    volumes: Array
    strays: Array
    stray_mm: Array
    cut: npt.NDArray[np.bool_]
    across: Array

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(C,) which classes are present."""
        return self.volumes > 0


def twins(classes: Classes) -> list[tuple[int, int]]:
    """(left, right) numbers of the classes that are two sides of one structure and share no label."""
    names = list(classes.labels)
    return [(names.index(left), names.index(right)) for left, right in classes.pairs]


def to_index(place: npt.ArrayLike, frame: Frame) -> Array:
    """(..., 3) mm along the patient's axes -> index."""
    return frame.index_from_millimetres(np.asarray(place) @ PATIENT_FROM_LPS)


def _class_mask(
    labels: npt.NDArray[np.int32], values: Sequence[int], boxes: Sequence[tuple[slice, ...] | None]
) -> tuple[npt.NDArray[np.bool_], Array]:
    """The mask of a class within its bounding box, and the box's first index.

    Args:
        labels: (i, j, k) label values.
        values: Label values of the class.
        boxes: Bounding boxes of the label values 1, 2, ..., as ``scipy.ndimage.find_objects`` gives them.
    """
    parts = [box for value in values if value <= len(boxes) and (box := boxes[value - 1]) is not None]
    if not parts:
        return np.zeros((0, 0, 0), bool), np.zeros(3)
    lower = [min(box[axis].start for box in parts) for axis in range(3)]
    upper = [max(box[axis].stop for box in parts) for axis in range(3)]
    part = labels[tuple(map(slice, lower, upper))]
    return np.isin(part, values), np.array(lower, dtype=np.float64)


def pieces(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Numbered pieces of a mask (0: outside), and the voxels of each, from number 1 on."""
    numbered, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    return numbered, np.bincount(numbered.ravel())[1:]


def distances_from_largest(
    numbered: npt.NDArray[np.int32], sizes: npt.NDArray[np.int64], spacing: npt.ArrayLike
) -> Array:
    """How far each piece lies from the bounding box of the largest, summed over its voxels.

    Args:
        numbered: (i, j, k) numbers from :func:`pieces`.
        sizes: (N,) voxels of each piece.
        spacing: mm along i, j, k.

    Returns:
        (N,) mm times voxels; 0 for the largest piece and for what lies within its box.
    """
    largest = int(sizes.argmax())
    box = ndimage.find_objects(numbered, largest + 1)[largest]
    others = np.argwhere((numbered > 0) & (numbered != largest + 1))
    low, high = (np.array([getattr(part, end) for part in box]) for end in ("start", "stop"))
    beyond = np.maximum(0, np.maximum(low - others, others - (high - 1))) * np.asarray(spacing)
    number = numbered[tuple(others.T)] - 1
    return np.bincount(number, np.linalg.norm(beyond, axis=1), len(sizes)).astype(np.float64)


def summarise_labels(labels: npt.NDArray[np.int32], frame: Frame, classes: Classes) -> LabelSummary:
    """The numbers of a segmentation.

    Args:
        labels: (i, j, k) label values, all of them known.
        frame: Frame of the file.
        classes: The classes; each region is judged as a whole.
    """
    boxes = ndimage.find_objects(labels.clip(min=0))
    count = len(classes.labels)
    voxels, cut = np.zeros(count), np.zeros((count, 3), bool)
    strays, stray_mm = np.full((2, count), np.nan)
    centres, reach = np.full((count, 3), np.nan), np.full((count, 2, 3), np.nan)
    samples: dict[int, Array] = {}
    for number, values in enumerate(classes.values.values()):
        mask, lower = _class_mask(labels, values, boxes)
        if not mask.size:
            continue
        numbered, sizes = pieces(mask)
        voxels[number] = sizes.sum()
        strays[number] = 1 - sizes.max() / sizes.sum()
        stray_mm[number] = distances_from_largest(numbered, sizes, frame.spacing).sum() / sizes.sum()
        shape = np.array(frame.shape)
        # an axis of one voxel cuts nothing off
        at_face = ((lower == 0) | (lower + mask.shape == shape)) & (shape > 1)
        cut[number] = at_face[list(frame.array_axes)]
        inside = np.flatnonzero(mask)
        inside = inside[:: -(-len(inside) // SAMPLES)]
        index = np.stack(np.unravel_index(inside, mask.shape), -1) + lower
        samples[number] = np.asarray(frame.millimetres(index) @ PATIENT_FROM_LPS)
        centres[number] = samples[number].mean(axis=0)
        reach[number] = np.quantile(samples[number], ENDS, axis=0)
    across = _across(twins(classes), samples, voxels)
    return LabelSummary(frame, centres, reach, voxels * voxel_ml(frame), strays, stray_mm, cut, across)


def _across(pairs: Sequence[tuple[int, int]], samples: Mapping[int, Array], voxels: Array) -> Array:
    """``across`` of :class:`LabelSummary`; `samples` holds positions (N, 3) of the present classes."""
    across = np.full((len(pairs), 3), np.nan)
    complete = [(number, pair) for number, pair in enumerate(pairs) if voxels[list(pair)].all()]
    if not complete:
        return across
    common = [
        np.average([samples[one].mean(axis=0) for one in pair], axis=0, weights=voxels[list(pair)])
        for _, pair in complete
    ]
    middle = np.median(common, axis=0)
    for number, (left, right) in complete:
        beyond = [(samples[left] > middle).mean(axis=0), (samples[right] < middle).mean(axis=0)]
        across[number] = np.average(beyond, axis=0, weights=voxels[[left, right]])
    return across


def voxel_ml(frame: Frame) -> float:
    """Volume of a voxel in ml."""
    return float(np.abs(np.linalg.det(frame.affine_lps[:3, :3]))) / 1000
