"""Measures how many injected mistakes `locctx inspect` finds, and how often it doubts correct segmentations.

Cases are held out in turn; the ranges are learned from the others. One mistake at a time is injected into the held-out
labels:

* swap: the two sides of one pair are exchanged;
* mirror: the whole segmentation is mirrored left to right;
* shift: one class moves by 10, 15 or 20 % of the scan along an axis (voxels outside the scan and covered voxels are
  lost);
* piece: a ball of 10 to 30 % of a class's volume lies elsewhere in the scan, on background;
* missing: a class becomes background.

A mistake is found if a finding names (one of) its classes, or says that the case is mirrored. An untouched case with a
finding is a false alarm.

    python -m scripts.experiments.inspect.inject DATASET_FOLDER ... --held-out 3 --repeats 2
    python -m scripts.experiments.inspect.inject DATASET_FOLDER --predictions RESULTS/DATASET

With `--predictions`, folders of validation predictions (with nnU-Net's summary.json) are judged instead, and the
doubt's rank correlation (Spearman) with the cases' mean Dice is reported.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.doubt import Finding, judge
from nnunet_locctx.evaluation.label_summary import LabelSummary, summarise_labels, twins
from nnunet_locctx.evaluation.training_ranges import Ranges, learn_ranges
from nnunet_locctx.geometry import Frame
from nnunet_locctx.nnunet.data.reading import read_scan
from scripts.benchmarks.harness import Record, describe_machine, described_parser, write_json

SHIFTS = (0.10, 0.15, 0.20)
Labels = npt.NDArray[np.int32]
Mistake = tuple[str, frozenset[str], Labels]


def swap(labels: Labels, pair: tuple[int, int]) -> Labels:
    """Two label values exchanged."""
    changed = labels.copy()
    changed[labels == pair[0]], changed[labels == pair[1]] = pair[1], pair[0]
    return changed


def shift(labels: Labels, value: int, fraction: float, axis: int) -> Labels:
    """A class moved along an array axis, to where there is more room."""
    index = np.argwhere(labels == value)
    step = round(fraction * labels.shape[axis])
    forward = labels.shape[axis] - 1 - index[:, axis].max() >= index[:, axis].min()
    changed = np.where(labels == value, 0, labels)
    index[:, axis] += step if forward else -step
    index = index[(index[:, axis] >= 0) & (index[:, axis] < labels.shape[axis])]
    changed[tuple(index.T)] = value
    return changed


def second_piece(
    labels: Labels, value: int, fraction: float, frame: Frame, random: np.random.Generator
) -> Labels:
    """A ball of a fraction of a class's volume at a background voxel that is farther from the class than the ball."""
    voxels = fraction * (labels == value).sum()
    radius = float(np.cbrt(3 * voxels * np.prod(frame.spacing) / (4 * np.pi)))
    own = np.argwhere(labels == value) * frame.spacing
    box = np.stack([own.min(axis=0), own.max(axis=0)])
    free = np.argwhere(labels == 0)
    random.shuffle(free)
    place = np.zeros(3)
    for centre in free:
        place = centre * frame.spacing
        if np.linalg.norm(place - np.clip(place, *box)) > 1.5 * radius:
            break
    grid = np.moveaxis(np.indices(labels.shape), 0, -1) * frame.spacing
    ball = np.linalg.norm(grid - place, axis=-1) <= max(radius, frame.spacing.max() / 2)
    return np.where(ball, value, labels).astype(np.int32)


def mistakes(
    labels: Labels, frame: Frame, classes: Classes, ranges: Ranges, repeats: int, random: np.random.Generator
) -> Iterator[Mistake]:
    """Mistakes as (kind, wrong classes, segmentation)."""
    names, values = list(classes.labels), [one[0] for one in classes.values.values()]
    present = [number for number, value in enumerate(values) if (labels == value).any()]
    pairs = zip(twins(classes), ranges.usual.side_sign, strict=True)
    telling = [pair for pair, sign in pairs if sign and {*pair} <= {*present}]

    def drawn() -> tuple[int, frozenset[str]]:
        """Value and name of a class of the case."""
        one = present[random.integers(len(present))]
        return values[one], frozenset((names[one],))

    yield "mirror", frozenset(names), np.flip(labels, frame.array_axes[0]).copy()
    for _ in range(repeats):
        left, right = telling[random.integers(len(telling))]
        yield "swap", frozenset((names[left], names[right])), swap(labels, (values[left], values[right]))
        for fraction in SHIFTS:
            value, name = drawn()
            yield (
                f"shift {100 * fraction:.0f} %",
                name,
                shift(labels, value, fraction, int(random.integers(3))),
            )
        value, name = drawn()
        yield "second piece", name, second_piece(labels, value, random.uniform(0.1, 0.3), frame, random)
        value, name = drawn()
        yield "missing class", name, np.where(labels == value, 0, labels)


def is_found(findings: list[Finding], wrong: frozenset[str]) -> bool:
    """Whether a finding names one of the wrong classes or calls the case mirrored."""
    return any(one.kind == "mirrored" or wrong & set(one.classes) for one in findings)


def read_labels(folder: Path) -> tuple[Classes, dict[str, Path]]:
    """The classes of a raw dataset, and case -> training label."""
    classes = Classes.from_labels(json.loads((folder / "dataset.json").read_text())["labels"])
    files = sorted((folder / "labelsTr").glob("*.nii.gz"))
    return classes, {file.name.removesuffix(".nii.gz"): file for file in files}


def inject(folder: Path, held_out: int, repeats: int, seed: int) -> Record:
    """Record of a dataset: kind -> [found, injected], and the doubted untouched cases."""
    classes, files = read_labels(folder)
    scans = {name: read_scan([file], segmentation=True) for name, file in tqdm(files.items())}
    summaries = {name: summarise_labels(scan.labels, scan.frame, classes) for name, scan in scans.items()}
    found: dict[str, list[int]] = {}
    missed: list[str] = []
    doubted: dict[str, list[str]] = {}
    random = np.random.default_rng(seed)
    names = list(random.permutation(list(scans)))
    for start in tqdm(range(0, len(names), held_out)):
        group = names[start : start + held_out]
        others = {name: one for name, one in summaries.items() if name not in group}
        ranges = learn_ranges(others, twins(classes))
        for name in group:
            sentences = [one.sentence for one in judge(name, summaries[name], ranges, classes)[0]]
            if sentences:
                doubted[name] = sentences
            scan = scans[name]
            for kind, wrong, labels in mistakes(scan.labels, scan.frame, classes, ranges, repeats, random):
                findings, _ = judge(name, summarise_labels(labels, scan.frame, classes), ranges, classes)
                hit = is_found(findings, wrong)
                counts = found.setdefault(kind, [0, 0])
                found[kind] = [counts[0] + hit, counts[1] + 1]
                if not hit:
                    missed.append(f"{name}, {kind}: {', '.join(sorted(wrong)[:2])}")
    record = {"cases": len(names), "held_out": held_out, "found": dict(sorted(found.items()))}
    return {**record, "doubted": dict(sorted(doubted.items())), "missed": missed}


def correlate(folder: Path, results: Path) -> Record:
    """Record of the doubt and Dice of network predictions, with their rank correlation."""
    classes, files = read_labels(folder)

    def summary(file: Path) -> LabelSummary:
        scan = read_scan([file], segmentation=True)
        return summarise_labels(scan.labels, scan.frame, classes)

    ranges = learn_ranges({name: summary(file) for name, file in files.items()}, twins(classes))
    rows = []
    for report in sorted(results.glob("*/fold_*/validation/summary.json")):
        for case in json.loads(report.read_text())["metric_per_case"]:
            file = report.parent / Path(case["prediction_file"]).name
            findings, doubt = judge(file.name.removesuffix(".nii.gz"), summary(file), ranges, classes)
            # None becomes NaN
            dice = np.array([one["Dice"] for one in case["metrics"].values()], dtype=float)
            row = {"model": report.parents[2].name, "case": file.name, "dice": float(np.nanmean(dice))}
            rows.append({**row, "doubt": doubt, "findings": len(findings)})
    frame = pd.DataFrame(rows)

    def spearman(table: pd.DataFrame) -> float:
        return float(table["dice"].corr(table["doubt"], method="spearman"))

    models = {}
    for model, own in frame.groupby("model", sort=False):
        means = own[["dice", "doubt", "findings"]].mean().to_dict()
        models[model] = {"cases": len(own), "spearman": spearman(own), **means}
    return {"cases": len(rows), "spearman": spearman(frame), "models": models, "rows": rows}


def main() -> None:
    """Injects mistakes or correlates predictions, and writes the record."""
    parser = described_parser(__doc__)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--held-out", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.process_time()
    if options.predictions:
        records = {folder.name: correlate(folder, options.predictions) for folder in options.datasets}
    else:
        settings = options.held_out, options.repeats, options.seed
        records = {folder.name: inject(folder, *settings) for folder in options.datasets}
    content = {
        "command": " ".join(["python -m scripts.experiments.inspect.inject", *sys.argv[1:]]),
        "machine": describe_machine("cpu"),
        **records,
        "cpu_seconds": round(time.process_time() - begun),
    }
    name = "predictions.json" if options.predictions else "injected.json"
    write_json(Path(__file__).with_name(name), content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
