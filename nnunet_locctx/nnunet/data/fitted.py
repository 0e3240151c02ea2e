"""Fitted regressors and what they measured, in the folder of the preprocessed dataset.

nnUNet_preprocessed/Dataset003_Liver/locctx_body_part/
    regressor.pt            the fitted model, as it travels in checkpoints
    fit.json                what it was fitted with: options, and stamps of the scans
    measurements_.../CASE.npz   what it measured in each training case, independent of plans, with the scan's stamp
    training/               a fit that is not finished, which leaves the above as they are
    report.json, report.png what `locctx fit` has to say about it

Beside it, for all sources of a dataset: ``locctx_files.json`` (digests of the raw files), ``locctx_fit.lock``, and
``locctx_scans_.../`` (the scans on the canonical grid).
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import Frame, corner_distance
from nnunet_locctx.location import SOURCES, Measurement
from nnunet_locctx.names import summarise
from nnunet_locctx.nnunet.data.paths import nnunet_folder
from nnunet_locctx.regression.registry import load_regressor
from nnunet_locctx.regression.regressor import Regressor

PREFIX = "locctx_"
REGRESSOR = "regressor.pt"
MEASUREMENTS = "measurements_"
COMMANDS = {"body": "body", "body_part": "body-part", "anatomical": "ape"}
"""Location source -> what to give to `locctx fit`."""

WITHOUT_FIT = tuple(name for name, source in SOURCES.items() if source.fitted and not source.needs_fit)
"""Sources whose scans are measured by a rule: training measures them itself where that was not done before."""

DIGESTS = "locctx_files.json"
LOCK = "locctx_fit.lock"

CACHED_CASES = 64

SAME_PLACE = 0.1
"""Voxels by which the corners of the same scan may differ between two files or readers."""


def fitted_folder(dataset_name: str, source: str) -> Path:
    """Folder of a dataset's regressor for a source, which need not exist.

    Args:
        dataset_name: Full name, such as ``Dataset003_Liver``.
        source: Name of a fitted location source.

    Raises:
        ValueError: nnUNet_preprocessed is not usable.
    """
    return nnunet_folder("nnUNet_preprocessed") / dataset_name / (PREFIX + source)


def read_regressor(dataset_name: str, source: str) -> bytes:
    """The stored regressor of a dataset.

    Raises:
        ValueError: The source was never fitted on the dataset.
    """
    file = fitted_folder(dataset_name, source) / REGRESSOR
    if not file.is_file():
        raise ValueError(
            f"the plans name the location source {source!r}, which was not fitted on {dataset_name} ({file} is not "
            f"there). Fit it first: locctx fit {COMMANDS[source]} -d {dataset_name}"
        )
    return file.read_bytes()


def open_regressor(file: Path, source: str) -> Regressor:
    """The regressor in a file.

    Raises:
        ValueError: There is no such file, it is damaged, or its regressor is for another source.
    """
    if not file.is_file():
        raise ValueError(f"no file {file}; `locctx fit {COMMANDS[source]}` makes one")
    try:
        regressor = load_regressor(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if regressor.kind != source:
        article = "an" if source[0] in "aeiou" else "a"
        raise ValueError(
            f"{file} holds a {regressor.kind!r} regressor; {article} {source!r} one is needed (locctx fit "
            f"{COMMANDS[source]})"
        )
    return regressor


class CaseMeasurements:
    """Measurements of one regressor in a dataset's training cases. Can be pickled to workers.

    Args:
        folder: The source's folder of the dataset.
        regressor: The stored regressor; measurements of different regressors are never mixed.
    """

    def __init__(self, folder: Path, regressor: bytes) -> None:
        self.folder = folder / (MEASUREMENTS + hashlib.sha256(regressor).hexdigest()[:12])

    def file(self, identifier: str) -> Path:
        """File of a case's measurement."""
        return self.folder / f"{identifier}.npz"

    def read(self, identifier: str) -> Measurement:
        """A case's measurement.

        Raises:
            ValueError: It is not there, or damaged.
        """
        file = self.file(identifier)
        if not file.is_file():
            raise ValueError(
                f"case {identifier} was not measured ({file} is not there); run `locctx fit` again, which measures "
                "what is missing"
            )
        return _read(file, file.stat().st_mtime_ns)

    def problems(self, identifiers: Iterable[str]) -> dict[str, str]:
        """The cases that could not be measured, and why.

        Raises:
            ValueError: Cases without a readable measurement, named.
        """
        problems: dict[str, str] = {}
        unreadable: list[str] = []
        for identifier in identifiers:
            try:
                problem = self.read(identifier).problem
            except ValueError as error:
                unreadable.append(str(error))
            else:
                problems |= {identifier: problem} if problem else {}
        if unreadable:
            raise ValueError(summarise(unreadable))
        return problems

    def check_scan(
        self, identifier: str, properties: Mapping[str, Any], transpose_forward: Sequence[int]
    ) -> None:
        """Compares the scan that a case was measured in with the one it was preprocessed from.

        A measurement says where in the patient's millimetres what lies, so its scan must have had the same header.
        Those of earlier versions, which say nothing about their scan, and those that cannot be read are not looked at.

        Args:
            identifier: The case.
            properties: nnU-Net's, as stored with the preprocessed case.
            transpose_forward: The plans'.

        Raises:
            ValueError: The two differ in size or place.
        """
        try:
            measured = self.read(identifier).scan
        except ValueError:
            return  # named by `problems`
        if measured is None:
            return
        before = properties["shape_before_cropping"]
        shape = [int(before[list(transpose_forward).index(axis)]) for axis in range(3)]
        preprocessed = Frame.as_read(properties, shape)
        if measured.shape != preprocessed.shape:
            what = f"{list(measured.shape)} voxels against {list(preprocessed.shape)}"
        elif (distance := corner_distance(measured, preprocessed)) > SAME_PLACE:
            what = f"their corners lie {distance:.1f} voxels apart"
        else:
            return
        raise ValueError(
            f"the scan was measured with another header than it was preprocessed with ({what}); run `locctx fit` "
            "again, and nnUNetv2_preprocess if the scan changed since"
        )

    def write(self, identifier: str, measurement: Measurement) -> None:
        """Stores a case's measurement."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file(identifier), measurement.to_bytes())


@functools.lru_cache(maxsize=CACHED_CASES)
def _read(file: Path, changed: int) -> Measurement:
    try:
        return Measurement.from_bytes(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}. Delete the file and run `locctx fit` again") from error
