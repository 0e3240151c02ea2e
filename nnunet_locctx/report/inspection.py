"""Writes the page of `locctx inspect`: doubtful cases, the most doubtful first, with slices through the findings."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.patches import Patch
from tqdm import tqdm

from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.evaluation.doubt import Finding
from nnunet_locctx.evaluation.inspection import InspectedCase, Inspection, to_frame, to_json
from nnunet_locctx.evaluation.label_summary import distances_from_largest, pieces, to_index
from nnunet_locctx.nnunet.data.reading import read_scan
from nnunet_locctx.report.document import (
    PAGE,
    Block,
    Document,
    Figure,
    Listing,
    Section,
    Table,
    Text,
    check_target,
    count,
    number,
    slug,
    write_document,
)
from nnunet_locctx.report.style import WIDTH, legend_below, new_figure, to_svg
from nnunet_locctx.scan import Scan
from nnunet_locctx.viewing import VIEWS, Colour, Slice, class_colours, grey_levels, widest_view

JSON, TABLE = "inspection.json", "findings"
MOST_CASES, MOST_PICTURES = 20, 3
"""Largest number of cases with pictures, and of pictures per case."""

LONGEST_LEGEND = 12
CONTOUR, FAINT = 1.6, 0.35
"""Line width of a finding's contour, and opacity of the other classes."""

METHOD = (
    "Each segmentation is compared with the training labels. To learn the usual deviations, each training label was "
    "judged by the others; a case like those of training exceeds the limit of each of the four measures (place, "
    "volume, pieces, sides) with a probability of 0.5 %. A class's place is predicted from the other classes, so "
    "fields of view may differ. The doubt is at most 1 without a finding; above that, each class adds the excess of "
    "its worst deviation, as a multiple of the limit."
)


def write_inspection(
    inspection: Inspection, output: Path, *, images: Sequence[Path] = (), progress: bool = False
) -> Path:
    """Writes ``index.html`` (self-contained), ``report.md``, ``findings.csv``, ``inspection.json`` and figures.

    Args:
        inspection: The findings.
        output: The folder, which is replaced as a whole.
        images: Folders of the scans, ``CASE_0000.ENDING``, which are drawn under the contours. A case uses the first
            folder with its scan.
        progress: Show a progress bar.

    Returns:
        The page.

    Raises:
        ValueError: `output` is a folder that holds something else than an inspection.
    """
    check_target(output, (JSON,))
    names = list(inspection.classes.labels)
    colours = class_colours(names, find_pairs(names))
    sections = [Section("cases", "Cases", [_table(inspection), Text(METHOD)])]
    shown = inspection.doubtful[:MOST_CASES]
    for case in tqdm(shown, desc="pictures", unit="case", disable=not progress):
        blocks: list[Block] = [Listing([finding.sentence for finding in case.findings])]
        blocks += _pictures(case, inspection, images, colours)
        sections.append(Section(slug(case.case), f"{case.case}: doubt {number(case.doubt, 1)}", blocks))
    if len(inspection.doubtful) > len(shown):
        text = f"{count(len(inspection.doubtful) - len(shown), 'more case')} with findings are only in the table."
        sections.append(Section("more", "More", [Text(text)]))
    folder = "/".join(inspection.predictions.resolve().parts[-2:])
    subtitle = (
        f"{len(inspection.doubtful)} of {count(len(inspection.cases), 'case')} in {folder} have findings, judged by "
        f"{count(inspection.training, 'training label')}; no reference was used"
    )
    document = Document("Predictions to look at first", subtitle, sections)
    write_document(document, output, {JSON: to_json(inspection).encode()})
    return output / PAGE


def _table(inspection: Inspection) -> Table:
    rows = []
    for case in inspection.cases:
        first = case.findings[0].sentence if case.findings else "nothing found"
        more = str(len(case.findings) - 1) if len(case.findings) > 1 else ""
        rows.append((case.case, first, more, number(case.doubt, 1)))
    shown = pd.DataFrame(rows, columns=["case", "first finding", "more", "doubt"])
    caption = "The most doubtful case first. The CSV file has all findings."
    return Table(TABLE, caption, shown, labels=2, records=to_frame(inspection))


def _pictures(
    case: InspectedCase, inspection: Inspection, images: Sequence[Path], colours: dict[str, Colour]
) -> Iterator[Block]:
    """A figure for each of the worst visible findings, and texts on files that could not be drawn."""
    visible = [finding for finding in case.findings if finding.kind not in ("file", "location", "empty")]
    if not visible:
        return
    labels = read_scan([case.file], inspection.reader, segmentation=True)
    image = None
    name = f"{case.case}_0000{inspection.file_ending}"
    file = next((folder / name for folder in images if (folder / name).is_file()), None)
    if file is None and images:
        yield Text(f"Drawn without the scan: {name} is not in {' or '.join(map(str, images))}.", True)
    if file is not None:
        try:
            image = read_scan([file], inspection.reader)
            if image.frame.shape != labels.frame.shape:
                yield Text(
                    f"{file} has the shape {image.frame.shape}, the prediction {labels.frame.shape} (z, y, x)",
                    True,
                )
                image = None
        except ValueError as error:
            yield Text(str(error), True)
    kinds = [finding.kind for finding in visible]
    # first one finding of each kind
    order = sorted(range(len(kinds)), key=lambda at: kinds[:at].count(kinds[at]))
    for at, finding in enumerate(visible[place] for place in order[:MOST_PICTURES]):
        svg = _draw(finding, labels, image, inspection, colours)
        yield Figure(f"{slug(case.case)}_{at + 1}", svg, finding.sentence, f"{case.case}: {finding.sentence}")
    if len(visible) > MOST_PICTURES:
        yield Text(f"{count(len(visible) - MOST_PICTURES, 'finding')} without a picture.")


def _draw(
    finding: Finding, labels: Scan, image: Scan | None, inspection: Inspection, colours: dict[str, Colour]
) -> bytes:
    """Draws slices through a finding; its classes are outlined, the others faint."""
    frame, values = labels.frame, inspection.classes.values
    names = [name for name in finding.classes or values if np.isin(labels.labels, values[name]).any()]
    views = (widest_view(frame),) if 1 in frame.shape else VIEWS
    place = _place(finding, labels, [value for name in names for value in values[name]])
    slices = [Slice(frame, view, place) for view in views]
    ratios = [piece.width / piece.height for piece in slices]
    faint = np.zeros((*labels.labels.shape, 4), np.float32)
    others = (labels.labels > 0) & ~np.isin(
        labels.labels, [value for name in names for value in values[name]]
    )
    faint[others] = (1, 1, 1, FAINT) if image is None else (0.4, 0.7, 1, FAINT / 2)
    with new_figure(WIDTH, min(WIDTH / sum(ratios), WIDTH / 1.6) + 0.5) as figure:
        panels = figure.subplots(1, len(slices), width_ratios=ratios, squeeze=False)[0]
        for panel, piece in zip(panels, slices, strict=True):
            if image is None:
                piece.paint(panel, np.zeros(piece.of(labels.labels).shape), cmap="gray", vmin=0, vmax=1)
            else:
                low, high = grey_levels(image.voxels[0], inspection.channel)
                piece.paint(panel, piece.of(image.voxels[0]), cmap="gray", vmin=low, vmax=high)
            piece.paint(panel, np.moveaxis(piece.of(np.moveaxis(faint, -1, 0)), 0, -1))
            plane = piece.of(labels.labels)
            for name in names:
                piece.outline(panel, np.isin(plane, values[name]), colours[name])
            left, top, width, height = piece.rectangle(place, (1, 1, 1))
            style = {"marker": "+", "color": "#ffe680", "markersize": 13, "markeredgewidth": 1.4}
            panel.plot(left + width / 2, top + height / 2, **style)
            piece.frame_panel(panel)
        keys = names[:LONGEST_LEGEND] if finding.classes else []
        if keys:
            legend_below(figure, [Patch(color=colours[name]) for name in keys], keys)
        return to_svg(figure)


def _place(finding: Finding, labels: Scan, values: list[int]) -> tuple[int, int, int]:
    """The common voxel of the slices: the expected place of a missing class, in a second piece, or amid the classes."""
    if finding.place is not None:
        index = np.rint(to_index(finding.place, labels.frame))
        return _three(np.clip(index, 0, np.array(labels.frame.shape) - 1))
    mask = np.isin(labels.labels, values)
    if finding.kind in ("pieces", "far"):
        numbered, sizes = pieces(mask)
        if finding.kind == "far":
            piece = distances_from_largest(numbered, sizes, labels.frame.spacing).argmax()
        else:
            piece = np.argsort(sizes)[-2]
        mask = numbered == 1 + int(piece)
    voxels = np.argwhere(mask)
    middle = voxels.mean(axis=0)
    return _three(voxels[np.argmin(((voxels - middle) ** 2).sum(axis=1))])


def _three(index: npt.NDArray[Any]) -> tuple[int, int, int]:
    return int(index[0]), int(index[1]), int(index[2])
