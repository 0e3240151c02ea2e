"""Tables of what Dice does not show, and of Dice after postprocessing."""

import math
from collections.abc import Sequence

import numpy as np

from nnunet_locctx.report.comparison import Comparison
from nnunet_locctx.report.document import Table, number, percent
from nnunet_locctx.report.load import POSTPROCESSINGS
from nnunet_locctx.report.model import Study
from nnunet_locctx.report.scores import Scores, foreground

ERRORS = ("hd95_mm", "nsd", "volume_error_percent", "swap_rate", "off_region_ml")
POSTPROCESSING_WORDS = {"largest_component": "largest component", "atlas": "atlas mask"}


def error_table(study: Study, rows: Sequence[Comparison], key: str, cases: str) -> Table:
    """A row per preset and method: distances, surfaces, laterality, false positives far off."""
    tolerance, off = study.evaluation.get("tolerance_mm"), study.evaluation.get("off_region_mm")
    convention = study.evaluation.get("paper")
    lines, records = [], []
    for row in rows:
        there = np.nan_to_num(row.scores.values["reference_ml"]) > 0
        lost = int((there & ~np.isfinite(row.scores.values["hd95_mm"])).sum())
        record = {name: row.metric(name) for name in ERRORS}
        record["paper_dice"] = row.scores.paper_dice(convention)
        lines.append(
            [
                row.preset,
                row.method,
                number(record["hd95_mm"], 1),
                f"{lost} of {int(there.sum())}",
                percent(record["nsd"], 1),
                number(record["volume_error_percent"], 1, sign=True),
                percent(record["swap_rate"], 2),
                number(record["off_region_ml"], 2),
                percent(record["paper_dice"]),
            ]
        )
        records.append({"preset": row.preset, "method": row.method, **record, "hd95_undefined": lost})
    columns = ["preset", "method", "HD95, mm", "HD95 undefined", "NSD, %", "volume error, %", "swaps, %"]
    columns += ["off region, ml", "paper Dice, %"]
    caption = (
        f"Further measures, mean over the classes of the class means; {cases}. HD95 is not defined where a class "
        "is not predicted at all: its mean leaves such entries out, and the next column counts them among the entries "
        f"with the class in the truth. NSD{_at(tolerance)}. Swaps: share of the true voxels of left and right classes "
        f"that are predicted as the other side. Off region: volume predicted far from the true class{_beyond(off)}."
    )
    if convention:
        caption += f" Paper Dice: as the paper ({convention}) counts."
    else:  # nothing to show in the last column
        columns, lines = columns[:-1], [line[:-1] for line in lines]
    notes = [] if study.pairs else ["The data set has no left and right classes: no swaps."]
    return Table(key, caption, columns, lines, labels=2, notes=notes, records=records)


def postprocessing_table(study: Study) -> Table | None:
    """A row per preset and method: Dice before and after each postprocessing; None if there was none."""
    kinds = [kind for kind in POSTPROCESSINGS if any(key[1] == kind for key in study.postprocessed)]
    lines, records = [], []
    for run in study.runs:
        tables: dict[str, Scores | None] = {"none": study.validation.get(run.run)}
        tables.update({kind: study.postprocessed.get((run.run, kind)) for kind in kinds})
        if not any(tables[kind] is not None for kind in kinds):
            continue
        means = {kind: _mean(found) for kind, found in tables.items()}
        lines.append(
            [run.preset, run.method, str(max(len(found) for found in tables.values() if found is not None))]
            + [percent(value) for value in means.values()]
        )
        records.append({"preset": run.preset, "method": run.method, **means})
    if not lines:
        return None
    return Table(
        key="postprocessing",
        caption="Mean foreground Dice in % of the validation cases, without and with postprocessing (LocBAM, "
        "section 3.3).",
        columns=["preset", "method", "cases", "none", *(POSTPROCESSING_WORDS[kind] for kind in kinds)],
        rows=lines,
        labels=2,
        records=records,
    )


def _at(tolerance: object) -> str:
    return f" at {tolerance:g} mm" if isinstance(tolerance, int | float) else ""


def _beyond(distance: object) -> str:
    return f" (more than {distance:g} mm)" if isinstance(distance, int | float) else ""


def _mean(scores: Scores | None) -> float:
    return math.nan if scores is None else float(foreground(scores.values["dice"]))
