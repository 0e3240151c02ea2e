"""How Snakemake is asked to run a study's jobs, and what it says of them while they run."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_locctx.study.jobs import OUTPUTS, Job, Jobs
from nnunet_locctx.study.machines import KINDS, Where

SNAKEFILE = Path(__file__).parent / "Snakefile"


def check_snakemake() -> None:
    """Refuses to go on without Snakemake.

    Raises:
        ValueError: Says how to install it.
    """
    if importlib.util.find_spec("snakemake") is None:
        raise ValueError(
            "studies are run by Snakemake, which is not installed: pip install 'nnunet-locctx[study]'"
        )


def snakemake_command(
    jobs: Jobs,
    targets: Sequence[Job],
    where: Where | None,
    gpus: Sequence[str] = (),
    file: Path | None = None,
) -> list[str]:
    """The command line.

    Args:
        jobs: The study's.
        targets: What to make.
        where: Where jobs run; None: a dry run.
        gpus: Those of this machine.
        file: Holds the study; None: ``study.json`` in its work folder.
    """
    study = jobs.study
    of_plan = [job.kind for job in targets] == ["plan"]  # a call of its own, see the Snakefile
    command = [sys.executable, "-m", "snakemake", *(job.output for job in targets)]
    command += ["--snakefile", str(SNAKEFILE), "--directory", str(study.work), "--nocolor"]
    # the runner's own lock, which ends with the process, takes the place of Snakemake's, which has to be removed
    command += ["--nolock", "--rerun-incomplete", "--keep-going", "--scheduler", "greedy"]
    # a file that was only copied or touched is known by its checksum
    command += ["--rerun-triggers", "params", "input", "code", "--max-checksum-file-size", "1GB"]
    gone = [job.output for job in jobs.gone() if (job.kind == "plan") == of_plan]
    command += ["--forcerun", *gone] if gone else []
    command += [] if file is None else ["--config", f"study={file}"]
    if where is None:
        if not of_plan and (study.work / OUTPUTS["plan"]).is_file():  # as if the plan had been made
            command += ["--allowed-rules", *(kind for kind in KINDS if kind != "plan")]
        return [*command, "--dry-run", "--cores", "1"]
    if where.profile is None:
        command += ["--cores", str(where.cores)]
        return command + (["--resources", f"gpu={len(gpus)}"] if gpus else [])
    command += ["--profile", str(where.profile)]
    if where.jobs is not None:
        command += ["--jobs", str(where.jobs)]
    text = "\n".join(file.read_text(encoding="utf-8") for file in where.profile_files)
    if re.search(r"^executor:\s*slurm\s*$", text, re.MULTILINE):
        command += ["--slurm-logdir", str(study.work / "logs" / "slurm")]
        if not any(one.account for one in study.resources.values()):
            command.append("--slurm-no-account")
    return command


@dataclass
class Progress:
    """Follows Snakemake's log: prints a line when a job begins, ends or fails, and keeps their names.

    Attributes:
        jobs: The study's.
        show: Prints a line.
        total: Jobs that are to run now.
        running: Jobs at work, and when they began.
        done: Jobs that ended well.
        failed: Jobs that did not.
    """

    jobs: Jobs
    show: Callable[[str], None]
    total: int = 0
    running: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._known = {job.name: job for job in self.jobs.all()}
        self._numbers: dict[str, str] = {}
        self._in_error = False

    def read(self, line: str) -> None:
        """Takes the next line of the log."""
        if match := re.match(r"Job (\d+): (\S+)$", line):
            self._numbers[match[1]] = match[2]
            self.running.setdefault(match[2], time.time())
            self._say("started", match[2])
        elif match := re.match(r"total +(\d+)$", line):
            self.total += int(match[1])
            self.show(f"{match[1]} jobs to run")
        elif match := re.match(r"Finished jobid: (\d+) ", line):
            name = self._numbers.get(match[1])
            if name in self.running:
                self.done.append(name)
                self._say("done", name, f" ({duration(time.time() - self.running.pop(name))})")
        elif self._in_error and (match := re.match(r"    jobid: (\d+)$", line)):
            name = self._numbers.get(match[1])
            if name in self.running:
                del self.running[name]
                self.failed.append(name)
                self._say("FAILED", name, f"; see {self.jobs.study.work / 'logs' / name}.txt")
        self._in_error = line.startswith("Error in rule ") or (self._in_error and line.startswith("    "))

    def title(self, name: str) -> str:
        """Of a job, for the terminal."""
        return self.jobs.title(self._known[name]) if name in self._known else name

    def job(self, name: str) -> Job | None:
        """The job of that name."""
        return self._known.get(name)

    def _say(self, what: str, name: str, more: str = "") -> None:
        self.show(f"[{f'{len(self.done)}/{self.total}':>9}] {what:<8} {self.title(name)}{more}")


def duration(seconds: float) -> str:
    """Seconds in words: ``42 s``, ``12 min``, ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """An end asked for by SIGTERM is handled as one by Ctrl-C, by this process alone.

    A worker that it forks inherits the handler and is ended by SIGTERM when its pool closes. Python may drop an
    exception that a handler raises, for example among a fork's hooks; the pool would then wait for its worker forever.
    """
    owner = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt

    if not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """What is started here can be interrupted, by us, even if we cannot.

    A shell has commands in the background ignore SIGINT, and they pass that on to all they start.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN or not _in_main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends Snakemake and its jobs; a cluster's jobs are cancelled by Snakemake."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
