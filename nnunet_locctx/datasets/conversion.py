"""Converts a release's folder to nnU-Net's raw format: checked first, resumable, published in one step.

A conversion writes to the hidden folder `.DatasetXXX_Name.converting` beside its target. Each file in it is complete,
so a stopped conversion goes on with the missing cases. At the end the folder is renamed to the target, with a record of
the source, the options and the SHA-256 of every file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from nnunet_locctx import files
from nnunet_locctx.datasets.acdc import Acdc
from nnunet_locctx.datasets.amos22 import Amos22
from nnunet_locctx.datasets.brats import Brats
from nnunet_locctx.datasets.btcv import Btcv, Synapse
from nnunet_locctx.datasets.grids import unusual_grids
from nnunet_locctx.datasets.job import (
    FOLDERS,
    PROGRESS,
    RECORD,
    RECORD_VERSION,
    RECORDED,
    SPLITS,
    TOLERANCE,
    Converted,
    Job,
    digests,
    finish,
    read_json,
    to_json,
    write_splits,
)
from nnunet_locctx.datasets.kits23 import Kits23
from nnunet_locctx.datasets.release import UNREADABLE, Listing, Release, SourceCase, check_case, read_grid
from nnunet_locctx.image_files import check_written

RELEASES: dict[str, type[Release]] = {
    release.key: release for release in (Synapse, Btcv, Amos22, Kits23, Acdc, Brats)
}
"""The releases that `locctx convert` knows, by name."""


def convert(
    release: Release,
    source: Path,
    dataset_id: int,
    name: str | None = None,
    *,
    processes: int = 1,
    link: bool = False,
    tolerance: float = TOLERANCE,
    progress: bool = True,
) -> Converted:
    """Converts a release into nnUNet_raw, and writes its split to nnUNet_preprocessed too.

    Args:
        release: The release and its options.
        source: Folder of the release.
        dataset_id: nnU-Net's number, 1 to 999.
        name: Name after the number; None: the release's own.
        processes: Worker processes.
        link: Make symbolic links to files that need no change.
        tolerance: Largest distance in voxels between the corners of a case's files.
        progress: Progress bars on stderr.

    Raises:
        ValueError: An argument is not usable; the release has missing, superfluous or corrupt files (all are listed and
            nothing is written); the target exists and holds another dataset, or an unfinished conversion with other
            options.
    """
    job = Job(release, dataset_id, name, link, tolerance, processes, progress)
    if job.target.exists():
        return _existing(job, source)
    listing = release.listing(source)
    if listing.problems:  # the present files are checked too, so that one message lists all problems
        present = sorted(listing.cases + listing.incomplete, key=lambda case: case.name)
        corrupt = _check(job, present)
        raise ValueError(_complaint(source, listing.problems + corrupt))
    splits = release.splits(listing.cases)
    if job.splits.exists() and read_json(job.splits) != splits:
        raise ValueError(f"{job.splits} exists and holds another split than this conversion's; move it away")
    state = {**job.settings(), "files": _fingerprint(listing), "tolerance": tolerance}
    if not _was_checked(job, state):
        problems = _check(job, listing.cases)
        if problems:
            raise ValueError(_complaint(source, problems))
    description = release.description(release.root(source), sum(not case.test for case in listing.cases))
    result = _result(job, listing)
    result.resumed = _write(job, state, listing.cases)
    finish(job, result, description, splits, source)
    return result


def _complaint(source: Path, problems: Sequence[str]) -> str:
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = "\n".join(f"  {problem}" for problem in problems)
    return f"{number} in {source}; nothing was written\n{lines}"


def _fingerprint(listing: Listing) -> str:
    """A digest that changes when a file of the release changes."""
    digest = hashlib.sha256()
    for case in listing.cases:
        for file in case.files:
            status = file.stat()
            digest.update(f"{case.name}\0{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _was_checked(job: Job, state: dict[str, Any]) -> bool:
    """Whether a stopped conversion has already checked the same files."""
    if not (job.staging / PROGRESS).exists():
        return False
    before = read_json(job.staging / PROGRESS)
    if before == state:
        return True
    raise ValueError(
        f"{job.staging} is an unfinished conversion of other files or with other options; go on with those, or remove "
        "it to begin anew"
    )


def _check(job: Job, cases: Sequence[SourceCase]) -> list[str]:
    check = functools.partial(_check_one, release=job.release, tolerance=job.tolerance)
    return [problem for problems in job.each(check, cases, "checking") for problem in problems]


def _check_one(case: SourceCase, release: Release, tolerance: float) -> list[str]:
    return check_case(case, release.allowed(case), release.channels, tolerance)


def _write(job: Job, state: dict[str, Any], cases: Sequence[SourceCase]) -> int:
    """Writes the cases that the staging folder lacks; returns the number of cases that it already had."""
    job.staging.mkdir(exist_ok=True)
    files.write_atomically(job.staging / PROGRESS, json.dumps(state).encode())
    shutil.rmtree(job.staging / "working", ignore_errors=True)
    for folder in {Path(file).parent.name for case in cases for file in job.outputs(case)}:
        (job.staging / folder).mkdir(exist_ok=True)
    left = [case for case in cases if not all((job.staging / file).is_file() for file in job.outputs(case))]
    write = functools.partial(write_case, release=job.release, staging=job.staging, link=job.link)
    for _ in job.each(write, left, "converting"):
        pass
    shutil.rmtree(job.staging / "working", ignore_errors=True)
    return len(cases) - len(left)


def write_case(case: SourceCase, release: Release, staging: Path, link: bool) -> None:
    """Writes one case to a working folder, then moves each file into place in one step."""
    working = staging / "working" / case.name
    _make(case, release, working, link)
    for file in case.outputs(release.channels):
        files.move_into_place(working / file, staging / file)
    shutil.rmtree(working)


def _make(case: SourceCase, release: Release, working: Path, link: bool) -> None:
    """Writes one case into its own folder and checks that all of its files are complete."""
    for folder in FOLDERS:
        (working / folder).mkdir(parents=True)
    release.write(case, working, files.link if link else shutil.copyfile)
    outputs = case.outputs(release.channels)
    missing = [file for file in outputs if not (working / file).is_file()]
    if missing:
        raise ValueError(f"{case.name}: the converter did not write {', '.join(missing)}")
    for file in outputs:
        if not (working / file).is_symlink():  # the target of the link was checked
            check_written(working / file)


def _result(job: Job, listing: Listing) -> Converted:
    """The result, made before anything is written; compares all headers, including those of left-out cases."""
    left_out = {case.name: reason for case, reason in listing.left_out}
    cases = [*listing.cases, *(case for case, _ in listing.left_out)]
    grids = [grid for case in cases if (grid := read_grid(case)) is not None]
    unusual: dict[str, list[str]] = {}
    for item in unusual_grids(grids):
        unusual.setdefault(item.case, []).append(item.message)
    for name in left_out:
        if name not in {grid.name for grid in grids}:
            unusual[name] = ["its header cannot be read"]
    return Converted(
        folder=job.target,
        training=sorted(case.name for case in listing.cases if not case.test),
        testing=sorted(case.name for case in listing.cases if case.test),
        splits=job.splits,
        notes=list(listing.notes),
        left_out=left_out,
        unusual=unusual,
    )


def _existing(job: Job, source: Path) -> Converted:
    """Compares an existing dataset with its record. A record of version 1 holds sizes only: then with the release."""
    record = read_json(job.target / RECORD)
    if not isinstance(record, dict) or "files" not in record:
        raise ValueError(f"{job.target} exists and was not made by `locctx convert`; choose another number")
    differing = [key for key, value in job.settings().items() if record.get(key) != value]
    if differing:
        raise ValueError(
            f"{job.target} exists and was converted with other settings: "
            + "; ".join(f"{key} was {record.get(key)}, is now {job.settings()[key]}" for key in differing)
            + ". Choose another number, or remove it."
        )
    names = [*record["files"], "dataset.json", SPLITS]
    missing = {name for name in names if not (job.target / name).is_file()}
    now = digests(job, job.target)
    if record["version"] == RECORD_VERSION:
        changed = {name for name, known in record["files"].items() if now.get(name) != known}
    else:
        changed = _unlike_the_release(job, source, record)
    problems = [f"changed: {name}" for name in record["files"] if name in changed - missing]
    problems = [f"missing: {name}" for name in names if name in missing] + problems
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(f"{job.target} is no longer what was converted; remove it to convert anew\n{lines}")
    if record["version"] != RECORD_VERSION:
        record |= {"version": RECORD_VERSION, "files": {name: now[name] for name in record["files"]}}
        files.write_atomically(job.target / RECORD, to_json(record))
    result = Converted(
        job.target, splits=job.splits, existed=True, **{name: record[name] for name in RECORDED}
    )
    (job.target / PROGRESS).unlink(missing_ok=True)  # left by a stop just before the end
    write_splits(job, result)
    return result


def _unlike_the_release(job: Job, source: Path, record: dict[str, Any]) -> set[str]:
    """The dataset's files that differ from a new conversion of the release.

    Raises:
        ValueError: The release lacks cases that were converted.
    """
    listing = job.release.listing(source)
    cases = {case.name: case for case in listing.cases}
    absent = sorted({*record["training"], *record["testing"]} - set(cases))
    if absent:
        raise ValueError(
            f"{job.target} was converted by an earlier version, which recorded the sizes of its files only, so it is "
            f"compared with the release; {source} lacks {', '.join(absent)}"
        )
    compare = functools.partial(_changed_files, release=job.release, target=job.target)
    converted = [cases[name] for name in (*record["training"], *record["testing"])]
    return {file for files in job.each(compare, converted, "comparing") for file in files}


def _changed_files(case: SourceCase, release: Release, target: Path) -> list[str]:
    """The case's files whose voxels or geometry differ from a new conversion."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.comparing") as folder:
        _make(case, release, Path(folder), link=True)
        return [
            file
            for file in case.outputs(release.channels)
            if (target / file).is_file() and not _same_image(target / file, Path(folder) / file)
        ]


def _same_image(first: Path, second: Path) -> bool:
    """Whether two files have equal voxels and geometry; compression may differ between libraries."""
    if files.file_digest(first) == files.file_digest(second):
        return True
    try:
        images: list[Any] = [nibabel.load(file) for file in (first, second)]
        voxels = [np.asanyarray(image.dataobj) for image in images]
    except UNREADABLE:
        return False
    return np.array_equal(*voxels) and np.allclose(images[0].affine, images[1].affine, atol=1e-4)
