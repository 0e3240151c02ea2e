"""One look for all figures: colours that the colour-blind can tell apart, a marker per method, sizes for a page."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnunet_locctx.evaluation.robustness_figure import COLOURS
from nnunet_locctx.report.model import Study

WIDTH = 7.6
"""Inches of a figure as wide as the page."""

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
}


def looks(study: Study) -> dict[str, tuple[str, str]]:
    """Method -> colour and marker, the same in every figure; the baseline is grey."""
    others = [method.name for method in study.methods if method.name != study.baseline]
    found = {study.baseline: (BASELINE_COLOUR, "o")}
    for place, name in enumerate(others):
        found[name] = (COLOURS[place % len(COLOURS)], MARKERS[(place + 1) % len(MARKERS)])
    return found


def line_style(study: Study, method: str) -> str:
    """The stroke of a line without markers: dashed for the baseline, dash-dotted where a colour comes a second time."""
    others = [one.name for one in study.methods if one.name != study.baseline]
    if method == study.baseline:
        return "--"
    return "-" if others.index(method) < len(COLOURS) else "-."


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """An empty figure (inches) in the report's style."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def to_png(figure: Any) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    picture = io.BytesIO()
    # without matplotlib's version the picture changes only when what it shows does
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    return picture.getvalue()


def legend_below(figure: Any, handles: Any, labels: Any) -> None:
    """A legend for all panels, outside of them; in as many columns as fit."""
    longest = max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(16 * figure.get_figwidth() / (longest + 9))))
    rows = -(-len(labels) // columns)
    # as many in each row, as far as that goes
    figure.legend(handles, labels, loc="outside lower center", ncols=-(-len(labels) // rows) if rows else 1)
