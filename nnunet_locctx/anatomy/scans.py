"""Files that the commands read: regressors, scans and their labels, folders in nnU-Net's raw format."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.anatomy.localize import LabelledScan, sample_organs
from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import AnatomicalMap
from nnunet_locctx.nnunet.data.fitted import REGRESSOR, fitted_folder, open_regressor
from nnunet_locctx.nnunet.data.paths import dataset_folder
from nnunet_locctx.nnunet.data.raw_scans import read_dataset_json, training_cases
from nnunet_locctx.nnunet.data.reading import read_any
from nnunet_locctx.regression.regressor import Regressor

FILE_NAME = re.compile(r"([^.].*)_(\d{4})(\.[A-Za-z][\w.]*)")
"""Case, channel and ending of an image in nnU-Net's raw format."""


@dataclass(frozen=True)
class ScanFiles:
    """The files of one case.

    Attributes:
        name: Of the case.
        images: One file per channel.
        label: The segmentation, None where there is none.
    """

    name: str
    images: Mapping[int, Path]
    label: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All of them, the label last."""
        return [*self.images.values(), *([] if self.label is None else [self.label])]


def load_anatomical(file: Path | None, dataset: str | None = None) -> Regressor:
    """A fitted anatomical regressor from a file or, without one, that of a dataset.

    Raises:
        ValueError: There is none, it is damaged, or of another kind.
    """
    if file is None:
        if dataset is None:
            raise ValueError("no regressor named: give its file or a dataset it was fitted on")
        folder = dataset_folder("nnUNet_preprocessed", dataset)
        file = fitted_folder(folder.name, AnatomicalMap.kind) / REGRESSOR
        if not file.is_file():
            raise ValueError(f"no regressor {file}; fit one with: locctx fit ape -d {dataset}")
    return open_regressor(file, AnatomicalMap.kind)


def list_scans(images: Path, labels: Path | None = None) -> list[ScanFiles]:
    """The cases of a folder of images named as in nnU-Net's raw format (``CASE_0000.nii.gz``), by name.

    Args:
        images: Folder of images.
        labels: Folder of segmentations (``CASE.nii.gz``); cases without one have none.

    Raises:
        ValueError: No such folder, no image in it, or images with different endings.
    """
    for folder in (images, labels):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
    found: dict[str, dict[int, Path]] = {}
    endings = set()
    for file in sorted(images.iterdir()):
        match = FILE_NAME.fullmatch(file.name)
        if match is not None:
            found.setdefault(match[1], {})[int(match[2])] = file
            endings.add(match[3])
    if not found:
        raise ValueError(f"{images} holds no image in nnU-Net's raw format (CASE_0000.nii.gz)")
    if len(endings) > 1:
        raise ValueError(f"the images in {images} have different endings: {', '.join(sorted(endings))}")
    (ending,) = endings
    scans = []
    for name, channels in found.items():
        label = None if labels is None else labels / f"{name}{ending}"
        scans.append(ScanFiles(name, channels, label if label is not None and label.is_file() else None))
    return scans


def list_training(folder: Path) -> list[ScanFiles]:
    """The training cases of a raw dataset, as nnU-Net finds them; those whose segmentation is missing have none.

    Raises:
        ValueError: There are none, or their images are not there.
    """
    return [
        ScanFiles(case.identifier, dict(enumerate(case.images)), case.label if case.label.is_file() else None)
        for case in training_cases(folder)
    ]


def read_description(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's dataset.json; None without one.

    Raises:
        ValueError: It cannot be read.
    """
    return read_dataset_json(folder) if (folder / "dataset.json").is_file() else None


def label_values(
    content: Mapping[str, Any] | None, names: Sequence[str] | None
) -> dict[str, tuple[int, ...]]:
    """Label values of each name.

    Args:
        content: Of dataset.json, None without one: labels are then named by their values.
        names: Which, by name or value; None: all but background and ignored voxels.

    Raises:
        ValueError: Unknown names, background, or all without a dataset.json.
    """
    known: dict[str, tuple[int, ...]] = {}
    for name, value in (content or {}).get("labels", {}).items():
        values = tuple(int(v) for v in (value if isinstance(value, list) else [value]))
        if values != (0,) and name != "ignore":
            known[name] = values
    if names is None:
        if not known:
            raise ValueError("there is no dataset.json that names the labels, so they must be given by value")
        return known
    chosen = {}
    for name in names:
        if name in known:
            chosen[name] = known[name]
        elif (
            name.isdigit()
            and int(name) > 0
            and (content is None or any(int(name) in v for v in known.values()))
        ):
            chosen[name] = (int(name),)
        else:
            there = ", ".join(known) if known else "label values above 0"
            raise ValueError(f"unknown label {name!r}; allowed: {there}")
    return chosen


def read_image(file: Path, channel: int = 0) -> tuple[npt.NDArray[np.float32], Frame]:
    """One channel of a scan, array axes z, y, x, and its frame.

    Args:
        file: The channel's own file, or one that holds all channels.
        channel: Number of the channel.

    Raises:
        ValueError: No such file, not readable, or another channel.
    """
    data, frame = _read(file, segmentation=False)
    match = FILE_NAME.fullmatch(file.name)
    own = match is None or int(match[2]) == channel
    if len(data) == 1 and own:
        return data[0], frame
    if channel >= len(data):
        wanted = "" if match is None else f"; give {match[1]}_{channel:04d}{match[3]}"
        raise ValueError(
            f"the regressor looks at channel {channel}, which is not in {file} ({len(data)} in it){wanted}"
        )
    return data[channel], frame


def read_labels(file: Path, frame: Frame) -> npt.NDArray[np.int32]:
    """A segmentation, array axes z, y, x.

    Raises:
        ValueError: No such file, not readable, or not of the image's shape.
    """
    data, found = _read(file, segmentation=True)
    if found.shape != frame.shape:
        raise ValueError(f"{file} has {found.shape[::-1]} voxels (x, y, z), its image {frame.shape[::-1]}")
    return data[0].astype(np.int32)


def channel_file(scan: ScanFiles, channel: int) -> Path:
    """The file of a case in which the regressor's channel is.

    Raises:
        ValueError: There is none.
    """
    if channel in scan.images:
        return scan.images[channel]
    if set(scan.images) == {0}:  # it may hold several channels
        return scan.images[0]
    listed = ", ".join(f"{number:04d}" for number in sorted(scan.images))
    raise ValueError(f"the regressor looks at channel {channel}; the case {scan.name} has {listed}")


def measure(image: npt.NDArray[np.floating], frame: Frame, regressor: Regressor) -> AnatomicalMap:
    """The map of a scan."""
    found = regressor.measure(image, frame)
    assert isinstance(found, AnatomicalMap)  # by the regressor's kind
    return found


def measure_scan(file: Path, regressor: Regressor) -> tuple[AnatomicalMap, Frame]:
    """The map of a scan in a file, and its frame; errors as in :func:`read_image`."""
    image, frame = read_image(file, regressor.channel)
    return measure(image, frame, regressor), frame


def read_labelled(scan: ScanFiles, regressor: Regressor, organs: Mapping[str, Sequence[int]]) -> LabelledScan:
    """Measures a labelled case and samples its organs.

    Raises:
        ValueError: A file is missing or not usable.
    """
    assert scan.label is not None
    found, frame = measure_scan(channel_file(scan, regressor.channel), regressor)
    return LabelledScan(scan.name, found, sample_organs(read_labels(scan.label, frame), frame, organs))


def _read(file: Path, *, segmentation: bool) -> tuple[npt.NDArray[np.float32], Frame]:
    data, properties = read_any([file], segmentation=segmentation)
    try:
        return data, Frame.as_read(properties, data.shape[1:])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
