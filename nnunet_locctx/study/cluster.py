"""What a job of each kind asks of a cluster."""

import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Strict

from nnunet_locctx.study.reading import Positive, Table

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
