"""Writes a postprocessed copy of a folder of predictions: largest components, atlas masks, sides (`locctx
postprocess`).

The new files keep name, grid and header of the old ones; ``dataset.json`` is copied. ``postprocessing.jsonl`` records
the number of voxels that each case lost per label. A recorded case is not processed again unless a file has changed.
"""

import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.atlas import mask_of_file, read_atlas
from nnunet_locctx.evaluation.label_files import (
    Description,
    LabelFile,
    check_label_files,
    read_description,
    read_labels,
)
from nnunet_locctx.evaluation.records import Records
from nnunet_locctx.evaluation.sides import learn_sides, paired_labels
from nnunet_locctx.files import file_digest, replacing, write_atomically
from nnunet_locctx.geometry import Frame
from nnunet_locctx.image_files import write_image
from nnunet_locctx.names import check_known, named
from nnunet_locctx.nnunet.data.reading import choose_reader
from nnunet_locctx.nnunet.data.workers import map_in_workers

RECORDS = "postprocessing.jsonl"


class Change(Protocol):
    """Changes one segmentation; can be pickled."""

    def __call__(self, segmentation: npt.NDArray[np.int32], frame: Frame) -> npt.NDArray[np.int32]:
        """(z, y, x) label values -> a changed copy."""
        ...


@dataclass(frozen=True)
class LargestComponent:
    """nnU-Net's removal of all but the largest component, class after class.

    Attributes:
        classes: Label values of each class; the values of a region form one component.
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
    """Keeps the largest component of each class, by nnU-Net's own function. Removed voxels become background.

    Voxels that touch at a corner belong together. Components of one size all stay.

    Args:
        predictions: Folder of predictions, as nnU-Net writes them.
        output: Folder of the results; must be another one.
        classes: Names of the classes; None: every foreground class (or region), in the order of ``dataset.json``.
        dataset_json: See :func:`~nnunet_locctx.evaluation.folders.evaluate_folders`.
        processes: Worker processes.
        progress: Show a bar.

    Returns:
        The files.

    Raises:
        ValueError: A class is unknown, files cannot be used, or the folder holds files of these names that another
            command wrote; nothing is written.
    """
    description = read_description(dataset_json, (predictions,))
    values = description.classes.values
    names = list(values) if classes is None else list(classes)
    check_known(names, values, "class")
    change = LargestComponent(tuple(values[name] for name in names))
    key = {"operation": "largest_component", "classes": [list(one) for one in change.classes]}
    return _change_folder(predictions, output, description, change, key, processes, progress)


def apply_atlas(
    atlas: Path,
    predictions: Path,
    output: Path,
    *,
    dataset_json: Path | Mapping[str, Any] | None = None,
    processes: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Makes predicted voxels background where their class does not occur according to the atlas.

    Args:
        atlas: File that :func:`~nnunet_locctx.evaluation.atlas_fit.fit_atlas` wrote.
        predictions, output, dataset_json, processes, progress: See :func:`largest_component`.

    Returns:
        The files.

    Raises:
        ValueError: The file is no atlas, its labels differ from the predictions', or files cannot be used; nothing is
            written.
    """
    description = read_description(dataset_json, (predictions,))
    mask = read_atlas(atlas)
    values = description.classes.known - {0}
    if set(mask.cells) != values:
        raise ValueError(
            f"the atlas {atlas} is of the labels {sorted(mask.cells)}, the predictions' dataset.json has "
            f"{sorted(values)}"
        )
    key = {"operation": "atlas", "atlas": file_digest(atlas), "radius_mm": mask.radius_mm}
    change = MaskByAtlas(atlas.resolve())
    return _change_folder(predictions, output, description, change, key, processes, progress)


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
    (:mod:`~nnunet_locctx.evaluation.sides`). Predictions that show one side only stay as they are.

    Args:
        labels: Folder of the training labels that show the sides; cases that are among the predictions are left out.
        predictions, output, dataset_json, processes, progress: See :func:`largest_component`.

    Returns:
        The files.

    Raises:
        ValueError: No two classes are twins, no training label is left, or files cannot be used; nothing is written.
    """
    description = read_description(dataset_json, (predictions, labels))
    classes, pairs = description.classes, paired_labels(description.classes)
    predicted = description.list_files(predictions)
    training = {case: file for case, file in description.list_files(labels).items() if case not in predicted}
    if not training:
        raise ValueError(f"all cases of {labels} are among the predictions: no other case tells the sides")
    reader = choose_reader(description.content, next(iter(training.values())))
    files = [(LabelFile(case, file, reader, classes.in_references),) for case, file in training.items()]
    check_label_files(files, processes, "the training labels cannot be used", progress=progress)
    change = learn_sides(list(training.values()), pairs, reader, processes, progress=progress)
    limits = list(map(list, change.limits))
    key = {"operation": "sides", "normal": list(change.normal), "limits": limits, "spread": change.spread}
    return _change_folder(predictions, output, description, change, key, processes, progress)


def _change_folder(
    predictions: Path,
    output: Path,
    description: Description,
    change: Change,
    operation: Mapping[str, Any],
    processes: int,
    progress: bool,
) -> list[Path]:
    """Changes every file of a folder; `operation` identifies the change in the records."""
    sources = description.list_files(predictions)
    if output.exists() and (not output.is_dir() or output.resolve() == predictions.resolve()):
        raise ValueError(f"{output} must be another folder than the predictions'")
    reader = choose_reader(description.content, next(iter(sources.values())))
    records = Records(output / RECORDS)
    targets = {case: output / file.name for case, file in sources.items()}
    foreign = [] if records.file.exists() else [file.name for file in targets.values() if file.exists()]
    if foreign:
        raise ValueError(
            f"{output} holds {named(foreign, 5)}, which locctx postprocess did not write; name another folder"
        )
    keys = {
        # earlier versions also changed truncated files
        case: {**operation, "whole": True, "case": case, "prediction": file_digest(file)}
        for case, file in sources.items()
    }

    def is_done(case: str) -> bool:
        written = targets[case].is_file() and keys[case] in records
        return written and file_digest(targets[case]) == records.get(keys[case])["output"]

    known = description.classes.known
    due = [LabelFile(case, file, reader, known) for case, file in sources.items() if not is_done(case)]
    check_label_files([(one,) for one in due], processes, "the predictions cannot be used", progress=progress)
    output.mkdir(parents=True, exist_ok=True)
    records.file.touch()  # whose files these are, even if the first is not recorded
    work = functools.partial(_change, folder=output, change=change)
    results = map_in_workers(work, due, processes, "postprocessing" if progress else None)
    for one, result in zip(due, results, strict=True):
        records.add(keys[one.case], result)
    text = json.dumps(dict(description.content), indent=1) + "\n"
    write_atomically(output / "dataset.json", text.encode())
    plans = predictions / "plans.json"
    if plans.is_file():
        with replacing(output / "plans.json") as draft:
            shutil.copyfile(plans, draft)
    return list(targets.values())


def _change(source: LabelFile, folder: Path, change: Change) -> dict[str, Any]:
    """Writes one file; returns its digest and the number of voxels that each label lost."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    scan, target = read_labels(source.file, source.reader), folder / source.file.name
    segmentation = scan.labels
    changed = change(segmentation, scan.frame)
    writer = recursive_find_reader_writer_by_name(source.reader)()
    write_image(
        target,
        changed,
        lambda draft: writer.write_seg(changed, str(draft), scan.properties),
        lambda draft: read_labels(draft, source.reader).labels,
    )
    labels, counts = np.unique(segmentation[segmentation != changed], return_counts=True)
    removed = {str(label): int(count) for label, count in zip(labels, counts, strict=True)}
    return {"output": file_digest(target), "removed_voxels": removed}
