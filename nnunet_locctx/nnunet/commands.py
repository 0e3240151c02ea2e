"""Runs nnU-Net's own commands, and ours, with nnU-Net's environment variables set, and shows what they say."""

import contextlib
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_locctx.resources import trainer_folders

PATIENCE = 10.0
"""Seconds between asking a command to end and killing it."""


class CommandError(ChildProcessError):
    """A command failed; carries the end of what it printed.

    Args:
        message: What happened.
        status: The command's exit status; negative: the signal that ended it; None: it did not start.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class NNUNet:
    """nnU-Net's commands on folders of their own.

    Attributes:
        folder: Holds ``nnUNet_raw``, ``nnUNet_preprocessed``, ``nnUNet_results`` and ``logs``.
        threads: Threads of each process, and processes for loading and augmenting.
        history: Every command run so far, as typed in a shell (without the variables).
        locks: Descriptors of locks that the commands inherit, see :func:`run_logged`.
    """

    folder: Path
    threads: int = 2
    history: list[str] = field(default_factory=list)
    locks: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        for path in (self.raw, self.preprocessed, self.results, self.logs):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def raw(self) -> Path:
        return self.folder / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        return self.folder / "nnUNet_results"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def variables(self) -> dict[str, str]:
        """The variables that differ from the caller's environment."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": trainer_folders(),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": str(self.threads),
            # Threads that wait must not keep a core busy which the augmentation needs.
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def exports(self) -> list[str]:
        """The variables as a shell sets them, one line each."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.variables.items()]

    def run(self, *command: str, log: str, show: Callable[[str], str | None] | None = None) -> None:
        """Run one command to its end and pass on what it prints.

        Args:
            *command: The command's name and its arguments.
            log: Name of the file in `logs` that takes the whole output.
            show: Turns a line into the line to print, or None to print nothing; without it every line is printed.

        Raises:
            CommandError: The command is not installed, or ends with an error.
        """
        typed = shlex.join(command)
        print(f"$ {typed}", flush=True)
        run_logged(
            command, {**os.environ, **self.variables}, self.logs / f"{log}.txt", show, locks=self.locks
        )
        self.history.append(typed)


def run_logged(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    show: Callable[[str], str | None] | None = None,
    *,
    append: bool = False,
    locks: Sequence[int] = (),
) -> None:
    """Run one command to its end, with whatever it starts; pass on and keep what it prints.

    Args:
        command: The command's name (:func:`executable`) and its arguments.
        environment: All its variables.
        log: File that takes the whole output.
        show: Turns a line into the line to print, or None to print nothing; without it every line is printed.
        append: Keep what the file holds.
        locks: Descriptors of inherited locks (:func:`nnunet_locctx.locks.lock`) that the command holds too, so that
            its work counts as running if only this process is killed.

    Raises:
        CommandError: The command is not installed, or ends with an error.
    """
    typed = shlex.join(command)
    arguments = [executable(command[0]), *command[1:]]
    with (
        log.open("a" if append else "w", encoding="utf-8") as file,
        subprocess.Popen(
            arguments,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a process group of its own, to end with everything in it
            pass_fds=tuple(locks),
        ) as process,
    ):
        try:
            for line in _lines(process):
                file.write(line)
                file.flush()
                text = line.rstrip("\n") if show is None else show(line.rstrip("\n"))
                if text is not None:
                    print(f"  {text}", flush=True)
            process.wait()
        finally:
            _end_group(process)
    if process.returncode != 0:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise CommandError(
            f"{typed} ended with exit status {process.returncode}; its output is in {log} and ends:\n{end}",
            process.returncode,
        )


def _lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    """What the process prints, until it ends.

    Not until the pipe is closed: nnU-Net's workers hold it too, and outlive a training that was killed.
    """
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            if process.poll() is not None:
                return
            continue
        if line is None:
            return
        yield line


def _end_group(process: "subprocess.Popen[str]") -> None:
    """End the process, if it still runs, and whatever it left running; what does not end in time is killed."""
    if not hasattr(os, "killpg"):
        process.terminate()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            process.poll()  # a group lives on in a member that ended and was not collected
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)


def executable(name: str) -> str:
    """The program of that name of this Python's environment, or else of the PATH.

    Raises:
        CommandError: There is none.
    """
    beside = Path(sys.executable).parent / name
    program = str(beside) if beside.is_file() else shutil.which(name)
    if program is None:
        raise CommandError(
            f"the command {name} is neither beside {sys.executable} nor on the PATH; is nnunetv2 installed?"
        )
    return program
