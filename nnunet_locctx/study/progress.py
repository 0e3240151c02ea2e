"""Says on the terminal how far a study is, from the files its jobs leave, wherever they run."""

import time
from collections.abc import Callable, Mapping, Sequence

from nnunet_locctx.study.jobs import Job
from nnunet_locctx.study.work_folder import WorkFolder, read_json


class Progress:
    """Prints a line when a job begins, ends or fails.

    Args:
        work: The work folder.
        graph: All jobs.
        wanted: Those that are to run now.
        done_before: How many of the study's jobs were done.
        show: Prints a line.
    """

    def __init__(
        self,
        work: WorkFolder,
        graph: Mapping[str, Job],
        wanted: Sequence[str],
        done_before: int,
        show: Callable[[str], None],
    ) -> None:
        self.work, self.graph, self.wanted, self.show = work, graph, list(wanted), show
        self.finished: set[str] = set()
        self.total = done_before + len(wanted)
        self.before = done_before
        self.began = time.time()
        self.said: dict[str, tuple[str, float]] = {}

    def look(self) -> list[str]:
        """Looks once; returns the jobs that have ended well since the last look."""
        new = []
        for name in self.wanted:
            if name in self.finished:
                continue
            status = read_json(self.work.status(name))
            if status.get("started", 0) < self.began - 1:
                continue  # of an earlier run
            state = (str(status["state"]), float(status["started"]))
            if self.work.done(name).is_file():
                self.finished.add(name)
                new.append(name)
                self._say("done", name, float(read_json(self.work.done(name)).get("seconds", 0)))
            elif state != self.said.get(name) and state[0] in ("running", "failed"):
                self.said[name] = state
                self._say("started" if state[0] == "running" else "FAILED", name)
        return new

    def _say(self, what: str, name: str, seconds: float | None = None) -> None:
        count = f"{self.before + len(self.finished)}/{self.total}"
        took = "" if seconds is None else f" ({duration(seconds)})"
        where = f"; see {self.work.log(name)}" if what == "FAILED" else ""
        self.show(f"[{count:>9}] {what:<8} {self.graph[name].title}{took}{where}")


def duration(seconds: float) -> str:
    """Seconds in words: ``42 s``, ``12 min``, ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
