"""Changes a folder of predictions into another one: largest components, atlas masks, sides (`locctx postprocess`).

The files of the new folder keep name, grid and header of the old ones, and ``dataset.json`` goes with them.
``postprocessing.jsonl`` says how many voxels of each label each case lost; what it names and what is unchanged is not
done again.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.atlas import Atlas, mask_of_file, read_atlas
from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.label_files import (
    Description,
    LabelFile,
    check_label_files,
    fingerprint,
    frame_of,
    list_label_files,
    read_description,
    read_labels,
    refuse,
)
from nnunet_locctx.evaluation.records import Records
from nnunet_locctx.evaluation.sides import learn_sides, paired_labels
from nnunet_locctx.files import replacing, write_atomically
from nnunet_locctx.geometry import Frame
from nnunet_locctx.image_files import write_image
from nnunet_locctx.names import check_known
from nnunet_locctx.nnunet.data.reading import choose_reader
from nnunet_locctx.nnunet.data.workers import map_in_workers

RECORDS = "postprocessing.jsonl"


class Change(Protocol):
    """Changes one segmentation; can be pickled."""

    def __call__(self, segmentation: npt.NDArray[np.int32], frame: Frame) -> npt.NDArray[np.int32]:
        """(z, y, x) label values -> the same, changed; the input is left alone."""
        ...


@dataclass(frozen=True)
class LargestComponent:
    """nnU-Net's removal of all but the largest component, class after class.

    Attributes:
        classes: The label values of each class; those of a region are one component.
    """

    classes: tuple[tuple[int, ...], ...]

    def __call__(self, segmentation: npt.NDArray[np.int32], frame: Frame) -> npt.NDArray[np.int32]:
        from nnunetv2.postprocessing.remove_connected_components import (
            remove_all_but_largest_component_from_segmentation,
        )

        for values in self.classes:
            segmentation = remove_all_but_largest_component_from_segmentation(segmentation, [values])
        return segmentation


@dataclass(frozen=True)
class MaskByAtlas:
    """Atlas masking with the atlas of a file."""

    file: Path

    def __call__(self, segmentation: npt.NDArray[np.int32], frame: Frame) -> npt.NDArray[np.int32]:
        return mask_of_file(self.file).apply(segmentation, frame)


def largest_component(
    predictions: Path,
    output: Path,
    *,
    classes: Sequence[str] | None = None,
    dataset_json: Path | Mapping[str, Any] | None = None,
    processes: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Keeps the largest component of each class, with nnU-Net's own function (voxels that touch at a corner belong
    together; of components of one size all stay). Removed voxels become background.

    Args:
        predictions: Folder of predictions, as nnU-Net writes them.
        output: Folder of the results, another one.
        classes: Names of the classes; None: every foreground class (or region), in the order of ``dataset.json``.
        dataset_json: See :func:`~nnunet_locctx.evaluation.folders.evaluate_folders`.
        processes: Worker processes.
        progress: Show a bar.

    Returns:
        The files.

    Raises:
        ValueError: A class is unknown, or files cannot be used; nothing is written.
    """
    description = read_description(dataset_json, (predictions,))
    known = Classes.from_labels(description.labels)
    names = list(known.labels) if classes is None else list(classes)
    check_known(names, known.labels, "class")
    change = LargestComponent(tuple(known.values[name] for name in names))
    what = {"operation": "largest_component", "classes": [list(values) for values in change.classes]}
    return _change_folder(predictions, output, description, change, what, processes, progress)


def apply_atlas(
    atlas: Path,
    predictions: Path,
    output: Path,
    *,
    dataset_json: Path | Mapping[str, Any] | None = None,
    processes: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Makes predicted voxels background where the atlas says that their class does not occur.

    Args:
        atlas: File that :func:`~nnunet_locctx.evaluation.atlas_fit.fit_atlas` wrote.
        predictions: Folder of predictions, as nnU-Net writes them.
        output: Folder of the results, another one.
        dataset_json: See :func:`~nnunet_locctx.evaluation.folders.evaluate_folders`.
        processes: Worker processes.
        progress: Show a bar.

    Returns:
        The files.

    Raises:
        ValueError: The atlas is not one, is of other labels, or files cannot be used; nothing is written.
    """
    description = read_description(dataset_json, (predictions,))
    known = read_atlas(atlas)
    _check_labels(known, Classes.from_labels(description.labels), atlas)
    what = {"operation": "atlas", "atlas": fingerprint(atlas), "radius_mm": known.radius_mm}
    return _change_folder(
        predictions, output, description, MaskByAtlas(atlas.resolve()), what, processes, progress
    )


def repair_sides(
    labels: Path,
    predictions: Path,
    output: Path,
    *,
    dataset_json: Path | Mapping[str, Any] | None = None,
    processes: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Gives voxels of a left or right class that lie on the wrong side of the mid-plane to the twin
    (:mod:`~nnunet_locctx.evaluation.sides`).

    Args:
        labels: Folder of training labels that the sides are learned from; cases that are among the predictions are
            left out.
        predictions: Folder of predictions, as nnU-Net writes them.
        output: Folder of the results, another one.
        dataset_json: See :func:`~nnunet_locctx.evaluation.folders.evaluate_folders`.
        processes: Worker processes.
        progress: Show bars.

    Returns:
        The files.

    Raises:
        ValueError: No classes are twins, no training label is left, or files cannot be used; nothing is written.
    """
    description = read_description(dataset_json, (predictions, labels))
    classes = Classes.from_labels(description.labels)
    pairs = paired_labels(classes)
    predicted = list_label_files(predictions, description.file_ending)
    training = {
        case: file
        for case, file in list_label_files(labels, description.file_ending).items()
        if case not in predicted
    }
    if not training:
        raise ValueError(f"all cases of {labels} are among the predictions: no other case tells the sides")
    reader = choose_reader(description.content, next(iter(training.values())))
    files = [LabelFile(case, file, reader, classes.in_references) for case, file in training.items()]
    refuse(check_label_files(files, processes, progress=progress), "the training labels cannot be used")
    change = learn_sides(training, pairs, reader, processes, progress=progress)
    what = {"operation": "sides", "normal": list(change.normal), "limits": list(map(list, change.limits))}
    return _change_folder(predictions, output, description, change, what, processes, progress)


def _check_labels(atlas: Atlas, classes: Classes, file: Path) -> None:
    values = classes.known - {0}
    if set(atlas.cells) != values:
        raise ValueError(
            f"the atlas {file} is of the labels {sorted(atlas.cells)}, the predictions' dataset.json has "
            f"{sorted(values)}"
        )


@dataclass(frozen=True)
class _Job:
    source: Path
    target: Path
    reader: str
    change: Change


def _change_folder(
    predictions: Path,
    output: Path,
    description: Description,
    change: Change,
    what: Mapping[str, Any],
    processes: int,
    progress: bool,
) -> list[Path]:
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1, got {processes}")
    sources = list_label_files(predictions, description.file_ending)
    if output.exists() and (not output.is_dir() or output.resolve() == predictions.resolve()):
        raise ValueError(f"{output} must be another folder than the predictions'")
    reader = choose_reader(description.content, next(iter(sources.values())))
    records = Records(output / RECORDS)
    whats = {
        # earlier versions also changed files that were cut off, and wrote such
        case: {**what, "whole": True, "case": case, "prediction": fingerprint(file)}
        for case, file in sources.items()
    }
    targets = {case: output / file.name for case, file in sources.items()}
    due = [case for case in sources if not _is_done(records, whats[case], targets[case])]
    allowed = Classes.from_labels(description.labels).known
    files = [LabelFile(case, sources[case], reader, allowed) for case in due]
    refuse(check_label_files(files, processes, progress=progress), "the predictions cannot be used")
    output.mkdir(parents=True, exist_ok=True)
    jobs = [_Job(sources[case], targets[case], reader, change) for case in due]
    answers = map_in_workers(_change, jobs, processes)
    records.add_all(
        [whats[case] for case in due], answers, total=len(sources), title="postprocessing", progress=progress
    )
    text = json.dumps(dict(description.content), indent=1) + "\n"
    write_atomically(output / "dataset.json", text.encode())
    plans = predictions / "plans.json"
    if plans.is_file():
        with replacing(output / "plans.json") as draft:
            shutil.copyfile(plans, draft)
    return list(targets.values())


def _is_done(records: Records, what: Mapping[str, Any], target: Path) -> bool:
    return what in records and target.is_file() and fingerprint(target) == records.get(what)["output"]


def _change(job: _Job) -> dict[str, Any]:
    """Writes one file; returns its fingerprint and the voxels that each label lost."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    segmentation, properties = read_labels(job.source, job.reader)
    changed = job.change(segmentation, frame_of(properties, segmentation.shape))
    writer = recursive_find_reader_writer_by_name(job.reader)()
    write_image(
        job.target,
        changed,
        lambda draft: writer.write_seg(changed, str(draft), properties),
        lambda draft: read_labels(draft, job.reader)[0],
    )
    labels, counts = np.unique(segmentation[segmentation != changed], return_counts=True)
    removed = {str(label): int(count) for label, count in zip(labels, counts, strict=True)}
    return {"output": fingerprint(job.target), "removed_voxels": removed}
