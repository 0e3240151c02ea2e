"""A public release on disk: which cases it has, which files are missing or too many, how one case is written.

Each data set is a subclass of :class:`Release` (btcv.py, amos22.py, kits23.py, acdc.py, brats.py); what they share, the
checks and the writing in one step, is in release_files.py and conversion.py.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

Copy = Callable[[Path | str, Path | str], object]
"""Puts a file of the release, unchanged, at another place: (source, target)."""

Split = dict[str, list[str]]
"""One fold: the keys `train` and `val`, names of cases."""

FOLDS = 5
"""Folds of a cross-validation, as nnU-Net makes."""


@dataclass(frozen=True)
class SourceCase:
    """One case of a release.

    Attributes:
        name: nnU-Net's case identifier.
        images: One file per channel, or one file with all channels along the fourth axis.
        label: The segmentation; None if the release has none (test scans only).
        test: Goes to imagesTs, and labelsTs if it has a label.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    test: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the case."""
        return self.images if self.label is None else (*self.images, self.label)

    def outputs(self, channels: int) -> list[str]:
        """The case's files in nnU-Net's raw format, relative to the data set's folder."""
        images, labels = ("imagesTs", "labelsTs") if self.test else ("imagesTr", "labelsTr")
        found = [f"{images}/{self.name}_{channel:04d}.nii.gz" for channel in range(channels)]
        return found if self.label is None else [*found, f"{labels}/{self.name}.nii.gz"]


@dataclass
class Listing:
    """What a release's folder holds.

    Attributes:
        cases: Cases to be converted, complete once :meth:`Release.listing` is through.
        incomplete: Cases of which some files are not there, and should be.
        problems: Missing and superfluous files, one sentence each.
        notes: Worth telling, but no reason to stop.
        left_out: (case, reason) of cases that are not converted, complete or not.
    """

    cases: list[SourceCase] = field(default_factory=list)
    incomplete: list[SourceCase] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[tuple[SourceCase, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Release(abc.ABC):
    """A public data set in the folder layout in which it is published.

    Attributes:
        exclude: Names of cases to leave out.
        partial: Convert what is there although whole cases, or files of some cases, are missing.
        test: Convert unlabelled test scans too.
    """

    exclude: tuple[str, ...] = ()
    partial: bool = False
    test: bool = True

    key: ClassVar[str]
    """Name on the command line."""
    title: ClassVar[str]
    """Name of the data set unless another is given."""
    channels: ClassVar[int] = 1
    """Image channels of a case."""
    values: ClassVar[frozenset[int]]
    """Label values that the release may hold."""

    @abc.abstractmethod
    def root(self, source: Path) -> Path:
        """The folder that holds the release's files, found below what the user gave.

        Raises:
            ValueError: It has not the release's layout.
        """

    @abc.abstractmethod
    def find(self, root: Path, listing: Listing) -> None:
        """Adds the cases below `root`, complete or not, and what is absent as a whole or too many to `listing`."""

    @abc.abstractmethod
    def write(self, case: SourceCase, folder: Path, copy: Copy) -> None:
        """Writes one case in nnU-Net's raw format below `folder` (imagesTr, labelsTr ...); geometry stays as it is."""

    @abc.abstractmethod
    def description(self, root: Path, training: int) -> dict[str, Any]:
        """Content of dataset.json for `training` cases."""

    def allowed(self, case: SourceCase) -> frozenset[int]:
        """Label values that the case may hold before conversion."""
        return self.values

    def splits(self, cases: Sequence[SourceCase]) -> list[Split]:
        """Content of splits_final.json; five folds as nnU-Net itself makes them unless the release says otherwise."""
        return crossval_folds(training_names(cases))

    def settings(self) -> dict[str, Any]:
        """The options, ready for JSON; two conversions with equal ones give the same data set."""
        found = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def listing(self, source: Path) -> Listing:
        """Looks through a release's folder.

        Raises:
            ValueError: The folder has not the release's layout at all.
        """
        if not source.is_dir():
            raise ValueError(f"{source} is not a folder")
        listing = Listing()
        self.find(self.root(source), listing)
        known = {case.name for case in listing.cases}
        known |= {case.name for case, _ in listing.left_out}
        listing.problems += [
            f"{name}: to be left out, but there is no such case" for name in self.exclude if name not in known
        ]
        complete: list[SourceCase] = []
        for case in listing.cases:
            absent = [f"{case.name}: missing: {file}" for file in case.files if not file.is_file()]
            if case.name in self.exclude:
                listing.left_out.append((case, "as asked for (--exclude)"))
            elif case.test and case.label is None and not self.test:
                continue
            elif absent and self.partial:
                listing.notes += absent
            elif absent:
                listing.problems += absent
                listing.incomplete.append(case)
            else:
                complete.append(case)
        listing.cases = complete
        if not any(not case.test for case in listing.cases) and not listing.problems:
            listing.problems.append("no training case is left")
        return listing

    def add(
        self, listing: Listing, name: str, images: Iterable[Path], label: Path | None, *, test: bool = False
    ) -> None:
        """Adds a case, whether all of its files are there or not."""
        listing.cases.append(SourceCase(name, tuple(images), label, test))

    def absent(self, listing: Listing, what: str) -> None:
        """Notes whole cases that the release should have and this copy has not."""
        (listing.notes if self.partial else listing.problems).append(f"missing: {what}")


def crossval_folds(names: Sequence[str]) -> list[Split]:
    """Five folds by nnU-Net's own function (sorted names, its fixed seed): what it would draw without the file.

    Raises:
        ValueError: Fewer than five cases.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if len(names) < FOLDS:
        raise ValueError(f"{FOLDS} folds need at least {FOLDS} training cases, got {len(names)}")
    return [
        {part: [str(name) for name in fold[part]] for part in ("train", "val")}
        for fold in generate_crossval_split(sorted(names), seed=12345, n_splits=FOLDS)
    ]


def training_names(cases: Sequence[SourceCase]) -> list[str]:
    """Names of the training cases, sorted."""
    return sorted(case.name for case in cases if not case.test)


def one_fold(cases: Sequence[SourceCase], validation: Iterable[str]) -> list[Split]:
    """One fold: the named cases that are there validate, all others train."""
    names = training_names(cases)
    chosen = set(validation)
    fold = {
        "train": [name for name in names if name not in chosen],
        "val": [name for name in names if name in chosen],
    }
    for part, members in fold.items():
        if not members:
            raise ValueError(f"the split has no case to {part}; are cases missing or left out?")
    return [fold]


def below(source: Path, candidates: Sequence[str], marks: Sequence[str], layout: str) -> Path:
    """The first of some folders below `source` that has the entries `marks`.

    Raises:
        ValueError: None has; says what the layout is.
    """
    for candidate in candidates:
        folder = source / candidate
        if all((folder / mark).exists() for mark in marks):
            return folder
    raise ValueError(f"{source} has not the layout of the release: {layout}")


def nifti_files(folder: Path) -> list[Path]:
    """The .nii.gz files of a folder, sorted; without hidden ones (macOS leaves `._` copies in archives)."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.glob("*.nii.gz") if not file.name.startswith("."))


def superfluous(listing: Listing, folder: Path, expected: Iterable[Path]) -> None:
    """Adds the .nii.gz files of a folder that no case has to the problems."""
    known = set(expected)
    listing.problems += [
        f"not part of the release: {file}" for file in nifti_files(folder) if file not in known
    ]


def ranges(numbers: Iterable[int]) -> str:
    """`1-3, 7`: numbers for people."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
