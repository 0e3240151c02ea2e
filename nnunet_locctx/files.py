"""Files that are written in one step: a reader sees the old file or the new one, never a part."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

HOST = re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())[:32]
"""This machine's name, as it stands in the names of drafts."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a write for which the disk or the quota has no space."""

ABANDONED_SECONDS = 86400.0
"""A draft of another machine's process is abandoned if nothing touched it for this long."""


@contextlib.contextmanager
def drafting(target: Path) -> Iterator[Path]:
    """A name beside a file (or folder) under which it can be prepared; what is still there at the end is removed.

    The name, ``.PID@HOST.NAME``, has the target's ending, by which some writers choose the format. What dead processes
    left of the same target is removed first: drafts of this machine whose process is gone, and those of other machines
    (or of earlier versions, whose names held no machine) that nothing touched for a day.
    """
    _remove_abandoned(target)
    draft = target.with_name(f".{os.getpid()}@{HOST}.{target.name}")
    _remove(draft)  # an earlier process may have had this one's number
    try:
        yield draft
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # a write does not say to where
            error.filename = str(target)
        raise
    finally:
        _remove(draft)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A draft to write to (see :func:`drafting`), which takes the target's place at the end, on disk for sure.

    After an error the target is as it was. The draft of a folder is made by the caller; the target must then be absent
    or empty.
    """
    with drafting(target) as draft:
        yield draft
        move_into_place(draft, target)


def move_into_place(draft: Path, target: Path) -> None:
    """Renames a draft once its content is on the disk.

    Raises:
        OSError: Among others, the disk is full: some file systems say so only now.
    """
    if draft.is_file():
        with draft.open("rb+") as stream:
            os.fsync(stream)
    draft.replace(target)
    if hasattr(os, "O_DIRECTORY"):  # not on Windows
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # not every file system can; the content is safe all the same
                os.fsync(folder)
        finally:
            os.close(folder)


def write_atomically(file: Path, data: bytes) -> None:
    """Replaces a file as a whole."""
    with replacing(file) as draft:
        draft.write_bytes(data)


def file_digest(*files: Path) -> str:
    """SHA-256 of the content of files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def link(source: Path | str, target: Path | str) -> None:
    """Lets `target` stand for the file `source`: a symbolic link; where the system makes none a hard link, or a copy.

    Windows makes symbolic links for administrators and developers only, FAT and some network shares make none.

    Raises:
        FileExistsError: There is a target.
        OSError: Not even a copy could be made.
    """
    source, target = Path(source).resolve(), Path(target)
    if os.path.lexists(target):  # a link that leads nowhere too: a copy would be written through it
        raise FileExistsError(errno.EEXIST, "there is a file of this name", str(target))
    for make in (target.symlink_to, target.hardlink_to):
        with contextlib.suppress(OSError, NotImplementedError):
            make(source)
            return
    shutil.copyfile(source, target)


def _remove_abandoned(target: Path) -> None:
    pattern = re.compile(rf"\.(\d+)(?:@([\w-]+))?\.{re.escape(target.name)}")
    try:
        neighbours = list(target.parent.iterdir())
    except OSError:  # there is no such folder: the writing itself will say so
        return
    for path in neighbours:
        match = pattern.fullmatch(path.name)
        if match is not None and _is_abandoned(path, int(match[1]), match[2]):
            _remove(path)


def _is_abandoned(draft: Path, process: int, host: str | None) -> bool:
    if host == HOST and os.name == "posix":  # elsewhere signal 0 is not a question
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # somebody else's process
            pass
        return False
    with contextlib.suppress(OSError):
        return (
            time.time() - max(path.stat().st_mtime for path in (draft, *draft.rglob("*"))) > ABANDONED_SECONDS
        )
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
