"""The target, options, result and record of a conversion."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nnunet_locctx import __version__
from nnunet_locctx.datasets.release import Release, SourceCase, Split
from nnunet_locctx.files import file_digest, write_atomically
from nnunet_locctx.nnunet.data.paths import nnunet_folder
from nnunet_locctx.nnunet.data.workers import map_in_workers

Item = TypeVar("Item")
Answer = TypeVar("Answer")

RECORD = "conversion.json"
"""Name of the record in the dataset's folder: source, options and the SHA-256 of every file."""

RECORD_VERSION = 2
"""Version of the record; version 1 held sizes instead of digests."""

SPLITS = "splits_final.json"

PROGRESS = "progress.json"
"""Name of the file in a staging folder that says which files are converted and that they were checked."""

TOLERANCE = 0.5
"""Default of the largest distance in voxels between the corners of a case's files."""

FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")

RECORDED = ("training", "testing", "notes", "left_out", "unusual")
"""Fields of the result that the record holds."""


@dataclass
class Converted:
    """The result of :func:`convert`.

    Attributes:
        folder: The dataset.
        training: Names of the training cases.
        testing: Names of the test cases.
        existed: Whether the complete dataset existed before; then nothing was done.
        resumed: Number of cases that an earlier, stopped conversion had written.
        splits: splits_final.json in nnUNet_preprocessed.
        notes: Sentences for the user.
        left_out: Case -> reason for not converting it.
        unusual: Case, converted or left out -> sentences on its unusual header.
    """

    folder: Path
    training: list[str]
    testing: list[str]
    splits: Path
    existed: bool = False
    resumed: int = 0
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    unusual: dict[str, list[str]] = field(default_factory=dict)


class Job:
    """One conversion: its target, options and number of processes."""

    def __init__(
        self,
        release: Release,
        dataset_id: int,
        name: str | None,
        link: bool,
        tolerance: float,
        processes: int,
        progress: bool,
    ) -> None:
        self.release = release
        self.link = link
        self.tolerance = tolerance
        self.processes = processes
        self.progress = progress
        if not 1 <= dataset_id <= 999:
            raise ValueError(f"a dataset's number is 1 to 999, got {dataset_id}")
        title = release.title if name is None else name
        if re.fullmatch(r"[A-Za-z0-9_-]+", title) is None:
            raise ValueError(f"a dataset's name has letters, digits, - and _ only, got {title!r}")
        if not tolerance >= 0:
            raise ValueError(f"the tolerance must be at least 0 voxels, got {tolerance}")
        self.raw = nnunet_folder("nnUNet_raw")
        self.name = f"Dataset{dataset_id:03d}_{title}"
        self.target = self.raw / self.name
        self.staging = self.raw / f".{self.name}.converting"
        self.splits = nnunet_folder("nnUNet_preprocessed") / self.name / SPLITS
        others = [path.name for path in self.raw.glob(f"Dataset{dataset_id:03d}_*") if path.name != self.name]
        if others:
            raise ValueError(f"the number {dataset_id} is taken in {self.raw}: {', '.join(sorted(others))}")

    def settings(self) -> dict[str, Any]:
        """The settings that decide the converted files."""
        return {"release": self.release.key, "options": self.release.settings(), "link": self.link}

    def each(self, function: Callable[[Item], Answer], items: Sequence[Item], what: str) -> Iterator[Answer]:
        """Results of a function for cases or files, in their order, from worker processes; shows a bar."""
        return map_in_workers(function, items, self.processes, what if self.progress else None)

    def outputs(self, case: SourceCase) -> list[str]:
        """The case's files, relative to the dataset's folder."""
        return case.outputs(self.release.channels)


def finish(
    job: Job, result: Converted, description: dict[str, Any], splits: list[Split], source: Path
) -> None:
    """Writes dataset.json, split and record; then the staging folder takes the target's place."""
    record = {
        "version": RECORD_VERSION,
        **job.settings(),
        "source": str(source.resolve()),
        "locctx": __version__,
        **{name: value for name, value in asdict(result).items() if name in RECORDED},
        "files": digests(job, job.staging),
    }
    for name, content in (("dataset.json", description), (SPLITS, splits), (RECORD, record)):
        write_atomically(job.staging / name, to_json(content))
    job.staging.replace(job.target)
    (job.target / PROGRESS).unlink(missing_ok=True)
    write_splits(job, result)


def digests(job: Job, folder: Path) -> dict[str, str]:
    """File -> SHA-256, of the scans and segmentations below a folder; links are followed."""
    files = sorted(file for part in FOLDERS for file in (folder / part).glob("*.nii.gz"))
    return {
        file.relative_to(folder).as_posix(): value
        for file, value in zip(files, job.each(file_digest, files, "reading"), strict=True)
    }


def write_splits(job: Job, result: Converted) -> None:
    """Writes the split to nnUNet_preprocessed, where nnU-Net reads it; a changed split stays."""
    own = (job.target / SPLITS).read_bytes()
    if not job.splits.exists():
        job.splits.parent.mkdir(exist_ok=True)
        write_atomically(job.splits, own)
    elif read_json(job.splits) != json.loads(own):
        result.notes.append(f"{job.splits} has another split than {job.target / SPLITS}; left as it is")


def read_json(file: Path) -> Any:
    """Content of a file; None if it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def to_json(content: object) -> bytes:
    """Content as readable JSON."""
    return (json.dumps(content, indent=2) + "\n").encode()
