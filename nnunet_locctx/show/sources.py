"""Draws the places of each class in the coordinates of each location source."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.files import replacing
from nnunet_locctx.geometry import Array
from nnunet_locctx.location import AXES
from nnunet_locctx.nnunet.data.class_places import SourcePlaces
from nnunet_locctx.show.figure import ENDS
from nnunet_locctx.viewing import class_colours

LEGIBLE = 75
"""Largest number of classes whose names are written."""


def draw_sources(sources: Mapping[str, SourcePlaces], output: Path) -> None:
    """Writes a picture (.png): one row per source, one column per axis. In a panel a line is a class and a dot is a
    case; left and right of an organ are a light and a dark shade of one hue.

    A source separates classes along an axis if their dots form columns that do not overlap. The panels of a row are
    equally wide in mm.

    Args:
        sources: Name -> places of the classes; one or more sources with the same classes.
        output: The file.
    """
    classes = next(iter(sources.values())).classes
    count, colours = len(classes), class_colours(classes, find_pairs(classes))
    height = min(max(1.6, 0.16 * count), 12.0)
    figure = Figure(figsize=(13, (height + 0.7) * len(sources)), layout="constrained")
    rows = figure.subplots(len(sources), len(AXES), squeeze=False, sharey=True)
    for axes, (source, seen) in zip(rows, sources.items(), strict=True):
        ratio = seen.spread.ratio
        unit = np.where(np.isfinite(seen.millimetres), seen.millimetres, np.nan)
        middles, widths = _limits(seen.places, unit)
        for index, ax in enumerate(axes):
            for number, name in enumerate(classes):
                values = seen.places[:, number, index]
                style = {"color": colours[name], "mec": "black", "mew": 0.2}
                ax.plot(values, np.full(len(values), number), "o", markersize=3, **style)
            score = f"{ratio[index]:.3g}" if np.isfinite(ratio[index]) else "not known"
            ax.set_title(f"{source}, {AXES[index]}: classes apart / scatter {score}", fontsize=9)
            ax.set_xlabel(ENDS[index], fontsize=8)
            if np.isfinite(widths[index]):
                ax.set_xlabel(f"{ENDS[index]}, 1 = {unit[index]:.3g} mm", fontsize=8)
                ax.set_xlim(middles[index] - 0.55 * widths[index], middles[index] + 0.55 * widths[index])
            ax.locator_params(axis="x", nbins=6)
            ax.tick_params(labelsize=7, length=0)
            ax.grid(alpha=0.3)
        axes[0].set_ylim(count - 0.5, -0.5)
        if count <= LEGIBLE:
            axes[0].set_yticks(range(count), classes)
        else:
            axes[0].set_ylabel("classes", fontsize=8)
    with replacing(output) as draft:
        figure.savefig(draft, dpi=120)


def _limits(places: Array, unit: Array) -> tuple[Array, Array]:
    """Middle and width (3,) of each panel in units of the coordinate; `unit` (3,) is the size of a unit in mm. NaN
    along an axis without any place."""
    known = [values[np.isfinite(values)] for values in np.moveaxis(places, -1, 0)]
    ends = np.array([(values.min(), values.max()) if values.size else (np.nan, np.nan) for values in known])
    lengths = (ends[:, 1] - ends[:, 0]) * unit
    return ends.mean(axis=1), np.where(np.isnan(lengths), np.nan, np.nanmax(lengths, initial=1) / unit)
