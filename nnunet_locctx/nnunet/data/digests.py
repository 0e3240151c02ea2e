"""The content of raw files as digests, read again only where a file may have changed."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunet_locctx.files import file_digest, write_atomically
from nnunet_locctx.nnunet.data.workers import map_in_workers


def file_digests(
    files: Iterable[Path], record: Path, *, processes: int = 1, progress: bool = True
) -> dict[Path, str]:
    """SHA-256 of files.

    A file whose size and times (of its content and of its entry in the file system) are those of the record is not
    read. A dataset that was copied is thus read once more, and found to be the same; the second time is set by the
    system alone, so that a copy with the time of another file is not taken for that file.

    Args:
        files: Existing files.
        record: What is known from before, JSON; brought up to date. One that cannot be read counts as empty.
        processes: Worker processes.
        progress: Show a progress bar where files are read.

    Raises:
        OSError: A file cannot be read.
    """
    known = _read(record)
    states = {file: _state(file) for file in dict.fromkeys(files)}
    names = {file: str(file.absolute()) for file in states}
    due = [file for file, state in states.items() if known.get(names[file], [None])[:-1] != state]
    digests = map_in_workers(file_digest, due, processes, "comparing files" if progress else None)
    new = {names[file]: [*states[file], digest] for file, digest in zip(due, digests, strict=True)}
    if new:
        known.update(new)
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps(known, indent=0).encode())
    return {file: str(known[names[file]][-1]) for file in states}


def _state(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read(record: Path) -> dict[str, list[Any]]:
    """File -> size, two times and digest."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        file: entry
        for file, entry in content.items()
        if isinstance(entry, list) and len(entry) == 4 and isinstance(entry[-1], str)
    }
