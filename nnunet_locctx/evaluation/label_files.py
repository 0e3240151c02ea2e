"""Folders of segmentations: which cases they hold, how they are read, and what is wrong with them."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from nnunet_locctx.geometry import Frame, corner_distance
from nnunet_locctx.names import summarise
from nnunet_locctx.nnunet.data.dataset_json import (
    checked_content,
    places_of_dataset_json,
    read_dataset_json,
)
from nnunet_locctx.nnunet.data.reading import BrokenFileError, explain, read_quietly, share_not_finite
from nnunet_locctx.nnunet.data.workers import map_in_workers

SAME_PLACE = 0.01
"""Two grids are the same if no corner is farther apart than this share of a voxel (headers are rounded)."""


@dataclass(frozen=True)
class Description:
    """What ``dataset.json`` says about a dataset's segmentations.

    Attributes:
        labels: Class name -> label or region.
        file_ending: Such as ``".nii.gz"``.
        content: Everything.
        file: Where it was read; None if it was given as it is.
    """

    labels: Mapping[str, Any]
    file_ending: str
    content: Mapping[str, Any]
    file: Path | None = None


@dataclass(frozen=True)
class LabelFile:
    """A segmentation to be checked.

    Attributes:
        case: Its name.
        file: The file.
        reader: Class name of nnU-Net's reader.
        allowed: Label values it may hold.
        twin: Another one on the same grid, checked too; None: there is none.
        twin_allowed: Label values that one may hold.
    """

    case: str
    file: Path
    reader: str
    allowed: frozenset[int]
    twin: Path | None = None
    twin_allowed: frozenset[int] = frozenset()


def read_description(given: Path | Mapping[str, Any] | None, folders: Sequence[Path]) -> Description:
    """The dataset's description.

    Args:
        given: ``dataset.json`` or its content; None: the first in, or one or two above, one of the folders. nnU-Net
            puts one into a folder of predictions, and into a model's folder, two above that of a fold's validation.
        folders: Where to look.

    Raises:
        ValueError: There is none, it cannot be read, or it lacks what is needed.
    """
    needed = ("labels", "file_ending")
    if isinstance(given, Mapping):
        content, file = checked_content(given, "dataset.json", needed), None
    else:
        files = places_of_dataset_json(folders) if given is None else [given]
        file = next((one for one in files if one.is_file()), None)
        if file is None:
            raise ValueError(
                f"no dataset.json; looked for {', '.join(map(str, files))}. Give it: -d ID or --dataset-json FILE"
            )
        content = read_dataset_json(file, needed)
    return Description(content["labels"], content["file_ending"], content, file)


def list_label_files(folder: Path, ending: str) -> dict[str, Path]:
    """Case -> file of a folder.

    Raises:
        ValueError: There is no folder, or no such file in it.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    cases = {
        file.name.removesuffix(ending): file
        for file in sorted(folder.iterdir())
        if file.name.endswith(ending) and not file.name.startswith(".") and file.is_file()
    }
    if not cases:
        raise ValueError(f"{folder} has no files that end in {ending}")
    return cases


def read_labels(file: Path, reader: str) -> tuple[npt.NDArray[np.int32], dict[str, Any]]:
    """(z, y, x) label values and nnU-Net's properties of a segmentation that was checked."""
    data, properties = read_quietly([file], reader, segmentation=True)
    return np.asarray(data[0]).astype(np.int32), properties


def frame_of(properties: Mapping[str, Any], shape: Sequence[int]) -> Frame:
    """The frame of a segmentation as stored; files without geometry (such as png) have that of their array.

    Raises:
        ValueError: The header is not usable.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Frame.as_read(properties, shape)


def fingerprint(file: Path) -> str:
    """Of the file's content, whenever it was written."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_label_files(jobs: Sequence[LabelFile], processes: int, *, progress: bool) -> list[str]:
    """What is wrong with the files, one line each."""
    answers = map_in_workers(_problems, jobs, processes)
    bar = tqdm(answers, total=len(jobs), desc="checking", unit="case", disable=not progress or not jobs)
    return [line for lines in bar for line in lines]


def refuse(problems: Sequence[str], what: str) -> None:
    """Raises ValueError with the problems, if there are any."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ValueError(f"{what}, {count}:\n{summarise(problems, 50)}")


def _problems(job: LabelFile) -> list[str]:
    problems: list[str] = []
    frames = [
        read_checked(file, job.reader, allowed, job.case, problems)[1]
        for file, allowed in ((job.file, job.allowed), (job.twin, job.twin_allowed))
        if file is not None
    ]
    if len(frames) == 2 and frames[0] is not None and frames[1] is not None:
        one, other = frames[0], frames[1]
        if one.shape != other.shape:
            problems.append(
                f"case {job.case}: prediction and reference differ in shape, {one.shape} and {other.shape} (z, y, x)"
            )
        else:
            # along an axis of one voxel the corners do not tell a voxel's size
            sizes = np.abs(one.spacing - other.spacing).max() / one.spacing.min()
            apart = max(corner_distance(one, other), float(sizes))
            if apart > SAME_PLACE:
                problems.append(
                    f"case {job.case}: prediction and reference lie at different places, by up to {apart:.3g} voxels "
                    f"(at most {SAME_PLACE} allowed): affines (index to mm, LPS) "
                    f"{one.affine_lps[:3].round(4).tolist()} and {other.affine_lps[:3].round(4).tolist()}"
                )
    return problems


def read_checked(
    file: Path, reader: str, allowed: frozenset[int], case: str, problems: list[str]
) -> tuple[npt.NDArray[np.int32] | None, Frame | None]:
    """(z, y, x) label values and frame of a segmentation; None for what cannot be used.

    Args:
        file: The file.
        reader: Class name of nnU-Net's reader.
        allowed: Label values it may hold.
        case: Its name.
        problems: Gets a line for everything that is wrong.
    """
    what = f"case {case}: {file}"
    try:
        data, properties = read_quietly([file], reader, segmentation=True)
    except BrokenFileError as error:
        problems.append(f"case {case}: {error}")
        return None, None
    except Exception as error:  # whatever a reader raises
        problems.append(f"{what} cannot be read: {explain(error)}")
        return None, None
    if data.shape[0] != 1:
        problems.append(f"{what} has {data.shape[0]} channels, a segmentation has one")
        return None, None
    try:
        frame = frame_of(properties, data.shape[1:])
    except ValueError as error:
        problems.append(f"{what}: {error}")
        frame = None
    values = np.unique(data)
    if not np.isfinite(values).all() or share_not_finite(file):
        problems.append(f"{what} has voxels that are NaN or infinite")
        return None, frame
    if (values != np.round(values)).any():
        odd = values[values != np.round(values)][:5]
        problems.append(f"{what} has voxels that are no whole numbers: {', '.join(f'{v:g}' for v in odd)}")
        return None, frame
    unknown = sorted({int(value) for value in values} - allowed)
    if unknown:
        shown = ", ".join(map(str, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
        problems.append(f"{what} has labels that dataset.json does not list there: {shown}")
        return None, frame
    return data[0].astype(np.int32), frame
