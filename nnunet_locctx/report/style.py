"""The common style of the report's figures: colours for the colour-blind, a marker per method, the page's width.

Figures are SVG and follow the light or dark theme of the reader's screen.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from nnunet_locctx.report.results import Results
from nnunet_locctx.viewing import COLOURS

WIDTH = 7.6
"""Inches. Width of a figure as wide as the page."""

DPI = 150
MARKERS = "osD^vP*X<>"
BASELINE_COLOUR = "#555555"
SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify_threshold": 0.5,
    "text.parse_math": False,  # names are text: a $ is no formula
}
THEME = """<style>
svg { color: #1c1c1c; fill: currentColor; background: #ffffff; --soft: #555555; --hair: #b0b0b0; }
@media (prefers-color-scheme: dark) {
  svg { color: #e4e4e4; background: #17181a; --soft: #a8a8a8; --hair: #6a6a6a; }
}
</style>"""
NEUTRAL = {"#000000": "currentColor", BASELINE_COLOUR: "var(--soft)", "#b0b0b0": "var(--hair)"}
"""Colours that follow the theme."""


def looks(study: Results) -> dict[str, tuple[str, str, Any]]:
    """Method -> colour, marker and stroke of a line without markers, the same in every figure.

    The baseline is grey and dashed; the stroke is dash-dotted for the second use of a colour.
    """
    strokes: dict[str, tuple[str, str, Any]] = {study.baseline: (BASELINE_COLOUR, "o", "--")}
    for place, name in enumerate(study.methods.index.drop(study.baseline)):
        stroke = "-" if place < len(COLOURS) else "-."
        strokes[name] = (COLOURS[place % len(COLOURS)], MARKERS[(place + 1) % len(MARKERS)], stroke)
    return strokes


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """An empty figure (inches) in the report's style."""
    with mpl.rc_context(SETTINGS):
        figure = Canvas(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def to_svg(figure: Any) -> bytes:
    """The figure as SVG whose colours follow the theme of the reader's screen.

    The same bytes for the same figure.
    """
    picture = io.StringIO()
    # without matplotlib's version in it, the file changes only with the picture
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(picture, format="svg", dpi=DPI, metadata=nothing)
    text = picture.getvalue()
    for colour, themed in NEUTRAL.items():
        text = text.replace(colour, themed)
    return text[text.index("<svg") :].replace("<defs>", f"{THEME}<defs>", 1).encode()


def legend_below(figure: Any, handles: Any, labels: Any) -> None:
    """Draws one legend below all panels, in as many columns as fit."""
    longest = max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(16 * figure.get_figwidth() / (longest + 9))))
    rows = -(-len(labels) // columns)
    # balance the rows
    figure.legend(handles, labels, loc="outside lower center", ncols=-(-len(labels) // rows) if rows else 1)
