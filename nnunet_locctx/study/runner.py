"""Lets Snakemake run the jobs of a study, from wherever they stopped, and writes the report at the end."""

import collections
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nnunet_locctx.locks import BusyError, end_abandoned, end_holders, lock, note
from nnunet_locctx.nnunet.commands import CommandError, run_logged
from nnunet_locctx.study.cases import check_study, digests_of_cases
from nnunet_locctx.study.jobs import Job, Jobs
from nnunet_locctx.study.model import STUDY, Study
from nnunet_locctx.study.record import write_study
from nnunet_locctx.study.scheduling import (
    Progress,
    Where,
    check_where,
    end,
    interruptible,
    snakemake_command,
    terminable,
)
from nnunet_locctx.study.settings import parse_object, read_object, write_json
from nnunet_locctx.study.steps import FAILED, GPUS, environment

REPORT, SNAKEMAKE = "report", "snakemake"
"""Names of the last step, and of Snakemake itself, among failures and logs."""


class Runner:
    """Runs a study, or a part of it.

    Args:
        study: The study.
        only: Kinds of jobs, seeds, runs, methods or presets to run, with whatever they wait for; empty: everything.

    Raises:
        ValueError: Unknown names in `only`, or a study that cannot be run.
    """

    def __init__(self, study: Study, only: Sequence[str] = ()) -> None:
        check_study(study)
        self.study, self.work = study, study.work
        self.jobs = Jobs(study, {})
        self.targets = self.jobs.chosen(only)
        self.chosen: dict[str, Job] = {}  # with the jobs they wait for
        left = list(self.targets)
        while left:
            job = left.pop()
            if job.name not in self.chosen:
                self.chosen[job.name] = job
                left += self.jobs.waits_for(job)

    @property
    def calls(self) -> list[list[Job]]:
        """The targets of each call of Snakemake: the plan first, see the Snakefile."""
        plan = [Job("plan", {})] if self.targets else []
        others = [job for job in self.targets if job.kind != "plan"]
        return [targets for targets in (plan, others) if targets]

    def pending(self) -> list[str]:
        """The jobs that would run now, by a dry run of Snakemake; nothing is written.

        Raises:
            ValueError: The dry run fails.
        """
        if not (self.work / STUDY).is_file():
            return list(self.chosen)
        self.jobs.scans = digests_of_cases(self.study)
        names: dict[str, None] = {}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / STUDY
            content = {"study": self.study.model_dump(mode="json", by_alias=True), "scans": self.jobs.scans}
            write_json(file, content)
            for targets in self.calls:
                command = snakemake_command(self.jobs, targets, None, file=file)
                answer = subprocess.run(command, capture_output=True, text=True, check=False)
                text = answer.stdout + answer.stderr
                if answer.returncode != 0:
                    raise ValueError(f"Snakemake's dry run failed:\n{text}")
                names |= dict.fromkeys(re.findall(r"^Job \d+: (\S+)$", text, re.MULTILINE))
        return list(names)

    def run(self, where: Where, show: Callable[[str], None] = print) -> int:
        """Runs what is not done; returns 0, or 1 if something failed.

        Args:
            where: Where jobs run.
            show: Prints a line.

        Raises:
            ValueError: A GPU is missing, or the study is being run already.
        """
        gpus = check_where(where, self.study.device, self.study.gpus)
        try:
            with lock(self._lock("runner"), {"study": str(self.study.file)}, inherited=True) as held:
                return self._run(where, gpus, held, show)
        except BusyError as busy:
            holder = collections.defaultdict(lambda: "?", parse_object(str(busy)))
            raise ValueError(
                f"the study is being run already, in {self.work}, by process {holder['pid']} on {holder['host']} since "
                f"{holder['since']}, or by the Snakemake that it started, process {holder['snakemake']}; wait for it, "
                f"or end it (if only Snakemake is left: kill -INT -- -{holder['snakemake']})"
            ) from None

    def _run(self, where: Where, gpus: Sequence[str], held: int, show: Callable[[str], None]) -> int:
        self._refuse_queued_jobs()
        self.jobs.scans = digests_of_cases(self.study)
        write_study(self.jobs)
        (self.work / "logs").mkdir(exist_ok=True)
        progress = Progress(self.jobs, show)
        show(f"{self.study.name}: {len(self.chosen)} jobs; {self.work}")
        for name in self._at_work(self.chosen):
            show(
                f"{self._title(name)}: an earlier run's process still works on it; it is waited for, or ended if the "
                "job that started it was killed"
            )
        for file in (self.work / "failures").glob("*.json"):
            if file.stem in self.chosen or file.stem not in self.jobs.named:
                file.unlink()
        status = 0
        for targets in self.calls:
            status = status or self._snakemake(targets, where, gpus, held, progress)
        failed = self._note_failures(status, progress)
        write_study(self.jobs)
        reported = self._report(show)
        if status or progress.failed:
            waiting = progress.total - len(progress.done) - len(failed)
            for name, reason in failed.items():
                show(f"failed: {self._title(name)}: {reason.splitlines()[-1]}")
            show(f"failed: {len(failed)}, waiting for those that failed: {waiting}")
            show("run the same command again to go on")
        return 1 if status or progress.failed or not reported else 0

    def _snakemake(
        self, targets: Sequence[Job], where: Where, gpus: Sequence[str], held: int, progress: Progress
    ) -> int:
        log = self.work / "logs" / f"{SNAKEMAKE}.txt"
        variables = {**os.environ, GPUS: ",".join(gpus), "PYTHONUNBUFFERED": "1"}
        command = snakemake_command(self.jobs, targets, where, gpus)
        with log.open("a", encoding="utf-8") as file, log.open(encoding="utf-8", errors="replace") as lines:
            file.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} $ {shlex.join(command)}\n")
            file.flush()
            lines.seek(0, os.SEEK_END)
            with terminable():
                with interruptible():
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
                    rest = ""
                    running = True
                    while running:
                        running = process.poll() is None
                        rest = self._follow(rest + lines.read(), progress)
                        time.sleep(0.3 * running)
                except BaseException:
                    end(process)
                    for name in self._at_work(progress.running):  # outlived it, or an earlier Snakemake
                        end_holders(self._lock(name))
                    raise
        return process.returncode

    def _follow(self, text: str, progress: Progress) -> str:
        """Takes what Snakemake has written; returns the line that is not complete yet."""
        *lines, rest = text.split("\n")
        for line in lines:
            done = len(progress.done)
            progress.read(line)
            if progress.done[done:] == ["plan"]:
                write_study(self.jobs)  # patch sizes and cases are known now
        return rest

    def _lock(self, name: str) -> Path:
        return self.work / "locks" / name

    def _title(self, name: str) -> str:
        return self.jobs.title(self.jobs.named[name])

    def _at_work(self, names: Iterable[str]) -> list[str]:
        """The jobs that some process works on."""
        busy = []
        for name in names:
            try:
                if self._lock(name).is_file():
                    with lock(self._lock(name)):
                        pass
            except BusyError:
                busy.append(name)
        return busy

    def _refuse_queued_jobs(self) -> None:
        """SLURM's jobs of an earlier run may outlive it; a job notes SLURM's number of it in its lock."""
        if shutil.which("squeue") is None or not (self.work / "locks").is_dir():
            return
        holders = {file.name: read_object(file) for file in (self.work / "locks").iterdir()}
        numbers = {str(job): name for name, holder in holders.items() if (job := holder.get("slurm_job"))}
        if not numbers:
            return
        command = ["squeue", "--noheader", "--format=%i", "--jobs", ",".join(numbers)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        alive = [f"{number} ({numbers[number]})" for number in answer.stdout.split() if number in numbers]
        if alive:
            raise ValueError(
                f"SLURM jobs of an earlier run are still at work: {', '.join(alive)}. Wait for them, or end them with "
                "scancel."
            )

    def _note_failures(self, status: int, progress: Progress) -> dict[str, str]:
        """Writes why each job failed, for the report; ends what a job that was killed has left at work.

        Returns:
            Job -> why it failed.
        """
        snakemake_log = self.work / "logs" / f"{SNAKEMAKE}.txt"
        failed = {}
        for name in (*progress.failed, *progress.running):
            log = self.work / "logs" / f"{name}.txt"
            text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
            _, error, reason = text.rpartition(f"\n{FAILED}" if f"\n{FAILED}" in text else FAILED)
            if not error:
                ended = end_abandoned(self._lock(name))
                left = f"; ended what it had left at work: {ended}" if ended else ""
                reason = f"the job ended without a word (killed, or out of memory or time?){left}; see {snakemake_log}"
                if self._at_work([name]):
                    reason = "its process still works on it, without Snakemake; the next run waits for it"
            failed[name] = reason.strip()
            self._write_failure(name, failed[name], log)
        if status < 0:
            message = f"Snakemake was ended by signal {-status}; jobs that had not begun were not started"
            self._write_failure(SNAKEMAKE, message, snakemake_log)
        elif status and not progress.failed:
            lines = snakemake_log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
            message = "\n".join([f"Snakemake's log {snakemake_log} ends:", *lines])
            self._write_failure(SNAKEMAKE, message, snakemake_log)
        return failed

    def _write_failure(self, name: str, message: str, log: Path) -> None:
        status = re.search(r"ended with exit status (-?\d+)", message)
        job = self.jobs.named.get(name)
        content = {
            "job": name,
            "run": None if job is None else job.names.get("run"),
            "fold": None if job is None or job.fold is None else int(job.fold),
            "exit_status": None if status is None else int(status[1]),
            "log": str(log),
            "message": message,
        }
        write_json(self.work / "failures" / f"{name}.json", content)

    def _report(self, show: Callable[[str], None]) -> bool:
        log = self.work / "logs" / f"{REPORT}.txt"
        variables = {**os.environ, **environment(self.study)}
        try:
            command = ["locctx", "report", str(self.work), "--quiet"]
            run_logged(command, variables, log, lambda line: None)
        except CommandError as error:
            self._write_failure(REPORT, str(error), log)
            show(f"the report could not be written; see {log}")
            return False
        (self.work / "failures" / f"{REPORT}.json").unlink(missing_ok=True)
        show(f"report: {self.work / 'report' / 'index.html'}")
        return True
