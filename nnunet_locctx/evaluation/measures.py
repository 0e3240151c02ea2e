"""Measures of one predicted segmentation, per class; :func:`definitions` says what each means.

Arrays are in stored order (z, y, x), spacings in mm along the same axes, volumes in ml.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.values import check_choice, check_number

Mask: TypeAlias = npt.NDArray[np.bool_]
Labels: TypeAlias = npt.NDArray[np.integer[Any]]

MARGIN = (1, 1, 1)
"""Voxels around a cropped mask, so that a mask of one slice does not look like an image of one slice."""

PAPERS = ("locbam", "gpe")
"""Papers whose measures can be added."""

MEASURES = (
    "reference_ml",
    "prediction_ml",
    "dice",
    "hd95_mm",
    "nsd",
    "volume_error_ml",
    "volume_error_percent",
    "swap_rate",
    "off_region_ml",
)
PAPER_MEASURES = ("paper_dice", "paper_hd95_voxels")

_PAPER_DICE = {
    "locbam": "Dice as the published code of LocBAM has it (MONAI's DiceMetric): background counts as a class; null if "
    "the class is not in the reference, whatever was predicted.",
    "gpe": "Dice as the published code of the GPE paper has it: 1 if the class is in neither mask, 0 if in one only.",
}
_PAPER_HD95 = {
    "locbam": "As hd95_mm, but in voxels, whatever their size; 0 if the class is missing in reference or prediction.",
    "gpe": "95th percentile of the surface distances of both directions taken together, in voxels, whatever their "
    "size; 0 if the class is missing in reference or prediction (the GPE paper's code).",
}


@dataclass(frozen=True)
class Settings:
    """Settings of the measures.

    Attributes:
        tolerance_mm: Tolerance of the NSD, mm.
        off_region_mm: Predicted voxels farther than this from the class are off its region, mm.
        paper: The paper (of :data:`PAPERS`) whose measures are added; None: no paper.
    """

    tolerance_mm: float = 2.0
    off_region_mm: float = 20.0
    paper: str | None = None

    def __post_init__(self) -> None:
        for name in ("tolerance_mm", "off_region_mm"):
            check_number(name, getattr(self, name), 0)
        if self.paper is not None:
            check_choice("paper", self.paper, PAPERS)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures, in order."""
        return MEASURES if self.paper is None else (*MEASURES, *PAPER_MEASURES)


def definitions(settings: Settings) -> dict[str, str]:
    """Measure -> its definition, in a sentence or two."""
    texts = {
        "reference_ml": "Volume of the class in the reference, ml. Voxels with the ignore label in the reference "
        "count nowhere.",
        "prediction_ml": "Volume of the class in the prediction, ml.",
        "dice": "2 TP / (2 TP + FP + FN) in voxels, as nnU-Net's evaluator; null if the class is in neither mask, 0 if "
        "in one only.",
        "hd95_mm": "Larger of the two directed 95th percentiles of the distances between the surface voxels of the "
        "masks (voxels with a face on the outside), voxel centre to voxel centre, mm; by MONAI. Null unless the class "
        "is in both masks; `presence` says which lacks it.",
        "nsd": f"Share of the two surfaces' area that lies within {settings.tolerance_mm:g} mm of the other surface "
        "(surface elements between voxel centres, weighted by their area); by MONAI with use_subvoxels. Null if the "
        "class is in neither mask, 0 if in one only.",
        "volume_error_ml": "prediction_ml - reference_ml.",
        "volume_error_percent": "100 volume_error_ml / reference_ml; null if the class is not in the reference.",
        "swap_rate": "Of the voxels whose reference is this side's class, the share predicted as the other side's "
        "class; null for classes without another side and where the reference lacks the class.",
        "off_region_ml": f"Volume predicted as the class whose voxel centres lie more than {settings.off_region_mm:g} "
        "mm from every voxel centre of the class in the reference, ml; the whole predicted volume if the reference "
        "lacks the class.",
        "presence": "both, missing (not predicted), spurious (predicted, not in the reference) or absent (neither).",
    }
    if settings.paper is not None:
        texts["paper_dice"] = _PAPER_DICE[settings.paper]
        texts["paper_hd95_voxels"] = _PAPER_HD95[settings.paper]
    return texts


def measure_case(
    reference: Labels,
    prediction: Labels,
    spacing: Sequence[float],
    classes: Classes,
    pairs: Sequence[tuple[str, str]],
    settings: Settings,
) -> list[dict[str, Any]]:
    """One row per class, None where a measure is not defined.

    Args:
        reference: (z, y, x) label values.
        prediction: (z, y, x) label values on the same grid.
        spacing: Voxel size in mm, (z, y, x).
        classes: The classes.
        pairs: (left, right) classes.
        settings: What to measure.

    Raises:
        ValueError: The shapes differ.
    """
    if reference.ndim != 3 or reference.shape != prediction.shape:
        raise ValueError(
            f"reference and prediction must have one shape of three axes, got {reference.shape} and {prediction.shape}"
        )
    rows = []
    ignored = None if classes.ignore is None else reference == classes.ignore
    if settings.paper == "locbam":
        rows.append(_background(reference, prediction, ignored))
    if ignored is not None:
        reference, prediction = (np.where(ignored, 0, array) for array in (reference, prediction))
    # outside this box both are background
    box = bounding_box((reference != 0) | (prediction != 0), MARGIN)
    if box is not None:
        reference, prediction = reference[box], prediction[box]
    other = {**dict(pairs), **{right: left for left, right in pairs}}
    for name, values in classes.values.items():
        true, predicted = np.isin(reference, values), np.isin(prediction, values)
        row = {"class": name, **_measure(true, predicted, spacing, settings)}
        if name in other and true.any():
            swapped = true & np.isin(prediction, classes.values[other[name]])
            row["swap_rate"] = float(swapped.sum() / true.sum())
        rows.append(row)
    return rows


def _measure(true: Mask, predicted: Mask, spacing: Sequence[float], settings: Settings) -> dict[str, Any]:
    volume = math.prod(spacing) / 1000
    box = bounding_box(true | predicted, MARGIN)
    if box is not None:
        true, predicted = true[box], predicted[box]
    n_true, n_predicted, both = int(true.sum()), int(predicted.sum()), int((true & predicted).sum())
    presence = {(1, 1): "both", (1, 0): "missing", (0, 1): "spurious", (0, 0): "absent"}
    hd95 = nsd = None
    if n_true and n_predicted:
        hd95, nsd = surface_measures(true, predicted, spacing, settings.tolerance_mm)
    elif n_true or n_predicted:
        nsd = 0.0
    dice = 2 * both / (n_true + n_predicted) if n_true + n_predicted else None
    row: dict[str, Any] = {
        "presence": presence[int(n_true > 0), int(n_predicted > 0)],
        "reference_ml": n_true * volume,
        "prediction_ml": n_predicted * volume,
        "dice": dice,
        "hd95_mm": hd95,
        "nsd": nsd,
        "volume_error_ml": (n_predicted - n_true) * volume,
        "volume_error_percent": 100 * (n_predicted - n_true) / n_true if n_true else None,
        "swap_rate": None,
        "off_region_ml": off_region_voxels(true, predicted, spacing, settings.off_region_mm) * volume,
    }
    if settings.paper is not None:
        gpe = settings.paper == "gpe"
        empty = 1.0 if n_predicted == 0 and gpe else 0.0 if gpe else None
        row["paper_dice"] = dice if n_true else empty
        row["paper_hd95_voxels"] = (
            voxel_distance(true, predicted, pooled=gpe) if n_true and n_predicted else 0.0
        )
    return row


def _background(reference: Labels, prediction: Labels, ignored: Mask | None) -> dict[str, Any]:
    """The row of the background, which LocBAM's paper counts as a class."""
    true, predicted = reference == 0, prediction == 0
    if ignored is not None:
        predicted &= ~ignored
    count = int(true.sum())
    row: dict[str, Any] = {"class": "background", "presence": None, **dict.fromkeys(MEASURES)}
    dice = 2 * int((true & predicted).sum()) / (count + int(predicted.sum())) if count else None
    return {**row, "paper_dice": dice, "paper_hd95_voxels": None}


def bounding_box(mask: Mask, margin: Sequence[int] = (0, 0, 0)) -> tuple[slice, ...] | None:
    """The smallest box that holds the mask, grown by `margin` voxels within the array; None if the mask is empty."""
    box = []
    for axis, more in enumerate(margin):
        (places,) = np.nonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not places.size:
            return None
        box.append(slice(max(int(places[0]) - more, 0), int(places[-1]) + 1 + more))
    return tuple(box)


def surface_measures(
    true: Mask, predicted: Mask, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """(95th percentile Hausdorff distance in mm, NSD) of two masks, neither empty, by MONAI.

    Images of one slice are measured in their plane. Masks cropped to their common box with a margin of :data:`MARGIN`
    give the same result in less time.

    Args:
        true: (z, y, x).
        predicted: (z, y, x).
        spacing: Voxel size in mm.
        tolerance: Tolerance of the NSD, mm.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    y_pred, y, sizes = _as_tensors(true, predicted, spacing)
    with _without_own_warnings():
        distance = compute_hausdorff_distance(
            y_pred, y, include_background=True, percentile=95, spacing=sizes
        )
        shared = compute_surface_dice(
            y_pred, y, [tolerance], include_background=True, spacing=sizes, use_subvoxels=True
        )
    return float(distance), float(shared)


def voxel_distance(true: Mask, predicted: Mask, *, pooled: bool) -> float:
    """95th percentile of the surface distances in voxels; neither mask empty.

    Args:
        true: (z, y, x).
        predicted: (z, y, x).
        pooled: Take the percentile over both directions together; otherwise the larger of the two directions'
            percentiles.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.utils import get_edge_surface_distance

    y_pred, y, _ = _as_tensors(true, predicted, (1, 1, 1))
    with _without_own_warnings():
        if not pooled:
            return float(compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95))
        _, distances, _ = get_edge_surface_distance(y_pred[0, 0], y[0, 0], symmetric=True)
    return float(np.percentile(np.concatenate([one.numpy() for one in distances]), 95))


def off_region_voxels(true: Mask, predicted: Mask, spacing: Sequence[float], distance: float) -> int:
    """Number of voxels of `predicted` whose centre is farther than `distance` mm from every voxel centre of `true`.

    If `true` is empty, all voxels count.
    """
    from scipy.ndimage import binary_erosion
    from scipy.spatial import KDTree

    total = int(predicted.sum())
    box = bounding_box(true)
    if not total or box is None:
        return total
    # voxels outside the grown box are too far along one axis
    margin = [math.ceil(distance / size) for size in spacing]
    grown = bounding_box(true, margin)
    assert grown is not None
    far = total - int(predicted[grown].sum())
    near = np.argwhere(predicted[grown] & ~true[grown]) + [part.start for part in grown]
    if len(near):
        # the nearest voxel of the class is on its surface
        inner = true[box]
        surface = np.argwhere(inner & ~binary_erosion(inner)) + [part.start for part in box]
        sizes = np.asarray(spacing, dtype=np.float64)
        # the slack is for sums of rounded voxel sizes
        reached, _ = KDTree(surface * sizes).query(near * sizes, distance_upper_bound=distance + 1e-6)
        far += int(np.isinf(reached).sum())
    return far


@contextlib.contextmanager
def _without_own_warnings() -> Iterator[None]:
    """Ignores a warning: MONAI 1.6 calls itself with an argument that it deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        yield


def _as_tensors(true: Mask, predicted: Mask, spacing: Sequence[float]) -> tuple[Any, Any, list[float]]:
    """MONAI's (batch, class, ...) prediction and reference, and the voxel sizes."""
    import torch

    sizes = [float(size) for size in spacing]
    flat = next((axis for axis, n in enumerate(true.shape) if n == 1), None)
    if flat is not None:
        true, predicted = true.squeeze(flat), predicted.squeeze(flat)
        del sizes[flat]
    y, y_pred = (
        torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
        for mask in (true, predicted)
    )
    return y_pred, y, sizes
