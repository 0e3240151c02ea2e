"""Locks that end with the process that works, whatever ends it; those that were left behind are found and ended."""

import contextlib
import errno
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


class BusyError(RuntimeError):
    """Another process holds the lock; carries what that process wrote about itself."""


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
        OSError: The file cannot be opened, or is a symbolic link.
    """
    import fcntl  # not on Windows, where Snakemake does not run either

    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
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
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({**holder, **about}).encode(), 0)


@contextlib.contextmanager
def wait_for_lock(
    file: Path,
    say: Callable[[str], None],
    seconds: float = 2.0,
    *,
    inherited: bool = False,
    ended: Callable[[list[int]], None] = lambda processes: None,
) -> Iterator[int]:
    """Holds a lock, after waiting for whoever holds it, or ending those that a killed process left it to.

    Args:
        file: See :func:`lock`, for ``inherited`` too.
        say: Called once with what the holder wrote.
        seconds: Between two looks.
        ended: Called with the processes that were ended.

    Yields:
        The file's descriptor.
    """
    with contextlib.ExitStack() as stack:
        reported = False
        while True:
            try:
                descriptor = stack.enter_context(lock(file, inherited=inherited))
                break
            except BusyError as busy:
                left_behind = end_abandoned(file)
                if left_behind:
                    ended(left_behind)
                    continue
                if not reported:
                    say(str(busy))
                reported = True
                time.sleep(seconds)
        yield descriptor


def holders(file: Path) -> dict[int, int]:
    """Processes of this user and machine that hold a lock, those that inherited it too.

    Returns:
        Process -> the process that took the lock (0: no longer known). Empty where there is no ``/proc``.
    """
    takers: dict[int, int] = {}
    try:
        own = file.stat()
    except OSError:
        return takers
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # of another user, or ended meanwhile
            for link in (process / "fd").iterdir():
                opened = link.stat()
                if (opened.st_dev, opened.st_ino) != (own.st_dev, own.st_ino):
                    continue
                # whoever only waits has the file open too, but the lock is not on its descriptor
                details = (process / "fdinfo" / link.name).read_text()
                taker = re.search(r"^lock:.*\bFLOCK\s+\S+\s+\S+\s+(\d+)", details, re.MULTILINE)
                if taker:
                    takers[int(process.name)] = int(taker[1])
    return takers


def end_abandoned(file: Path) -> list[int]:
    """Ends those that inherited a lock from a process that is no more; returns them."""
    left = holders(file)
    return [] if not left or set(left.values()) & set(left) else end_holders(file)


def end_holders(file: Path, seconds: float = 10.0) -> list[int]:
    """Ends whoever holds a lock on this machine, with their process groups; returns them.

    Args:
        file: The lock's.
        seconds: Between asking (SIGTERM) and killing.
    """
    ended: dict[int, None] = {}
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 2.0)):
        until = time.monotonic() + patience
        left = [process for process in holders(file) if process != os.getpid()]
        ended.update(dict.fromkeys(left))
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                group = os.getpgid(process)
                if group == os.getpgrp():
                    os.kill(process, number)
                else:
                    os.killpg(group, number)
        while left and time.monotonic() < until:
            time.sleep(0.1)
            left = [process for process in holders(file) if process != os.getpid()]
        if not left:
            break
    return list(ended)


WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of file systems that have no locks."""


@contextlib.contextmanager
def one_at_a_time(
    file: Path, what: str = "", seconds: float = 1.0, *, inherited: bool = False
) -> Iterator[Sequence[int]]:
    """Waits until no other process is in here with the same file; ends those that a killed one left there.

    Where there are no locks (Windows, some network file systems) nothing is waited for.

    Args:
        file: The lock's; stays there, empty but for who had it last.
        what: What is worked on, for the line that says it waits; empty: no line.
        seconds: Between two looks.
        inherited: As for :func:`lock`.

    Yields:
        The descriptors for child processes to inherit.
    """

    def say(holder: str) -> None:
        if what:
            print(f"{what} is in use by {_described(holder)}: waiting", flush=True)

    with contextlib.ExitStack() as stack:
        try:
            held = [stack.enter_context(wait_for_lock(file, say, seconds, inherited=inherited))]
        except ImportError:
            held = []
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            held = []
        yield held


def _described(holder: str) -> str:
    """Who holds a lock, from what it wrote there."""
    try:
        content = json.loads(holder)
        return f"process {content['pid']} on {content['host']} since {content['since']}"
    except (ValueError, KeyError, TypeError):
        return holder or "another process"
