"""How Snakemake is asked to run a study's jobs."""

import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_locctx.study.definition import Study
from nnunet_locctx.study.jobs import Job
from nnunet_locctx.study.study_file import KINDS

HERE = Path(__file__).parent
SNAKEFILE = HERE / "Snakefile"
SLURM_PROFILE = HERE / "slurm"


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


def check_snakemake() -> None:
    """Refuses to go on without Snakemake.

    Raises:
        ValueError: Says how to install it.
    """
    if importlib.util.find_spec("snakemake") is None:
        raise ValueError(
            "studies are run by Snakemake, which is not installed: pip install 'nnunet-locctx[study]'"
        )


def check_where(where: Where, study: Study) -> list[str]:
    """Checks that jobs can run there; returns the GPUs that those of this machine share.

    Raises:
        ValueError: No usable profile, the executor it names is not installed, or too few GPUs.
    """
    if where.profile is not None:
        there = [
            file.name for pattern in ("profile*.yaml", "config*.yaml") for file in where.profile.glob(pattern)
        ]
        if not there:
            raise ValueError(f"{where.profile} is no folder of a Snakemake profile (no config.yaml)")
        if (
            where.profile == SLURM_PROFILE
            and importlib.util.find_spec("snakemake_executor_plugin_slurm") is None
        ):
            raise ValueError(
                "Snakemake's SLURM executor is not installed: pip install 'nnunet-locctx[study]'"
            )
        return []
    if study.device != "cuda":
        return []
    gpus = visible_gpus()
    if len(gpus) < study.gpus:
        raise ValueError(
            f"{study.file.name}: the study needs {study.gpus} GPUs for a training (device: cuda), this machine has "
            f"{len(gpus)}. Run it on a cluster (--slurm, --profile), or set device: cpu."
        )
    return gpus


def visible_gpus() -> list[str]:
    """Ids of this machine's GPUs, as ``CUDA_VISIBLE_DEVICES`` has them."""
    import torch

    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return said.split(",")[:count] if said else [str(number) for number in range(count)]


def resources_of(study: Study, graph: Mapping[str, Job]) -> dict[str, dict[str, Any]]:
    """What each kind of job asks for, in the words of Snakemake and its SLURM executor."""
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        gpus = max((job.gpus for job in graph.values() if job.kind == kind), default=0)
        asked = study.resources[kind]
        one: dict[str, Any] = {
            "mem_mb": round(asked.memory_gb * 1000),
            "runtime": max(1, round(asked.hours * 60)),
            "cpus_per_task": study.processes + 1,
        }
        if gpus:
            one["gpu"] = gpus
        names = {"slurm_partition": asked.partition, "slurm_account": asked.account}
        names |= {"qos": asked.qos, "constraint": asked.constraint, "slurm_extra": asked.slurm_extra}
        found[kind] = {**one, **{key: value for key, value in names.items() if value is not None}}
    return found


def snakemake_command(where: Where, study: Study, gpus: Sequence[str]) -> list[str]:
    """The command line.

    Args:
        where: Where jobs run.
        study: The study.
        gpus: Those of this machine.
    """
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(SNAKEFILE),
        "--directory",
        str(study.work),
    ]
    # The runner's own lock and its own account of what is done take the place of Snakemake's.
    command += ["--nolock", "--rerun-triggers", "mtime", "--rerun-incomplete", "--keep-going"]
    command += ["--scheduler", "greedy", "--nocolor"]
    if where.profile is None:
        command += ["--cores", str(where.cores)]
        return command + (["--resources", f"gpu={len(gpus)}"] if gpus else [])
    command += ["--profile", str(where.profile)]
    if where.jobs is not None:
        command += ["--jobs", str(where.jobs)]
    if _names_slurm(where.profile):
        command += ["--slurm-logdir", str(study.work / "logs" / "slurm")]
        if not any(one.account for one in study.resources.values()):
            command.append("--slurm-no-account")
    return command


def _names_slurm(profile: Path) -> bool:
    """Whether a profile runs jobs by Snakemake's SLURM executor."""
    files = [file for pattern in ("profile*.yaml", "config*.yaml") for file in profile.glob(pattern)]
    return any(
        re.search(r"^executor:\s*slurm\s*$", file.read_text(encoding="utf-8"), re.MULTILINE) for file in files
    )
