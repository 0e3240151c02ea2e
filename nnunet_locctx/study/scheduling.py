"""Where a study's jobs run, how Snakemake is asked to run them, and what it reports of them while they run."""

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
from nnunet_locctx.study.settings import KINDS

SNAKEFILE = Path(__file__).parent / "Snakefile"
SLURM_PROFILE = Path(__file__).parent / "slurm"


@dataclass(frozen=True)
class Where:
    """Where jobs run.

    Attributes:
        cores: Jobs at a time on this machine.
        profile: Folder of a Snakemake profile, for a cluster; None: this machine.
        jobs: Jobs at a time on the cluster; None: as the profile says.
    """

    cores: int = 1
    profile: Path | None = None
    jobs: int | None = None

    @property
    def profile_files(self) -> list[Path]:
        """The files in which Snakemake looks for the profile."""
        if self.profile is None:
            return []
        return [file for pattern in ("profile*.yaml", "config*.yaml") for file in self.profile.glob(pattern)]


def check_where(where: Where, device: str, number: int) -> list[str]:
    """Checks that jobs can run there; returns the GPUs that the jobs of this machine share.

    Args:
        where: Where jobs are to run.
        device: Of the study.
        number: GPUs of a training.

    Raises:
        ValueError: No usable profile, the executor it names is not installed, or too few GPUs.
    """
    if where.profile is not None:
        if not where.profile_files:
            raise ValueError(f"{where.profile} is no folder of a Snakemake profile (no config.yaml)")
        executor = importlib.util.find_spec("snakemake_executor_plugin_slurm")
        if where.profile == SLURM_PROFILE and executor is None:
            raise ValueError(
                "Snakemake's SLURM executor is not installed: pip install 'nnunet-locctx[study]'"
            )
        return []
    gpus = visible_gpus() if device == "cuda" else []
    if device == "cuda" and len(gpus) < number:
        raise ValueError(
            f"the study needs {number} GPUs for a training (device: cuda), this machine has {len(gpus)}. Run it on a "
            "cluster (--slurm, --profile), or set device: cpu."
        )
    return gpus


def visible_gpus() -> list[str]:
    """Ids of this machine's GPUs, as ``CUDA_VISIBLE_DEVICES`` has them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def snakemake_command(
    jobs: Jobs,
    targets: Sequence[Job],
    where: Where | None,
    gpus: Sequence[str] = (),
    file: Path | None = None,
) -> list[str]:
    """Snakemake's command line.

    Args:
        jobs: The study's jobs.
        targets: The jobs whose outputs are asked for.
        where: Where jobs run; None: a dry run.
        gpus: The GPUs of this machine.
        file: The file that holds the study; None: ``study.json`` in its work folder.
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
        if not any(requested.account for requested in study.resources.values()):
            command.append("--slurm-no-account")
    return command


@dataclass
class Progress:
    """Follows Snakemake's log: prints a line when a job begins, ends or fails, and keeps their names.

    Attributes:
        jobs: The study's jobs.
        show: Prints a line.
        total: Number of jobs that are to run now.
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
    _numbers: dict[str, str] = field(default_factory=dict)
    _in_error: bool = False

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

    def _say(self, event: str, name: str, details: str = "") -> None:
        title = self.jobs.title(self.jobs.named[name])
        self.show(f"[{f'{len(self.done)}/{self.total}':>9}] {event:<8} {title}{details}")


def duration(seconds: float) -> str:
    """Seconds in words: ``42 s``, ``12 min``, ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, and no other process.

    A worker that it forks inherits the handler and is ended by SIGTERM when its pool closes. Python may drop an
    exception that a handler raises, for example among a fork's hooks; the pool would then wait for its worker forever.
    """
    owner = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise KeyboardInterrupt

    with _handling(signal.SIGTERM, stop):
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT ends what is started here, even if it does not end us.

    A shell has commands in the background ignore SIGINT, and they pass that on to all they start.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    with _handling(signal.SIGINT, signal.default_int_handler) if ignored else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Handles a signal; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends Snakemake and its jobs; a cluster's jobs are cancelled by Snakemake."""
    for number, seconds in ((signal.SIGINT, 30), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
