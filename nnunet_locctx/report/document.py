"""The parts of a report, how numbers are written in it, and how it becomes a folder."""

import base64
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_locctx.files import drafting

PAGE, TWIN, FIGURES = "index.html", "report.md", "figures"
TEMPLATES = Path(__file__).parent
MARKUP = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]<>|#"})

NOTHING = "\N{EN DASH}"
"""Replaces a number that is not defined."""

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
        shown: Heads and cells as shown, text.
        labels: Columns of words at the left, which name a row.
        notes: Below the table.
        records: What the CSV file holds: unrounded numbers, a frame or mappings; None: the cells as shown.
    """

    key: str
    caption: str
    shown: pd.DataFrame
    labels: int = 1
    notes: Sequence[str] = ()
    records: Any = None

    @property
    def columns(self) -> list[str]:
        """The heads."""
        return list(self.shown.columns)

    @property
    def rows(self) -> list[list[str]]:
        """The cells."""
        return [list(map(str, row)) for row in self.shown.to_numpy()]

    def to_csv(self) -> str:
        """The CSV file's content."""
        return to_csv(self.shown if self.records is None else pd.DataFrame(self.records))


@dataclass(frozen=True)
class Figure:
    """A picture in ``figures/``.

    Attributes:
        key: Its file's name without the ending.
        svg: The picture.
        caption: What is seen, n, how it was made.
        alternative: The finding, for those who cannot see it.
    """

    key: str
    svg: bytes = field(repr=False)
    caption: str
    alternative: str

    @property
    def file(self) -> str:
        """Path within the report's folder."""
        return f"figures/{self.key}.svg"

    @property
    def url(self) -> str:
        """The picture as a URL that needs no file."""
        return data_url(self.svg, "svg+xml")


@dataclass(frozen=True)
class Browser:
    """Cases to look through, slice by slice.

    Attributes:
        figures: They replace it where no script runs, as in the Markdown twin.
        content: For the page's script: scans, predictions and their order, as JSON can hold it.
        caption: What is seen.
    """

    figures: Sequence[Figure]
    content: Mapping[str, Any] = field(repr=False)
    caption: str


Block = Text | Listing | Code | Table | Figure | Browser


@dataclass(frozen=True)
class Section:
    """A heading and what is below it; `key` is its anchor."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report: its title, a sentence on its subject, its sections, and the names by which tables are filtered."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    methods: Sequence[str] = ()
    classes: Sequence[str] = ()

    def tables(self) -> list[Table]:
        """All tables."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Table)]

    def figures(self) -> list[Figure]:
        """All figures."""
        blocks = [block for section in self.sections for block in section.blocks]
        return [
            figure
            for block in blocks
            for figure in (block.figures if isinstance(block, Browser) else [block])
            if isinstance(figure, Figure)
        ]


def write_document(document: Document, target: Path, further: Mapping[str, bytes]) -> None:
    """Makes the folder aside and puts it in its place: whatever fails, there is the old report or the new one.

    Args:
        document: The report.
        target: Its folder, which is replaced as a whole.
        further: Further files of the folder.
    """
    files = {PAGE: render(document, "page.html.jinja").encode()}
    files[TWIN] = render(document, "report.md.jinja").encode()
    files |= {f"{table.key}.csv": table.to_csv().encode() for table in document.tables()}
    files |= {figure.file: figure.svg for figure in document.figures()}
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".{os.getpid()}.old.{target.name}")
    with drafting(target) as draft:
        for name, data in {**files, **further}.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(data)
        try:
            if target.exists():
                target.rename(old)
            draft.rename(target)
        finally:
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
            elif old.exists():
                old.rename(target)


def check_target(target: Path, further: Collection[str] = ()) -> None:
    """Refuses to replace a folder that is no report.

    Args:
        target: The report's folder.
        further: Files that this kind of report has beside the usual ones.

    Raises:
        ValueError: It is a file, or it holds files that no report has.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"the report needs a folder, {target} is a file")
    own = (PAGE, TWIN, FIGURES, *further)
    foreign = sorted(
        path.name
        for path in target.iterdir()
        if path.name not in own and path.suffix != ".csv" and not path.name.startswith(".")
    )
    if foreign or ((target / FIGURES).exists() and not (target / PAGE).exists()):
        raise ValueError(
            f"{target} would be replaced as a whole, but holds something else than a report"
            + (f": {', '.join(foreign[:5])}" if foreign else "")
        )


def render(document: Document, template: str) -> str:
    """The whole report as HTML or Markdown.

    Args:
        document: The report.
        template: A file in this folder.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=".html" in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": _plain}
    return environment.get_template(template).render(document=document).strip() + "\n"


def data_url(picture: bytes, kind: str) -> str:
    """A picture as a URL that needs no file."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _plain(text: str) -> str:
    """Markdown that shows the text as it is: no markup, no line breaks."""
    return " ".join(text.split()).translate(MARKUP)


def to_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV: numbers with six digits, nothing where a number is not defined."""
    text: str = frame.replace([np.inf, -np.inf], np.nan).to_csv(
        index=False, float_format="%.6g", lineterminator="\n"
    )
    return text


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


def span(low: float, high: float, *, sign: bool = False) -> str:
    """An interval of fractions in percent, in brackets."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NOTHING
    return f"[{percent(low, sign=sign)}, {percent(high, sign=sign)}]"


def p_value(value: float) -> str:
    """A p value: three digits, or that it is less than 0.001."""
    if not math.isfinite(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(amount: int, what: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{amount} {what}{'' if amount == 1 else 's'}"


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._") or "_"
