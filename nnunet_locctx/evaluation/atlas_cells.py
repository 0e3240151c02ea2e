"""The cells of many cases, worked out in processes of their own and kept while an atlas is made."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.atlas_grid import Grid, occupied_cells
from nnunet_locctx.evaluation.label_files import frame_of, read_labels
from nnunet_locctx.files import replacing
from nnunet_locctx.nnunet.data.workers import map_in_workers

Cells = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _CellsJob:
    file: Path
    reader: str
    grid: Grid
    labels: tuple[int, ...]
    kept: Path


def keep_cells(
    files: Mapping[Path, str], reader: str, grid: Grid, labels: Sequence[int], folder: Path, processes: int
) -> Iterator[Path]:
    """Writes the cells of each label file (file -> fingerprint of its content) to the folder, unless they are there.

    Yields:
        The written files, in order.
    """
    jobs = []
    for file, stamp in files.items():
        name = hashlib.sha256(repr((stamp, grid, tuple(labels))).encode()).hexdigest()[:32]
        jobs.append(_CellsJob(file, reader, grid, tuple(labels), folder / f"{name}.npz"))
    yield from map_in_workers(_keep_cells, jobs, processes)


def count_cells(files: Sequence[Path], labels: Sequence[int]) -> dict[int, tuple[Cells, Cells]]:
    """Label -> the cells (flat index) of all cases, and how many cases have each."""
    found = {}
    for label in labels:
        lists = []
        for file in files:
            with np.load(file) as stored:
                lists.append(stored[str(label)])
        cells, counts = np.unique(np.concatenate(lists), return_counts=True)
        found[label] = (cells.astype(np.int64), counts.astype(np.int64))
    return found


def _keep_cells(job: _CellsJob) -> Path:
    """Writes the cells of a case, unless an interrupted run left them."""
    if not job.kept.is_file():
        segmentation, properties = read_labels(job.file, job.reader)
        frame = frame_of(properties, segmentation.shape)
        found = occupied_cells(segmentation, frame, job.grid, job.labels)
        with replacing(job.kept) as draft:
            arrays: dict[str, Any] = {str(label): cells for label, cells in found.items()}
            np.savez(draft, **arrays)
    return job.kept
