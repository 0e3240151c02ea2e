"""What the commands of a study's jobs share."""

import subprocess
import sys
from collections.abc import Callable


def exit_status(step: Callable[[], object]) -> int:
    """Runs the work of a command; returns 0, or 1 after saying on stderr what was wrong."""
    try:
        step()
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
