"""Files that the commands read: regressors, scans and their labels, folders in nnU-Net's raw format."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nnunet_locctx.anatomy.localize import LabelledScan, sample_organs
from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import AnatomicalMap
from nnunet_locctx.names import instead
from nnunet_locctx.nnunet.data.dataset_json import read_dataset_json
from nnunet_locctx.nnunet.data.fitted import REGRESSOR, fitted_folder, open_regressor
from nnunet_locctx.nnunet.data.paths import dataset_folder
from nnunet_locctx.nnunet.data.raw_scans import training_cases
from nnunet_locctx.nnunet.data.reading import file_ending, read_scan, read_segmentation
from nnunet_locctx.regression.regressor import Regressor

FILE_NAME = re.compile(r"([^.].*)_(\d{4})(\.[A-Za-z][\w.]*)")
"""Case, channel and ending of an image in nnU-Net's raw format."""


@dataclass(frozen=True)
class ScanFiles:
    """The files of one case.

    Attributes:
        name: The case's.
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

    def raw_names(self, images: str, labels: str) -> dict[Path, Path]:
        """File -> its path in nnU-Net's raw format, below the folders of these names; dataset.json may list files of
        any names and in any folders."""
        named = {
            file: Path(images, f"{self.name}_{channel:04d}{file_ending(file)}")
            for channel, file in self.images.items()
        }
        if self.label is not None:
            named[self.label] = Path(labels, f"{self.name}{file_ending(self.label)}")
        return named

    def file_of(self, channel: int) -> Path:
        """The file in which a channel is.

        Raises:
            ValueError: There is none.
        """
        if channel in self.images:
            return self.images[channel]
        if set(self.images) == {0}:  # it may hold several channels
            return self.images[0]
        listed = ", ".join(f"{number:04d}" for number in sorted(self.images))
        raise ValueError(f"the regressor looks at channel {channel}; the case {self.name} has {listed}")


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
    cases: dict[str, dict[int, Path]] = {}
    endings = set()
    for file in sorted(images.iterdir()):
        match = FILE_NAME.fullmatch(file.name)
        if match is not None:
            cases.setdefault(match[1], {})[int(match[2])] = file
            endings.add(match[3])
    if not cases:
        raise ValueError(f"{images} holds no image in nnU-Net's raw format (CASE_0000.nii.gz)")
    if len(endings) > 1:
        raise ValueError(f"the images in {images} have different endings: {', '.join(sorted(endings))}")
    (ending,) = endings
    segmentations = {
        file.name: file for file in ([] if labels is None else labels.iterdir()) if file.is_file()
    }
    return [
        ScanFiles(name, channels, segmentations.get(f"{name}{ending}")) for name, channels in cases.items()
    ]


def list_training(folder: Path) -> list[ScanFiles]:
    """The training cases of a raw dataset, as nnU-Net finds them; those whose segmentation is missing have none.

    Raises:
        ValueError: There are none, or their images are not there.
    """
    return [
        ScanFiles(case.identifier, dict(enumerate(case.images)), case.label if case.label.is_file() else None)
        for case in training_cases(folder)
    ]


def label_values(folder: Path, names: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Label values of each name.

    Args:
        folder: With dataset.json; without one, labels are named by their values.
        names: Which, by name or value; None: all but background and ignored voxels.

    Raises:
        ValueError: Unknown names, background, all without a dataset.json, or one that cannot be read.
    """
    content = read_dataset_json(folder) if (folder / "dataset.json").is_file() else None
    known: dict[str, tuple[int, ...]] = {}
    for name, value in ({} if content is None else content["labels"]).items():
        values = tuple(value) if isinstance(value, list) else (value,)
        if values != (0,) and name != "ignore":
            known[name] = values
    if names is None:
        if not known:
            raise ValueError("there is no dataset.json that names the labels, so they must be given by value")
        return known
    numbers = {str(number): (number,) for values in known.values() for number in values if number > 0}
    if content is None:
        numbers = {name: (int(name),) for name in names if name.isdigit() and int(name) > 0}
    for name in names:
        if name not in known and name not in numbers:
            allowed = instead(name, known) if known else "; allowed: label values above 0"
            raise ValueError(f"unknown label {name!r}{allowed}")
    return {name: known.get(name) or numbers[name] for name in names}


def measure_scan(file: Path, regressor: Regressor) -> tuple[AnatomicalMap, Frame]:
    """The map of a scan, and its frame.

    Args:
        file: The file of the regressor's channel, or one that holds all channels.
        regressor: A fitted anatomical regressor.

    Raises:
        ValueError: No such file, not readable, or another channel.
    """
    scan, channel = read_scan([file]), regressor.channel
    match = FILE_NAME.fullmatch(file.name)
    own = match is None or int(match[2]) == channel
    if len(scan.voxels) == 1 and own:
        channel = 0
    elif channel >= len(scan.voxels):
        hint = "" if match is None else f"; give {match[1]}_{channel:04d}{match[3]}"
        raise ValueError(
            f"the regressor looks at channel {channel}, which is not in {file} ({len(scan.voxels)} in it){hint}"
        )
    scan_map = regressor.measure(scan.voxels[channel], scan.frame)
    assert isinstance(scan_map, AnatomicalMap)  # by the regressor's kind
    return scan_map, scan.frame


def read_labels(file: Path, frame: Frame) -> npt.NDArray[np.int32]:
    """The segmentation (i, j, k) of an image with this frame.

    Raises:
        ValueError: No such file, not readable, no segmentation, or not of the image's shape.
    """
    labels = read_segmentation(file).labels
    if labels.shape != frame.shape:
        raise ValueError(f"{file} has {labels.shape[::-1]} voxels (x, y, z), its image {frame.shape[::-1]}")
    return labels


def read_labelled(scan: ScanFiles, regressor: Regressor, organs: Mapping[str, Sequence[int]]) -> LabelledScan:
    """Measures a labelled case and samples its organs.

    Raises:
        ValueError: A file is missing or not usable.
    """
    assert scan.label is not None
    scan_map, frame = measure_scan(scan.file_of(regressor.channel), regressor)
    return LabelledScan(scan.name, scan_map, sample_organs(read_labels(scan.label, frame), frame, organs))
