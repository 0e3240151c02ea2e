"""The demo's figure: held-out scans with the truth, both predictions and the coordinate map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.files import replacing
from nnunet_locctx.location import make_source
from nnunet_locctx.phantoms.twin_organs import ORGANS
from nnunet_locctx.scan import Scan
from nnunet_locctx.viewing import CORONAL, SOFT_TISSUE, Slice, class_colours, clear

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Row:
    """One coronal slice, the patient's right on the left and the head at the top.

    Attributes:
        name: Name of the scan.
        scan: (rows, columns) HU, from superior down, from the patient's right to the left.
        segmentations: Title -> (rows, columns) labels.
        location: (3, rows, columns) fraction of the volume (R, A, S).
        pixel: Height over width of a pixel.
    """

    name: str
    scan: FloatArray
    segmentations: dict[str, npt.NDArray[np.integer[Any]]]
    location: FloatArray
    pixel: float = 1.0


def draw_figure(
    file: Path,
    *,
    images: Path,
    truth: Path,
    predictions: Mapping[str, Path],
    scans: int = 3,
    channel_suffix: str = "_0000",
) -> None:
    """Draw the figure from files and write it in one step.

    Args:
        file: The PNG to write.
        images: Folder of the scans in nnU-Net's raw format.
        truth: Folder of their labels.
        predictions: Title -> folder of predicted labels.
        scans: How many scans to show at most, the first by name.
        channel_suffix: What follows the case's name in the file of the channel to show.

    Raises:
        ValueError: There is no scan in `truth`.
    """
    names = sorted(path.name.removesuffix(".nii.gz") for path in truth.glob("*.nii.gz"))[:scans]
    if not names:
        raise ValueError(f"{truth} holds no .nii.gz file to draw")
    rows = []
    for name in names:
        files = {"truth": truth / f"{name}.nii.gz"}
        files.update({title: folder / f"{name}.nii.gz" for title, folder in predictions.items()})
        rows.append(read_row(name, images / f"{name}{channel_suffix}.nii.gz", files))
    plot_rows(rows, file)


def read_row(name: str, scan: Path, segmentations: Mapping[str, Path]) -> Row:
    """Read a scan in any storage orientation and cut the coronal slice that shows most of the labelled organs.

    Args:
        name: Title of the row.
        scan: The image.
        segmentations: Title -> label file on the same grid; the first one chooses the slice.
    """
    image = Scan.read(scan)
    labels = {title: Scan.read(file).labels for title, file in segmentations.items()}
    across = image.frame.array_axes[CORONAL.fixed]
    planes = np.moveaxis(next(iter(labels.values())), across, 0)
    present = [np.bincount(plane[plane > 0], minlength=2)[1:] for plane in planes]
    # most classes, and among those the largest cut through them
    best = max(range(len(present)), key=lambda index: ((present[index] > 0).sum(), present[index].sum()))
    piece = Slice(image.frame, CORONAL, best)
    location = make_source("voxel").field(image.frame).box((0, 0, 0), image.frame.shape)
    return Row(
        name,
        piece.of(image.voxels[0]).astype(np.float32),
        {title: piece.of(array) for title, array in labels.items()},
        piece.of(location),
        pixel=piece.spacing[0] / piece.spacing[1],
    )


def plot_rows(rows: Sequence[Row], file: Path) -> None:
    """Draw one line of panels per row and write a PNG in one step.

    Args:
        rows: What to draw; all with the same segmentations.
        file: The PNG.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    titles = ["scan", *rows[0].segmentations, "location"]
    figure = Figure(figsize=(2.6 * len(titles), 2.6 * len(rows) + 0.9), layout="constrained")
    panels = figure.subplots(len(rows), len(titles), squeeze=False)
    colours = class_colours(list(ORGANS), find_pairs(list(ORGANS)))
    palette = ListedColormap(list(colours.values()))
    for line, row in zip(panels, rows, strict=True):
        for panel, title in zip(line, titles, strict=True):
            clear(panel, spines=False)
            view = {"aspect": row.pixel, "interpolation": "nearest"}
            if title == "location":
                panel.imshow(np.moveaxis(np.clip(row.location + 0.5, 0, 1), 0, -1), **view)
                continue
            panel.imshow(row.scan, cmap="gray", vmin=SOFT_TISSUE[0], vmax=SOFT_TISSUE[1], **view)
            if title in row.segmentations:
                labels = row.segmentations[title]
                shown = np.ma.masked_equal(labels, 0)
                panel.imshow(shown, cmap=palette, vmin=0.5, vmax=len(colours) + 0.5, alpha=0.8, **view)
        line[0].set_ylabel(row.name)
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title("location as colour" if title == "location" else title)
    panels[-1][0].set_xlabel("coronal; patient's right is left")
    panels[-1][-1].set_xlabel("red: to the right, green: to anterior,\nblue: to superior")
    patches = [Patch(color=colour, label=name.replace("_", " ")) for name, colour in colours.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    with replacing(file) as draft:
        figure.savefig(draft, dpi=110)
