"""The blocks of a report, the formats of its numbers, and the writing of its folder."""

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
"""Text for an undefined number."""

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Listing:
    """A list."""

    points: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Commands to type."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        key: Name of its CSV file, without the ending.
        caption: Content, number of cases and computation.
        shown: Heads and cells as text.
        labels: Number of columns at the left that name a row.
        notes: Sentences below the table.
        records: Content of the CSV file with unrounded numbers, a frame or mappings; None: the cells as shown.
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
        key: Name of the file without the ending.
        svg: The picture.
        caption: Content, number of cases and computation.
        alternative: The finding in words, for readers who cannot see the picture.
        records: The drawn values, for a CSV file beside the picture, where no table of the report has them; or None.
    """

    key: str
    svg: bytes = field(repr=False)
    caption: str
    alternative: str
    records: pd.DataFrame | None = field(default=None, repr=False)

    @property
    def file(self) -> str:
        """Path within the report's folder."""
        return f"figures/{self.key}.svg"

    @property
    def csv(self) -> str:
        """Path of the records' CSV file within the report's folder."""
        return f"figures/{self.key}.csv"

    @property
    def url(self) -> str:
        """The picture as a data URL."""
        return data_url(self.svg, "svg+xml")


@dataclass(frozen=True)
class Browser:
    """Cases to browse slice by slice.

    Attributes:
        figures: Figures that replace the browser where no script runs, as in the Markdown twin.
        content: Scans, predictions and their order for the page's script, as JSON can hold them.
        caption: Explanation of the pictures.
    """

    figures: Sequence[Figure]
    content: Mapping[str, Any] = field(repr=False)
    caption: str


Block = Text | Listing | Code | Table | Figure | Browser


@dataclass(frozen=True)
class Section:
    """A heading with its blocks; `key` is its anchor."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report: title, subtitle, sections, and the names of methods and classes for filtering tables."""

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
    """Writes a draft folder and renames it to the target; if a step fails, the old report stays.

    Args:
        document: The report.
        target: Folder of the report, which is replaced as a whole.
        further: Name -> content of further files.
    """
    files = {PAGE: render(document, "page.html.jinja").encode()}
    files[TWIN] = render(document, "report.md.jinja").encode()
    files |= {f"{table.key}.csv": table.to_csv().encode() for table in document.tables()}
    for figure in document.figures():
        files[figure.file] = figure.svg
        if figure.records is not None:
            files[figure.csv] = to_csv(figure.records).encode()
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
    """Refuses to replace a folder that holds something else than a report.

    Args:
        target: The report's folder.
        further: Further files that this kind of report has.

    Raises:
        ValueError: The target is a file, or it holds files that no report has, or no report.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"the report needs a folder, {target} is a file")
    own = (PAGE, TWIN, FIGURES, *further)
    names = sorted(path.name for path in target.iterdir())
    foreign = [name for name in names if name not in own and not name.endswith(".csv")]
    if foreign or (names and not {PAGE, TWIN} <= set(names)):
        raise ValueError(
            f"{target} would be replaced as a whole, but holds something else than a report"
            f": {', '.join((foreign or names)[:5])}"
        )


def render(document: Document, template: str) -> str:
    """The report as HTML or Markdown.

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
    """A picture as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _plain(text: str) -> str:
    """Text escaped for Markdown, on one line."""
    return " ".join(text.split()).translate(MARKUP)


def to_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV: numbers with six digits, empty cells for undefined numbers."""
    text: str = frame.replace([np.inf, -np.inf], np.nan).to_csv(
        index=False, float_format="%.6g", lineterminator="\n"
    )
    return text


def number(value: float, digits: int = 2, *, sign: bool = False, scale: float = 1) -> str:
    """A number for a table, with a typographic minus sign; a dash if it is undefined."""
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
    """A p value with three digits, or ``< 0.001``."""
    if not math.isfinite(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """A time as text in seconds, minutes or hours."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(amount: int, what: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{amount} {what}{'' if amount == 1 else 's'}"


def slug(name: str) -> str:
    """A name that can be part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._") or "_"
