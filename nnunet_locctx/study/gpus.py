"""Which GPUs of this machine a job of a study works on."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nnunet_locctx.locks import BusyError, lock


@contextlib.contextmanager
def claim_gpus(visible: Sequence[str], number: int, say: Callable[[str], None]) -> Iterator[list[str]]:
    """Holds as many of this machine's GPUs as a job needs, so that no two jobs of a user's studies share one.

    Args:
        visible: Ids as in ``CUDA_VISIBLE_DEVICES``.
        number: How many.
        say: Told once if it has to wait.

    Raises:
        ValueError: There are not so many.
    """
    if number > len(visible):
        raise ValueError(
            f"a job needs {number} GPUs, visible are {len(visible)} ({', '.join(visible) or 'none'})"
        )
    folder = Path(tempfile.gettempdir()) / f"locctx-gpus-{os.getuid()}"
    told = False
    while True:
        with contextlib.ExitStack() as stack:
            held: list[str] = []
            for gpu in visible:
                with contextlib.suppress(BusyError):
                    stack.enter_context(lock(folder / gpu.replace("/", "-")))
                    held.append(gpu)
                if len(held) == number:
                    yield held
                    return
        if not told:
            say(f"waiting for {number} of the GPUs {', '.join(visible)}")
        told = True
        time.sleep(2.0)
