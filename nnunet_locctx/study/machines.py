"""Where jobs run: what each kind asks of a cluster, and the GPUs of this machine that it works on."""

import contextlib
import importlib.util
import os
import re
import shlex
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Strict

from nnunet_locctx.locks import BusyError, end_abandoned, lock
from nnunet_locctx.study.reading import Positive, Table

SLURM_PROFILE = Path(__file__).parent / "slurm"

KINDS = ("plan", "fit", "preprocess", "train", "evaluate", "predict", "postprocess", "robustness")
"""Kinds of jobs, in the order a run goes through them; rules of the Snakefile."""

USUAL = {"train": (48.0, 24.0), "predict": (32.0, 4.0), "default": (16.0, 4.0)}
"""Memory in GB and hours that a job asks for unless the study says otherwise."""


def _for_a_shell(value: str) -> str:
    """A request as it can stand in the command line of ``sbatch``, which Snakemake's executor hands to a shell."""
    if not re.fullmatch(r"[\w.,:@%/+=|&*!()\[\]-]*", value):
        allowed = "letters, digits and _ . , : @ % / + = | & * ! ( ) [ ] -"
        raise ValueError(f"must be made of {allowed}, got {value!r}")
    return value


def _sbatch_options(value: str) -> str:
    """Options of ``sbatch``, quoted as in a shell."""
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"{error}, got {value!r}") from error
    # sbatch takes what an option's name begins with for the option; --wrap is a command to run
    wrong = [word for word in words if not re.match(r"--[A-Za-z]", word) or word.startswith("--wr")]
    if wrong:
        raise ValueError(
            "must be options of sbatch that begin with -- (--NAME or --NAME=VALUE; not --wrap), got "
            + ", ".join(map(repr, wrong))
        )
    return shlex.join(words)


Word = Annotated[str, Strict(), AfterValidator(_for_a_shell)]


class Resources(Table):
    """What a kind of job asks of a cluster; None leaves it to the cluster."""

    memory_gb: Positive | None = None
    hours: Positive | None = None
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    slurm_extra: Annotated[str, Strict(), AfterValidator(_sbatch_options)] | None = None


def asked(resources: Mapping[str, Resources], kind: str) -> dict[str, Any]:
    """What a kind of job asks for: its own entry, then ``default``; memory in GB, time in hours."""
    own, shared = (resources.get(key, Resources()).model_dump(exclude_none=True) for key in (kind, "default"))
    if kind in USUAL:
        shared = {key: value for key, value in shared.items() if key not in ("memory_gb", "hours")}
    memory, hours = USUAL.get(kind, USUAL["default"])
    return {"memory_gb": memory, "hours": hours, **shared, **own}


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
    """Checks that jobs can run there; returns the GPUs that those of this machine share.

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


@contextlib.contextmanager
def claim_gpus(visible: Sequence[str], number: int, say: Callable[[str], None]) -> Iterator[dict[str, int]]:
    """Holds as many of this machine's GPUs as a job needs, so that no two jobs of a user's studies share one.

    Args:
        visible: Ids as in ``CUDA_VISIBLE_DEVICES``.
        number: How many.
        say: Told once if it has to wait.

    Yields:
        GPU -> descriptor of the lock that claims it, for the process that works on it to inherit.

    Raises:
        ValueError: There are not so many, or the claims' folder is another user's.
    """
    if number > len(visible):
        raise ValueError(
            f"a job needs {number} GPUs, visible are {len(visible)} ({', '.join(visible) or 'none'})"
        )
    folder = _claims_folder()
    files = {gpu: folder / gpu.replace("/", "-") for gpu in visible}
    waiting = False
    while True:
        with contextlib.ExitStack() as stack:
            held: dict[str, int] = {}
            for gpu, file in files.items():
                with contextlib.suppress(BusyError):
                    held[gpu] = stack.enter_context(lock(file, inherited=True))
                if len(held) == number:
                    yield held
                    return
        ended = [process for file in files.values() for process in end_abandoned(file)]
        if ended:  # workers of a training that was killed would hold its GPU for ever
            say(f"ended what a killed process had left at work: {ended}")
            continue
        if not waiting:
            say(f"waiting for {number} of the GPUs {', '.join(visible)}")
        waiting = True
        time.sleep(2.0)


def _claims_folder() -> Path:
    """A folder of this user's in the temporary one, where others may have put something of that name before."""
    folder = Path(tempfile.gettempdir()) / f"locctx-gpus-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ValueError(
            f"{folder}, where GPUs are claimed, is no folder of yours (owner {status.st_uid}, "
            f"{stat.filemode(status.st_mode)}); have it removed, or set TMPDIR to a folder of your own"
        )
    folder.chmod(0o700)
    return folder
