"""A converted data set as a whole: where it goes, the record of what it was made from, and its split."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_locctx import __version__
from nnunet_locctx.datasets.release import Release, Split
from nnunet_locctx.files import write_atomically
from nnunet_locctx.nnunet.data.paths import nnunet_folder

RECORD = "conversion.json"
"""In the data set's folder: what it was made from, with the size of every file."""

SPLITS = "splits_final.json"

PROGRESS = "progress.json"
"""In the folder of a conversion under way: what is converted, and that it was checked."""

TOLERANCE = 0.5
"""Voxels by which the grids of a case's files may differ by default."""

FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")


@dataclass
class Converted:
    """The result of :func:`convert`.

    Attributes:
        folder: The data set.
        training: Names of the training cases.
        testing: Names of the test cases.
        existed: Nothing was done because the data set was there, whole.
        resumed: Cases that an earlier, stopped conversion had written.
        splits: splits_final.json in nnUNet_preprocessed.
        notes: Worth telling.
        left_out: Case -> why it was not converted.
        unusual: Case -> what is unlike the other cases in its header (converted or left out).
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
    """One conversion: where to, and with which options."""

    def __init__(
        self, release: Release, dataset_id: int, name: str | None, link: bool, tolerance: float
    ) -> None:
        self.release = release
        self.link = link
        self.tolerance = tolerance
        if not 1 <= dataset_id <= 999:
            raise ValueError(f"a data set's number is 1 to 999, got {dataset_id}")
        title = release.title if name is None else name
        if re.fullmatch(r"[A-Za-z0-9_-]+", title) is None:
            raise ValueError(f"a data set's name has letters, digits, - and _ only, got {title!r}")
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
        """What must be equal for two conversions to give the same."""
        return {"release": self.release.key, "options": self.release.settings(), "link": self.link}


def finish(
    job: Job, result: Converted, description: dict[str, Any], splits: list[Split], source: Path
) -> None:
    """Writes dataset.json, split and record; then the staging folder takes the target's place."""
    files = [file for folder in FOLDERS for file in (job.staging / folder).glob("*.nii.gz")]
    record = {
        "version": 1,
        **job.settings(),
        "source": str(source.resolve()),
        "locctx": __version__,
        "training": result.training,
        "testing": result.testing,
        "notes": result.notes,
        "left_out": result.left_out,
        "unusual": result.unusual,
        "files": {file.relative_to(job.staging).as_posix(): file.stat().st_size for file in sorted(files)},
    }
    write_atomically(job.staging / "dataset.json", to_json(description))
    write_atomically(job.staging / SPLITS, to_json(splits))
    write_atomically(job.staging / RECORD, to_json(record))
    job.staging.replace(job.target)
    (job.target / PROGRESS).unlink(missing_ok=True)
    _write_splits(job, result)


def _write_splits(job: Job, result: Converted) -> None:
    """The split where nnU-Net looks for it; one that was changed since is left alone."""
    wanted = (job.target / SPLITS).read_bytes()
    if not job.splits.exists():
        job.splits.parent.mkdir(exist_ok=True)
        write_atomically(job.splits, wanted)
    elif json.loads(job.splits.read_bytes()) != json.loads(wanted):
        result.notes.append(f"{job.splits} has another split than {job.target / SPLITS}; left as it is")


def check_splits(job: Job, splits: list[Split]) -> None:
    """Raises ValueError if nnUNet_preprocessed holds another split under the data set's name."""
    if job.splits.exists() and read_json(job.splits) != splits:
        raise ValueError(f"{job.splits} exists and holds another split than this conversion's; move it away")


def existing(job: Job) -> Converted:
    """Compares a data set that is there with its record."""
    record = read_json(job.target / RECORD)
    if not isinstance(record, dict) or "files" not in record:
        raise ValueError(f"{job.target} exists and was not made by `locctx convert`; choose another number")
    differing = [key for key, value in job.settings().items() if record.get(key) != value]
    if differing:
        raise ValueError(
            f"{job.target} exists and was converted with other settings: "
            + "; ".join(f"{key} {record.get(key)} there, {job.settings()[key]} now" for key in differing)
            + ". Choose another number, or remove it."
        )
    problems = [
        f"{'changed' if (job.target / file).is_file() else 'missing'}: {file}"
        for file, size in record["files"].items()
        if not (job.target / file).is_file() or (job.target / file).stat().st_size != size
    ]
    problems += [f"missing: {file}" for file in ("dataset.json", SPLITS) if not (job.target / file).is_file()]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(f"{job.target} is no longer what was converted; remove it to convert anew\n{listed}")
    result = Converted(
        folder=job.target,
        training=record["training"],
        testing=record["testing"],
        splits=job.splits,
        existed=True,
        notes=list(record["notes"]),
        left_out=record["left_out"],
        unusual=record["unusual"],
    )
    (job.target / PROGRESS).unlink(missing_ok=True)  # a stop just before the end may have left it
    _write_splits(job, result)
    return result


def read_json(file: Path) -> Any:
    """Content of a file; None if it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def to_json(content: object) -> bytes:
    """Content of a file that people may read too."""
    return (json.dumps(content, indent=2) + "\n").encode()
