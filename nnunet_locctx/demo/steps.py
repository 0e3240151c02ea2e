"""Remembers which steps of a long job are done, so that a second run goes on where the first one stopped."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunet_locctx.files import write_atomically


class Steps:
    """The finished steps of a job, kept in one JSON file that is replaced as a whole.

    A step counts as done once its function has returned. The function must be able to start over from what an
    interrupted run of itself left behind.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        """Take up the job in `file`, or begin it.

        Args:
            file: JSON file; its folder must exist.
            settings: What the steps depend on, as JSON can hold it.

        Raises:
            ValueError: The file belongs to a job with other settings, or cannot be read.
        """
        self.file = file
        self._state: dict[str, Any] = {"settings": json.loads(json.dumps(settings)), "seconds": {}}
        if file.exists():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                differing = [
                    f"{key}: {found['settings'].get(key)!r} there, {value!r} now"
                    for key, value in self._state["settings"].items()
                    if found["settings"].get(key) != value
                ]
                found["seconds"].items()
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"{file} does not hold the state of a job ({error!r}); remove {file.parent}"
                ) from error
            if differing:
                raise ValueError(
                    f"{file.parent} was begun with other settings ({'; '.join(differing)}); "
                    "choose another folder or remove it"
                )
            self._state = found

    @property
    def seconds(self) -> dict[str, float]:
        """Step -> seconds it took, for the finished ones in the order they ended."""
        return dict(self._state["seconds"])

    def run(self, name: str, title: str, work: Callable[[], object]) -> None:
        """Do a step unless it is done.

        Args:
            name: Name of the step, once per job.
            title: Printed before the step.
            work: The step.
        """
        if name in self._state["seconds"]:
            print(f"== {title}: done before ({self._state['seconds'][name]:.0f} s)", flush=True)
            return
        print(f"== {title}", flush=True)
        start = time.monotonic()
        work()
        self._state["seconds"][name] = round(time.monotonic() - start, 1)
        write_text(self.file, json.dumps(self._state, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old one or the new one."""
    write_atomically(file, text.encode())
