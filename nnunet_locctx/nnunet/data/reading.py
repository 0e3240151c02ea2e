"""Reads scans with nnU-Net's own readers, so that properties are those of training and prediction.

Only whole files: see :func:`~nnunet_locctx.image_files.check_whole`.
"""

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Frame
from nnunet_locctx.image_files import BrokenFileError, check_whole, explain
from nnunet_locctx.scan import Scan

__all__ = [
    "BrokenFileError",
    "choose_reader",
    "explain",
    "file_ending",
    "read_quietly",
    "read_scan",
    "readers_for",
    "share_not_finite",
]


def readers_for(ending: str) -> list[str]:
    """Class names of the readers that nnU-Net tries for a file ending, in its order.

    Raises:
        ValueError: No reader takes the ending.
    """
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    names = [
        reader.__name__ for reader in LIST_OF_IO_CLASSES if ending.lower() in reader.supported_file_endings
    ]
    if not names:
        known = sorted({known for reader in LIST_OF_IO_CLASSES for known in reader.supported_file_endings})
        raise ValueError(f"nnU-Net has no reader for files ending in {ending!r}; it reads {', '.join(known)}")
    return names


def choose_reader(content: Mapping[str, Any], example: Path) -> str:
    """Class name of the reader that nnU-Net takes for a dataset: the one it names, or the first that reads a file.

    Args:
        content: Content of dataset.json.
        example: The first of the files. If none can read it, the first reader is named; reading it says what is wrong.

    Raises:
        ValueError: There is none for the file ending.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    known = readers_for(content["file_ending"])
    # nnU-Net prints a traceback for every reader that fails
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            reader = determine_reader_writer_from_dataset_json(dict(content), str(example), verbose=False)
        except RuntimeError:
            return known[0]
    return str(reader.__name__)


def file_ending(file: Path) -> str:
    """The ending of a scan's file name, such as ``".nii.gz"``."""
    return "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix


def read_quietly(
    files: Sequence[Path], reader: str, *, segmentation: bool = False
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """(channels, z, y, x) voxels and nnU-Net's properties; what the reader prints is dropped.

    Args:
        files: One file per channel, or one segmentation.
        reader: Class name of the reader, such as ``"SimpleITKIO"``.
        segmentation: Read a segmentation.

    Raises:
        BrokenFileError: A file is missing, not whole, or not what its name says.
        Exception: Whatever the reader raises.
    """
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    for file in files:
        check_whole(file)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        instance = recursive_find_reader_writer_by_name(reader)()
        try:
            if segmentation:
                return instance.read_seg(str(files[0]))
            return instance.read_images([str(file) for file in files])
        except RuntimeError as error:
            if str(error):
                raise
            # nnU-Net prints what differs between channels and raises an error without words
            raise RuntimeError(" ".join(printed.getvalue().split())) from error


def share_not_finite(file: Path) -> float:
    """The share of a NIfTI file's voxels that are NaN or infinite; 0 for other files.

    ITK's library reads such voxels as 0, so nibabel reads the file.
    """
    if not file.name.endswith((".nii", ".nii.gz")):
        return 0.0
    import nibabel

    image: Any = nibabel.load(file)
    if image.get_data_dtype().kind != "f":
        return 0.0
    finite = np.isfinite(np.asanyarray(image.dataobj))
    return float((finite.size - np.count_nonzero(finite)) / max(finite.size, 1))


def read_scan(files: Sequence[Path], reader: str | None = None, *, segmentation: bool = False) -> Scan:
    """A scan and its frame, as nnU-Net's reader gives them: neither cropped nor resampled.

    Args:
        files: One file per channel, or one segmentation.
        reader: Class name of the reader; None: the first of nnU-Net's that manages.
        segmentation: Read a segmentation.

    Raises:
        BrokenFileError: A file is missing, not whole, or not what its name says.
        ValueError: No reader can read them (says why for each), or their geometry is unusable; names the file.
    """
    reasons = []
    for name in readers_for(file_ending(files[0])) if reader is None else [reader]:
        try:
            voxels, properties = read_quietly(files, name, segmentation=segmentation)
        except BrokenFileError:
            raise
        except Exception as error:  # readers raise anything; the next one may manage, as in nnU-Net
            reasons.append(f"{name}: {explain(error)}")
            continue
        try:
            return Scan(voxels, Frame.as_read(properties, voxels.shape[1:]), properties)
        except ValueError as error:
            raise ValueError(f"{files[0]}: {error}") from error
    raise ValueError(f"nnU-Net cannot read {', '.join(map(str, files))}. " + "; ".join(reasons))


def read_segmentation(file: Path, reader: str | None = None) -> Scan:
    """A segmentation, int32, as :func:`read_scan` reads it.

    Raises:
        ValueError: As :func:`read_scan`, or it holds other than whole numbers; names the file.
    """
    scan = read_scan([file], reader, segmentation=True)
    if share := share_not_finite(file):
        raise ValueError(f"{file}: {100 * share:.3g} % of a segmentation's voxels are NaN or infinite")
    try:
        return Scan(scan.labels[None], scan.frame, scan.properties)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
