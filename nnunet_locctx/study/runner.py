"""Has a study's jobs run by Snakemake, from wherever they stopped, and writes the report at the end."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nnunet_locctx.locks import BusyError, end_holders, lock, note
from nnunet_locctx.nnunet.commands import CommandError, run_logged
from nnunet_locctx.study.aftermath import (
    SNAKEMAKE,
    note_silent_failures,
    refuse_queued_jobs,
    still_at_work,
)
from nnunet_locctx.study.choice import choose
from nnunet_locctx.study.definition import Study
from nnunet_locctx.study.environment import environment
from nnunet_locctx.study.graph import build_graph, digests_of
from nnunet_locctx.study.job import GPUS, replaced
from nnunet_locctx.study.plan import PLAN, plan_request
from nnunet_locctx.study.progress import Progress
from nnunet_locctx.study.record import write_study
from nnunet_locctx.study.snakemake_command import (
    Where,
    check_snakemake,
    check_where,
    resources_of,
    snakemake_command,
)
from nnunet_locctx.study.work_folder import WorkFolder, read_json, write_json

REPORT = "report"
"""Name of the last step among failures and logs."""


class Runner:
    """A study and what is to be run of it.

    Args:
        study: The study.
        only: Kinds of jobs, runs, methods or presets to run, with whatever they wait for; empty: everything.

    Raises:
        ValueError: Unknown names in `only`.
    """

    def __init__(self, study: Study, only: Sequence[str] = ()) -> None:
        self.study = study
        self.work = WorkFolder(study.work)
        self.graph = build_graph(study)
        self.digests = digests_of(self.graph)
        self.chosen = choose(study, self.graph, only)

    def run(self, where: Where, show: Callable[[str], None] = print) -> int:
        """Runs what is not done; returns 0, or 1 if something failed.

        Args:
            where: Where jobs run.
            show: Prints a line.

        Raises:
            ValueError: Snakemake or a GPU is missing, or the study is being run already.
        """
        check_snakemake()
        gpus = check_where(where, self.study)
        try:
            with lock(self.work.lock("runner"), {"study": str(self.study.file)}, inherited=True) as held:
                return self._run(where, gpus, held, show)
        except BusyError as busy:
            about = _about(str(busy))
            snakemake = about.get("snakemake", "?")
            raise ValueError(
                f"the study is being run already, in {self.work.folder}, by process {about.get('pid', '?')} "
                f"on {about.get('host', '?')} since {about.get('since', '?')}, or by the Snakemake that it started, "
                f"process {snakemake}; wait for it, or end it (if only Snakemake is left: kill -INT -- -{snakemake})"
            ) from None

    def _run(self, where: Where, gpus: Sequence[str], held: int, show: Callable[[str], None]) -> int:
        write_study(self.study)  # first: by it the folder is known as this study's
        refuse_queued_jobs(self.work, self.graph)
        pending = self.work.prepare(self.graph, self.digests, environment(self.study))
        write_json(self.work.folder / PLAN, plan_request(self.study))
        wanted = [name for name in pending if name in self.chosen]
        before = len(self.chosen) - len(wanted)
        show(
            f"{self.study.name}: {len(self.chosen)} jobs, {before} done, {len(wanted)} to run; {self.work.folder}"
        )
        for name in still_at_work(self.work, wanted):
            show(
                f"{self.graph[name].title}: an earlier run's process still works on it; it is waited for, or "
                "ended if the job that started it was killed"
            )
        if wanted:
            for name in wanted:
                self.work.failure(name).unlink(missing_ok=True)
            self._write_graph(pending, wanted)
            progress = Progress(self.work, self.graph, wanted, before, show)
            status = self._snakemake(where, gpus, held, progress)
            left = [name for name in wanted if not self._is_done(name)]
            note_silent_failures(self.work, self.graph, left, status)
        write_study(self.study)
        reported = self._report(show)
        return self._sum_up(wanted, reported, show)

    def _write_graph(self, pending: Sequence[str], wanted: Sequence[str]) -> None:
        jobs = {
            name: {"waits_for": [other for other in (*job.needs, *job.after) if other in pending]}
            for name, job in self.graph.items()
        }
        content = {
            "work": str(self.work.folder),
            "python": sys.executable,
            "jobs": jobs,
            "targets": list(wanted),
            "resources": resources_of(self.study, self.graph),
        }
        write_json(self.work.graph, content)

    def _snakemake(self, where: Where, gpus: Sequence[str], held: int, progress: Progress) -> int:
        log = self.work.log(SNAKEMAKE)
        variables = {**os.environ, GPUS: ",".join(gpus), "PYTHONUNBUFFERED": "1"}
        command = snakemake_command(where, self.study, gpus)
        with log.open("a", encoding="utf-8") as file, _terminable():
            file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} $ {shlex.join(command)}\n")
            file.flush()
            with _interruptible():
                process = subprocess.Popen(
                    command,
                    env=variables,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    # whoever finds the lock held knows that Snakemake is at work, with or without us
                    pass_fds=(held,),
                )
            note(held, {"study": str(self.study.file), "snakemake": process.pid})
            try:
                while process.poll() is None:
                    time.sleep(0.3)
                    self._look(progress)
            except BaseException:
                _end(process)
                for name in still_at_work(self.work, self.graph):  # outlived it, or an earlier Snakemake
                    end_holders(self.work.lock(name))
                raise
            self._look(progress)
        return process.returncode

    def _look(self, progress: Progress) -> None:
        if "plan.all" in progress.look():
            write_study(self.study)  # patch sizes and cases are known now

    def _is_done(self, name: str) -> bool:
        return self.work.is_done(self.graph[name], self.digests[name])

    def _report(self, show: Callable[[str], None]) -> bool:
        command = replaced(["locctx", "report", str(self.work.folder), "--quiet"])
        log = self.work.log(REPORT)
        try:
            run_logged(command, {**os.environ, **environment(self.study)}, log, lambda line: None)
        except CommandError as error:
            content: dict[str, Any] = {
                "job": REPORT,
                "run": None,
                "fold": None,
                "command": [shlex.join(command)],
            }
            content |= {"exit_status": error.status, "log": str(log), "message": str(error)}
            write_json(self.work.failure(REPORT), content)
            show(f"the report could not be written; see {log}")
            return False
        show(f"report: {self.work.folder / 'report' / 'index.html'}")
        return True

    def _sum_up(self, wanted: Sequence[str], reported: bool, show: Callable[[str], None]) -> int:
        left = [name for name in wanted if not self._is_done(name)]
        failed = [name for name in left if self.work.failure(name).is_file()]
        for name in failed:
            message = str(read_json(self.work.failure(name)).get("message", "")).strip().splitlines()
            show(f"failed: {self.graph[name].title}: {message[-1] if message else ''}")
        if left:
            show(f"failed: {len(failed)}, waiting for those that failed: {len(left) - len(failed)}")
            show("run the same command again to go on")
        return 1 if left or not reported else 0


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """An end asked for by SIGTERM is handled as one by Ctrl-C."""

    def stop(number: int, frame: Any) -> None:
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
def _interruptible() -> Iterator[None]:
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


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends Snakemake and its jobs; a cluster's jobs are cancelled by Snakemake."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _about(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
