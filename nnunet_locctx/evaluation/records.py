"""Results that are kept one by one while a long evaluation runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Records:
    """A file of JSON lines. Each line holds a ``result``; its other entries are the key of the result.

    A line is appended as a whole. The partial line of an interrupted run is cut off before the next line is added.

    Args:
        file: The file; it may not exist yet.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._results: dict[str, Any] = {}
        content = file.read_bytes() if file.exists() else b""
        complete = content.rfind(b"\n") + 1
        self._cut_at = complete if len(content) > complete else None
        if not complete and content[:1] not in (b"", b"{"):
            raise ValueError(f"{file} holds no results; choose another folder")
        for number, line in enumerate(content[:complete].splitlines(), 1):
            try:
                record = json.loads(line)
                self._results[_text(record)] = record["result"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} of {file} holds no result ({error!r}); delete the line, or choose another folder"
                ) from error

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return _text(key) in self._results

    def get(self, key: Mapping[str, Any]) -> Any:
        """The result of a key.

        Raises:
            KeyError: There is none.
        """
        return self._results[_text(key)]

    def add(self, key: Mapping[str, Any], result: Any) -> None:
        """Stores a result.

        Args:
            key: What was measured and how, as JSON can hold it.
            result: As JSON can hold it.
        """
        line = json.dumps({**key, "result": result}, allow_nan=False) + "\n"
        if self._cut_at is not None:
            with self.file.open("r+b") as stream:
                stream.truncate(self._cut_at)
            self._cut_at = None
        with self.file.open("ab") as stream:
            stream.write(line.encode())
        self._results[_text(key)] = json.loads(line)["result"]


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in record.items() if name != "result"}, sort_keys=True)
