"""Files that are written in one step: a reader sees the old file or the new one, never a part."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A draft to write to, which takes the file's place at the end; after an error the file is as it was.

    The draft lies beside the file and has its ending, by which some writers choose the format.
    """
    draft = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        yield draft
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def write_atomically(file: Path, data: bytes) -> None:
    """Replaces a file as a whole."""
    with replacing(file) as draft:
        draft.write_bytes(data)
