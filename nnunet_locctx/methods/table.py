"""The methods as a table."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from nnunet_locctx.methods.measured import Figures, Measured
from nnunet_locctx.resources import with_pages

FORMATS = ("table", "markdown", "json")
WIDTH = 120
HEADS = ("place", "encoding", "parameters, x", "MACs, x", "step, x", "phantom", "heads", "mice")
AS_PUBLISHED = "as published"
MARK = " *"

GROUPS = (
    "to try first",
    "in the planned U-Net",
    "networks of their own",
    "networks of their own, without location",
)
"""Kinds of trainers, in the order of the table."""


@dataclass(frozen=True)
class Method:
    """One trainer, a row of the table.

    Attributes:
        name: The trainer's, for ``nnUNetv2_train -tr``.
        what: What it does, one line.
        source: Where it was published.
        place: Where location enters unless the plans say otherwise; None: nowhere.
        encoding: How location is encoded unless the plans say otherwise; None: no choice.
        published: How to have it as its authors' code: presets of ``locctx plan`` by name, or that it is so as it is;
            None: not a published method, or not as a whole.
        recommended: Whether it is the one to try first.
        group: One of :data:`GROUPS`.
    """

    name: str
    what: str
    source: str | None
    place: str | None
    encoding: str | None
    published: str | None = None
    recommended: bool = False
    group: str = GROUPS[1]


def format_methods(methods: Sequence[Method], measured: Measured, form: str = "table") -> str:
    """The table.

    Args:
        methods: Rows.
        measured: Their figures; what is missing is printed as ``-``.
        form: One of :data:`FORMATS`: for a terminal of 120 columns, for a page, or for a program (numbers as they
            are, null where there is none).

    Raises:
        ValueError: No such format.
    """
    if form not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    if form == "json":
        rows = [{**asdict(method), **asdict(measured.of(method.name))} for method in methods]
        return json.dumps({"methods": rows, "notes": measured.notes}, indent=2)
    if form == "markdown":
        return _markdown(methods, measured)
    return _terminal(methods, measured)


def cells(method: Method, figures: Figures) -> list[str]:
    """Texts below :data:`HEADS`."""
    return [
        method.place or "-",
        method.encoding or "-",
        _times(figures.parameters_ratio),
        _times(figures.multiply_adds_ratio),
        _times(figures.step_ratio),
        *("-" if dice is None else f"{dice:.2f}" for dice in (figures.dice, figures.heads, figures.mice)),
    ]


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f}"


def _terminal(methods: Sequence[Method], measured: Measured) -> str:
    """Two lines or more per method: names and figures, below them what it does, its source, and how to have it as
    published."""
    rows = [
        [method.name + (MARK if method.recommended else ""), *cells(method, measured.of(method.name))]
        for method in methods
    ]
    table = [["trainer", *HEADS], *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [_aligned(table[0], widths), "-" * WIDTH]
    group = ""
    for method, row in zip(methods, rows, strict=True):
        if method.group != group:
            group = method.group
            lines += ["", f"{group}:"]
        lines.append(_aligned(row, widths))
        text = method.what if method.source is None else f"{method.what} [{method.source}]"
        text += "" if method.published is None else f"; {AS_PUBLISHED}: {method.published}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    for note in _notes(methods, measured):
        lines += ["", *textwrap.wrap(note, WIDTH)]
    return "\n".join(lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, figures to the right."""
    padded = [
        text.ljust(width) if column < 3 else text.rjust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _markdown(methods: Sequence[Method], measured: Measured) -> str:
    heads = ("trainer", "what", "source", AS_PUBLISHED, *HEADS)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method in methods:
        name = f"**`{method.name}`**{MARK}" if method.recommended else f"`{method.name}`"
        texts = [method.what, method.source or "-", method.published or "-"]
        row = [name, *texts, *cells(method, measured.of(method.name))]
        lines.append(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |")
    for note in _notes(methods, measured):
        lines += ["", note.replace("*", chr(92) + "*") if note.startswith("*") else note]
    return "\n".join(lines)


def _notes(methods: Sequence[Method], measured: Measured) -> list[str]:
    recommended = [method.name for method in methods if method.recommended]
    units = "x: times as much as nnU-Net's planned U-Net."
    return [
        *(f"* {name} is the one to try first." for name in recommended),
        units,
        *map(with_pages, measured.notes),
    ]
