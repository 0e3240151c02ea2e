"""What is left to say when Snakemake has ended: jobs that could not say themselves why they did not finish."""

import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx.locks import BusyError, end_abandoned, lock
from nnunet_locctx.study.jobs import Job
from nnunet_locctx.study.work_folder import WorkFolder, read_json, write_json

SNAKEMAKE = "snakemake"
"""Its name among failures and logs."""


def note_silent_failures(
    work: WorkFolder, graph: Mapping[str, Job], left: Sequence[str], status: int
) -> None:
    """Writes a failure for each job that should be done, could have run, and has not said why it did not end well.

    Args:
        work: The work folder.
        graph: All jobs.
        left: Jobs that were to run and are not done.
        status: Snakemake's exit status; negative: the signal that ended it.
    """
    log = work.log(SNAKEMAKE)
    if status < 0:
        message = f"Snakemake was ended by signal {-status}; jobs that had not begun were not started"
        _write(work, SNAKEMAKE, None, log, message)
    for name in left:
        job = graph[name]
        if any(other in left for other in (*job.needs, *job.after)) or work.failure(name).is_file():
            continue
        said = read_json(work.status(name))
        if said.get("state") == "running":
            _write(work, name, job, work.log(name), _silence(work, name, said, log))
        elif status >= 0:
            end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
            _write(work, name, job, log, f"the job did not start; Snakemake's log {log} ends:\n{end}")


def refuse_queued_jobs(work: WorkFolder, graph: Mapping[str, Job]) -> None:
    """Jobs of an earlier run may outlive it on a cluster.

    Raises:
        ValueError: Some do.
    """
    if shutil.which("squeue") is None:
        return
    said = {name: read_json(work.status(name)) for name in graph}
    running = {
        str(one["slurm_job"]): name
        for name, one in said.items()
        if one.get("slurm_job") and one["state"] == "running"
    }
    if not running:
        return
    command = ["squeue", "--noheader", "--format=%i", "--jobs", ",".join(running)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    alive = [number for number in answer.stdout.split() if number in running]
    if alive:
        told = ", ".join(f"{number} ({graph[running[number]].title})" for number in alive)
        raise ValueError(
            f"SLURM jobs of an earlier run are still at work: {told}. Wait for them, or end them with scancel."
        )


def still_at_work(work: WorkFolder, names: Iterable[str]) -> list[str]:
    """The jobs that some process works on."""
    found = []
    for name in names:
        try:
            if work.lock(name).is_file():
                with lock(work.lock(name)):
                    pass
        except BusyError:
            found.append(name)
    return found


def _silence(work: WorkFolder, name: str, said: Mapping[str, Any], log: Path) -> str:
    ended = end_abandoned(work.lock(name))
    if still_at_work(work, [name]):
        return f"process {said.get('pid')} still works on it, without Snakemake; the next run waits for it"
    left = f"; ended what it had left at work: {ended}" if ended else ""
    return f"the job ended without a word (killed, or out of memory or time?){left}; Snakemake's log: {log}"


def _write(work: WorkFolder, name: str, job: Job | None, log: Path, message: str) -> None:
    content = {
        "job": name,
        "run": None if job is None else job.run,
        "fold": None if job is None else job.fold,
        "command": [] if job is None else [shlex.join(command) for command in job.commands],
        "exit_status": None,
        "log": str(log),
        "message": message,
    }
    write_json(work.failure(name), content)
