"""What a report consists of, before it becomes HTML or Markdown."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NOTHING = "\N{EN DASH}"
"""Stands where there is no number."""

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Listing:
    """Points of a list."""

    points: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Commands, as they are typed."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: Name of its CSV file, without the ending.
        caption: What it shows, n and how it was computed.
        columns: Heads.
        rows: Cells as shown; a row's first `labels` cells are its name.
        labels: Columns of words, which are aligned left.
        notes: Below the table.
        records: What the CSV file holds: unrounded numbers. Empty: the cells as shown.
    """

    key: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1
    notes: Sequence[str] = ()
    records: Sequence[Mapping[str, object]] = ()

    def to_csv(self) -> str:
        """The records, or the cells; numbers with six digits, nothing where a number is not defined."""
        records = self.records or [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return to_csv(records)


@dataclass(frozen=True)
class Figure:
    """A picture in ``figures/``.

    Attributes:
        key: Its file's name without the ending.
        png: The picture.
        caption: What is seen, n, how it was made.
        alternative: What it shows, for those who cannot see it.
    """

    key: str
    png: bytes = field(repr=False)
    caption: str
    alternative: str

    @property
    def file(self) -> str:
        """Path within the report's folder."""
        return f"figures/{self.key}.png"


Block = Text | Listing | Code | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what is below it; `key` is its anchor."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report: its title, what it is about in a sentence, and its sections."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    def tables(self) -> list[Table]:
        """All tables."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Table)]

    def figures(self) -> list[Figure]:
        """All figures."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def to_csv(records: Sequence[Mapping[str, object]]) -> str:
    """Records as CSV; the columns are those of all records, in the order they appear."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        writer.writerow([_plain(record.get(column)) for column in columns])
    return text.getvalue()


def number(value: float, digits: int = 2, *, sign: bool = False, scale: float = 1) -> str:
    """A number for a table: real minus sign, and a dash where it is not defined."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{value * scale:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(fraction: float, digits: int = 2, *, sign: bool = False) -> str:
    """A fraction in percent, without the sign %."""
    return number(fraction, digits, sign=sign, scale=100)


def span(low: float, high: float, digits: int = 2, *, sign: bool = False, scale: float = 100) -> str:
    """An interval in brackets."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NOTHING
    return f"[{number(low, digits, sign=sign, scale=scale)}, {number(high, digits, sign=sign, scale=scale)}]"


def p_value(value: float) -> str:
    """A p value: three digits, or that it is less than 0.001."""
    if not math.isfinite(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(amount: int, what: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{amount} {what}{'' if amount == 1 else 's'}"


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._") or "_"


def _plain(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return "" if value is None else value
