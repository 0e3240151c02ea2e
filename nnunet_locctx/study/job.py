"""Runs one job of a study: ``python -m nnunet_locctx.study.job WORK JOB``. Snakemake starts it, here or on a cluster.

Everything it needs is in ``WORK/jobs/JOB.json``, the environment variables too. A job that another process still works
on (one that outlived a runner that was killed) is waited for, not done twice. Its commands hold the locks of the job
and of its GPUs too: if only this process is killed, nobody takes them for free, and whoever needs them next ends what
was left behind.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx.locks import wait_for_lock
from nnunet_locctx.nnunet.commands import CommandError, run_logged
from nnunet_locctx.study.gpus import claim_gpus
from nnunet_locctx.study.work_folder import WorkFolder, is_done, read_json, take_place, write_json

GPUS = "LOCCTX_STUDY_GPUS"
"""Set by a runner on one machine: the GPUs that its jobs share, as in ``CUDA_VISIBLE_DEVICES``."""

COMMANDS = "LOCCTX_STUDY_COMMANDS"
"""For tests: a folder with programs to run instead of commands of the same name (of ``python -m``: the module)."""


def run_job(work: WorkFolder, name: str) -> int:
    """Runs a job unless it is done; returns the exit status."""
    job = read_json(work.job(name))
    if not job:
        print(f"there is no job {name} in {work.folder}", file=sys.stderr)
        return 2

    def say(text: str) -> None:
        print(f"{name}: {text}", flush=True)

    with wait_for_lock(
        work.lock(name),
        lambda other: say(f"waiting for the process that works on it: {other}"),
        inherited=True,
        ended=lambda processes: say(f"ended what a killed process had left at work: {processes}"),
    ) as held:
        if is_done(work.done(name), job["digest"], job["outputs"]):
            say("done before")
            work.flag(name).touch()
            return 0
        start = time.time()
        status = {"pid": os.getpid(), "host": socket.gethostname(), "started": start, "digest": job["digest"]}
        status["slurm_job"] = os.environ.get("SLURM_JOB_ID")
        write_json(work.status(name), {**status, "state": "running"})
        try:
            _work(work, job, held, say)
        except (CommandError, OSError, ValueError) as error:
            _fail(work, job, error)
            write_json(work.status(name), {**status, "state": "failed", "ended": time.time()})
            say(f"failed; see {work.log(name)}")
            return 1
        seconds = round(time.time() - start, 1)
        work.failure(name).unlink(missing_ok=True)
        write_json(work.status(name), {**status, "state": "done", "ended": time.time()})
        write_json(
            work.done(name), {"job": name, "digest": job["digest"], "seconds": seconds, "ended": time.time()}
        )
        work.flag(name).touch()
        return 0


def _work(work: WorkFolder, job: Mapping[str, Any], held: int, say: Any) -> None:
    for draft in job["fresh"].values():
        shutil.rmtree(draft, ignore_errors=True)
        Path(draft).parent.mkdir(parents=True, exist_ok=True)
    log = work.log(job["name"])
    log.parent.mkdir(parents=True, exist_ok=True)
    with _gpus(job, say) as gpus:
        variables = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        environment = {**os.environ, **job["environment"], **variables}
        for command in map(replaced, job["commands"]):
            with log.open("a", encoding="utf-8") as file:
                file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} $ {shlex.join(command)}\n")
            run_logged(
                command, environment, log, lambda line: None, append=True, locks=(held, *gpus.values())
            )
    for folder, draft in job["fresh"].items():
        take_place(Path(draft), Path(folder))
    missing = [output for output in job["outputs"] if not Path(output).exists()]
    if missing:
        raise ValueError(f"the commands ended well but did not write {', '.join(missing)}")


@contextlib.contextmanager
def _gpus(job: Mapping[str, Any], say: Any) -> Iterator[dict[str, int]]:
    visible = [gpu for gpu in os.environ.get(GPUS, "").split(",") if gpu]
    if not job["gpus"] or not visible:  # a cluster hands out the GPUs itself
        yield {}
        return
    with claim_gpus(visible, job["gpus"], say) as held:
        yield held


def replaced(command: Sequence[str]) -> list[str]:
    """The command, or what a test runs in its place."""
    folder = os.environ.get(COMMANDS)
    if not folder:
        return list(command)
    module = list(command[1:3]) if command[1:2] == ["-m"] else []
    program = Path(folder) / (module[1] if module else command[0])
    return [str(program), *command[3 if module else 1 :]] if program.is_file() else list(command)


def _fail(work: WorkFolder, job: Mapping[str, Any], error: Exception) -> None:
    write_json(
        work.failure(job["name"]),
        {
            "job": job["name"],
            "run": job["run"],
            "fold": job["fold"],
            "command": [shlex.join(command) for command in job["commands"]],
            "exit_status": getattr(error, "status", None),
            "log": str(work.log(job["name"])),
            "message": str(error),
        },
    )


def main(arguments: Sequence[str]) -> int:
    """Entry point."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt  # ends the command's whole process group on the way out

    signal.signal(signal.SIGTERM, stop)
    try:
        return run_job(WorkFolder(Path(arguments[0])), arguments[1])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
