"""Evaluates a folder of predictions (`locctx evaluate`), and what that writes: JSON, CSV and Markdown."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_locctx.evaluation.classes import Classes, check_pairs, find_pairs
from nnunet_locctx.evaluation.label_files import (
    LabelFile,
    check_label_files,
    fingerprint,
    list_label_files,
    read_description,
    read_labels,
    refuse,
)
from nnunet_locctx.evaluation.measures import PAPER_MEASURES, Settings, definitions, measure_case
from nnunet_locctx.evaluation.records import Records
from nnunet_locctx.files import write_atomically
from nnunet_locctx.nnunet.data.reading import choose_reader
from nnunet_locctx.nnunet.data.workers import map_in_workers

RECORDS = "evaluation.jsonl"
VERSION = 1
"""Of the measures; results of another version are measured again."""

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
"""Where no class is larger, the table has mm3."""

MOST_VOXELS = 5.0
"""A tolerance of more tells nearly nothing: it is larger than the errors of any segmentation worth the name."""

PRESENCE = ("both", "missing", "spurious", "absent")


@dataclass(frozen=True)
class _Job:
    case: str
    prediction: Path
    reference: Path
    reader: str
    classes: Classes
    pairs: tuple[tuple[str, str], ...]
    settings: Settings


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

    Every file is checked before anything is measured. Results are kept case by case in ``evaluation.jsonl``, with a
    fingerprint of both files' content, and are not measured again.

    Args:
        predictions: Folder of ``CASE.ENDING`` files, as nnU-Net writes them.
        references: Folder of the true segmentations, named likewise.
        output: Folder of the results; made if needed.
        dataset_json: The dataset's description (labels, file ending) or its file; None: the one that lies with the
            predictions, in a folder above them, or with the references.
        tolerance_mm: Of the NSD.
        off_region_mm: Distance from which predicted voxels are off their class's region.
        pairs: (left, right) classes, for the swap rate; None: as their names say.
        paper: Add the measures of a paper (:data:`~nnunet_locctx.evaluation.measures.PAPERS`); True: ``"locbam"``.
        cases: Which to evaluate; None: all.
        predicted_only: References without prediction are left out instead of refused.
        processes: Worker processes.
        progress: Show a bar.

    Returns:
        What ``evaluation.json`` holds.

    Raises:
        ValueError: Something is not usable; files are named all at once, and nothing is written.
    """
    settings = Settings(
        float(tolerance_mm), float(off_region_mm), "locbam" if paper is True else paper or None
    )
    if processes < 1:
        raise ValueError(f"the number of processes must be at least 1, got {processes}")
    description = read_description(dataset_json, (predictions, references))
    classes = Classes.from_labels(description.labels)
    chosen = find_pairs(list(classes.labels)) if pairs is None else check_pairs(pairs, classes)
    # sides that share labels (a region of both) cannot be swapped
    sides = [pair for pair in chosen if not set(classes.values[pair[0]]) & set(classes.values[pair[1]])]
    predicted, true = (
        list_label_files(folder, description.file_ending) for folder in (predictions, references)
    )
    names = _names(predicted, true, cases, predicted_only, predictions, references)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; the results need a folder")
    records = Records(output / RECORDS)
    reader = choose_reader(description.content, true[names[0]])
    jobs = {
        name: _Job(name, predicted[name], true[name], reader, classes, tuple(sides), settings)
        for name in names
    }
    what = {name: _what(job) for name, job in jobs.items()}
    open_ones = [name for name in names if what[name] not in records]
    files = [
        LabelFile(name, predicted[name], reader, classes.known, true[name], classes.in_references)
        for name in open_ones
    ]
    refuse(check_label_files(files, processes, progress=progress), "the files cannot be compared")
    output.mkdir(parents=True, exist_ok=True)
    answers = map_in_workers(_measure, [jobs[name] for name in open_ones], processes)
    records.add_all(
        [what[name] for name in open_ones], answers, total=len(names), title="evaluating", progress=progress
    )
    rows = [{"case": name, **row} for name in names for row in records.get(what[name])]
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
        "warnings": _unsuitable(jobs[names[0]]),
    }
    write_evaluation(content, output)
    return content


def summarise_cases(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """Means over the cases, then over the classes; values that are None are left out.

    Args:
        rows: The cases' rows, those of the background (if a paper counts it) among them.
        classes: The foreground classes.
        settings: What was measured.

    Returns:
        ``mean`` (per class), ``foreground`` (mean of the foreground classes' means), ``presence`` (per class, cases
        of each kind) and, with the measures of a paper, ``paper``: the mean over the classes of a case, background
        included where the paper does, then over the cases (``locbam``); or over the cases of a class, then over the
        classes (``gpe``).
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


def write_evaluation(content: Mapping[str, Any], output: Path) -> list[Path]:
    """Writes the three files into the folder.

    Returns:
        The files.
    """
    texts = {
        JSON: json.dumps(content, indent=1, allow_nan=False) + "\n",
        CSV: to_csv(content),
        MARKDOWN: to_markdown(content),
    }
    for name, text in texts.items():
        write_atomically(output / name, text.encode())
    return [output / name for name in texts]


def read_evaluation(file: Path) -> dict[str, Any]:
    """What ``evaluation.json`` holds.

    Args:
        file: The file, or its folder.

    Raises:
        ValueError: It cannot be read, or holds something else.
    """
    file = file / JSON if file.is_dir() else file
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    missing = [key for key in KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{file} is no evaluation by `locctx evaluate`: it lacks {', '.join(missing)}")
    if content["version"] != 1:
        raise ValueError(f"{file} has version {content['version']}, this package reads version 1")
    return dict(content)


def to_csv(content: Mapping[str, Any]) -> str:
    """One line per case and class; nothing where a measure is not defined."""
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
    heads = ["class", *columns.values(), "missing", "spurious"]

    def shown(means: Mapping[str, float | None]) -> list[str]:
        return [_number(means[name], factors.get(name, 1.0)) for name in columns]

    lines = []
    for name in [*content["classes"], *(["background"] if "background" in content["mean"] else [])]:
        counts = content["presence"].get(name, {})
        missed = [str(counts.get(kind, "-")) for kind in ("missing", "spurious")]
        lines.append([_cell(name), *shown(content["mean"][name]), *missed])
    totals = [
        str(sum(counts[kind] for counts in content["presence"].values())) for kind in ("missing", "spurious")
    ]
    lines.append(["foreground", *shown(content["foreground"]), *totals])
    widths = [max(len(line[at]) for line in [heads, *lines]) for at in range(len(heads))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def joined(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    return "\n".join(map(joined, [heads, rule, *lines])) + "\n"


def to_markdown(content: Mapping[str, Any]) -> str:
    """The table, what it is of, and the definitions."""
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
    """The cases to evaluate, sorted."""
    chosen = set(cases) if cases is not None else set(predicted) | (set() if predicted_only else set(true))
    if not chosen:
        raise ValueError("no case is to be evaluated")
    problems = [f"case {name} is not in {predictions}" for name in sorted(chosen - set(predicted))]
    problems += [f"case {name} is not in {references}" for name in sorted(chosen - set(true))]
    refuse(problems, "the folders do not hold the same cases (see --cases and --predicted-only)")
    return sorted(chosen)


def _what(job: _Job) -> dict[str, Any]:
    """What a result is of, as :class:`Records` takes it."""
    return json.loads(
        json.dumps(
            {
                "version": VERSION,
                "whole": True,  # earlier versions also measured files that were cut off
                "case": job.case,
                "prediction": fingerprint(job.prediction),
                "reference": fingerprint(job.reference),
                "reader": job.reader,
                "classes": job.classes.as_json(),
                "ignore": job.classes.ignore,
                "pairs": job.pairs,
                **asdict(job.settings),
            }
        )
    )


def _measure(job: _Job) -> list[dict[str, Any]]:
    reference, properties = read_labels(job.reference, job.reader)
    prediction, _ = read_labels(job.prediction, job.reader)
    spacing = [float(size) for size in properties["spacing"]]
    return measure_case(reference, prediction, spacing, job.classes, job.pairs, job.settings)


def _unsuitable(job: _Job) -> list[str]:
    """What the settings cannot tell at the voxel size and extent of a case."""
    labels, properties = read_labels(job.reference, job.reader)
    sizes = [float(size) for size, n in zip(properties["spacing"], labels.shape, strict=True) if n > 1]
    if not sizes:
        return []
    voxel = f"{' x '.join(f'{size:.3g}' for size in sizes)} mm, {job.case}"
    tolerance, away = job.settings.tolerance_mm, job.settings.off_region_mm
    largest, extent = max(sizes), max(np.multiply(sizes, [n for n in labels.shape if n > 1]))
    sentences = []
    if tolerance > MOST_VOXELS * largest:
        sentences.append(
            f"the NSD's tolerance of {tolerance:g} mm is {tolerance / largest:.2g} voxels ({voxel}), within which "
            f"nearly every surface lies; --tolerance-mm {2 * largest:.2g} is two"
        )
    if away > extent / 2:
        sentences.append(
            f"a voxel is off its class's region from {away:g} mm, and the scan is {extent:.3g} mm long ({voxel}); "
            f"--off-region-mm {extent / 10:.2g} is a tenth"
        )
    return sentences


def _frame(rows: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> pd.DataFrame:
    """The rows, with NaN where a measure is not defined."""
    return pd.DataFrame(rows).astype(dict.fromkeys(measures, float))


def _without_nan(values: Mapping[Any, float]) -> dict[Any, float | None]:
    """As JSON can hold it."""
    return {name: None if pd.isna(value) else value for name, value in values.items()}


def _number(value: float | None, factor: float = 1.0) -> str:
    """With three significant digits or more."""
    if value is None:
        return "-"
    value *= factor
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
