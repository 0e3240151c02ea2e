"""Files that are not what they should be, and disks that are full."""

import contextlib
import gzip
from collections.abc import Callable, Iterator

PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"

BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda whole: whole[: len(whole) // 2], "is cut off: it ends after"),
    "cut a little": (lambda whole: whole[:-5], "is cut off: it ends after"),
    "plain": (gzip.decompress, "is not compressed although its name ends in .gz: it is a plain NIfTI file"),
    "empty": (lambda whole: b"", "is empty (0 bytes)"),
    "html": (
        lambda whole: PAGE,
        "is not compressed although its name ends in .gz: it begins with b'<!DOCTYPE html>",
    ),
}
"""What makes a .nii.gz file a broken one, and what must be said about it."""


@contextlib.contextmanager
def full_disk(space: int) -> Iterator[None]:
    """No file can grow beyond a number of bytes, which writers meet like a disk that is full."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
