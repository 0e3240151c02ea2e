"""A public release on disk: lists its cases, finds missing, superfluous and corrupt files, and writes a case.

Each dataset is a subclass of :class:`Release` (btcv.py, amos22.py, kits23.py, acdc.py, brats.py); job.py and
conversion.py hold the code that they share.
"""

from __future__ import annotations

import abc
import dataclasses
import gzip
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import nibabel
import numpy as np
import numpy.typing as npt

from nnunet_locctx.datasets.grids import PATIENT_AXIS, Grid, three
from nnunet_locctx.geometry import Frame, corner_distance
from nnunet_locctx.image_files import check_whole

Copy = Callable[[Path | str, Path | str], object]
"""Copies or links a file of the release: (source, target)."""

Split = dict[str, list[str]]
"""One fold: the keys `train` and `val` with names of cases."""

FOLDS = 5
"""Folds of nnU-Net's cross-validation."""


@dataclass(frozen=True)
class SourceCase:
    """One case of a release.

    Attributes:
        name: nnU-Net's case identifier.
        images: One file per channel, or one file with all channels along the fourth axis.
        label: The segmentation; None if the release has none (test scans only).
        test: Whether it goes to imagesTs (and labelsTs if it has a label).
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
        """The case's files in nnU-Net's raw format, relative to the dataset's folder."""
        images, labels = ("imagesTs", "labelsTs") if self.test else ("imagesTr", "labelsTr")
        files = [f"{images}/{self.name}_{channel:04d}.nii.gz" for channel in range(channels)]
        return files if self.label is None else [*files, f"{labels}/{self.name}.nii.gz"]


@dataclass
class Listing:
    """The content of a release's folder.

    Attributes:
        cases: Cases to be converted; :meth:`Release.listing` leaves only complete ones.
        incomplete: Cases with missing files.
        problems: Missing and superfluous files, one sentence each.
        notes: Sentences for the user that do not stop the conversion.
        left_out: (case, reason) of cases that are not converted, complete or not.
    """

    cases: list[SourceCase] = field(default_factory=list)
    incomplete: list[SourceCase] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[tuple[SourceCase, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Release(abc.ABC):
    """A public dataset in the folder layout in which it is published.

    Attributes:
        exclude: Names of cases to leave out.
        partial: Convert the complete cases although whole cases, or files of some cases, are missing.
        test: Convert unlabelled test scans too.
    """

    exclude: tuple[str, ...] = ()
    partial: bool = False
    test: bool = True

    key: ClassVar[str]
    """Name on the command line."""
    title: ClassVar[str]
    """Default name of the dataset."""
    channels: ClassVar[int] = 1
    """Image channels of a case."""
    values: ClassVar[frozenset[int]]
    """Label values that the release may hold."""

    @abc.abstractmethod
    def root(self, source: Path) -> Path:
        """The folder that holds the release's files, at or below the user's folder.

        Raises:
            ValueError: The folder does not have the release's layout.
        """

    @abc.abstractmethod
    def find(self, root: Path, listing: Listing) -> None:
        """Adds to `listing` the cases below `root`, complete or not, the missing cases and the superfluous files."""

    @abc.abstractmethod
    def write(self, case: SourceCase, folder: Path, copy: Copy) -> None:
        """Writes one case in nnU-Net's raw format below `folder` (imagesTr, labelsTr ...); the geometry stays."""

    @abc.abstractmethod
    def description(self, root: Path, training: int) -> dict[str, Any]:
        """Content of dataset.json for `training` cases."""

    def allowed(self, case: SourceCase) -> frozenset[int]:
        """Label values that the case may hold before conversion."""
        return self.values

    def splits(self, cases: Sequence[SourceCase]) -> list[Split]:
        """Content of splits_final.json; by default nnU-Net's five folds."""
        return crossval_folds(training_names(cases))

    def settings(self) -> dict[str, Any]:
        """The options as JSON can hold them; conversions with equal options give the same dataset."""
        options = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}

    def listing(self, source: Path) -> Listing:
        """Lists a release's folder.

        Raises:
            ValueError: The folder does not have the release's layout.
        """
        if not source.is_dir():
            raise ValueError(f"{source} is not a folder")
        listing = Listing()
        self.find(self.root(source), listing)
        known = {case.name for case in listing.cases}
        known |= {case.name for case, _ in listing.left_out}
        listing.problems += [
            f"{name}: named by --exclude, but the release has no such case"
            for name in self.exclude
            if name not in known
        ]
        complete: list[SourceCase] = []
        for case in listing.cases:
            absent = [f"{case.name}: missing: {file}" for file in case.files if not file.is_file()]
            if case.name in self.exclude:
                listing.left_out.append((case, "named by --exclude"))
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
        """Adds a case, complete or not."""
        listing.cases.append(SourceCase(name, tuple(images), label, test))

    def absent(self, listing: Listing, what: str) -> None:
        """Notes whole cases that this copy of the release lacks."""
        (listing.notes if self.partial else listing.problems).append(f"missing: {what}")


def crossval_folds(names: Sequence[str]) -> list[Split]:
    """Five folds by nnU-Net's own function (sorted names, its fixed seed): the folds it draws without a file.

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
    """One fold: the present cases among `validation` validate, all others train."""
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
    """The first folder of `candidates` below `source` that has the entries `marks`.

    Raises:
        ValueError: No folder has them; the message describes the layout.
    """
    for candidate in candidates:
        folder = source / candidate
        if all((folder / mark).exists() for mark in marks):
            return folder
    raise ValueError(f"{source} has not the layout of the release: {layout}")


def nifti_files(folder: Path) -> list[Path]:
    """The .nii.gz files of a folder, sorted, without hidden files (macOS leaves `._` copies in archives)."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.glob("*.nii.gz") if not file.name.startswith("."))


def superfluous(listing: Listing, folder: Path, expected: Iterable[Path]) -> None:
    """Adds the .nii.gz files of a folder that belong to no case to the problems."""
    known = set(expected)
    listing.problems += [
        f"not part of the release: {file}" for file in nifti_files(folder) if file not in known
    ]


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as text, such as `1-3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    gzip.BadGzipFile,
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
)
"""Exceptions that nibabel raises for files that are empty, cut off, or no NIfTI."""


def check_case(case: SourceCase, values: frozenset[int], channels: int, tolerance: float) -> list[str]:
    """Reads every voxel of a case's existing files.

    Args:
        case: The case; missing files are skipped, as the listing names them.
        values: Label values allowed.
        channels: Image channels; a single file with several channels must have them along its fourth axis.
        tolerance: Largest distance in voxels between the corners of two files.

    Returns:
        The problems; each sentence names the case.
    """
    problems: list[str] = []
    first: Any = None
    for file in case.files:
        if not file.is_file():
            continue
        label = file == case.label
        try:
            check_whole(file)
            image: Any = nibabel.load(file)
            voxels = _voxels(image, label=label)
        except UNREADABLE as error:
            problems.append(f"{case.name}: cannot be read: {file}: {_words(error).removeprefix(f'{file} ')}")
            continue
        axes = image.shape
        dimensions = 4 if channels > 1 and len(case.images) == 1 and not label else 3
        if len(axes) != dimensions or 0 in axes or (dimensions == 4 and axes[3] != channels):
            expected = f"x, y, z, {channels}" if dimensions == 4 else "x, y, z"
            problems.append(f"{case.name}: shape {axes} where ({expected}) is expected: {file}")
            continue
        if not _usable(image.affine):
            problems.append(f"{case.name}: header without a usable affine: {file}")
            continue
        if first is None:
            first = image
        else:
            problems += [f"{case.name}: {text}: {file}" for text in _differences(first, image, tolerance)]
        if label:
            unknown = sorted(_values(voxels) - {float(value) for value in values})
            if unknown:
                listed = ", ".join(f"{value:g}" for value in unknown[:8])
                allowed = ", ".join(map(str, sorted(values)))
                problems.append(f"{case.name}: label values {listed} where {allowed} are allowed: {file}")
    return problems


def read_grid(case: SourceCase) -> Grid | None:
    """Orientation, sizes and lengths from the first image's header; None if it cannot be read."""
    try:
        image: Any = nibabel.load(case.images[0])
        affine = np.asarray(image.affine, dtype=np.float64)
    except UNREADABLE:
        return None
    if image.ndim < 3 or 0 in image.shape or not _usable(affine):
        return None
    letters = "".join(nibabel.aff2axcodes(affine))
    sizes, shape = nibabel.affines.voxel_sizes(affine), image.shape[:3]
    spacing, extent = np.zeros(3), np.zeros(3)
    for axis, letter in enumerate(letters):
        spacing[PATIENT_AXIS[letter]] = sizes[axis]
        extent[PATIENT_AXIS[letter]] = sizes[axis] * shape[axis]
    return Grid(case.name, letters, shape, three(spacing), three(extent))


def _voxels(image: Any, *, label: bool) -> npt.NDArray[Any]:
    # unscaled data suffice to see that an image is complete
    return np.asanyarray(image.dataobj) if label else np.asanyarray(image.dataobj.get_unscaled())


def _usable(affine: npt.NDArray[np.float64] | None) -> bool:
    if affine is None or not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((lengths > 0).all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-4)


def _differences(first: Any, image: Any, tolerance: float) -> list[str]:
    shapes = first.shape[:3], image.shape[:3]
    if shapes[0] != shapes[1]:
        return [f"{shapes[1]} voxels, the first image has {shapes[0]}"]
    apart = corner_distance(Frame.from_nibabel(first), Frame.from_nibabel(image))
    if apart <= tolerance:
        return []
    return [f"another affine than the first image: corners up to {apart:.2g} voxels apart"]


def _values(voxels: npt.NDArray[Any]) -> set[float]:
    values: set[float] = set()
    for plane in np.moveaxis(voxels, -1, 0):  # np.unique of a whole scan would sort it
        values.update(map(float, np.unique(plane)))
    return values


def _words(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
