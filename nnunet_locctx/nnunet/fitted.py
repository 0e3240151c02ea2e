"""Fitted regressors and what they measured, in the folder of the preprocessed dataset.

nnUNet_preprocessed/Dataset003_Liver/locctx_body_part/
    regressor.pt            the fitted model, as it travels in checkpoints
    measurements/CASE.npz   what it found in each training case, independent of plans
    report.json, report.png what `locctx fit` has to say about it
"""

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunet_locctx.location import Measurement
from nnunet_locctx.nnunet.paths import nnunet_folder

PREFIX = "locctx_"
REGRESSOR = "regressor.pt"
MEASUREMENTS = "measurements_"
COMMANDS = {"body_part": "body-part", "anatomical": "ape"}
"""Location source -> what to give to `locctx fit`."""

CACHED_CASES = 64


def fitted_folder(dataset_name: str, source: str) -> Path:
    """Where a dataset's regressor for a source lies, whether it is there or not.

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


def write_atomically(file: Path, data: bytes) -> None:
    """Replaces a file as a whole."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


class CaseMeasurements:
    """What one regressor measured in a dataset's training cases. Can be pickled to workers.

    Args:
        folder: The source's folder of the dataset.
        regressor: The stored regressor; those of another one are never mixed with its own.
    """

    def __init__(self, folder: Path, regressor: bytes) -> None:
        self.folder = folder / (MEASUREMENTS + hashlib.sha256(regressor).hexdigest()[:12])

    def file(self, identifier: str) -> Path:
        """Where a case's measurement lies."""
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

    def check(self, identifiers: Iterable[str]) -> None:
        """Raises ValueError naming the cases without a readable measurement."""
        wrong: list[str] = []
        for identifier in identifiers:
            try:
                self.read(identifier)
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            raise ValueError(summarise(wrong))

    def problems(self, identifiers: Iterable[str]) -> dict[str, str]:
        """The cases that could not be measured, and why."""
        found = {identifier: self.read(identifier).problem for identifier in identifiers}
        return {identifier: problem for identifier, problem in found.items() if problem}

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


def summarise(lines: Sequence[str], shown: int = 10) -> str:
    """The first lines, and how many more there are."""
    more = len(lines) - shown
    return "\n".join([*lines[:shown], *([f"and {more} more"] if more > 0 else [])])
