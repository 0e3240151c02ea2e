"""Reads scans with nnU-Net's own readers, so that properties are those of training and prediction."""

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


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
        Exception: Whatever the reader raises.
    """
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        instance = recursive_find_reader_writer_by_name(reader)()
        if segmentation:
            return instance.read_seg(str(files[0]))
        return instance.read_images([str(file) for file in files])


def read_any(
    files: Sequence[Path], *, segmentation: bool = False
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """:func:`read_quietly` with the first of nnU-Net's readers that manages.

    Raises:
        ValueError: A file is not there, or no reader can read them; says why for each.
    """
    for file in files:
        if not file.is_file():
            raise ValueError(f"no file {file}")
    reasons = []
    for reader in readers_for(file_ending(files[0])):
        try:
            return read_quietly(files, reader, segmentation=segmentation)
        except Exception as error:  # the next reader may manage, as in nnU-Net
            reasons.append(f"{reader}: {explain(error)}")
    raise ValueError(f"nnU-Net cannot read {', '.join(map(str, files))}. " + "; ".join(reasons))


def explain(error: Exception) -> str:
    """The part of a reader's error that is for people: ITK's messages begin with positions in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
