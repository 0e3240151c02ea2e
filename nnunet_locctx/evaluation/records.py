"""Results that are kept one by one while a long evaluation runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Records:
    """A file of JSON lines: each holds what was measured (``result``) and of what (the other entries).

    A line is appended as a whole. What an interrupted run left of a line is cut off by the next one.

    Args:
        file: The file; need not exist yet.

    Raises:
        ValueError: The file holds something else.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._found: dict[str, Any] = {}
        content = file.read_bytes() if file.exists() else b""
        complete = content.rfind(b"\n") + 1
        self._cut_at = complete if len(content) > complete else None
        if not complete and content[:1] not in (b"", b"{"):
            raise ValueError(f"{file} holds no results; choose another folder")
        for number, line in enumerate(content[:complete].splitlines(), 1):
            try:
                record = json.loads(line)
                self._found[_key(record)] = record["result"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"line {number} of {file} holds no result ({error!r}); delete the line, or choose another folder"
                ) from error

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, what: Mapping[str, Any]) -> bool:
        return _key(what) in self._found

    def get(self, what: Mapping[str, Any]) -> Any:
        """The result of what was measured before.

        Raises:
            KeyError: It was not.
        """
        return self._found[_key(what)]

    def add(self, what: Mapping[str, Any], result: Any) -> None:
        """Stores a result.

        Args:
            what: What was measured, as JSON can hold it; tells results apart.
            result: As JSON can hold it.
        """
        line = json.dumps({**what, "result": result}, allow_nan=False) + "\n"
        if self._cut_at is not None:
            with self.file.open("r+b") as stream:
                stream.truncate(self._cut_at)
            self._cut_at = None
        with self.file.open("ab") as stream:
            stream.write(line.encode())
        self._found[_key(what)] = json.loads(line)["result"]

    def add_all(
        self,
        whats: Sequence[Mapping[str, Any]],
        results: Iterable[Any],
        *,
        total: int,
        title: str,
        progress: bool,
    ) -> None:
        """Stores results as they come.

        Args:
            whats: What is measured, in order.
            results: As many.
            total: Cases of the whole evaluation; those that are not among `whats` were measured before.
            title: Of the progress bar.
            progress: Show one.
        """
        done = total - len(whats)
        with tqdm(total=total, initial=done, desc=title, unit="case", disable=not progress) as bar:
            for what, result in zip(whats, results, strict=True):
                self.add(what, result)
                bar.update()


def _key(record: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in record.items() if key != "result"}, sort_keys=True)
