"""Does `locctx inspect` find injected mistakes, and how often does it doubt what is right?

Cases are held out in turn, the ranges learned from the others. Into the held-out true labels goes one mistake at a
time:

* swap: the two sides of one pair are exchanged;
* mirror: the whole segmentation is mirrored left to right;
* shift: one class moves by 10, 15 or 20 % of the scan along an axis (what leaves the scan is lost, what it covers too);
* piece: a ball of 10 to 30 % of a class's volume lies elsewhere in the scan, on background;
* missing: a class becomes background.

A mistake is found if a finding names (one of) its classes, or says that the case is mirrored. Untouched cases count as
false alarms if anything is found.

    python -m scripts.experiments.inspect.inject DATASET_FOLDER ... --held-out 3 --repeats 2
    python -m scripts.experiments.inspect.inject DATASET_FOLDER --predictions RESULTS/DATASET

With `--predictions`, folders of validation predictions (with nnU-Net's summary.json) are judged instead, and the
doubt's rank correlation (Spearman) with the cases' mean Dice is reported.
"""

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from tqdm import tqdm

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.doubt import Finding, judge
from nnunet_locctx.evaluation.label_summary import LabelSummary, summarise_labels, twins
from nnunet_locctx.evaluation.training_ranges import Ranges, learn_ranges
from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import Frame
from nnunet_locctx.nnunet.data.reading import read_scan

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
    """Kind, classes that are wrong, and the segmentation."""
    names, values = list(classes.labels), [one[0] for one in classes.values.values()]
    present = [number for number, value in enumerate(values) if (labels == value).any()]
    telling = [
        pair
        for pair, sign in zip(twins(classes), ranges.usual.side_sign, strict=True)
        if sign and {*pair} <= {*present}
    ]
    yield "mirror", frozenset(names), np.flip(labels, frame.array_axes[0]).copy()
    for _ in range(repeats):
        left, right = telling[random.integers(len(telling))]
        yield "swap", frozenset((names[left], names[right])), swap(labels, (values[left], values[right]))
        for fraction in SHIFTS:
            one = present[random.integers(len(present))]
            moved = shift(labels, values[one], fraction, int(random.integers(3)))
            yield f"shift {100 * fraction:.0f} %", frozenset((names[one],)), moved
        one = present[random.integers(len(present))]
        piece = second_piece(labels, values[one], random.uniform(0.1, 0.3), frame, random)
        yield "second piece", frozenset((names[one],)), piece
        one = present[random.integers(len(present))]
        yield "missing class", frozenset((names[one],)), np.where(labels == values[one], 0, labels)


def is_found(findings: list[Finding], wrong: frozenset[str]) -> bool:
    """Whether a finding says it."""
    return any(one.kind == "mirrored" or wrong & set(one.classes) for one in findings)


def inject(folder: Path, held_out: int, repeats: int, seed: int) -> dict[str, object]:
    """Counts of a dataset: kind -> [found, injected], and of untouched cases that were doubted."""
    classes = Classes.from_labels(json.loads((folder / "dataset.json").read_text())["labels"])
    files = sorted((folder / "labelsTr").glob("*.nii.gz"))
    scans = {file.name.removesuffix(".nii.gz"): read_scan([file], segmentation=True) for file in tqdm(files)}
    summaries = {name: summarise_labels(scan.labels, scan.frame, classes) for name, scan in scans.items()}
    found: Counter[str] = Counter()
    injected: Counter[str] = Counter()
    examples: list[str] = []
    alarms: dict[str, list[str]] = {}
    random = np.random.default_rng(seed)
    names = list(random.permutation(list(scans)))
    for start in tqdm(range(0, len(names), held_out)):
        group = names[start : start + held_out]
        others = {name: one for name, one in summaries.items() if name not in group}
        ranges = learn_ranges(others, twins(classes))
        for name in group:
            alarms[name] = [one.sentence for one in judge(name, summaries[name], ranges, classes)[0]]
            scan = scans[name]
            for kind, wrong, labels in mistakes(scan.labels, scan.frame, classes, ranges, repeats, random):
                findings, _ = judge(name, summarise_labels(labels, scan.frame, classes), ranges, classes)
                injected[kind] += 1
                found[kind] += is_found(findings, wrong)
                if not is_found(findings, wrong):
                    examples.append(f"{name}, {kind}: {', '.join(sorted(wrong)[:2])}")
    return {
        "cases": len(names),
        "held_out": held_out,
        "found": {kind: [found[kind], injected[kind]] for kind in sorted(injected)},
        "doubted": {name: sentences for name, sentences in sorted(alarms.items()) if sentences},
        "missed": examples,
    }


def correlate(folder: Path, results: Path) -> dict[str, object]:
    """Doubt of network predictions beside their Dice."""
    classes = Classes.from_labels(json.loads((folder / "dataset.json").read_text())["labels"])

    def summary(file: Path) -> LabelSummary:
        scan = read_scan([file], segmentation=True)
        return summarise_labels(scan.labels, scan.frame, classes)

    files = {
        file.name.removesuffix(".nii.gz"): file for file in sorted((folder / "labelsTr").glob("*.nii.gz"))
    }
    ranges = learn_ranges({name: summary(file) for name, file in files.items()}, twins(classes))
    rows: list[dict[str, Any]] = []
    for report in sorted(results.glob("*/fold_*/validation/summary.json")):
        for case in json.loads(report.read_text())["metric_per_case"]:
            name = Path(case["prediction_file"]).name
            mean = float(
                np.nanmean(
                    [np.nan if one["Dice"] is None else one["Dice"] for one in case["metrics"].values()]
                )
            )
            findings, doubt = judge(
                name.removesuffix(".nii.gz"), summary(report.parent / name), ranges, classes
            )
            model = report.parents[2].name
            rows.append(
                {"model": model, "case": name, "dice": mean, "doubt": doubt, "findings": len(findings)}
            )
    overall = stats.spearmanr([row["dice"] for row in rows], [row["doubt"] for row in rows])
    within: dict[str, Any] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        rho = stats.spearmanr([row["dice"] for row in own], [row["doubt"] for row in own]).statistic
        means = {key: float(np.mean([row[key] for row in own])) for key in ("dice", "doubt", "findings")}
        within[model] = {"cases": len(own), "spearman": float(rho), **means}
    return {"cases": len(rows), "spearman": float(overall.statistic), "models": within, "rows": rows}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--held-out", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    begun = time.process_time()
    run: Callable[[Path], dict[str, object]] = (
        (lambda folder: correlate(folder, options.predictions))
        if options.predictions
        else (lambda folder: inject(folder, options.held_out, options.repeats, options.seed))
    )
    content = {
        "command": "python -m scripts.experiments.inspect.inject " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        **{folder.name: run(folder) for folder in options.datasets},
        "cpu_seconds": round(time.process_time() - begun),
    }
    name = "predictions.json" if options.predictions else "injected.json"
    write_atomically(options.out / name, (json.dumps(content, indent=1) + "\n").encode())
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
