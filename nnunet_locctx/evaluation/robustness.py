"""Measures the Dice of a trained model with a wrong location (`locctx robustness`).

Every scan is preprocessed once and predicted with each of the errors of
:mod:`~nnunet_locctx.evaluation.wrong_location`; errors that lead to the same location share one prediction. The error
is added to the location channels of the preprocessed scan, before nnU-Net pads it for the sliding window; image and
padding do not change. nnU-Net's own export resamples the predictions to the scan's grid, and its evaluator compares
them with the label.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.records import Records
from nnunet_locctx.evaluation.wrong_location import Change, Design, axis_lengths, wrong_location
from nnunet_locctx.files import file_digest
from nnunet_locctx.image_files import check_whole
from nnunet_locctx.names import named
from nnunet_locctx.nnunet.predicting.prediction import LocatedModel, PreparedScan, load_located_model

RECORDS = "robustness.jsonl"


@dataclass(frozen=True)
class Case:
    """One labelled scan.

    Attributes:
        name: Case identifier.
        images: One file per channel.
        label: Its segmentation.
    """

    name: str
    images: tuple[Path, ...]
    label: Path


def list_cases(images: Path, labels: Path, file_ending: str, channels: int) -> list[Case]:
    """The scans of a folder in nnU-Net's naming, with their labels.

    Args:
        images: Folder of ``CASE_0000.ENDING`` files, one per channel.
        labels: Folder of ``CASE.ENDING`` files.
        file_ending: File ending of the model's dataset.
        channels: Image files per case.

    Raises:
        ValueError: A folder is missing, there are no scans, or a case has another number of files or no label.
    """
    from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder

    for folder in (images, labels):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    names = [str(name) for name in get_identifiers_from_splitted_dataset_folder(str(images), file_ending)]
    if not names:
        raise ValueError(f"{images} has no files that end in {file_ending}, as the model's dataset does")
    files = sorted(file.name for file in images.iterdir())
    cases = []
    for name in names:
        channel_files = create_paths_fn(str(images), files, file_ending, name)
        if len(channel_files) != channels:
            raise ValueError(
                f"case {name!r} of {images} has {len(channel_files)} files named {name}_XXXX{file_ending}, the "
                f"model takes {channels} (one per channel)"
            )
        cases.append(Case(name, tuple(Path(file) for file in channel_files), labels / f"{name}{file_ending}"))
    missing = [case.label.name for case in cases if not case.label.is_file()]
    if missing:
        raise ValueError(f"{labels} lacks labels: {named(missing, 5)}")
    return cases


def load_models(
    folders: Sequence[Path],
    names: Sequence[str] | None = None,
    *,
    fold: str | None = None,
    device: str | None = None,
    mirroring: bool = False,
) -> dict[str, LocatedModel]:
    """Loads the models to compare.

    Args:
        folders: Trained models' folders (TRAINER__PLANS__CONFIGURATION), of one dataset.
        names: The models' names in tables and pictures; None: the trainer, the folder, or the folder with its parent,
            whichever is the first to differ.
        fold: The fold of each model; None: its first existing fold.
        device: Torch device; None: the GPU if there is one.
        mirroring: Average predictions of mirrored patches.

    Raises:
        ValueError: A model cannot be used (:func:`~nnunet_locctx.nnunet.predicting.prediction.load_located_model`),
            the models do not segment the same classes of the same files, or the names are not one for each.
    """
    if not folders:
        raise ValueError("no model is named")
    paths = [folder.resolve() for folder in folders]
    repeated = sorted({str(path) for path in paths if paths.count(path) > 1})
    if repeated:
        raise ValueError(f"the model {repeated[0]} was given more than once")
    chosen = _default_names(paths) if names is None else list(names)
    if len(chosen) != len(folders) or len(set(chosen)) != len(chosen) or not all(chosen):
        raise ValueError(f"{len(folders)} models need as many different names, got {chosen}")
    first, *others = models = [
        load_located_model(folder, fold, device=device, mirroring=mirroring, progress=False)
        for folder in folders
    ]
    for model in others:
        for subject, one, other in zip(
            ("classes", "file ending", "number of channels"), _data_of(first), _data_of(model), strict=True
        ):
            if one != other:
                raise ValueError(
                    f"models to compare must be of one dataset, but {first.folder} and {model.folder} differ in their "
                    f"{subject}: {one} and {other}"
                )
    return dict(zip(chosen, models, strict=True))


def _data_of(model: LocatedModel) -> tuple[object, str, int]:
    """Classes, file ending and number of channels."""
    content = model.dataset_json
    return Classes.from_labels(content["labels"]).labels, content["file_ending"], model.channels


class Robustness:
    """The Dice of several models under several errors of their location.

    Args:
        models: The models by name.
        images: Folder of scans.
        labels: Folder of their labels.
        design: The errors.
        output: Folder of the results; :meth:`run` makes it.

    Raises:
        ValueError: Scans and labels cannot be used (:func:`list_cases`), or the folder holds no results of a robustness
            run.
    """

    def __init__(
        self, models: Mapping[str, LocatedModel], images: Path, labels: Path, design: Design, output: Path
    ) -> None:
        first = next(iter(models.values()))
        self.models, self.design, self.output = dict(models), design, output
        self.labels: dict[str, Any] = first.dataset_json["labels"]
        self.cases = list_cases(images, labels, first.dataset_json["file_ending"], first.channels)
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output} is a file; the results need a folder")
        self.records = Records(output / RECORDS)
        self._fingerprints = {name: model.fingerprint() for name, model in models.items()}
        self._folders = {"images": str(images.resolve()), "labels": str(labels.resolve())}
        self._files = {
            case.name: [file_digest(file) for file in (*case.images, case.label)] for case in self.cases
        }

    def run(self, *, progress: bool = True) -> None:
        """Predicts every case and change that no earlier run has predicted.

        Raises:
            ValueError: A scan has no usable geometry or intensities, or a label does not fit its image.
        """
        changes = self.design.changes()
        self.output.mkdir(parents=True, exist_ok=True)
        due = {
            (name, case): [change for change in changes if self._key(name, case, change) not in self.records]
            for name in self.models
            for case in self.cases
        }
        left = sum(map(len, due.values()))
        total = len(due) * len(changes)
        with tqdm(total=total, initial=total - left, unit="prediction", disable=not progress) as bar:
            for (name, case), due_changes in due.items():
                if due_changes:
                    bar.set_description(f"{name}, {case.name}")
                    self._predict(name, case, due_changes, bar)

    def dice(self, model: str, case: Case, change: Change) -> dict[str, float]:
        """Class name -> Dice of one prediction; NaN if the class is in neither label nor prediction.

        Raises:
            KeyError: It has not been predicted.
        """
        stored = self.records.get(self._key(model, case, change))
        return {name: math.nan if value is None else value for name, value in stored.items()}

    def _key(self, model: str, case: Case, change: Change) -> dict[str, Any]:
        key: dict[str, Any] = {
            "model": self._fingerprints[model],
            "mirroring": bool(self.models[model].predictor.use_mirroring),
            **self._folders,
            "case": case.name,
            "files": self._files[case.name],
            "change": change.kind,
            "axes": change.axes,
            "percent": change.percent,
        }
        return {**key, "seed": self.design.seed} if change.kind == "noise" else key

    def _predict(self, name: str, case: Case, changes: Sequence[Change], bar: Any) -> None:
        model = self.models[name]
        reader = model.predictor.plans_manager.image_reader_writer_class()
        scan = model.prepare(case.images)
        _check_label(case, reader, scan, model)
        true = scan.location.copy()
        lengths = axis_lengths(model.source, scan.frame)
        measured: dict[bytes, dict[str, float | None]] = {}
        with tempfile.TemporaryDirectory(prefix="locctx-") as folder:
            predicted = Path(folder) / case.label.name
            for change in changes:
                scan.location[:] = wrong_location(
                    true, scan.frame, lengths, change, case=case.name, seed=self.design.seed
                )
                model.locator.hide_unseen(scan.location, true)  # as for a scan with such a location
                location = scan.location.tobytes()
                if location not in measured:  # several large shifts leave the same axes unknown
                    model.export(model.logits(scan.data), scan, predicted)
                    dice = file_dice(case.label, predicted, self.labels, reader)
                    measured[location] = {
                        label: None if math.isnan(value) else value for label, value in dice.items()
                    }
                self.records.add(self._key(name, case, change), measured[location])
                bar.update()


def file_dice(reference: Path, prediction: Path, labels: Mapping[str, Any], reader: Any) -> dict[str, float]:
    """Class name -> Dice of one predicted file by nnU-Net's evaluator (a fraction; NaN if in neither file).

    Args:
        reference: The true segmentation.
        prediction: The predicted one, on the same grid.
        labels: The ``labels`` of the dataset's ``dataset.json``.
        reader: nnU-Net's reader of the files.

    Raises:
        BrokenFileError: A file is truncated.
    """
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics

    for file in (reference, prediction):
        check_whole(file)
    classes = Classes.from_labels(labels)
    values = list(classes.labels.values())
    metrics = compute_metrics(str(reference), str(prediction), reader, values, classes.ignore)["metrics"]
    return {name: float(metrics[label]["Dice"]) for name, label in classes.labels.items()}


def _check_label(case: Case, reader: Any, scan: PreparedScan, model: LocatedModel) -> None:
    """Refuses a label of another size before its scan is predicted."""
    backward = model.predictor.plans_manager.transpose_backward
    image = tuple(int(scan.properties["shape_before_cropping"][axis]) for axis in backward)
    check_whole(case.label)
    shape = reader.read_seg(str(case.label))[0].shape[1:]
    if shape != image:
        raise ValueError(f"the label {case.label} has {shape} voxels (z, y, x), its image {image}")


def _default_names(folders: Sequence[Path]) -> list[str]:
    candidates = (
        [folder.name.split("__")[0] for folder in folders],
        [folder.name for folder in folders],
        [f"{folder.parent.name}/{folder.name}" for folder in folders],
        [str(folder) for folder in folders],
    )
    return next(names for names in candidates if len(set(names)) == len(names))
