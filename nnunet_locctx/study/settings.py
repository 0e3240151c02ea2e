"""The tables of settings within a study file, read strictly: nothing twice, nothing unknown, errors that say what is
allowed. The study itself is :class:`~nnunet_locctx.study.model.Study`."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from nnunet_locctx.files import write_atomically
from nnunet_locctx.names import check_known, instead
from nnunet_locctx.nnunet.data.paths import nnunet_folder

MADE = ".made"
"""Ending of the file beside a job's output that holds what the output depended on (:meth:`.jobs.Jobs.identity`)."""

KINDS = ("plan", "fit", "preprocess", "train", "evaluate", "predict", "postprocess", "robustness")
"""Kinds of jobs, in the order a run goes through them; rules of the Snakefile."""


def all_different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuses a value that is given twice."""
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"has {', '.join(repeated)} twice")
    return values


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
    # sbatch accepts the beginning of an option's name for the option; --wrap is a command to run
    refused = [word for word in words if not re.match(r"--[A-Za-z]", word) or word.startswith("--wr")]
    if refused:
        raise ValueError(
            "must be options of sbatch that begin with -- (--NAME or --NAME=VALUE; not --wrap), got "
            + ", ".join(map(repr, refused))
        )
    return shlex.join(words)


def _paper(value: Any) -> Any:
    """The paper that true, or none that false, stands for."""
    return ("locbam" if value else None) if isinstance(value, bool) else value


Text = Annotated[str, Strict(), Field(min_length=1)]
Names = Annotated[tuple[Text, ...], AfterValidator(all_different)]
Natural = Annotated[int, Strict(), Field(ge=0, lt=2**32)]
Numbers = Annotated[tuple[Natural, ...], AfterValidator(all_different), Field(min_length=1)]
Count = Annotated[int, Strict(), Field(ge=1)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Strict(), Field(ge=0, le=100)]
Flag = Annotated[bool, Strict()]
Word = Annotated[str, Strict(), AfterValidator(_for_a_shell)]
Paper = Literal["locbam", "gpe"]


class Table(BaseModel):
    """A table of settings: unknown keys are refused, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, table: Any) -> Any:
        if isinstance(table, Mapping):
            check_known(table, [field.alias or name for name, field in cls.model_fields.items()], "key")
        return table


class Folders(Table):
    """nnU-Net's three folders, absolute."""

    raw: Path
    preprocessed: Path
    results: Path

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, table: Any, info: ValidationInfo) -> Any:
        if not isinstance(table, Mapping):
            return table
        missing = {key: nnunet_folder(f"nnUNet_{key}") for key in cls.model_fields if table.get(key) is None}
        folders = {key: beside(path, info) for key, path in {**table, **missing}.items()}
        raw = folders["raw"]
        if isinstance(raw, Path) and info.context and not raw.is_dir():
            raise ValueError(f"raw is {raw}, which is not a folder")
        return folders


class Robustness(Table):
    """What `locctx robustness` is asked: percent, kinds and axes of the errors, presets, number of cases."""

    amounts: Annotated[tuple[Percent, ...], AfterValidator(all_different)] = (0, 1, 5, 10, 25, 50, 100)
    changes: Annotated[tuple[Literal["shift", "noise", "unknown"], ...], AfterValidator(all_different)] = (
        "shift",
    )
    axes: Annotated[tuple[Literal["R", "A", "axial", "all"], ...], AfterValidator(all_different)] = ("axial",)
    presets: Names | None = None
    cases: Count = 5


class Evaluation(Table):
    """How results are measured; `paper`: the paper whose way to count is added (true: LocBAM's)."""

    tolerance_mm: Positive = 2.0
    off_region_mm: Positive = 20.0
    paper: Annotated[Paper | None, BeforeValidator(_paper)] = None


class Resources(Table):
    """What a kind of job asks of a cluster; None leaves it to the cluster."""

    memory_gb: Positive | None = None
    hours: Positive | None = None
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    slurm_extra: Annotated[str, Strict(), AfterValidator(_sbatch_options)] | None = None


def beside(path: Any, info: ValidationInfo) -> Any:
    """A path of a study file, which is relative to it; a path that is read back is absolute."""
    if not info.context or not isinstance(path, str | Path):
        return path
    return (info.context["folder"] / Path(path).expanduser()).resolve()


def preset_name(preset: str) -> str:
    """The name of a preset that is given by its name or by its file."""
    return Path(preset).stem if preset.endswith(".json") else preset


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML libraries drop the first one in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(f"line {node.start_mark.line + 1}: {', '.join(repeated)} is given twice")
        table: dict[Any, Any] = super().construct_mapping(node, deep)
        return table


def read_yaml(file: Path) -> dict[str, Any]:
    """The table that a YAML file holds.

    Raises:
        ValueError: There is no such file, it is no YAML, it has a key twice, or it holds no table.
    """
    if not file.is_file():
        raise ValueError(f"there is no study file {file}")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a table (key: value), got {type(content).__name__}")
    return content


def explain(error: ValidationError, name: str) -> str:
    """What pydantic refused, a line each: file and key, what is allowed, and the value seen.

    Args:
        error: The error of a validation.
        name: The name of what was validated, such as the file.
    """
    lines = []
    for problem in error.errors():
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            text = "is missing"
        elif problem["type"] != "value_error":  # our own sentences have the value already
            text = f"{text.replace('Input should', 'must', 1)}, got {problem['input']!r}"
            choices = re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected")))
            text += instead(problem["input"], choices) if choices else ""
        lines.append(": ".join([name, *map(str, problem["loc"]), text]))
    return "\n".join(lines)


def parse_object(text: str) -> dict[str, Any]:
    """The object that a text holds as JSON; empty if it holds none."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def read_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty if there is no such file, or it holds none."""
    try:
        return parse_object(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file as a whole, and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())


def digest(content: Any) -> str:
    """Short fingerprint of what JSON can hold, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
