"""Draws where each class lies in the coordinates of each source of location."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.files import replacing
from nnunet_locctx.location import AXES
from nnunet_locctx.nnunet.data.class_places import SourcePlaces
from nnunet_locctx.viewing import class_colours

LEGIBLE = 75
"""Classes whose names are written; of more, their numbers in dataset.json's order."""


def draw_sources(sources: Mapping[str, SourcePlaces], output: Path) -> None:
    """Writes a picture (.png): a row a source, a column an axis; a line a class, a dot a case, left and right of an
    organ in light and dark of one hue.

    A source tells classes apart along an axis where their dots form columns that do not overlap.

    Args:
        sources: Name -> places of the classes; one source or more, of the same classes.
        output: The file.
    """
    classes = next(iter(sources.values())).classes
    count, colours = len(classes), class_colours(classes, find_pairs(classes))
    height = min(max(1.6, 0.16 * count), 12.0)
    figure = Figure(figsize=(13, (height + 0.7) * len(sources)), layout="constrained")
    rows = figure.subplots(len(sources), len(AXES), squeeze=False, sharey=True)
    for axes, (source, classes_in) in zip(rows, sources.items(), strict=True):
        ratio = classes_in.spread.ratio
        for index, ax in enumerate(axes):
            for number, name in enumerate(classes):
                values = classes_in.places[:, number, index]
                style = {"color": colours[name], "mec": "black", "mew": 0.2}
                ax.plot(values, np.full(len(values), number), "o", markersize=3, **style)
            score = f"{ratio[index]:.3g}" if np.isfinite(ratio[index]) else "not known"
            ax.set_title(f"{source}, {AXES[index]}: classes apart / scatter {score}", fontsize=9)
            ax.grid(alpha=0.3)
        axes[0].set_ylim(count - 0.5, -0.5)
        if count <= LEGIBLE:
            axes[0].set_yticks(range(count), classes, fontsize=6)
        else:
            axes[0].set_ylabel("classes")
    with replacing(output) as draft:
        figure.savefig(draft, dpi=120)
