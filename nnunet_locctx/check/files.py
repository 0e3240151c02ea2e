"""The files of a dataset in nnU-Net's raw format, and what is missing among them."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_locctx.check.report import Finding
from nnunet_locctx.nnunet.data.dataset_json import dataset_json_problems, read_dataset_json

COUNTS = ("regions_class_order", "numTraining")
"""Entries of dataset.json that the check of the files does not need."""


@dataclass(frozen=True)
class Case:
    """One scan of a dataset.

    Attributes:
        name: Case identifier.
        split: ``"train"`` or ``"test"``.
        images: One file per channel that exists, in channel order.
        label: The segmentation, None for test scans and where it is missing.
    """

    name: str
    split: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass
class RawDataset:
    """The content of dataset.json and of the folders, before any scan is read.

    Attributes:
        labels: Every label value that dataset.json knows, background 0 included.
        findings: What is wrong with the files' names and numbers.
    """

    name: str
    ending: str
    reader: str | None
    channels: int
    labels: dict[int, str]
    cases: list[Case]
    findings: list[Finding] = field(default_factory=list)


def list_dataset(folder: Path) -> RawDataset:
    """The cases of a raw dataset.

    Raises:
        ValueError: There is no dataset, or dataset.json does not say which channels, labels and files it has.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if not (folder / "dataset.json").is_file():
        raise ValueError(f"{folder} is not a dataset in nnU-Net's raw format: it has no dataset.json")
    content = read_dataset_json(folder)
    dataset = RawDataset(
        name=folder.resolve().name,
        ending=content["file_ending"],
        reader=content.get("overwrite_image_reader_writer"),
        channels=len(content["channel_names"]),
        labels=_label_values(content["labels"]),
        cases=[],
    )
    problems = [*dataset_json_problems(content, COUNTS), *_label_problems(content["labels"])]
    dataset.findings += [Finding("error", "dataset.json", None, problem) for problem in problems]
    if "dataset" in content:
        for name, entry in content["dataset"].items():
            images = tuple(_resolve(folder, image) for image in entry["images"])
            _add(dataset, name, "train", dict(enumerate(images)), _resolve(folder, entry["label"]))
    else:
        _list_training(dataset, folder)
    for name, channels in sorted(_images(dataset, folder / "imagesTs").items()):
        _add(dataset, name, "test", channels, None)
    training = sum(case.split == "train" for case in dataset.cases)
    if content.get("numTraining") != training and isinstance(content.get("numTraining"), int):
        message = f"dataset.json says numTraining {content['numTraining']}, found {training}"
        dataset.findings.append(Finding("error", "count", None, message))
    return dataset


def _label_problems(labels: dict[str, Any]) -> list[str]:
    """Numbering of the labels that nnU-Net's integrity check and its label manager refuse."""
    if "background" not in labels:
        return ['"labels" must have "background": 0']
    values = sorted({n for name, value in labels.items() if name != "ignore" for n in _numbers(value)})
    last = [labels["ignore"]] if "ignore" in labels else []
    if values + last == list(range(len(values + last))):
        return []
    text = ", ".join(map(str, values)) + ("".join(f" and {value} to ignore" for value in last))
    return [f'"labels" must be 0, 1, 2, ... without gaps, the one to ignore last; got {text}']


def _label_values(labels: dict[str, Any]) -> dict[int, str]:
    """Label value -> name. A region has several values; a value of several regions gets the name of the first one."""
    values = {0: "background"}
    for name, value in labels.items():
        for number in _numbers(value):
            values.setdefault(number, name)
    return values


def _numbers(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


def _resolve(folder: Path, file: str) -> Path:
    return folder / os.path.expandvars(file)


def _list_training(dataset: RawDataset, folder: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        if not (folder / name).is_dir():
            raise ValueError(f"{folder} has no folder {name}")
    images = _images(dataset, folder / "imagesTr")
    labels = {
        file.name[: -len(dataset.ending)]: file
        for file in (folder / "labelsTr").iterdir()
        if file.name.endswith(dataset.ending)
    }
    for name, channels in sorted(images.items()):
        label = labels.pop(name, folder / "labelsTr" / f"{name}{dataset.ending}")
        _add(dataset, name, "train", channels, label)
    for name in sorted(labels):
        dataset.findings.append(Finding("error", "missing file", name, "the label has no image in imagesTr"))


def _images(dataset: RawDataset, folder: Path) -> dict[str, dict[int, Path]]:
    """Case -> channel -> file."""
    images: dict[str, dict[int, Path]] = {}
    if not folder.is_dir():
        return images
    others = []
    for file in sorted(folder.iterdir()):
        if not file.name.endswith(dataset.ending):
            continue
        match = re.fullmatch(r"(.+)_(\d{4})", file.name[: -len(dataset.ending)])
        if match is None:
            others.append(file)
        else:
            images.setdefault(match[1], {})[int(match[2])] = file
    for file in others:
        # nnU-Net cuts five characters off every name, then looks for the channels of that case
        case = file.name[: -len(dataset.ending)][:-5]
        severity, does = "error", f"makes a case {case!r} of it that has no image, and stops there"
        if case in images:
            severity, does = "warning", "ignores it"
        message = (
            f"{folder.name}/{file.name} lacks the channel number (NAME_0000{dataset.ending}); nnU-Net {does}"
        )
        dataset.findings.append(Finding(severity, "file name", None, message))
    return images


def _add(dataset: RawDataset, name: str, split: str, channels: dict[int, Path], label: Path | None) -> None:
    present = {number: file for number, file in channels.items() if file.is_file()}
    # one file may hold several channels (RGB): channels are counted when the files are read
    missing = sorted(set(range(max(channels, default=0) + 1)) - set(present))
    if missing:
        names = ", ".join(f"{number:04d}" for number in missing)
        dataset.findings.append(Finding("error", "missing file", name, f"image channel {names} is missing"))
    if label is not None and not label.is_file():
        dataset.findings.append(Finding("error", "missing file", name, f"the label {label.name} is missing"))
        label = None
    dataset.cases.append(Case(name, split, tuple(present[number] for number in sorted(present)), label))
