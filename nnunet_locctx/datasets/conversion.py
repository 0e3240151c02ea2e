"""From a release's folder to a data set in nnU-Net's raw format: checked first, written in one step, can be resumed.

A conversion writes to the hidden folder `.DatasetXXX_Name.converting` beside its target. A file there is whole or
absent, so a conversion that was stopped goes on with the cases that are missing. At the end the folder takes the
target's place.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from nnunet_locctx.datasets.conversion_record import (
    FOLDERS,
    PROGRESS,
    TOLERANCE,
    Converted,
    Job,
    check_splits,
    existing,
    finish,
    read_json,
)
from nnunet_locctx.datasets.grids import Grid
from nnunet_locctx.datasets.release import Copy, Listing, Release, SourceCase
from nnunet_locctx.datasets.release_files import check_case, read_grid
from nnunet_locctx.datasets.unusual_grids import unusual_grids
from nnunet_locctx.files import move_into_place, write_atomically
from nnunet_locctx.image_files import check_written
from nnunet_locctx.nnunet.data.workers import map_in_workers

Answer = TypeVar("Answer")


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
        release: What is converted, with its options.
        source: Folder of the release.
        dataset_id: nnU-Net's number, 1 to 999.
        name: Name after the number; None: the release's own.
        processes: Worker processes.
        link: Files that need no change become symbolic links.
        tolerance: Voxels by which the corners of the files of a case may lie apart.
        progress: Progress bars on stderr.

    Raises:
        ValueError: The arguments are not usable; the release has missing, superfluous or corrupt files (all are
            listed and nothing is written); another data set, or an unfinished conversion with other options, is there.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    job = Job(release, dataset_id, name, link, tolerance)
    if job.target.exists():
        return existing(job)
    listing = release.listing(source)
    if listing.problems:  # what is there is read all the same: one list says everything
        there = sorted(listing.cases + listing.incomplete, key=lambda case: case.name)
        corrupt = _check(job, there, processes, progress)
        raise ValueError(_complaint(source, listing.problems + corrupt))
    splits = release.splits(listing.cases)
    check_splits(job, splits)
    state = {**job.settings(), "files": _fingerprint(listing), "tolerance": tolerance}
    if not _was_checked(job, state):
        problems = _check(job, listing.cases, processes, progress)
        if problems:
            raise ValueError(_complaint(source, problems))
    description = release.description(release.root(source), sum(not case.test for case in listing.cases))
    result = _result(job, listing)
    result.resumed = _write(job, state, listing.cases, processes, progress)
    finish(job, result, description, splits, source)
    return result


def _complaint(source: Path, problems: Sequence[str]) -> str:
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = "\n".join(f"  {problem}" for problem in problems)
    return f"{number} in {source}; nothing was written\n{lines}"


def _fingerprint(listing: Listing) -> str:
    """Changes if a file of the release does."""
    digest = hashlib.sha256()
    for case in listing.cases:
        for file in case.files:
            status = file.stat()
            digest.update(f"{case.name}\0{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _was_checked(job: Job, state: dict[str, Any]) -> bool:
    """Whether a stopped conversion of the same files is there."""
    if not (job.staging / PROGRESS).exists():
        return False
    before = read_json(job.staging / PROGRESS)
    if before == state:
        return True
    raise ValueError(
        f"{job.staging} is an unfinished conversion of other files or with other options; go on with those, or remove "
        "it to begin anew"
    )


def _check(job: Job, cases: Sequence[SourceCase], processes: int, progress: bool) -> list[str]:
    check = functools.partial(_check_one, release=job.release, tolerance=job.tolerance)
    answers = _bar(map_in_workers(check, cases, processes), "checking", len(cases), progress)
    return [problem for found in answers for problem in found]


def _check_one(case: SourceCase, release: Release, tolerance: float) -> list[str]:
    return check_case(case, release.allowed(case), release.channels, tolerance)


def _write(
    job: Job, state: dict[str, Any], cases: Sequence[SourceCase], processes: int, progress: bool
) -> int:
    """Writes the cases that are not in the staging folder yet; returns the number of those that were."""
    job.staging.mkdir(exist_ok=True)
    write_atomically(job.staging / PROGRESS, json.dumps(state).encode())
    shutil.rmtree(job.staging / "working", ignore_errors=True)
    used = {Path(file).parent.name for case in cases for file in case.outputs(job.release.channels)}
    for folder in FOLDERS:
        if folder in used:
            (job.staging / folder).mkdir(exist_ok=True)
    left = [case for case in cases if not all((job.staging / file).is_file() for file in _outputs(job, case))]
    write = functools.partial(write_case, release=job.release, staging=job.staging, link=job.link)
    for _ in _bar(map_in_workers(write, left, processes), "converting", len(left), progress):
        pass
    shutil.rmtree(job.staging / "working", ignore_errors=True)
    return len(cases) - len(left)


def write_case(case: SourceCase, release: Release, staging: Path, link: bool) -> None:
    """Writes one case: to a working folder first, then each file in one step to its place."""
    working = staging / "working" / case.name
    for folder in FOLDERS:
        (working / folder).mkdir(parents=True)
    release.write(case, working, _copier(link))
    outputs = case.outputs(release.channels)
    missing = [file for file in outputs if not (working / file).is_file()]
    if missing:
        raise ValueError(f"{case.name}: the converter did not write {', '.join(missing)}")
    for file in outputs:
        if not (working / file).is_symlink():  # its target was checked
            check_written(working / file)
    for file in outputs:
        move_into_place(working / file, staging / file)
    shutil.rmtree(working)


def _copier(link: bool) -> Copy:
    def make_link(source: Path | str, target: Path | str) -> None:
        Path(target).symlink_to(Path(source).resolve())

    return make_link if link else shutil.copyfile


def _result(job: Job, listing: Listing) -> Converted:
    """What can be said before anything is written; compares all headers, those of the cases left out too."""
    left_out = {case.name: reason for case, reason in listing.left_out}
    grids: list[Grid] = []
    for case in [*listing.cases, *(case for case, _ in listing.left_out)]:
        grid = read_grid(case)
        if grid is not None:
            grids.append(grid)
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


def _outputs(job: Job, case: SourceCase) -> list[str]:
    return case.outputs(job.release.channels)


def _bar(items: Iterable[Answer], what: str, number: int, progress: bool) -> Iterator[Answer]:
    yield from tqdm(items, desc=what, total=number, unit="case", disable=not progress, leave=False)
