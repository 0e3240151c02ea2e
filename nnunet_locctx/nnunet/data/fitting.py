"""Fits a location source on the training scans of a dataset and measures each of them."""

import dataclasses
import glob
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import BodyPartCurve, Measurement
from nnunet_locctx.locks import one_at_a_time
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
    summarise,
)
from nnunet_locctx.nnunet.data.paths import dataset_folder, nnunet_folder
from nnunet_locctx.nnunet.data.raw_scans import (
    RawCase,
    keep_scans,
    read_dataset_json,
    training_cases,
)
from nnunet_locctx.nnunet.data.workers import map_in_workers
from nnunet_locctx.regression.bpreg import curve_from_bpreg, file_frame, find_files, read_scores
from nnunet_locctx.regression.registry import load_regressor
from nnunet_locctx.regression.regressor import Regressor

DESCRIPTION = "fit.json"
"""What the regressor was fitted with, and its hash: an unfinished fit is told by the hash of another one."""

TRAINING = "training"
"""Checkpoints of a fit that is not finished."""


@dataclass(frozen=True)
class FittedDataset:
    """A dataset with a fitted source.

    Attributes:
        folder: Where it lies.
        source: Name of the location source.
        measured: Case -> what was found in it.
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
        return {name: found.problem for name, found in self.measured.items() if found.problem}


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
    modality = modality or _modality(description, channel)
    chosen = _options(source, {**options, "channel": channel, "modality": modality})
    for name in (anchors.lowest, anchors.highest) if anchors else ():
        if name not in description["labels"]:
            raise ValueError(f"{raw.name} has no label {name!r}; it has {', '.join(description['labels'])}")
    cases = training_cases(raw)
    imports = None if imported is None else _imported(imported, cases, channel)
    folder = fitted_folder(raw.name, source)
    wanted = {
        "source": source,
        "options": dataclasses.asdict(chosen),
        "anchors": None if anchors is None else dataclasses.asdict(anchors),
        "imported": None if imported is None else str(imported.resolve()),
    }
    job = _Fit(
        source,
        chosen,
        cases,
        folder,
        anchors,
        description["labels"],
        imports,
        processes=processes,
        progress=progress,
    )
    with one_at_a_time(folder.parent / LOCK, f"{raw.name} (locctx fit)"):
        try:
            return _fit_and_measure(job, wanted, again)
        except RuntimeError as error:
            if "can't allocate memory" in str(error):  # torch's MemoryError
                raise MemoryError(str(error).strip().splitlines()[-1]) from error
            raise


def regressor_for_training(dataset_name: str, source: str) -> bytes:
    """The stored regressor of a dataset. For a source without fit it is made, and the training scans are measured, if
    nobody did so before.

    Raises:
        ValueError: The source was never fitted on the dataset; or the raw scans are needed and not there or not usable.
    """
    if source in WITHOUT_FIT and not (fitted_folder(dataset_name, source) / REGRESSOR).is_file():
        fit_source(dataset_name, source)
    return read_regressor(dataset_name, source)


@dataclass(frozen=True)
class _Fit:
    """What is to be fitted."""

    source: str
    options: Any
    cases: Sequence[RawCase]
    folder: Path
    anchors: Anchors | None
    labels: Mapping[str, Any]
    imports: Mapping[str, Path] | None
    processes: int
    progress: bool

    def digests(self) -> dict[Path, str]:
        """Of every file that is looked at."""
        files = [file for case in self.cases for file in (*case.images, *self._further(case))]
        record = self.folder.parent / DIGESTS
        return file_digests(files, record, processes=self.processes, progress=self.progress)

    def stamps(
        self, digests: Mapping[Path, str], *, scores: bool = True, labels: bool = True
    ) -> dict[str, str]:
        """Case -> stamp of its images, of the scores that are taken over, and of the labels that set the scale."""
        return {
            case.identifier: case.stamp(digests, *self._further(case, scores, labels)) for case in self.cases
        }

    def _further(self, case: RawCase, scores: bool = True, labels: bool = True) -> list[Path]:
        found = [] if self.imports is None or not scores else [self.imports[case.identifier]]
        return found if self.anchors is None or not labels else [*found, case.label]


def _fit_and_measure(job: _Fit, wanted: dict[str, Any], again: bool) -> FittedDataset:
    digests = job.digests()
    scans = job.stamps(digests)
    wanted = json.loads(json.dumps({**wanted, "cases": list(scans), "scans": scans}))  # as it is read back
    stored = _read_finished(job.folder)
    changed = [] if stored is None else [key for key in wanted if stored[0].get(key) != wanted[key]]
    if set(changed) <= {"cases", "scans"} and not again:
        # added and changed cases are measured; fitting to them would need every model to be trained anew
        changed = []
    if changed and not again:
        raise ValueError(
            f"{job.folder / REGRESSOR} was fitted with other {' and '.join(changed)}. Models trained with it need it; "
            "to replace it, fit with --again"
        )
    fitted_now = stored is None or bool(changed)
    others: list[str] = []
    if fitted_now:
        data = _fit(job, digests, wanted)
    else:
        assert stored is not None
        data = stored[1]
        before = stored[0].get("scans") or {}  # none in those of earlier versions
        others = [name for name, stamp in scans.items() if before.get(name, stamp) != stamp]
    measured, changed_scans = _measure_all(job, data, job.stamps(digests, labels=False))
    stale = _stale(job.folder.parent, [case for case in job.cases if case.identifier in changed_scans])
    return FittedDataset(job.folder, job.source, measured, fitted_now, changed_scans, stale, others)


def _stale(dataset: Path, cases: Sequence[RawCase]) -> list[Path]:
    """Folders of nnU-Net's preprocessed data in which a case is older than its scan."""
    found = set()
    for case in cases:
        states = [file.stat() for file in case.images]
        # the time of the entry too: a copy may carry the time of the file it was made from
        changed = max(max(state.st_mtime, state.st_ctime) for state in states)
        for file in dataset.glob(f"*/{glob.escape(case.identifier)}.pkl"):
            if file.stat().st_mtime < changed:
                found.add(file.parent)
    return sorted(found)


def _modality(dataset: Mapping[str, Any], channel: int) -> str:
    names = dataset["channel_names"]
    if str(channel) not in names:
        raise ValueError(f"the dataset has the channels {', '.join(names)}, channel {channel} is asked for")
    return "ct" if str(names[str(channel)]).lower() == "ct" else "mr"


def _options(source: str, given: Mapping[str, Any]) -> Any:
    from nnunet_locctx.regression.anatomical import AnatomicalOptions
    from nnunet_locctx.regression.body import BodyFinder
    from nnunet_locctx.regression.body_part import BodyPartOptions

    kinds = {"body": BodyFinder, "body_part": BodyPartOptions, "anatomical": AnatomicalOptions}
    kind: Any = kinds[source]
    allowed = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise ValueError(f"{source} does not take {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    return kind(**given)


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


def _fit(job: _Fit, digests: Mapping[Path, str], description: Mapping[str, Any]) -> bytes:
    """Fits, stores and returns the regressor."""
    job.folder.mkdir(parents=True, exist_ok=True)
    # what needs no fit is described by its options alone
    regressor = job.options if job.source in WITHOUT_FIT else _fitted(job, digests)
    data: bytes = regressor.to_bytes()
    text = json.dumps({**description, "hash": hashlib.sha256(data).hexdigest()}, indent=2)
    write_atomically(job.folder / DESCRIPTION, text.encode())
    write_atomically(job.folder / REGRESSOR, data)
    shutil.rmtree(job.folder / TRAINING, ignore_errors=True)
    return data


def _fitted(job: _Fit, digests: Mapping[Path, str]) -> Regressor:
    from nnunet_locctx.regression.anatomical import fit_anatomical
    from nnunet_locctx.regression.body_part import anchored_scale, fit_body_part

    options = job.options
    kept = job.folder.parent / f"{PREFIX}scans_{options.spacing:g}mm_channel{options.channel}"
    stamps = job.stamps(digests, scores=False, labels=False)
    scans = keep_scans(
        job.cases,
        stamps,
        kept,
        options.channel,
        options.spacing,
        processes=job.processes,
        progress=job.progress,
    )
    training = job.folder / TRAINING
    training.mkdir(exist_ok=True)
    if job.source == "anatomical":
        return fit_anatomical(scans, options, training, progress=job.progress)
    targets = None if job.imports is None else _targets(job.cases, job.imports)
    regressor = fit_body_part(scans, options, training, progress=job.progress, targets=targets)
    if job.anchors is None:
        return regressor
    low, high = _anchor_heights(job.cases, job.labels, job.anchors, job.progress)
    return anchored_scale(regressor, scans, low, high)


def _measure_all(
    job: _Fit, data: bytes, stamps: Mapping[str, str]
) -> tuple[dict[str, Measurement], list[str]]:
    """Measures the cases that are not measured yet or have changed since; removes what earlier regressors measured.

    Returns:
        Case -> what was found, and the cases that were measured before as another scan.
    """
    measurements = CaseMeasurements(job.folder, data)
    due: list[RawCase] = []
    changed: list[str] = []
    for case in job.cases:
        try:
            before = measurements.read(case.identifier).stamp
        except ValueError:
            due.append(case)
            continue
        if before != stamps[case.identifier]:
            due.append(case)
            if before:  # else of an earlier version, and nobody knows of which scan
                changed.append(case.identifier)
    jobs = [
        (
            case,
            stamps[case.identifier],
            data,
            measurements,
            None if job.imports is None else job.imports[case.identifier],
        )
        for case in due
    ]
    answers = map_in_workers(_measure, jobs, job.processes)
    hidden = not job.progress or not due
    bar = tqdm(answers, total=len(due), desc="measuring scans", unit="scan", disable=hidden)
    wrong = [answer for answer in bar if answer]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(job.cases)} scans cannot be measured:\n{summarise(wrong)}")
    for other in job.folder.glob(f"{MEASUREMENTS}*"):
        if other != measurements.folder:
            shutil.rmtree(other)
    return {case.identifier: measurements.read(case.identifier) for case in job.cases}, changed


def _measure(job: tuple[RawCase, str, bytes, CaseMeasurements, Path | None]) -> str:
    """Measures and stores one case; returns what is wrong with it."""
    case, stamp, data, measurements, file = job
    try:
        regressor = load_regressor(data)
        image, properties = case.read_with_properties()
        frame = Frame.as_read(properties, image.shape[1:])
        found = regressor.measure(image[regressor.channel], frame)
        if file is not None:
            body = None
            if isinstance(found, BodyPartCurve) and found.cross_section is not None:
                body = (found.positions, found.cross_section)
            # bpreg counts the slices of the file, which a reader may have turned
            of_file = file_frame(properties, image.shape[1:])
            found = curve_from_bpreg(read_scores(file), of_file, cross_section=body)
    except (ValueError, OSError) as error:
        return str(error) if case.identifier in str(error) else f"case {case.identifier}: {error}"
    found.stamp, found.scan = stamp, frame
    measurements.write(case.identifier, found)
    return ""


def _imported(folder: Path, cases: Sequence[RawCase], channel: int) -> dict[str, Path]:
    """Case -> bpreg's file."""
    files, missing = find_files(folder, [case.identifier for case in cases], channel)
    if missing:
        raise ValueError(f"{folder} has no JSON file for {len(missing)} cases:\n{summarise(missing)}")
    return files


def _targets(cases: Sequence[RawCase], imports: Mapping[str, Path]) -> dict[str, Any]:
    """The imported curve of every case that has a usable one."""
    found = {}
    for case in cases:
        image, properties = case.read_with_properties()
        frame = file_frame(properties, image.shape[1:])
        curve = curve_from_bpreg(read_scores(imports[case.identifier]), frame)
        if not curve.problem:
            found[case.identifier] = curve
    return found


def _anchor_heights(
    cases: Sequence[RawCase], labels: Mapping[str, Any], anchors: Anchors, progress: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Case -> height (mm along S) of the lowest and of the highest voxel of the anchors' classes, where they occur."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for case in tqdm(cases, desc="reading labels", unit="scan", disable=not progress):
        label, frame = case.read_label()
        for name, heights, pick in ((anchors.lowest, low, np.min), (anchors.highest, high, np.max)):
            found = _heights(label, frame, labels[name])
            if found.size:
                heights[case.identifier] = float(pick(found))
    return low, high


def _heights(label: np.ndarray, frame: Frame, values: Any) -> np.ndarray:
    """Heights (mm along S) of the voxels with these label values."""
    index = np.argwhere(np.isin(label, np.atleast_1d(values)))
    return np.asarray(frame.millimetres(index)[:, 2])
