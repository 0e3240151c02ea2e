"""A study's work folder: what lies where, and which jobs are done."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_locctx.files import write_atomically
from nnunet_locctx.study.jobs import Job


@dataclass(frozen=True)
class WorkFolder:
    """Paths in the folder; one JSON file for each job in ``jobs``, ``status``, ``done`` and ``failures``."""

    folder: Path

    @property
    def study(self) -> Path:
        """The resolved study."""
        return self.folder / "study.json"

    @property
    def graph(self) -> Path:
        """What Snakemake is to run."""
        return self.folder / "graph.json"

    def job(self, name: str) -> Path:
        """What a job does."""
        return self.folder / "jobs" / f"{name}.json"

    def status(self, name: str) -> Path:
        """Who works on a job, or did last."""
        return self.folder / "status" / f"{name}.json"

    def done(self, name: str) -> Path:
        """Written when a job has ended well."""
        return self.folder / "done" / f"{name}.json"

    def flag(self, name: str) -> Path:
        """Written after `done`, for Snakemake."""
        return self.folder / "flags" / name

    def failure(self, name: str) -> Path:
        """Written when a job has failed."""
        return self.folder / "failures" / f"{name}.json"

    def lock(self, name: str) -> Path:
        """Held by the process that works on a job."""
        return self.folder / "locks" / name

    def log(self, name: str) -> Path:
        """What a job printed, all attempts."""
        return self.folder / "logs" / f"{name}.txt"

    def make(self) -> None:
        """Makes the folders."""
        for name in ("jobs", "status", "done", "flags", "failures", "logs", "locks", "runs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def is_done(self, job: Job, digest: str) -> bool:
        """Whether a job has ended well, as it is defined now, and its results are still there."""
        return is_done(self.done(job.name), digest, job.outputs)

    def pending(self, graph: Mapping[str, Job], digests: Mapping[str, str]) -> list[str]:
        """The jobs that are not done, in their order."""
        return [name for name, job in graph.items() if not self.is_done(job, digests[name])]

    def prepare(
        self, graph: Mapping[str, Job], digests: Mapping[str, str], environment: Mapping[str, str]
    ) -> list[str]:
        """Writes what the jobs do, forgets what has changed and what is no longer part of the study.

        Returns:
            The jobs that are not done.
        """
        self.make()
        for kind in ("jobs", "status", "done", "failures"):
            for file in (self.folder / kind).glob("*.json"):
                if file.stem not in graph:
                    file.unlink()
        pending = self.pending(graph, digests)
        for name in pending:
            self.done(name).unlink(missing_ok=True)
            self.flag(name).unlink(missing_ok=True)
        for name, job in graph.items():
            write_json(
                self.job(name), {**job.as_json(), "digest": digests[name], "environment": dict(environment)}
            )
        return pending


def is_done(done: Path, digest: str, outputs: Any) -> bool:
    """Whether the file of a finished job is of this fingerprint and its results are there."""
    content = read_json(done)
    return content.get("digest") == digest and all(Path(output).exists() for output in outputs)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON table; empty if there is none or it cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(file: Path, content: Any) -> bool:
    """Writes a JSON file in one step, unless it holds just that; returns whether it changed."""
    data = (json.dumps(content, indent=1, default=str) + "\n").encode()
    if file.is_file() and file.read_bytes() == data:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, data)
    return True


def take_place(draft: Path, folder: Path) -> None:
    """Puts a finished folder in the place of an older one."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
