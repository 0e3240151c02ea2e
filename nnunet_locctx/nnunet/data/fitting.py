"""Fits a location source on the training scans of a dataset and measures each of them.

A fit that is not finished lies in the folder ``training`` of the source's: the checkpoint, then the regressor.
It takes the place of an earlier regressor when every scan is measured with it, so that a training which begins
meanwhile finds the earlier one whole.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_locctx.files import write_atomically
from nnunet_locctx.location import BodyPartCurve, Measurement
from nnunet_locctx.location.body import modality_of
from nnunet_locctx.locks import one_at_a_time
from nnunet_locctx.names import check_options, summarise
from nnunet_locctx.nnunet.data.dataset_json import read_dataset_json
from nnunet_locctx.nnunet.data.digests import file_digests
from nnunet_locctx.nnunet.data.fitted import (
    COMMANDS,
    DIGESTS,
    LOCK,
    MEASUREMENTS,
    PREFIX,
    REGRESSOR,
    WITHOUT_FIT,
    CaseMeasurements,
    fitted_folder,
    read_regressor,
)
from nnunet_locctx.nnunet.data.paths import dataset_folder, nnunet_folder
from nnunet_locctx.nnunet.data.raw_scans import (
    RawCase,
    check_channel,
    keep_scans,
    stale_folders,
    training_cases,
)
from nnunet_locctx.nnunet.data.workers import map_in_workers
from nnunet_locctx.regression.anatomical import AnatomicalOptions, fit_anatomical
from nnunet_locctx.regression.body import BodyFinder
from nnunet_locctx.regression.body_part import BodyPartOptions, anchored_scale, fit_body_part
from nnunet_locctx.regression.bpreg import curve_from_bpreg, file_frame, find_files, read_scores
from nnunet_locctx.regression.registry import load_regressor

DESCRIPTION = "fit.json"
"""File with the settings of the fit and the regressor's hash, which reveals a damaged or exchanged regressor."""

TRAINING = "training"
"""Folder of a fit that is not finished."""

KEPT_SECONDS = 30 * 86400.0
"""Earlier regressors' measurements stay this long after a fit, for trainings that began before and still read them."""

OPTIONS: dict[str, type[BodyFinder] | type[BodyPartOptions] | type[AnatomicalOptions]] = {
    "body": BodyFinder,
    "body_part": BodyPartOptions,
    "anatomical": AnatomicalOptions,
}


@dataclass(frozen=True)
class FittedDataset:
    """A dataset with a fitted source.

    Attributes:
        folder: Where it lies.
        source: Name of the location source.
        measured: Case -> its measurement.
        fitted_now: False if the regressor was there already.
        changed: Cases whose scan is another one than was measured before; they were measured again.
        stale: Folders of preprocessed data that are older than a changed scan.
        fitted_on_others: Cases that the regressor was fitted on as they were before they changed.
    """

    folder: Path
    source: str
    measured: Mapping[str, Measurement]
    fitted_now: bool
    changed: Sequence[str] = ()
    stale: Sequence[Path] = ()
    fitted_on_others: Sequence[str] = ()

    @property
    def problems(self) -> dict[str, str]:
        """The cases that could not be measured, and why; their location is unknown."""
        return {name: case.problem for name, case in self.measured.items() if case.problem}


@dataclass(frozen=True)
class Anchors:
    """Label classes that set the scale of body part scores.

    Attributes:
        lowest: Class whose lowest slice gets the score 0.
        highest: Class whose highest slice gets the score 100.
    """

    lowest: str
    highest: str


def fit_source(
    dataset: str | int,
    source: str,
    *,
    channel: int = 0,
    modality: str | None = None,
    anchors: Anchors | None = None,
    imported: Path | None = None,
    again: bool = False,
    processes: int = 1,
    progress: bool = True,
    **options: Any,
) -> FittedDataset:
    """Fits a source on all training scans of a dataset and measures them; takes up what an interrupted run left.

    Labels are not used, but for ``anchors``. A scan that changed since is measured again. Two calls for one dataset
    come one after the other: the second waits.

    Args:
        dataset: Id or full name.
        source: ``body`` (nothing is fitted, scans are measured only), ``body_part`` or ``anatomical``.
        channel: Image channel to look at.
        modality: ``ct`` or ``mr``; None: ``ct`` if dataset.json calls the channel CT.
        anchors: ``body_part``: what scores 0 and 100 are; None: percentiles of the training scans.
        imported: ``body_part``: folder of bpreg's JSON files, whose scores are taken over.
        again: Fit anew where there is a regressor that was fitted with other options or on other scans.
        processes: Worker processes that read scans.
        progress: Show progress.
        **options: Further options of :class:`~nnunet_locctx.regression.body_part.BodyPartOptions` or
            :class:`~nnunet_locctx.regression.anatomical.AnatomicalOptions`.

    Raises:
        ValueError: Unusable folders, dataset, options or scans, or a regressor fitted otherwise is there.
        MemoryError: The scans or the network at these options need more than there is.
    """
    if source not in COMMANDS:
        raise ValueError(f"source must be one of {', '.join(COMMANDS)}, got {source!r}")
    if source != "body_part" and (anchors or imported):
        raise ValueError(f"anchors and imported scores are for the source 'body_part', got {source!r}")
    nnunet_folder("nnUNet_preprocessed")
    raw = dataset_folder("nnUNet_raw", dataset)
    description = read_dataset_json(raw)
    channels = description["channel_names"]
    if str(channel) not in channels:
        raise ValueError(f"the dataset has the channels {', '.join(channels)}, channel {channel} is named")
    if modality is None:
        modality = modality_of(channels[str(channel)])
    check_options(options, [field.name for field in fields(OPTIONS[source])], source)
    for name in (anchors.lowest, anchors.highest) if anchors else ():
        if name not in description["labels"]:
            raise ValueError(f"{raw.name} has no label {name!r}; it has {', '.join(description['labels'])}")
    chosen = OPTIONS[source](**options, channel=channel, modality=modality)
    cases = training_cases(raw)
    if source not in WITHOUT_FIT and all(map(_is_slice, cases[:3])):
        raise ValueError(
            f"the scans of {raw.name} are single slices; the source {source!r} is learned from volumes: take 'voxel', "
            "'scanner' or 'body'"
        )
    scores: dict[str, Path] = {}
    if imported is not None:
        scores, missing = find_files(imported, [case.identifier for case in cases], channel)
        if missing:
            raise ValueError(f"{imported} has no JSON file for {len(missing)} cases:\n{summarise(missing)}")
    folder, labels = fitted_folder(raw.name, source), description["labels"]
    job = _Fit(source, chosen, cases, folder, labels, anchors, imported, scores, processes, progress)
    with one_at_a_time(job.folder.parent / LOCK, f"{raw.name} (locctx fit)"):
        try:
            return job.run(again)
        except RuntimeError as error:
            if "can't allocate memory" in str(error):  # torch's MemoryError
                raise MemoryError(str(error).strip().splitlines()[-1]) from error
            raise


def regressor_for_training(dataset_name: str, source: str) -> bytes:
    """The stored regressor of a dataset. For a source without fit it is made, and the training scans are measured, if
    that was not done before.

    Raises:
        ValueError: The source was never fitted on the dataset; or the raw scans are needed and not there or not usable.
    """
    if source in WITHOUT_FIT and not (fitted_folder(dataset_name, source) / REGRESSOR).is_file():
        fit_source(dataset_name, source)
    return read_regressor(dataset_name, source)


@dataclass(frozen=True)
class _Fit:
    """The source to fit and the cases to measure; see :func:`fit_source`. `scores`: case -> file of imported scores."""

    source: str
    options: Any
    cases: Sequence[RawCase]
    folder: Path
    labels: Mapping[str, Any]
    anchors: Anchors | None
    imported: Path | None
    scores: Mapping[str, Path]
    processes: int
    progress: bool

    def run(self, again: bool) -> FittedDataset:
        """Fits, if there is no such regressor yet, and measures what is not measured yet or has changed since."""
        digests = self._digests()
        scans = self._stamps(digests)
        inputs = {
            "source": self.source,
            "options": asdict(self.options),
            "anchors": None if self.anchors is None else asdict(self.anchors),
            "imported": None if self.imported is None else str(self.imported.resolve()),
            "cases": list(scans),
            "scans": scans,
        }
        inputs = json.loads(json.dumps(inputs))  # as they are read back
        stored = _read_finished(self.folder)
        differs = [] if stored is None else [key for key in inputs if stored[0].get(key) != inputs[key]]
        if set(differs) <= {"cases", "scans"} and not again:
            # added and changed cases are measured; fitting to them would need every model to be trained anew
            differs = []
        if differs and not again:
            raise ValueError(
                f"{self.folder / REGRESSOR} was fitted with other {' and '.join(differs)}. Models trained with it need "
                "it; to replace it, fit with --again"
            )
        others: list[str] = []
        measured_as = self._stamps(digests, labels=False)
        if stored is not None and not differs:
            before = stored[0].get("scans") or {}  # none in those of earlier versions
            others = [name for name, stamp in scans.items() if before.get(name, stamp) != stamp]
            data = stored[1]
            measured, changed = self._measure_all(data, measured_as)
        else:
            training = self.folder / TRAINING
            training.mkdir(parents=True, exist_ok=True)
            candidate = _read_finished(training)
            if candidate is None or candidate[0] != inputs:
                data = self._fit(self._stamps(digests, scores=False, labels=False), training)
                _write_finished(training, inputs, data)
            else:
                data = candidate[1]
            measured, changed = self._measure_all(data, measured_as)
            _write_finished(self.folder, inputs, data)
            shutil.rmtree(training)
        fitted_now = stored is None or bool(differs)
        own = CaseMeasurements(self.folder, data).folder
        for earlier in self.folder.glob(f"{MEASUREMENTS}*"):
            if earlier != own and fitted_now:
                os.utime(earlier)
            elif earlier != own and time.time() - earlier.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(earlier)
        stale = stale_folders(self.folder.parent, [case for case in self.cases if case.identifier in changed])
        return FittedDataset(self.folder, self.source, measured, fitted_now, changed, stale, others)

    def _further(self, case: RawCase, scores: bool, labels: bool) -> list[Path]:
        """The files beside a case's images on which a fit depends: imported scores, and labels that set the scale."""
        files = [self.scores[case.identifier]] if scores and self.scores else []
        return [*files, case.label] if labels and self.anchors is not None else files

    def _digests(self) -> dict[Path, str]:
        files = [file for case in self.cases for file in (*case.images, *self._further(case, True, True))]
        record = self.folder.parent / DIGESTS
        return file_digests(files, record, processes=self.processes, progress=self.progress)

    def _stamps(
        self, digests: Mapping[Path, str], *, scores: bool = True, labels: bool = True
    ) -> dict[str, str]:
        """Case -> stamp of its images, of the scores that are taken over, and of the labels that set the scale."""
        return {
            case.identifier: case.stamp(digests, *self._further(case, scores, labels)) for case in self.cases
        }

    def _fit(self, stamps: Mapping[str, str], training: Path) -> bytes:
        """The fitted regressor."""
        options = self.options
        if self.source in WITHOUT_FIT:  # it is described by its options alone
            return bytes(options.to_bytes())
        scans = keep_scans(
            self.cases,
            stamps,
            self.folder.parent / f"{PREFIX}scans_{options.spacing:g}mm_channel{options.channel}",
            options.channel,
            options.spacing,
            processes=self.processes,
            progress=self.progress,
        )
        if self.source == "anatomical":
            return fit_anatomical(scans, options, training, progress=self.progress).to_bytes()
        targets = None if self.imported is None else self._targets()
        regressor = fit_body_part(scans, options, training, progress=self.progress, targets=targets)
        if self.anchors is not None:
            regressor = anchored_scale(regressor, scans, *self._anchor_heights(self.anchors))
        return regressor.to_bytes()

    def _targets(self) -> dict[str, Any]:
        """The imported curve of every case that has a usable one."""
        targets = {}
        for case in self.cases:
            scan = case.read()
            frame = file_frame(scan.properties, scan.frame.shape)
            curve = curve_from_bpreg(read_scores(self.scores[case.identifier]), frame)
            if not curve.problem:
                targets[case.identifier] = curve
        return targets

    def _anchor_heights(self, anchors: Anchors) -> tuple[dict[str, float], dict[str, float]]:
        """Case -> height (mm along S) of the lowest and of the highest voxel of the anchors' classes, where they
        occur."""
        low: dict[str, float] = {}
        high: dict[str, float] = {}
        for case in tqdm(self.cases, desc="reading labels", unit="scan", disable=not self.progress):
            label = case.read_label()
            for name, heights, pick in ((anchors.lowest, low, np.min), (anchors.highest, high, np.max)):
                voxels = np.argwhere(np.isin(label.voxels[0], np.atleast_1d(self.labels[name])))
                if len(voxels):
                    heights[case.identifier] = float(pick(label.frame.millimetres(voxels)[:, 2]))
        return low, high

    def _measure_all(
        self, data: bytes, stamps: Mapping[str, str]
    ) -> tuple[dict[str, Measurement], list[str]]:
        """Measures the cases that are not measured yet or have changed since.

        Returns:
            Case -> its measurement, and the cases that were measured before as another scan.
        """
        measurements = CaseMeasurements(self.folder, data)
        due: list[RawCase] = []
        changed: list[str] = []
        for case in self.cases:
            try:
                before = measurements.read(case.identifier).stamp
            except ValueError:
                due.append(case)
                continue
            if before != stamps[case.identifier]:
                due.append(case)
                if before:  # else of an earlier version, which says nothing of its scan
                    changed.append(case.identifier)
        jobs = [
            (case, stamps[case.identifier], data, measurements, self.scores.get(case.identifier))
            for case in due
        ]
        shown = "measuring scans" if self.progress else None
        wrong = [answer for answer in map_in_workers(_measure, jobs, self.processes, shown) if answer]
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(self.cases)} scans cannot be measured:\n{summarise(wrong)}"
            )
        return {case.identifier: measurements.read(case.identifier) for case in self.cases}, changed


def _is_slice(case: RawCase) -> bool:
    """Whether a scan is a single slice; one that cannot be read is named with all such scans, when all are read."""
    try:
        return min(case.read().frame.shape) < 2
    except (ValueError, OSError):
        return False


def _measure(job: tuple[RawCase, str, bytes, CaseMeasurements, Path | None]) -> str:
    """Measures and stores one case; returns what is wrong with it."""
    case, stamp, data, measurements, file = job
    try:
        regressor = load_regressor(data)
        scan = case.read()
        check_channel(scan, regressor.channel)
        measurement = regressor.measure(scan.voxels[regressor.channel], scan.frame)
        if file is not None:
            body = None
            if isinstance(measurement, BodyPartCurve) and measurement.cross_section is not None:
                body = (measurement.positions, measurement.cross_section)
            # bpreg counts the slices of the file, which a reader may have turned
            of_file = file_frame(scan.properties, scan.frame.shape)
            measurement = curve_from_bpreg(read_scores(file), of_file, cross_section=body)
    except (ValueError, OSError) as error:
        return str(error) if case.identifier in str(error) else f"case {case.identifier}: {error}"
    measurement.stamp, measurement.scan = stamp, scan.frame
    measurements.write(case.identifier, measurement)
    return ""


def _read_finished(folder: Path) -> tuple[dict[str, Any], bytes] | None:
    """Description and bytes of a regressor whose fit was finished."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        data = (folder / REGRESSOR).read_bytes()
        if description.pop("hash") != hashlib.sha256(data).hexdigest():
            return None
        load_regressor(data)
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return description, data


def _write_finished(folder: Path, description: Mapping[str, Any], data: bytes) -> None:
    text = json.dumps({**description, "hash": hashlib.sha256(data).hexdigest()}, indent=2)
    write_atomically(folder / DESCRIPTION, text.encode())
    write_atomically(folder / REGRESSOR, data)
