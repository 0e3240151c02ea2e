"""A scan as acquired, with the location that a network gets and the network's predictions."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from nnunet_locctx.evaluation.classes import value_names
from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import LocationField, LocationSource, Measurement
from nnunet_locctx.location.body import modality_of
from nnunet_locctx.nnunet.data.dataset_json import places_of_dataset_json, read_dataset_json
from nnunet_locctx.nnunet.data.fitted import open_regressor
from nnunet_locctx.nnunet.data.reading import read_scan, read_segmentation
from nnunet_locctx.nnunet.predicting.prediction import load_located_model
from nnunet_locctx.regression.body import BodyFinder
from nnunet_locctx.scan import Scan
from nnunet_locctx.viewing import per_plane


@dataclass(frozen=True)
class Comparison:
    """Predictions of one model with and without the true location, in the array axes of the network's input.

    Attributes:
        located: Segmentation with the true location.
        replaced: Segmentation with another location.
        replacement: The other location in words.
    """

    located: npt.NDArray[np.integer]
    replaced: npt.NDArray[np.integer]
    replacement: str

    @property
    def changed(self) -> npt.NDArray[np.bool_]:
        """The voxels whose prediction depends on the location."""
        return np.asarray(self.located != self.replaced)


@dataclass(frozen=True)
class LocatedScan:
    """A scan as acquired, with a network's input and predictions.

    Attributes:
        name: For the title.
        image: (array axes) first channel in the units of its file, cropped as nnU-Net does.
        frame: Position of the image in the patient.
        channel: The channel's name in dataset.json; empty: not known.
        names: Label value -> name of the class.
        label: Segmentation of the same shape, or None.
        grid: Position of the array that the network gets; it spans the same volume as the image.
        source: Source of the location.
        field: The location of `grid`.
        patch_size: Patch in voxels of `grid`, or None.
        comparison: Predictions of a model on `grid`, or None.
    """

    name: str
    image: npt.NDArray[np.floating]
    frame: Frame
    channel: str
    names: Mapping[int, str]
    label: npt.NDArray[np.integer] | None
    grid: Frame
    source: LocationSource
    field: LocationField
    patch_size: tuple[int, int, int] | None = None
    comparison: Comparison | None = None

    def place_of_interest(self) -> Array:
        """The place to show, as fractions (R, A, S) of the volume: where the location changes most voxels, or the
        middle of the labels, or the middle of the volume."""
        if self.comparison is not None and self.comparison.changed.any():
            return self.grid.fraction([np.argmax(counts) for counts in per_plane(self.comparison.changed)])
        if self.label is not None and (self.label > 0).any():
            sums = [np.cumsum(counts) for counts in per_plane(self.label > 0)]
            return self.frame.fraction([np.searchsorted(one, one[-1] / 2) for one in sums])
        return self.frame.fraction([n // 2 for n in self.frame.shape])


def nearest_voxel(frame: Frame, fraction: npt.ArrayLike) -> tuple[int, int, int]:
    """Index of the voxel at a fraction (R, A, S) of the volume.

    Raises:
        ValueError: The place lies outside the volume.
    """
    # the fraction 0.5 is the outer face of the last voxel and rounds to the next index
    index = np.rint(frame.index_from_fraction(fraction)).astype(int)
    last = np.array(frame.shape) - 1
    if (index < -1).any() or (index > last + 1).any():
        raise ValueError(
            f"the place {np.asarray(fraction).tolist()} lies outside the volume; fractions run from -0.5 to 0.5 along "
            "R, A and S"
        )
    i, j, k = (int(n) for n in np.clip(index, 0, last))
    return i, j, k


def locate_scan(
    images: Sequence[Path],
    source: LocationSource,
    *,
    label: Path | None = None,
    patch_size: Sequence[int] | None = None,
    regressor: Path | None = None,
    dataset_json: Path | None = None,
    progress: bool = False,
) -> LocatedScan:
    """Reads a scan, cropped to its content as by nnU-Net, but not resampled.

    Args:
        images: One file per channel; the first is drawn.
        source: Source of the location.
        label: A segmentation of the scan.
        patch_size: Patch in voxels, array axis order (z, y, x of the file).
        regressor: Regressor of `locctx fit` (regressor.pt) for a source that needs a fit. None for ``body``: the rule
            for the modality that dataset.json names, as in training.
        dataset_json: Names of classes and channels; None: a dataset.json near the scan or its label, if there is one.
        progress: Show the steps.

    Raises:
        ValueError: A file is missing, unreadable or does not fit; the patch size is not three numbers above 0; the
            source needs a regressor or the modality and has none, takes no regressor, or cannot measure the scan.
    """
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

    patch = None if patch_size is None else checked_patch(patch_size)
    with _Steps(3, "reading", progress) as steps:
        description = _description(dataset_json, [*images, *([label] if label else [])])
        scan = read_scan(images)
        scan = Scan(np.nan_to_num(scan.voxels), scan.frame, scan.properties)
        segmentation = None if label is None else _read_label(label, scan)
        steps.next("measuring")
        measured = _measure(source, regressor, scan, description.get("channel_names", {}))
        steps.next("cropping")
        box = crop_to_nonzero(scan.voxels)[2]
    image, frame = _crop(scan, box)
    return LocatedScan(
        name=images[0].name,
        image=image,
        frame=frame,
        label=None if segmentation is None else _crop(segmentation, box)[0],
        **_names(description, segmentation),
        grid=frame,
        source=source,
        field=source.field(frame, measured),
        patch_size=patch,
    )


def compare_predictions(
    images: Sequence[Path],
    model: Path,
    *,
    label: Path | None = None,
    fold: str | None = None,
    shift: Sequence[float] | None = None,
    device: str | None = None,
    progress: bool = False,
) -> LocatedScan:
    """Preprocesses a scan by the model's plans and predicts it twice.

    Args:
        images: One file per channel of the model's dataset.
        model: A trained model's folder (TRAINER__PLANS__CONFIGURATION).
        label: A segmentation of the scan.
        fold: The fold to use; None: the first that exists.
        shift: Added to the location (R, A, S; units of the model's source) for the second prediction; None makes the
            location unknown.
        device: Torch device; None: the GPU if there is one.
        progress: Show the steps.

    Raises:
        ValueError: The folder holds no trained model with location, a file is missing, or the model needs the
            predictions of a previous stage.
    """
    for file in [*images, *([label] if label else [])]:
        if not file.is_file():
            raise ValueError(f"no file {file}")
    with _Steps(3, "loading the model", progress) as steps:
        # mirroring would average predictions and blur the effect of the location
        loaded = load_located_model(model, fold, device=device, mirroring=False, progress=progress)
        steps.next("preprocessing")
        prepared = loaded.prepare(images)
        steps.next("reading")
        plans = loaded.predictor.plans_manager
        scan = read_scan(images, plans.plans["image_reader_writer"])
        segmentation = None if label is None else _read_label(label, scan)
    located = loaded.labels(prepared.data)
    if shift is None:
        prepared.location[:] = np.nan
        words = "unknown location"
    else:
        prepared.location[:] += np.reshape(np.asarray(shift, dtype=np.float32), (-1, 1, 1, 1))
        words = "location shifted by " + ", ".join(
            f"{name} {value:+g}" for name, value in zip("RAS", shift, strict=True)
        )
    box = prepared.properties["bbox_used_for_cropping"]
    image, frame = _crop(scan, box, plans.transpose_forward)
    return LocatedScan(
        name=images[0].name,
        image=image,
        frame=frame,
        label=None if segmentation is None else _crop(segmentation, box, plans.transpose_forward)[0],
        **_names(loaded.dataset_json, segmentation),
        grid=prepared.frame,
        source=loaded.source,
        field=loaded.field(prepared),
        patch_size=checked_patch(loaded.configuration.patch_size),
        comparison=Comparison(located, loaded.labels(prepared.data), words),
    )


def checked_patch(patch_size: Sequence[int]) -> tuple[int, int, int]:
    """A patch size along three array axes; a 2D patch has one voxel along the first.

    Raises:
        ValueError: The size is not two or three whole numbers above 0.
    """
    sizes = [int(n) for n in patch_size]
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(f"a patch needs two or three sizes of at least 1 voxel, got {list(patch_size)}")
    z, y, x = [1] * (3 - len(sizes)) + sizes
    return z, y, x


def _description(dataset_json: Path | None, files: Sequence[Path]) -> dict[str, Any]:
    """The content of `dataset_json` or, if it is None, of a dataset.json near the files; empty without one."""
    near = places_of_dataset_json([file.parent for file in files])
    file = dataset_json or next((place for place in near if place.is_file()), None)
    try:
        return {} if file is None else read_dataset_json(file, ("channel_names", "labels"))
    except ValueError as error:
        if dataset_json is not None:
            raise
        warnings.warn(f"classes are called by their numbers: {error}", stacklevel=3)
        return {}


def _names(description: Mapping[str, Any], label: Scan | None) -> dict[str, Any]:
    """``channel`` and ``names`` of :class:`LocatedScan`."""
    channel = next(iter(description.get("channel_names", {}).values()), "")
    names = value_names(description.get("labels", {}))
    for value in sorted([] if label is None else pd.unique(label.labels.ravel()).tolist()):
        names.setdefault(value, f"label {value}")
    names.pop(0, None)
    return {"channel": channel, "names": names}


def _read_label(file: Path, image: Scan, reader: str | None = None) -> Scan:
    label = read_segmentation(file, reader)
    if label.frame.shape != image.frame.shape:
        raise ValueError(
            f"the label has the shape {label.frame.shape} (z, y, x), the image {image.frame.shape}"
        )
    return label


def _crop(
    scan: Scan, box: Sequence[Sequence[int]], transpose: Sequence[int] = (0, 1, 2)
) -> tuple[npt.NDArray[Any], Frame]:
    """The first channel within nnU-Net's crop box, and its frame. nnU-Net transposes before it crops."""
    inner = scan.voxels[0].transpose(transpose)[tuple(slice(*edges) for edges in box)]
    properties = {
        **scan.properties,
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": inner.shape,
    }
    return inner, Frame.from_properties(properties, inner.shape, transpose)


class _Steps:
    """A progress bar of steps of different lengths."""

    def __init__(self, count: int, first: str, progress: bool) -> None:
        shape = "{desc}: {n_fmt}/{total_fmt} |{bar:20}| {elapsed}"
        self._bar = tqdm(
            total=count, desc=first, disable=None if progress else True, leave=False, bar_format=shape
        )

    def __enter__(self) -> "_Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def next(self, name: str) -> None:
        """Begins the next step."""
        self._bar.update()
        self._bar.set_description(name)


def _measure(
    source: LocationSource, file: Path | None, scan: Scan, channels: Mapping[str, str]
) -> Measurement | None:
    """The source's measurement of the scan; None if the source measures nothing."""
    if not source.fitted:
        if file is not None:
            raise ValueError(
                f"the source {source.name!r} measures nothing and takes no regressor, got {file}"
            )
        return None
    if file is not None:
        regressor = open_regressor(file, source.name)
    elif source.needs_fit:
        raise ValueError(f"the source {source.name!r} needs a regressor (regressor.pt, made by `locctx fit`)")
    elif not channels:
        raise ValueError(
            f"the source {source.name!r} treats CT differently from other scans: a dataset.json must name the "
            "channel, and none lies near the scan"
        )
    else:
        regressor = BodyFinder(modality_of(next(iter(channels.values()))))
    if regressor.channel >= len(scan.voxels):
        raise ValueError(
            f"{file} measures channel {regressor.channel}, but only {len(scan.voxels)} image files are given"
        )
    measured = regressor.measure(scan.voxels[regressor.channel], scan.frame)
    if measured.problem:
        raise ValueError(f"the scan cannot be measured: {measured.problem}")
    return measured
