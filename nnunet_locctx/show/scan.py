"""A scan as nnU-Net hands it to the network, with what is needed to draw it the way the patient lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame
from nnunet_locctx.location import LocationField, LocationSource, Measurement
from nnunet_locctx.nnunet.data.fitted import open_regressor
from nnunet_locctx.nnunet.data.reading import read_any


@dataclass(frozen=True)
class Comparison:
    """Predictions of one model with and without the true location, (z, y, x)-like array axes of the scan.

    Attributes:
        located: Segmentation with the true location.
        replaced: Segmentation with another location.
        replacement: What the other location was, in words.
    """

    located: npt.NDArray[np.integer]
    replaced: npt.NDArray[np.integer]
    replacement: str

    @property
    def changed(self) -> npt.NDArray[np.bool_]:
        """Where the location decides the prediction."""
        return np.asarray(self.located != self.replaced)


@dataclass(frozen=True)
class LocatedScan:
    """A preprocessed scan.

    Attributes:
        name: For the title.
        image: (array axes) first channel.
        frame: Its position in the patient.
        source: Where its location comes from.
        field: Its location.
        label: Segmentation of the same shape, or None.
        patch_size: Patch in voxels, array axis order, or None.
        comparison: What a model predicts, or None.
    """

    name: str
    image: npt.NDArray[np.float32]
    frame: Frame
    source: LocationSource
    field: LocationField
    label: npt.NDArray[np.integer] | None = None
    patch_size: tuple[int, int, int] | None = None
    comparison: Comparison | None = None

    def centre_of_interest(self) -> tuple[int, int, int]:
        """Index of the voxel to show: amid what a location changes, amid the labels, or the middle of the volume."""
        if self.comparison is not None and self.comparison.changed.any():
            return _fullest_planes(self.comparison.changed)
        if self.label is not None and (self.label > 0).any():
            return _median_planes(self.label > 0)
        first, second, third = (n // 2 for n in self.frame.shape)
        return first, second, third

    def index_at(self, fraction: Sequence[float]) -> tuple[int, int, int]:
        """Index of the voxel at a fraction (R, A, S) of the volume.

        Raises:
            ValueError: The place is not in the volume.
        """
        index = np.rint(self.frame.index_from_fraction(fraction)).astype(int)
        last = np.array(self.frame.shape) - 1
        # 0.5 is the outer face of the last voxel and rounds to one beyond it
        if (index < -1).any() or (index > last + 1).any():
            raise ValueError(
                f"the place {list(fraction)} lies outside the volume; fractions run from -0.5 to 0.5 along R, A and S"
            )
        first, second, third = (int(n) for n in np.clip(index, 0, last))
        return first, second, third

    def patient_axes(self) -> tuple[tuple[int, bool], ...]:
        """Per patient axis (R, A, S): the array axis that runs closest to it, and whether that grows along it."""
        cosines = PATIENT_FROM_LPS @ self.frame.affine_lps[:3, :3]
        return tuple(
            (axis, bool(cosines[patient, axis] > 0)) for patient, axis in enumerate(self.frame.array_axes)
        )


def read_scan(
    images: Sequence[Path],
    source: LocationSource,
    *,
    label: Path | None = None,
    patch_size: Sequence[int] | None = None,
    regressor: Path | None = None,
) -> LocatedScan:
    """Reads a scan as nnU-Net does without plans: cropped to its content, not resampled.

    Args:
        images: One file per channel; the first is drawn.
        source: Source of the location.
        label: A segmentation of the scan.
        patch_size: Patch in voxels, array axis order (z, y, x of the file).
        regressor: What `locctx fit` stored (regressor.pt), for a fitted source.

    Raises:
        ValueError: A file is missing, unreadable or does not fit; the patch size is not three numbers above 0; a fitted
            source without a regressor of its own, or a scan that it cannot measure.
    """
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

    data, properties = read_any(images)
    seg = None
    if label is not None:
        seg, _ = read_any([label], segmentation=True)
        if seg.shape[1:] != data.shape[1:]:
            raise ValueError(f"the label has the shape {seg.shape[1:]} (z, y, x), the image {data.shape[1:]}")
    if not np.isfinite(data).all():
        data = np.nan_to_num(data)
    measured = None if regressor is None else _measure(regressor, source, data, properties)
    data, cropped, box = crop_to_nonzero(data, seg)
    properties["bbox_used_for_cropping"] = box
    properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
    frame = Frame.from_properties(properties, data.shape[1:])
    return LocatedScan(
        name=images[0].name,
        image=data[0],
        frame=frame,
        source=source,
        field=source.field(frame, measured),
        label=cropped[0].astype(np.int32) if label is not None else None,
        patch_size=None if patch_size is None else checked_patch(patch_size),
    )


def checked_patch(patch_size: Sequence[int]) -> tuple[int, int, int]:
    """A patch size along three array axes; a 2D patch is one voxel thick along the first.

    Raises:
        ValueError: It is not two or three whole numbers above 0.
    """
    sizes = [int(n) for n in patch_size]
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(f"a patch needs two or three sizes of at least 1 voxel, got {list(patch_size)}")
    first, second, third = [1] * (3 - len(sizes)) + sizes
    return first, second, third


def _measure(
    file: Path, source: LocationSource, data: npt.NDArray[np.float32], properties: dict[str, Any]
) -> Measurement:
    regressor = open_regressor(file, source.name)
    if regressor.channel >= len(data):
        raise ValueError(f"{file} looks at channel {regressor.channel}; {len(data)} image files are given")
    measured = regressor.measure(data[regressor.channel], Frame.as_read(properties, data.shape[1:]))
    if measured.problem:
        raise ValueError(f"the scan cannot be measured: {measured.problem}")
    return measured


def _fullest_planes(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """Per axis, the plane that holds most of the mask."""
    first, second, third = (int(np.argmax(counts)) for counts in _per_plane(mask))
    return first, second, third


def _median_planes(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """Per axis, the plane with half of the mask on either side."""
    first, second, third = (
        int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)) for counts in _per_plane(mask)
    )
    return first, second, third


def _per_plane(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.integer]]:
    return [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
