"""A scan as nnU-Net hands it to the network, with what is needed to draw it the way the patient lies."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsInt

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import LocationField, LocationSource, Measurement
from nnunet_locctx.nnunet.data.fitted import open_regressor
from nnunet_locctx.nnunet.data.reading import read_scan
from nnunet_locctx.nnunet.predicting.prediction import load_located_model
from nnunet_locctx.scan import Scan
from nnunet_locctx.viewing import per_plane


@dataclass(frozen=True)
class Comparison:
    """Predictions of one model with and without the true location, array axes of the scan.

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
        """Index of the voxel to show: where a location changes most, amid the labels, or the middle of the volume."""
        if self.comparison is not None and self.comparison.changed.any():
            return _three(np.argmax(counts) for counts in per_plane(self.comparison.changed))
        if self.label is not None and (self.label > 0).any():
            sums = [np.cumsum(counts) for counts in per_plane(self.label > 0)]
            return _three(np.searchsorted(one, one[-1] / 2) for one in sums)
        return _three(n // 2 for n in self.frame.shape)

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
        return _three(np.clip(index, 0, last))


def locate_scan(
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

    whole = read_scan(images)
    seg = None if label is None else read_scan([label], segmentation=True).voxels
    if seg is not None and seg.shape[1:] != whole.frame.shape:
        raise ValueError(f"the label has the shape {seg.shape[1:]} (z, y, x), the image {whole.frame.shape}")
    whole = Scan(np.nan_to_num(whole.voxels), whole.frame, whole.properties)
    measured = None if regressor is None else _measure(regressor, source, whole)
    data, cropped, box = crop_to_nonzero(whole.voxels, seg)
    properties = {
        **whole.properties,
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": data.shape[1:],
    }
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


def compare_predictions(
    images: Sequence[Path],
    model: Path,
    *,
    label: Path | None = None,
    fold: str | None = None,
    shift: Sequence[float] | None = None,
    device: str | None = None,
) -> LocatedScan:
    """Preprocesses a scan as the model's plans say and predicts it twice.

    Args:
        images: One file per channel of the model's dataset.
        model: A trained model's folder (TRAINER__PLANS__CONFIGURATION).
        label: A segmentation of the scan.
        fold: The fold to use; None: the first that is there.
        shift: Added to the location (R, A, S; units of the model's source) for the second prediction; None makes the
            location unknown.
        device: Torch device; None: the GPU if there is one.

    Raises:
        ValueError: The folder is no trained model or not one with location, a file is missing, or the model needs the
            predictions of a previous stage.
    """
    for file in [*images, *([label] if label else [])]:
        if not file.is_file():
            raise ValueError(f"no file {file}")
    # mirroring would average predictions and blur what the location does
    loaded = load_located_model(model, fold, device=device, mirroring=False)
    scan = loaded.prepare(images, label)
    located = loaded.labels(scan.data)
    if shift is None:
        scan.location[:] = np.nan
        words = "unknown location"
    else:
        scan.location[:] += np.reshape(np.asarray(shift, dtype=np.float32), (-1, 1, 1, 1))
        words = "location shifted by " + ", ".join(
            f"{name} {value:+g}" for name, value in zip("RAS", shift, strict=True)
        )
    return LocatedScan(
        name=images[0].name,
        image=scan.data[0],
        frame=scan.frame,
        source=loaded.source,
        field=loaded.field(scan),
        label=None if scan.seg is None else np.maximum(scan.seg[0], 0).astype(np.int32),
        patch_size=checked_patch(loaded.configuration.patch_size),
        comparison=Comparison(located, loaded.labels(scan.data), words),
    )


def checked_patch(patch_size: Sequence[int]) -> tuple[int, int, int]:
    """A patch size along three array axes; a 2D patch is one voxel thick along the first.

    Raises:
        ValueError: It is not two or three whole numbers above 0.
    """
    sizes = [int(n) for n in patch_size]
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(f"a patch needs two or three sizes of at least 1 voxel, got {list(patch_size)}")
    return _three([1] * (3 - len(sizes)) + sizes)


def _measure(file: Path, source: LocationSource, scan: Scan) -> Measurement:
    regressor = open_regressor(file, source.name)
    if regressor.channel >= len(scan.voxels):
        raise ValueError(
            f"{file} looks at channel {regressor.channel}; {len(scan.voxels)} image files are given"
        )
    measured = regressor.measure(scan.voxels[regressor.channel], scan.frame)
    if measured.problem:
        raise ValueError(f"the scan cannot be measured: {measured.problem}")
    return measured


def _three(numbers: Iterable[SupportsInt]) -> tuple[int, int, int]:
    first, second, third = (int(number) for number in numbers)
    return first, second, third
