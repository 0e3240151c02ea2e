"""Image files: refused unless they are whole when read; whole, or not there, when written.

ITK does not say that a file is cut off: it fills the rest of NIfTI voxels with zeros and of GIPL voxels with what
memory holds. Nor that a disk is full: NIfTI and GIPL files then end where the disk did.
"""

import math
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nnunet_locctx.files import drafting, move_into_place

CHUNK = 65536
"""Bytes read at once; inflated they can be a thousand times as many."""

HEAD = 4096
"""Bytes kept of what is read through, for its header."""

GZIP = b"\x1f\x8b"

GIPL_HEADER = 256
GIPL_BYTES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
"""Size of GIPL's header, and of a voxel of each of its types."""


class BrokenFileError(ValueError):
    """An image file that is missing, not whole, or not what its name says; one line that names it."""


def check_whole(file: Path) -> None:
    """Reads an image file through, without making an image of it.

    What is compressed (gzip; NRRD and MetaImage inside) is inflated to its end, checksums included. NIfTI and GIPL
    files must hold as many voxels as their header says, TIFF files all of their pages. Of other formats, and of what is
    not compressed, the readers themselves say that it is cut off.

    Raises:
        BrokenFileError: What is wrong.
    """
    try:
        str(file).encode()
    except UnicodeEncodeError:  # ITK ends the process
        raise BrokenFileError(f"{str(file)!r}: the name is not UTF-8; rename it") from None
    if not file.is_file():
        raise BrokenFileError(f"no file {file}")
    name = file.name.lower()
    try:
        with file.open("rb") as stream:
            head = stream.read(HEAD)
            if not head:
                raise BrokenFileError(f"{file} is empty (0 bytes)")
            length = file.stat().st_size
            stream.seek(0)
            if name.endswith(".gz"):
                if not head.startswith(GZIP):
                    raise BrokenFileError(
                        f"{file} is not compressed although its name ends in .gz: {_seen(head)}"
                    )
                head, length = _inflate(stream)
            elif name.endswith((".mha", ".nrrd")):
                _inflate_inside(stream, head)
            elif name.endswith((".tif", ".tiff")):
                _follow_pages(stream, head, length)
    except (EOFError, struct.error) as error:
        raise BrokenFileError(f"{file} is cut off: it ends after {file.stat().st_size} bytes") from error
    except zlib.error as error:
        raise BrokenFileError(f"{file} is damaged: {error}") from error
    except OSError as error:
        raise BrokenFileError(f"{file} cannot be read: {error.strerror or error}") from error
    promised = None
    if name.endswith((".nii", ".nii.gz")):
        promised = _nifti_length(head)
        if promised is None:
            raise BrokenFileError(f"{file} is no NIfTI file: it begins with {head[:24]!r}")
    elif name.endswith((".gipl", ".gipl.gz")):
        promised = _gipl_length(head)
    if promised is not None and length < promised:
        what = "uncompressed bytes" if name.endswith(".gz") else "bytes"
        raise BrokenFileError(f"{file} is cut off: it has {length} {what}, by its header {promised}")


def check_written(file: Path) -> None:
    """Checks a file that other software wrote.

    Raises:
        OSError: It is not whole; says how much space is left.
    """
    try:
        check_whole(file)
    except BrokenFileError as error:
        raise OSError(_not_written(file, explain(error))) from error


def write_image(
    file: Path,
    voxels: npt.NDArray[Any],
    write: Callable[[Path], object],
    read: Callable[[Path], npt.NDArray[Any]],
) -> None:
    """Writes an image file in one step, and reads it back first.

    Args:
        file: Takes its place only if all of it was written; its folder is made if need be.
        voxels: What the file must hold.
        write: Writes to the path it is given, and may write further files beside it, which are moved along.
        read: Reads the voxels of a written file, as `voxels` has them.

    Raises:
        OSError: The file does not hold the voxels; says how much space is left.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with drafting(file) as folder:  # a folder of its own, as some writers (tif) write a second file
        folder.mkdir()
        draft = folder / file.name
        try:
            write(draft)
            check_whole(draft)
            if not np.array_equal(read(draft), voxels, equal_nan=True):
                raise ValueError(f"{draft} holds other voxels than were written")
        except Exception as error:  # writers and readers raise anything
            raise OSError(_not_written(file, explain(error).replace(f"{folder}/", ""))) from error
        for written in sorted(folder.iterdir(), key=lambda path: path == draft):
            move_into_place(written, file.parent / written.name)


def write_sitk(image: Any, file: Path) -> None:
    """Writes a SimpleITK image, compressed; errors as in :func:`write_image`."""
    import SimpleITK

    write_image(
        file,
        SimpleITK.GetArrayViewFromImage(image),
        lambda draft: SimpleITK.WriteImage(image, str(draft), useCompression=True),
        lambda draft: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(draft))),
    )


def explain(error: Exception) -> str:
    """The part of a reader's or writer's error that is for people: ITK's begin with positions in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[-1].startswith("Reason:"):  # MetaImage's, and a wrong one: "No such file"
        lines.pop()
    return re.sub(r"^\w+ ERROR: \w+\(0x\w+\): ", "", lines[-1]) if lines else type(error).__name__


def _not_written(file: Path, reason: str) -> str:
    free = shutil.disk_usage(file.parent).free / 1e6
    return f"{file} was not written whole ({free:,.1f} MB are free on its disk): {reason}"


def _seen(head: bytes) -> str:
    if _nifti_length(head) is not None:
        return "it is a plain NIfTI file; compress it, or let its name end in .nii"
    return f"it begins with {head[:24]!r}"


def _inflate(stream: BinaryIO) -> tuple[bytes, int]:
    """First bytes, and number, of what is compressed in the rest of a file (zlib, or members of gzip).

    Raises:
        EOFError: It has no end.
        zlib.error: It is damaged.
    """
    head, length = b"", 0
    data = stream.read(CHUNK)
    while True:
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
        while data and not inflater.eof:
            inflated = inflater.decompress(data)
            head += inflated[: HEAD - len(head)]
            length += len(inflated)
            data = inflater.unused_data or stream.read(CHUNK)
        if not inflater.eof:
            raise EOFError
        if len(data) < len(GZIP):
            data += stream.read(CHUNK)
        if not data.startswith(GZIP):  # whatever follows is none of the image
            return head, length


def _inflate_inside(stream: BinaryIO, head: bytes) -> None:
    """Reads the compressed voxels of a MetaImage or NRRD file that holds them itself."""
    lines = iter(stream.readline, b"")
    fields: dict[str, str] = {}
    if head.startswith(b"NRRD"):
        for line in lines:
            if not line.strip():
                break
            key, _, value = line.decode("latin-1").partition(":")
            fields[key.strip().lower()] = value.strip().lower()
        compressed = fields.get("encoding") in ("gzip", "gz") and not {"data file", "datafile"} & set(fields)
    else:
        for line in lines if b"ElementDataFile" in head else ():
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip().lower()] = value.strip().lower()
            if "elementdatafile" in fields:
                break
        compressed = fields.get("compresseddata") == "true" and fields.get("elementdatafile") == "local"
    if compressed:
        _inflate(stream)


def _follow_pages(stream: BinaryIO, head: bytes, length: int) -> None:
    """Follows the chain of a TIFF file's pages to its end; readers take the pages that are there.

    Raises:
        EOFError: The next page lies beyond the file.
        struct.error: The file ends within a page.
    """
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        return
    big = struct.unpack(f"{order}H", head[2:4])[0] == 43
    offsets, counts, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    width, step = struct.calcsize(order + offsets), struct.calcsize(order + counts)
    stream.seek(8 if big else 4)
    (offset,) = struct.unpack(order + offsets, stream.read(width))
    seen: set[int] = set()
    while offset and offset not in seen:
        if offset >= length:
            raise EOFError
        seen.add(offset)
        stream.seek(offset)
        (count,) = struct.unpack(order + counts, stream.read(step))
        stream.seek(offset + step + count * entry)
        (offset,) = struct.unpack(order + offsets, stream.read(width))


def _nifti_length(head: bytes) -> int | None:
    """Bytes that a NIfTI file must have; 0 if its header does not say, None if it has none."""
    import nibabel

    size = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if kind.sizeof_hdr in size and len(head) < kind.sizeof_hdr:
            return kind.sizeof_hdr
        if kind.sizeof_hdr in size:
            try:
                header = kind(head[: kind.sizeof_hdr], check=False)
                voxel = header.get_data_dtype().itemsize
                return int(header.get_data_offset()) + voxel * math.prod(map(int, header.get_data_shape()))
            except Exception:  # the reader says what is wrong with it
                return 0
    return None


def _gipl_length(head: bytes) -> int | None:
    """Bytes that a GIPL file must have, None if its header does not say."""
    if len(head) < GIPL_HEADER:
        return GIPL_HEADER
    *shape, kind = struct.unpack(">5H", head[:10])
    return (
        GIPL_HEADER + math.prod(max(n, 1) for n in shape) * GIPL_BYTES[kind] if kind in GIPL_BYTES else None
    )
