"""Evaluates a folder of predictions (`locctx evaluate`) and writes the result as JSON, CSV and Markdown."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_locctx.evaluation.classes import Classes, check_pairs
from nnunet_locctx.evaluation.label_files import (
    LabelFile,
    check_label_files,
    read_description,
    read_labels,
    refuse,
)
from nnunet_locctx.evaluation.measures import PAPER_MEASURES, Settings, definitions, measure_case
from nnunet_locctx.evaluation.records import Records
from nnunet_locctx.files import file_digest, write_atomically
from nnunet_locctx.names import near_name
from nnunet_locctx.nnunet.data.reading import choose_reader
from nnunet_locctx.nnunet.data.workers import map_in_workers

RECORDS = "evaluation.jsonl"
VERSION = 1
"""Version of the measures; results of another version are measured again."""

JSON, CSV, MARKDOWN = "evaluation.json", "evaluation.csv", "evaluation.md"
KEYS = ("version", "definitions", "settings", "classes", "pairs", "cases", "mean", "foreground")
COLUMNS = {
    "reference_ml": "reference ml",
    "dice": "Dice",
    "hd95_mm": "HD95 mm",
    "nsd": "NSD",
    "volume_error_ml": "error ml",
    "volume_error_percent": "error %",
    "swap_rate": "swaps %",
    "off_region_ml": "off region ml",
    "paper_dice": "paper Dice",
    "paper_hd95_voxels": "paper HD95 voxels",
}
"""Measure -> heading in the table."""

SMALL_ML = 0.1
"""Millilitres. If every class is smaller, the table is in mm3."""

MOST_VOXELS = 5.0
"""Voxels. Within a larger tolerance lie the errors of any usable segmentation, so the NSD says nearly nothing."""

PRESENCE = ("both", "missing", "spurious", "absent")


def evaluate_folders(
    predictions: Path,
    references: Path,
    output: Path,
    *,
    dataset_json: Path | Mapping[str, Any] | None = None,
    tolerance_mm: float = 2.0,
    off_region_mm: float = 20.0,
    pairs: Sequence[Sequence[str]] | None = None,
    paper: bool | str | None = None,
    cases: Sequence[str] | None = None,
    predicted_only: bool = False,
    processes: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures every prediction against its reference, on the grid of the files.

    Every file is checked before anything is measured. The result of each case is kept in ``evaluation.jsonl`` with a
    digest of both files; a case with unchanged files is not measured again.

    Args:
        predictions: Folder of ``CASE.ENDING`` files, as nnU-Net writes them.
        references: Folder of the true segmentations, named likewise.
        output: Folder of the results; made if needed.
        dataset_json: The dataset's description (labels, file ending) or its file; None: the first dataset.json in or
            above the folder of the predictions, then of the references.
        tolerance_mm: Tolerance of the NSD.
        off_region_mm: Predicted voxels farther than this from their class are off its region.
        pairs: (left, right) classes for the swap rate; None: the pairs that the classes' names show.
        paper: Add the measures of a paper (:data:`~nnunet_locctx.evaluation.measures.PAPERS`); True: ``"locbam"``.
        cases: The cases to evaluate; None: all.
        predicted_only: Leave out references without a prediction instead of refusing them.
        processes: Worker processes.
        progress: Show a bar.

    Returns:
        The content of ``evaluation.json``.

    Raises:
        ValueError: An argument or a file is not usable; all such files are named, and nothing is written.
    """
    settings = Settings(
        float(tolerance_mm), float(off_region_mm), "locbam" if paper is True else paper or None
    )
    description = read_description(dataset_json, (predictions, references))
    classes = description.classes
    sides = classes.pairs if pairs is None else check_pairs(pairs, classes)
    predicted, true = description.list_files(predictions), description.list_files(references)
    names = _names(predicted, true, cases, predicted_only, predictions, references)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; the results need a folder")
    records = Records(output / RECORDS)
    reader = choose_reader(description.content, true[names[0]])
    keys = {
        name: {
            "version": VERSION,
            "whole": True,  # earlier versions also measured files that were cut off
            "case": name,
            "prediction": file_digest(predicted[name]),
            "reference": file_digest(true[name]),
            "reader": reader,
            "classes": classes.as_json(),
            "ignore": classes.ignore,
            "pairs": sides,
            **asdict(settings),
        }
        for name in names
    }
    due = [
        (
            LabelFile(name, predicted[name], reader, classes.known),
            LabelFile(name, true[name], reader, classes.in_references),
        )
        for name in names
        if keys[name] not in records
    ]
    check_label_files(due, processes, "the files cannot be compared", progress=progress)
    output.mkdir(parents=True, exist_ok=True)
    measure = functools.partial(_measure, classes=classes, pairs=sides, settings=settings)
    measured = map_in_workers(measure, due, processes, "evaluating" if progress else None)
    for (prediction, _), result in zip(due, measured, strict=True):
        records.add(keys[prediction.case], result)
    rows = [{"case": name, **row} for name in names for row in records.get(keys[name])]
    content = {
        "version": VERSION,
        "definitions": definitions(settings),
        "settings": {
            "predictions": str(predictions.resolve()),
            "references": str(references.resolve()),
            "dataset_json": None if description.file is None else str(description.file.resolve()),
            **asdict(settings),
            "ignore_label": classes.ignore,
            "reader": reader,
            "versions": {name: version(name) for name in ("nnunet_locctx", "monai", "nnunetv2")},
        },
        "classes": classes.as_json(),
        "pairs": [list(pair) for pair in sides],
        "cases": rows,
        **summarise_cases(rows, list(classes.labels), settings),
        "warnings": _unsuitable(names[0], true[names[0]], reader, settings),
    }
    texts = {
        JSON: json.dumps(content, indent=1, allow_nan=False) + "\n",
        CSV: to_csv(content),
        MARKDOWN: to_markdown(content),
    }
    for name, text in texts.items():
        write_atomically(output / name, text.encode())
    return content


def summarise_cases(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """Means over the cases, then over the classes, of all values that are not None.

    Args:
        rows: The cases' rows, including those of the background if a paper counts it.
        classes: The foreground classes.
        settings: The settings of the measurement.

    Returns:
        ``mean`` (per class), ``foreground`` (mean of the foreground classes' means), ``presence`` (per class, number
        of cases of each kind) and, with the measures of a paper, ``paper``: the mean over the classes of a case, with
        the background where the paper counts it, then over the cases (``locbam``); or over the cases of a class, then
        over the classes (``gpe``).
    """
    measures = list(settings.measures)
    frame = _frame(rows, measures)
    mean = frame.groupby("class", sort=False)[measures].mean()
    presence = frame.groupby(["class", "presence"]).size().unstack(fill_value=0)
    summary: dict[str, Any] = {
        "mean": {name: _without_nan(values) for name, values in mean.to_dict("index").items()},
        "foreground": _without_nan(mean.loc[list(classes)].mean().to_dict()),
        "presence": presence.reindex(index=classes, columns=PRESENCE, fill_value=0).to_dict("index"),
    }
    if settings.paper is not None:
        inner = frame.groupby("class" if settings.paper == "gpe" else "case", sort=False)
        summary["paper"] = _without_nan(inner[list(PAPER_MEASURES)].mean().mean().to_dict())
    return summary


def read_evaluation(file: Path) -> dict[str, Any]:
    """The content of an ``evaluation.json``.

    Args:
        file: The file, or its folder.

    Raises:
        ValueError: The file cannot be read, or holds something else.
    """
    file = file / JSON if file.is_dir() else file
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    missing = [key for key in KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{file} is no evaluation by `locctx evaluate`: it lacks {', '.join(missing)}")
    if content["version"] != VERSION:
        raise ValueError(f"{file} has version {content['version']}, this package reads version {VERSION}")
    return dict(content)


def to_csv(content: Mapping[str, Any]) -> str:
    """One line per case and class; the cell of an undefined measure is empty."""
    measures = [name for name in content["definitions"] if name != "presence"]
    frame = _frame(content["cases"], measures)[["case", "class", *content["definitions"]]]
    return str(frame.to_csv(index=False, float_format="%.8g", lineterminator="\n"))


def to_table(content: Mapping[str, Any]) -> str:
    """The means over the cases, as a Markdown table whose columns are aligned."""
    columns = {name: head for name, head in COLUMNS.items() if name in content["definitions"]}
    factors = {"swap_rate": 100.0}
    if max((means["reference_ml"] or 0.0 for means in content["mean"].values()), default=0.0) < SMALL_ML:
        factors |= {name: 1000.0 for name in columns if name.endswith("_ml")}
        columns = {name: re.sub("ml$", "mm3", head) for name, head in columns.items()}
    kinds = ("missing", "spurious")
    lines = [["class", *columns.values(), *kinds]]
    for name in [*content["classes"], *(["background"] if "background" in content["mean"] else [])]:
        counts = content["presence"].get(name, {})
        means = [_number(content["mean"][name][measure], factors.get(measure, 1.0)) for measure in columns]
        lines.append([name.replace("|", "\\|"), *means, *(str(counts.get(kind, "-")) for kind in kinds)])
    totals = [str(sum(counts[kind] for counts in content["presence"].values())) for kind in kinds]
    means = [_number(content["foreground"][measure], factors.get(measure, 1.0)) for measure in columns]
    lines.append(["foreground", *means, *totals])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    aligned = [
        [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        for first, *cells in lines
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in aligned)


def to_markdown(content: Mapping[str, Any]) -> str:
    """The table with its origin, and the definitions of the measures."""
    count = len({row["case"] for row in content["cases"]})
    intro = (
        f"{content['settings']['predictions']} against {content['settings']['references']}, {count} "
        f"case{'s' if count != 1 else ''}. Means over the cases; foreground: mean of the classes' means. Values that "
        "are not defined are left out. `missing` and `spurious` count cases."
    )
    lines = ["# Evaluation", "", intro, "", to_table(content)]
    if "paper" in content:
        means = [f"{name} {_number(value)}" for name, value in content["paper"].items()]
        lines += [f"As the paper ({content['settings']['paper']}) takes the mean: {', '.join(means)}.", ""]
    if content["pairs"]:
        lines += [f"Sides: {'; '.join(f'{left} - {right}' for left, right in content['pairs'])}.", ""]
    lines += [f"Warning: {sentence}\n" for sentence in content["warnings"]]
    lines += [f"- {name}: {text}" for name, text in content["definitions"].items()]
    return "\n".join(lines) + "\n"


def _names(
    predicted: Mapping[str, Path],
    true: Mapping[str, Path],
    cases: Sequence[str] | None,
    predicted_only: bool,
    predictions: Path,
    references: Path,
) -> list[str]:
    """The cases to evaluate, sorted; refuses those that a folder lacks."""
    chosen = set(cases) if cases is not None else set(predicted) | (set() if predicted_only else set(true))
    if not chosen:
        raise ValueError("there is no case to evaluate")
    problems = [
        f"case {name} is not in {folder}{near_name(name, files) if cases else ''}"
        for folder, files in ((predictions, predicted), (references, true))
        for name in sorted(chosen - set(files))
    ]
    refuse(problems, "the folders do not hold the same cases (see --cases and --predicted-only)")
    return sorted(chosen)


def _measure(
    files: tuple[LabelFile, LabelFile], classes: Classes, pairs: Sequence[tuple[str, str]], settings: Settings
) -> list[dict[str, Any]]:
    prediction, reference = (read_labels(one.file, one.reader) for one in files)
    spacing = [float(size) for size in reference.properties["spacing"]]
    return measure_case(reference.labels, prediction.labels, spacing, classes, pairs, settings)


def _unsuitable(case: str, file: Path, reader: str, settings: Settings) -> list[str]:
    """Warnings of settings that do not suit the voxel size and extent of a case; `file` is its reference."""
    scan = read_labels(file, reader)
    shape = scan.frame.shape
    sizes = [float(size) for size, n in zip(scan.properties["spacing"], shape, strict=True) if n > 1]
    if not sizes:
        return []
    voxel = f"{' x '.join(f'{size:.3g}' for size in sizes)} mm, {case}"
    tolerance, distance = settings.tolerance_mm, settings.off_region_mm
    largest, extent = max(sizes), max(np.multiply(sizes, [n for n in shape if n > 1]))
    sentences = []
    if tolerance > MOST_VOXELS * largest:
        sentences.append(
            f"the NSD's tolerance of {tolerance:g} mm is {tolerance / largest:.2g} voxels ({voxel}), within which "
            f"nearly every surface lies; --tolerance-mm {2 * largest:.2g} is two"
        )
    if distance > extent / 2:
        sentences.append(
            f"a voxel is off its class's region from {distance:g} mm, and the scan is {extent:.3g} mm long ({voxel}); "
            f"--off-region-mm {extent / 10:.2g} is a tenth"
        )
    return sentences


def _frame(rows: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> pd.DataFrame:
    """The rows, with NaN where a measure is not defined."""
    return pd.DataFrame(rows).astype(dict.fromkeys(measures, float))


def _without_nan(values: Mapping[Any, float]) -> dict[Any, float | None]:
    """None for NaN, which JSON cannot hold."""
    return {name: None if pd.isna(value) else value for name, value in values.items()}


def _number(value: float | None, factor: float = 1.0) -> str:
    """A number with three significant digits or more."""
    if value is None:
        return "-"
    value *= factor
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"
