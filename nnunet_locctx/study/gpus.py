"""Which GPUs of this machine a job of a study works on."""

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nnunet_locctx.locks import BusyError, end_abandoned, lock


@contextlib.contextmanager
def claim_gpus(visible: Sequence[str], number: int, say: Callable[[str], None]) -> Iterator[dict[str, int]]:
    """Holds as many of this machine's GPUs as a job needs, so that no two jobs of a user's studies share one.

    Args:
        visible: Ids as in ``CUDA_VISIBLE_DEVICES``.
        number: How many.
        say: Told once if it has to wait.

    Yields:
        GPU -> descriptor of the lock that claims it, for the process that works on it to inherit.

    Raises:
        ValueError: There are not so many, or the claims' folder is another user's.
    """
    if number > len(visible):
        raise ValueError(
            f"a job needs {number} GPUs, visible are {len(visible)} ({', '.join(visible) or 'none'})"
        )
    folder = _claims_folder()
    files = {gpu: folder / gpu.replace("/", "-") for gpu in visible}
    told = False
    while True:
        with contextlib.ExitStack() as stack:
            held: dict[str, int] = {}
            for gpu, file in files.items():
                with contextlib.suppress(BusyError):
                    held[gpu] = stack.enter_context(lock(file, inherited=True))
                if len(held) == number:
                    yield held
                    return
        ended = [process for file in files.values() for process in end_abandoned(file)]
        if ended:  # workers of a training that was killed would hold its GPU for ever
            say(f"ended what a killed process had left at work: {ended}")
            continue
        if not told:
            say(f"waiting for {number} of the GPUs {', '.join(visible)}")
        told = True
        time.sleep(2.0)


def _claims_folder() -> Path:
    """A folder of this user's in the temporary one, where others may have put something of that name before."""
    folder = Path(tempfile.gettempdir()) / f"locctx-gpus-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ValueError(
            f"{folder}, where GPUs are claimed, is no folder of yours (owner {found.st_uid}, "
            f"{stat.filemode(found.st_mode)}); have it removed, or set TMPDIR to a folder of your own"
        )
    folder.chmod(0o700)
    return folder
