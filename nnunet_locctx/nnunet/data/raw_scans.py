"""The training scans of a raw dataset on the canonical grid, each read once and kept on disk."""

import glob
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_locctx.files import write_atomically
from nnunet_locctx.names import summarise
from nnunet_locctx.nnunet.data.dataset_json import read_dataset_json
from nnunet_locctx.nnunet.data.reading import choose_reader, read_scan
from nnunet_locctx.nnunet.data.workers import map_in_workers
from nnunet_locctx.regression.canonical import CanonicalScan, to_canonical
from nnunet_locctx.scan import Scan

LEVELS = 65535
"""Intensities are kept as whole numbers from 0 to this, from a scan's least to its greatest."""

READING = 1
"""Changes when the same files are understood otherwise (another frame, other intensities): what was derived from scans
is then derived again."""


@dataclass(frozen=True)
class RawCase:
    """A training case of a raw dataset.

    Attributes:
        identifier: nnU-Net's name of the case.
        images: One file per channel (or one that holds several).
        label: The segmentation.
        reader: Class name of nnU-Net's reader.
    """

    identifier: str
    images: tuple[Path, ...]
    label: Path
    reader: str

    def stamp(self, digests: Mapping[Path, str], *further: Path) -> str:
        """Changes when the content of an image does, or the way it is read.

        Args:
            digests: Digests of the files' content (:func:`~nnunet_locctx.nnunet.data.digests.file_digests`).
            further: Files on which what is derived from the images depends too.
        """
        parts = [str(READING), self.reader, *[digests[file] for file in (*self.images, *further)]]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def read(self) -> Scan:
        """The image as stored.

        Raises:
            ValueError: It cannot be read, or its geometry is broken; names the case.
        """
        return self._read(self.images)

    def read_label(self) -> Scan:
        """The segmentation as stored; errors as in :meth:`read`."""
        return self._read([self.label], "label of ", segmentation=True)

    def _read(self, files: Sequence[Path], what: str = "", *, segmentation: bool = False) -> Scan:
        try:
            return read_scan(files, self.reader, segmentation=segmentation)
        except ValueError as error:
            raise ValueError(f"{what}case {self.identifier}: {error}") from error


def training_cases(folder: Path) -> list[RawCase]:
    """The training cases of a raw dataset, as nnU-Net finds them: in imagesTr and labelsTr, or listed in dataset.json.

    Raises:
        ValueError: There are none, their files are missing, or imagesTr holds files whose names have no channel.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    dataset = read_dataset_json(folder)
    if "dataset" not in dataset:
        _check_names(folder / "imagesTr", dataset["file_ending"], len(dataset["channel_names"]))
    try:
        files = get_filenames_of_train_images_and_targets(str(folder), dataset)
    except (OSError, AssertionError, KeyError) as error:
        raise ValueError(f"the training cases of {folder} cannot be listed: {error}") from error
    cases = {
        name: (tuple(Path(file) for file in entry["images"]), Path(entry["label"]))
        for name, entry in sorted(files.items())
    }
    if not cases:
        raise ValueError(f"{folder} has no training scans")
    missing = [str(file) for images, _ in cases.values() for file in images if not file.is_file()]
    if missing:
        raise ValueError(f"missing: {summarise(missing)}")
    reader = choose_reader(dataset, next(iter(cases.values()))[0][0])
    return [RawCase(name, images, label, reader) for name, (images, label) in cases.items()]


def _check_names(images: Path, ending: str, count: int) -> None:
    """Refuses images that nnU-Net takes for something else than they are.

    Of a name without a channel it cuts off five characters all the same, and makes a case without an image of the
    rest; where the first channel is missing, it takes the second one for the first.
    """
    names = [file.name for file in images.iterdir() if file.name.endswith(ending)] if images.is_dir() else []
    matches = {name: re.fullmatch(r"(.+)_(\d{4})", name[: -len(ending)]) for name in sorted(names)}
    ghosts = [name for name, match in matches.items() if match is None]
    if ghosts:
        raise ValueError(
            f"{images} holds {len(ghosts)} files without a channel number, of which nnU-Net makes cases without an "
            f"image; name them CASE_0000{ending} (the first channel) or take them away:\n{summarise(ghosts)}"
        )
    channels: dict[str, list[int]] = {}
    for match in matches.values():
        if match is not None:
            channels.setdefault(match[1], []).append(int(match[2]))
    many = [f"{name} has {len(numbers)}" for name, numbers in channels.items() if len(numbers) > count]
    if many:
        raise ValueError(
            f"dataset.json names {count} channel(s), but by the names of the files in {images} cases have more "
            f"(CASE_0000{ending} is the first channel of CASE):\n{summarise(many)}"
        )
    lacking = [
        f"{name}_{number:04d}{ending}"
        for name, numbers in channels.items()
        for number in range(max(numbers))
        if number not in numbers
    ]
    if lacking:
        raise ValueError(f"channels are missing in {images}:\n{summarise(lacking)}")


class CanonicalScans(Mapping[str, CanonicalScan]):
    """Training scans on the canonical grid, read from the folder they are kept in.

    Args:
        folder: Where :func:`keep_scans` put them.
        identifiers: The cases.
    """

    def __init__(self, folder: Path, identifiers: Sequence[str]) -> None:
        self.folder = folder
        self.identifiers = tuple(identifiers)

    def __getitem__(self, identifier: str) -> CanonicalScan:
        if identifier not in self.identifiers:
            raise KeyError(identifier)
        with np.load(self.folder / f"{identifier}.npz") as stored:
            lower, upper = stored["range"]
            image = stored["image"].astype(np.float32) * np.float32((upper - lower) / LEVELS)
            image += np.float32(lower)
            shape = image.shape
            inside = np.unpackbits(stored["inside"], count=image.size).astype(bool).reshape(shape)
            return CanonicalScan(image, inside, stored["affine"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.identifiers)

    def __len__(self) -> int:
        return len(self.identifiers)


def keep_scans(
    cases: Sequence[RawCase],
    stamps: Mapping[str, str],
    folder: Path,
    channel: int,
    spacing: float,
    *,
    processes: int = 1,
    progress: bool = True,
) -> CanonicalScans:
    """Reads every scan that is not kept yet, or has changed since.

    Args:
        cases: The training cases.
        stamps: :meth:`RawCase.stamp` of each.
        folder: Where to keep them; made if absent.
        channel: Image channel.
        spacing: Voxel size of the canonical grid in mm.
        processes: Worker processes.
        progress: Show a progress bar.

    Raises:
        ValueError: Scans that cannot be read, all of them named; the others are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    due = [case for case in cases if not _is_kept(case, stamps[case.identifier], folder)]
    jobs = [(case, stamps[case.identifier], folder, channel, spacing) for case in due]
    shown = "reading scans" if progress else None
    wrong = [answer for answer in map_in_workers(_keep, jobs, processes, shown) if answer]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(cases)} scans cannot be used:\n{summarise(wrong)}")
    return CanonicalScans(folder, [case.identifier for case in cases])


def check_channel(scan: Scan, channel: int) -> None:
    """Raises ValueError if a scan lacks a channel."""
    if not 0 <= channel < len(scan.voxels):
        raise ValueError(f"has {len(scan.voxels)} channels, channel {channel} is named")


def stale_folders(dataset: Path, cases: Sequence[RawCase]) -> list[Path]:
    """Folders of nnU-Net's preprocessed data in which a case is older than its scan."""
    folders = set()
    for case in cases:
        states = [file.stat() for file in case.images]
        # the time of the entry too: a copy may carry the time of the file it was made from
        changed = max(max(state.st_mtime, state.st_ctime) for state in states)
        for file in dataset.glob(f"*/{glob.escape(case.identifier)}.pkl"):
            if file.stat().st_mtime < changed:
                folders.add(file.parent)
    return sorted(folders)


def _is_kept(case: RawCase, stamp: str, folder: Path) -> bool:
    file = folder / f"{case.identifier}.npz"
    if not file.is_file():
        return False
    try:
        with np.load(file) as stored:
            return bool(str(stored["stamp"]) == stamp)
    except Exception:  # damaged: is written again
        return False


def _keep(job: tuple[RawCase, str, Path, int, float]) -> str:
    """Keeps one scan; returns what is wrong with it."""
    case, stamp, folder, channel, spacing = job
    try:
        scan = case.read()
    except (ValueError, OSError) as error:
        return str(error)
    try:
        check_channel(scan, channel)
        canonical = to_canonical(scan.voxels[channel], scan.frame, spacing)
    except ValueError as error:
        return f"case {case.identifier}: {error}"
    lower, upper = float(canonical.image.min()), float(canonical.image.max())
    scaled = (canonical.image - lower) * (LEVELS / max(upper - lower, 1e-30))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        image=np.rint(scaled).astype(np.uint16),
        range=np.array([lower, upper]),
        inside=np.packbits(canonical.inside),
        affine=canonical.affine,
        stamp=np.array(stamp),
    )
    write_atomically(folder / f"{case.identifier}.npz", buffer.getvalue())
    return ""
