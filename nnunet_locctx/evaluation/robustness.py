"""What becomes of a trained model's Dice when its location is wrong (`locctx robustness`).

Every scan is preprocessed once and predicted with each of the errors of
:mod:`~nnunet_locctx.evaluation.wrong_location`. The error is put on the location channels of the preprocessed scan,
before nnU-Net pads it for the sliding window; image and padding are left alone. Predictions are brought back to the
scan's own grid and compared with its label by nnU-Net's own export and evaluator.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_locctx.evaluation.dice import file_dice, foreground
from nnunet_locctx.evaluation.records import Records
from nnunet_locctx.evaluation.wrong_location import Change, Design, axis_lengths, wrong_location
from nnunet_locctx.image_files import check_whole
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


@dataclass(frozen=True)
class NamedModel:
    """A model and what it is called in tables and pictures."""

    name: str
    model: LocatedModel


def list_cases(images: Path, labels: Path, file_ending: str, channels: int) -> list[Case]:
    """The scans of a folder that is named as nnU-Net names them, with their labels.

    Args:
        images: Folder of ``CASE_0000.ENDING`` files, one per channel.
        labels: Folder of ``CASE.ENDING`` files.
        file_ending: Of the model's data set.
        channels: Image files per case.

    Raises:
        ValueError: A folder is missing, there are no scans, a case has another number of files, or no label.
    """
    from nnunetv2.utilities.utils import create_paths_fn, get_identifiers_from_splitted_dataset_folder

    for folder in (images, labels):
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    names = [str(name) for name in get_identifiers_from_splitted_dataset_folder(str(images), file_ending)]
    if not names:
        raise ValueError(f"{images} has no files that end in {file_ending}, as the model's data set does")
    files = sorted(file.name for file in images.iterdir())
    cases = []
    for name in names:
        found = create_paths_fn(str(images), files, file_ending, name)
        if len(found) != channels:
            raise ValueError(
                f"case {name!r} of {images} has {len(found)} files named {name}_XXXX{file_ending}, the model takes "
                f"{channels} (one per channel)"
            )
        cases.append(Case(name, tuple(Path(file) for file in found), labels / f"{name}{file_ending}"))
    missing = [case.label.name for case in cases if not case.label.is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(f"{labels} lacks labels: {', '.join(missing[:5])}{more}")
    return cases


def load_models(
    folders: Sequence[Path],
    names: Sequence[str] | None = None,
    *,
    fold: str | None = None,
    device: str | None = None,
    mirroring: bool = False,
) -> list[NamedModel]:
    """Loads the models to compare.

    Args:
        folders: Trained models' folders (TRAINER__PLANS__CONFIGURATION), of one data set.
        names: What to call them; None: trainer, folder, or folder within its parent, whichever tells them apart.
        fold: The fold of each; None: the first that is there.
        device: Torch device; None: the GPU if there is one.
        mirroring: Average predictions of mirrored patches.

    Raises:
        ValueError: A model cannot be used (:func:`~nnunet_locctx.nnunet.predicting.prediction.load_located_model`),
            the models do not segment the same classes of the same files, or the names are not one for each.
    """

    if not folders:
        raise ValueError("no model was given")
    paths = [folder.resolve() for folder in folders]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise ValueError(f"the model {twice[0]} was given more than once")
    called = _default_names(paths) if names is None else list(names)
    if len(called) != len(folders) or len(set(called)) != len(called) or not all(called):
        raise ValueError(f"{len(folders)} models need as many different names, got {called}")
    models = [
        load_located_model(folder, fold, device=device, mirroring=mirroring, progress=False)
        for folder in folders
    ]
    first = models[0]
    for model in models[1:]:
        for what, one, other in (
            ("classes", foreground(first.dataset_json["labels"]), foreground(model.dataset_json["labels"])),
            ("file ending", first.dataset_json["file_ending"], model.dataset_json["file_ending"]),
            ("number of channels", first.channels, model.channels),
        ):
            if one != other:
                raise ValueError(
                    f"models to compare must be of one data set, but {first.folder} and {model.folder} differ in their "
                    f"{what}: {one} and {other}"
                )
    return [NamedModel(name, model) for name, model in zip(called, models, strict=True)]


class Robustness:
    """The Dice of several models under several errors, and how far it got.

    Args:
        models: The models.
        images: Folder of scans.
        labels: Folder of their labels.
        design: The errors.
        output: Folder of the results; made by :meth:`run`.

    Raises:
        ValueError: Scans and labels cannot be used (:func:`list_cases`), or the folder holds something else.
    """

    def __init__(
        self, models: Sequence[NamedModel], images: Path, labels: Path, design: Design, output: Path
    ) -> None:
        first = models[0].model
        self.models, self.design, self.output = list(models), design, output
        self.labels: dict[str, Any] = first.dataset_json["labels"]
        self.cases = list_cases(images, labels, first.dataset_json["file_ending"], first.channels)
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output} is a file; the results need a folder")
        self.records = Records(output / RECORDS)
        self._fingerprints = {one.name: one.model.fingerprint() for one in models}
        self._of = {"images": str(images.resolve()), "labels": str(labels.resolve())}

    def run(self, *, progress: bool = True) -> None:
        """Predicts what is not known from before.

        Raises:
            ValueError: A scan has no usable geometry or intensities, or a label does not fit its image.
        """
        changes = self.design.changes()
        self.output.mkdir(parents=True, exist_ok=True)
        open_ones = {
            (one.name, case.name): [
                change for change in changes if self._what(one, case, change) not in self.records
            ]
            for one in self.models
            for case in self.cases
        }
        total = len(open_ones) * len(changes)
        left = sum(map(len, open_ones.values()))
        with tqdm(total=total, initial=total - left, unit="prediction", disable=not progress) as bar:
            for one in self.models:
                for case in self.cases:
                    wanted = open_ones[one.name, case.name]
                    if wanted:
                        bar.set_description(f"{one.name}, {case.name}")
                        self._predict(one, case, wanted, bar)

    def dice(self, one: NamedModel, case: Case, change: Change) -> dict[str, float]:
        """Class name -> Dice of one prediction; NaN if the class is in neither label nor prediction.

        Raises:
            KeyError: It has not been predicted.
        """
        found = self.records.get(self._what(one, case, change))
        return {name: math.nan if value is None else value for name, value in found.items()}

    def _what(self, one: NamedModel, case: Case, change: Change) -> dict[str, Any]:
        what: dict[str, Any] = {
            "model": self._fingerprints[one.name],
            "mirroring": bool(one.model.predictor.use_mirroring),
            **self._of,
            "case": case.name,
            "change": change.kind,
            "axes": change.axes,
            "percent": change.percent,
        }
        return {**what, "seed": self.design.seed} if change.kind == "noise" else what

    def _predict(self, one: NamedModel, case: Case, changes: Sequence[Change], bar: Any) -> None:
        model = one.model
        reader = model.predictor.plans_manager.image_reader_writer_class()
        scan = model.prepare(case.images)
        _check_label(case, reader, scan, model)
        true = scan.location.copy()
        lengths = axis_lengths(model.source, scan.frame)
        with tempfile.TemporaryDirectory(prefix="locctx-") as folder:
            predicted = Path(folder) / case.label.name
            for change in changes:
                scan.location[:] = wrong_location(
                    true, scan.frame, lengths, change, case=case.name, seed=self.design.seed
                )
                model.locator.hide_unseen(scan.location)  # as for a scan whose location comes out like this
                model.export(model.logits(scan.data), scan, predicted)
                dice = file_dice(case.label, predicted, self.labels, reader)
                self.records.add(
                    self._what(one, case, change),
                    {name: None if math.isnan(value) else value for name, value in dice.items()},
                )
                bar.update()


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
