"""One command at a time where two would overwrite each other's work."""

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path

from nnunet_locctx.locks import wait_for_lock

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What file systems that know no locks answer."""


@contextlib.contextmanager
def one_at_a_time(file: Path, what: str, seconds: float = 1.0) -> Iterator[None]:
    """Waits until no other process is in here with the same file, and says so.

    Where there are no locks (Windows, some network file systems) nothing is waited for.

    Args:
        file: The lock's; stays there, empty but for who had it last.
        what: What is worked on, for the line that says it waits.
        seconds: Between two looks.
    """

    def say(holder: str) -> None:
        print(f"{what} is in use by {_told(holder)}: waiting", flush=True)

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(wait_for_lock(file, say, seconds))
        except ImportError:
            pass
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        yield


def _told(holder: str) -> str:
    """Who holds a lock, from what it wrote there."""
    try:
        content = json.loads(holder)
        return f"process {content['pid']} on {content['host']} since {content['since']}"
    except (ValueError, KeyError, TypeError):
        return holder or "another process"
