"""Locks that end with the process that holds them, whatever ends it."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class BusyError(RuntimeError):
    """The lock is held by another process; carries what that process said about itself."""


@contextlib.contextmanager
def lock(file: Path, about: dict[str, Any] | None = None, *, inherited: bool = False) -> Iterator[int]:
    """Holds a lock.

    Args:
        file: The lock's file; stays there.
        about: Written into it for whoever finds it held, with process, host and time.
        inherited: Child processes can be given it too (``pass_fds``): it is then free when all of them have ended.

    Yields:
        The file's descriptor.

    Raises:
        BusyError: Another process holds it.
    """
    import fcntl  # not on Windows, where Snakemake does not run either

    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.set_inheritable(descriptor, inherited)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(os.pread(descriptor, 4096, 0).decode(errors="replace").strip()) from error
        note(descriptor, about or {})
        yield descriptor
    finally:
        os.close(descriptor)


def note(descriptor: int, about: dict[str, Any]) -> None:
    """Writes into a held lock who holds it and since when."""
    said = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({**said, **about}).encode(), 0)


@contextlib.contextmanager
def wait_for_lock(file: Path, say: Callable[[str], None], seconds: float = 2.0) -> Iterator[None]:
    """Holds a lock, after waiting for whoever holds it; says once that it waits."""
    with contextlib.ExitStack() as stack:
        told = False
        while True:
            try:
                stack.enter_context(lock(file))
                break
            except BusyError as busy:
                if not told:
                    say(str(busy))
                told = True
                time.sleep(seconds)
        yield
