"""Reads tables of settings strictly: nothing twice, nothing unknown, every error with what is allowed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from nnunet_locctx.names import check_known, instead


def all_different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuses a value that stands there twice."""
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"has {', '.join(twice)} twice")
    return values


Text = Annotated[str, Strict(), Field(min_length=1)]
Names = Annotated[tuple[Text, ...], AfterValidator(all_different)]
Whole = Annotated[int, Strict(), Field(ge=0)]
Count = Annotated[int, Strict(), Field(ge=1)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Strict(), Field(ge=0, le=100)]
Flag = Annotated[bool, Strict()]


class Table(BaseModel):
    """A table of settings: nothing unknown is taken, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            check_known(given, [one.alias or name for name, one in cls.model_fields.items()], "key")
        return given


def find_study(name: str) -> Path:
    """The file of a study: a path, or the name of one that comes with the package.

    Raises:
        ValueError: Neither; lists those that come with the package.
    """
    file = Path(name)
    if file.is_file() or file.suffix in (".yaml", ".yml"):
        return file
    from nnunet_locctx import resources

    try:
        shipped = {path.stem: path for path in sorted(resources.studies_folder().glob("*.yaml"))}
    except FileNotFoundError:
        shipped = {}
    try:
        check_known([name], shipped, "study (and no file of that name)")
    except ValueError as error:
        raise ValueError(f"locctx study: {error}") from None
    return shipped[name]


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file's table.

    Raises:
        ValueError: No such file, no YAML, a key that stands twice (YAML libraries drop the first in silence), or no
            table.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        pass

    def table(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"{file}, line {node.start_mark.line + 1}: {', '.join(twice)} is there twice")
        content: dict[Any, Any] = loader.construct_mapping(node, deep=True)
        return content

    Strict.add_constructor("tag:yaml.org,2002:map", table)
    if not file.is_file():
        raise ValueError(f"there is no study file {file}")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Strict)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a table (key: value), got {type(content).__name__}")
    return content


def explain(error: ValidationError, where: str) -> str:
    """What pydantic refused: file, key, what is allowed, and the value seen; one line each.

    Args:
        error: Of a validation.
        where: What to call the file.
    """
    lines = []
    for one in error.errors():
        place = ": ".join([where, *map(str, one["loc"])])
        text = one["msg"].removeprefix("Value error, ")
        if one["type"] == "missing":
            text = "is needed and is not there"
        elif one["type"] != "value_error":  # our own sentences have the value already
            text = f"{text.replace('Input should', 'must', 1)}, got {one['input']!r}"
            choices = re.findall(r"'([^']*)'", str(one.get("ctx", {}).get("expected")))
            text += instead(one["input"], choices) if choices else ""
        lines.append(f"{place}: {text}")
    return "\n".join(lines)


def beside(path: Any, info: ValidationInfo) -> Any:
    """A path of a study file, which is relative to it; one that is read back is absolute."""
    if not info.context or not isinstance(path, str | Path):
        return path
    return (info.context["folder"] / Path(path).expanduser()).resolve()


def preset_name(given: str) -> str:
    """Of a preset that is given by its name or by its file."""
    return Path(given).stem if given.endswith(".json") else given
