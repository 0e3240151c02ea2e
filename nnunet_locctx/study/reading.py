"""Reads YAML strictly: nothing unknown, nothing twice, every error with what is allowed."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML file's table.

    Raises:
        ValueError: No such file, no YAML, a key that stands twice (YAML libraries drop the first in silence), or no
            table.
    """
    try:
        import yaml
    except ImportError as error:
        raise ValueError(
            "reading a study needs PyYAML, which comes with: pip install 'nnunet-locctx[study]'"
        ) from error

    class Strict(yaml.SafeLoader):
        pass

    def table(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"{file}, line {node.start_mark.line + 1}: {', '.join(twice)} is there twice")
        found: dict[Any, Any] = loader.construct_mapping(node, deep=True)
        return found

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


def check_known(names: Iterable[str], allowed: Iterable[str], what: str, where: str) -> None:
    """Refuses names that do not exist.

    Raises:
        ValueError: Names the unknown one, the nearest that exists, and all.
    """
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"{where}: unknown {what} {name!r}{_nearest(str(name), allowed)}; there are "
                f"{', '.join(allowed) or 'none'}"
            )


def _nearest(name: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(name, allowed, 1, 0.5)
    return f" (did you mean {near[0]}?)" if near else ""


class Table:
    """A table of settings and where it stands, for the errors.

    Args:
        content: The table.
        where: What to call it.
        allowed: Its keys.

    Raises:
        ValueError: No table, or an unknown key.
    """

    def __init__(self, content: Any, where: str, allowed: Iterable[str]) -> None:
        if not isinstance(content, Mapping):
            raise ValueError(f"{where} must be a table (key: value), got {content!r}")
        check_known(map(str, content), allowed, "key", where)
        self.content = dict(content)
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.content.get(key) is not None

    def required(self, key: str) -> Any:
        """The value; missing or empty is an error."""
        if key not in self:
            raise ValueError(f"{self.where} lacks {key!r}")
        return self.content[key]

    def text(self, key: str, default: str | None = None, pattern: str | None = None) -> str:
        """A text; without a default it is required."""
        value = self.content.get(key) if default is not None else self.required(key)
        if value is None:
            return str(default)
        if not isinstance(value, str) or not value.strip() or (pattern and not re.fullmatch(pattern, value)):
            told = f" that matches {pattern}" if pattern else ""
            raise self.error(key, f"a text{told}")
        return value

    def whole(self, key: str, default: int, lowest: int) -> int:
        """A whole number."""
        value = self.content.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise self.error(key, f"a whole number of at least {lowest}")
        return value

    def number(self, key: str, default: float) -> float:
        """A number above 0."""
        value = self.content.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.error(key, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def many(
        self, key: str, default: Iterable[Any], check: Callable[[Any], bool], what: str
    ) -> tuple[Any, ...]:
        """A list of different values that are each allowed."""
        value = self.content.get(key, list(default))
        if not isinstance(value, list) or not all(check(item) for item in value):
            raise self.error(key, f"a list of {what}")
        twice = sorted({str(item) for item in value if value.count(item) > 1})
        if twice:
            raise ValueError(f"{self.where}: {key} has {', '.join(twice)} twice")
        return tuple(value)

    def names(self, key: str, default: Iterable[str] = ()) -> tuple[str, ...]:
        """A list of different names."""
        return self.many(key, default, lambda item: isinstance(item, str) and bool(item), "names")

    def table(self, key: str, allowed: Iterable[str]) -> "Table":
        """A table inside this one; empty if it is not there."""
        return Table(self.content.get(key) or {}, f"{self.where}: {key}", allowed)

    def error(self, key: str, allowed: str) -> ValueError:
        """The error for a value that is not allowed."""
        return ValueError(f"{self.where}: {key} must be {allowed}, got {self.content.get(key)!r}")


def is_whole(value: Any) -> bool:
    """A whole number of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
