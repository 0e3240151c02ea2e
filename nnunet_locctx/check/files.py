"""The files of a dataset in nnU-Net's raw format, and what is missing among them."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_locctx.check.report import Finding


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
    """What dataset.json and the folders say, before any scan is read.

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
        ValueError: There is no dataset, or dataset.json cannot be read or lacks a key.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    content = _read_dataset_json(folder / "dataset.json")
    ending = content["file_ending"]
    names: dict[str, str] = content.get("channel_names", content.get("modality", {}))
    dataset = RawDataset(
        name=folder.resolve().name,
        ending=ending,
        reader=content.get("overwrite_image_reader_writer"),
        channels=len(names),
        labels=_label_values(content["labels"]),
        cases=[],
    )
    if "dataset" in content:
        for name, entry in content["dataset"].items():
            images = tuple(_resolve(folder, image) for image in entry["images"])
            _add(dataset, name, "train", dict(enumerate(images)), _resolve(folder, entry["label"]))
    else:
        _list_training(dataset, folder)
    for name, channels in sorted(_images(dataset, folder / "imagesTs").items()):
        _add(dataset, name, "test", channels, None)
    training = sum(case.split == "train" for case in dataset.cases)
    if content["numTraining"] != training:
        dataset.findings.append(
            Finding(
                "error",
                "count",
                None,
                f"dataset.json says numTraining {content['numTraining']}, found {training}",
            )
        )
    return dataset


def _read_dataset_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file.parent} is not a dataset in nnU-Net's raw format: it has no dataset.json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold an object, got {type(content).__name__}")
    names = {"channel_names": "channel_names" in content or "modality" in content}
    missing = [key for key in ("labels", "file_ending", "numTraining") if key not in content]
    missing += [key for key, present in names.items() if not present]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}; it has {', '.join(content)}")
    return content


def _label_values(labels: dict[str, Any]) -> dict[int, str]:
    """Region-based datasets give a name several values; the first name of a value is kept."""
    values = {0: "background"}
    for name, value in labels.items():
        for number in value if isinstance(value, list) else [value]:
            values.setdefault(int(number), name)
    return values


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
        _add(
            dataset,
            name,
            "train",
            channels,
            labels.pop(name, folder / "labelsTr" / f"{name}{dataset.ending}"),
        )
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
        # nnU-Net cuts five characters off whatever is there, then looks for that case's channels
        case = file.name[: -len(dataset.ending)][:-5]
        severity = "warning" if case in images else "error"
        does = (
            "ignores it"
            if case in images
            else f"makes a case {case!r} of it that has no image, and stops there"
        )
        message = (
            f"{folder.name}/{file.name} lacks the channel number (NAME_0000{dataset.ending}); nnU-Net {does}"
        )
        dataset.findings.append(Finding(severity, "file name", None, message))
    return images


def _add(dataset: RawDataset, name: str, split: str, channels: dict[int, Path], label: Path | None) -> None:
    there = {number: file for number, file in channels.items() if file.is_file()}
    # one file may hold several channels (RGB), so the number of files is compared once they are read
    missing = sorted(set(range(max(channels, default=0) + 1)) - set(there))
    if missing:
        names = ", ".join(f"{number:04d}" for number in missing)
        dataset.findings.append(Finding("error", "missing file", name, f"image channel {names} is missing"))
    if label is not None and not label.is_file():
        dataset.findings.append(Finding("error", "missing file", name, f"the label {label.name} is missing"))
        label = None
    dataset.cases.append(Case(name, split, tuple(there[number] for number in sorted(there)), label))
