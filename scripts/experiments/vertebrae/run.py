"""Measures body part scores along the vertebrae of a real CT, in fields of view cropped from it.

Only one real patient is available (Dataset203_TotalSegCT, from S1 to T11, with predicted labels), so the regressor is
fitted on crops of the same scan. This can show that scores follow the anatomy and not the field of view, and that real
texture separates the levels. It cannot show that scores agree between patients.

The regressor is fitted on 24 crops, 30% to 100% of the scan's length, and scores the whole scan and 40 other crops.
Writes vertebrae.json, vertebrae.md and vertebrae.png beside the script.

    python -m scripts.experiments.vertebrae.run --data /path/to/data     # the folder that holds Dataset203_TotalSegCT
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from tqdm import tqdm

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import BodyPartCurve
from nnunet_locctx.regression.body_part import BodyPartOptions, fit_body_part
from nnunet_locctx.regression.canonical import to_canonical
from nnunet_locctx.scan import Scan
from scripts.benchmarks.harness import (
    Record,
    describe_machine,
    described_parser,
    measured_on,
    save_figure,
    table,
    write_json,
    write_page,
)

LEVELS = tuple(f"vertebrae_{name}" for name in ("S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11"))
TRAINING_CROPS, TEST_CROPS = 24, 40
SHORTEST, LONGEST = 0.3, 1.0
"""Shares of the scan's length."""

Image = npt.NDArray[np.float32]


def crop(image: Image, frame: Frame, lower: int, upper: int) -> tuple[Image, Frame]:
    """Slices ``lower`` to ``upper`` along the first axis, and their frame."""
    affine = frame.affine_lps.copy()
    affine[:3, 3] += lower * affine[:3, 0]
    part = np.ascontiguousarray(image[lower:upper])
    return part, Frame.from_affine(part.shape, affine, "LPS")


def draw_crops(random: np.random.Generator, slices: int, count: int) -> Iterator[tuple[int, int]]:
    """Slice ranges of random length and place."""
    for _ in range(count):
        length = int(np.clip(round(random.uniform(SHORTEST, LONGEST) * slices), 8, slices))
        lower = int(random.integers(0, slices - length + 1))
        yield lower, lower + length


def level_heights(folder: Path) -> dict[str, float]:
    """Level -> height of its centroid in mm along S."""
    names = json.loads((folder / "dataset.json").read_text())["labels"]
    segmentation = Scan.read(folder / "labelsTr" / "ct_full.nii.gz")
    index = {name: np.argwhere(segmentation.labels == names.get(name, -1)) for name in LEVELS}
    return {
        name: float(segmentation.frame.millimetres(own.mean(axis=0))[2])
        for name, own in index.items()
        if len(own)
    }


def score(curve: BodyPartCurve, height: float) -> float:
    """The score of a height; the curve's direction is S."""
    return round(float(curve.score_at(height * curve.direction[2])), 3)


def measure(data: Path, seed: int = 0) -> Record:
    """Fits on training crops and scores the whole scan and test crops."""
    folder = data / "Dataset203_TotalSegCT"
    scan = Scan.read(folder / "imagesTr" / "ct_full_0000.nii.gz")
    image, frame = scan.voxels[0].astype(np.float32), scan.frame
    random, options = np.random.default_rng(seed), BodyPartOptions(seed=seed)
    scans = {
        f"crop_{number:02d}": to_canonical(*crop(image, frame, *ends), options.spacing)
        for number, ends in enumerate(draw_crops(random, len(image), TRAINING_CROPS))
    }
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        regressor = fit_body_part(scans, options, Path(work))
    seconds = time.perf_counter() - start
    whole = regressor.measure(image, frame)
    rows: dict[str, Record] = {
        name: {"mm": height, "whole": score(whole, height), "crops": [], "fractions": []}
        for name, height in level_heights(folder).items()
    }
    problems = []
    for ends in tqdm(draw_crops(random, len(image), TEST_CROPS), desc="test crops", total=TEST_CROPS):
        part, part_frame = crop(image, frame, *ends)
        curve = regressor.measure(part, part_frame)
        if curve.problem:
            problems.append({"slices": ends, "problem": curve.problem})
            continue
        for row in rows.values():
            fraction = (row["mm"] - float(part_frame.centre[2])) / float(part_frame.extent[2])
            if abs(fraction) < 0.5:
                row["crops"].append(score(curve, row["mm"]))
                row["fractions"].append(100 * (fraction + 0.5))
    return {
        "seed": seed,
        "levels": rows,
        "problems": problems,
        "seconds": round(seconds, 1),
        "slope": float(whole.slope),
        "positions": np.round(whole.positions, 2).tolist(),
        "scores": np.round(whole.scores, 3).tolist(),
        "machine": describe_machine("cpu"),
    }


def draw(record: Record, file: Path) -> None:
    """Scores along the body with the levels on them, and their spread over fields of view."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = {name.removeprefix("vertebrae_"): row for name, row in record["levels"].items()}
    lowest = min(rows, key=lambda name: rows[name]["mm"])
    base = rows[lowest]["mm"]
    left.plot(np.array(record["positions"]) - base, record["scores"], color="tab:blue")
    for index, (name, row) in enumerate(rows.items()):
        place = row["mm"] - base, row["whole"]
        left.plot(*place, "o", color="tab:red", markersize=4)
        left.annotate(name, place, (5, -9), textcoords="offset points", fontsize=8)
        heights = index + np.linspace(-0.12, 0.12, max(len(row["crops"]), 1))[: len(row["crops"])]
        right.plot(row["fractions"], heights + 0.18, ".", color="tab:orange", markersize=4)
        right.plot(row["crops"], heights - 0.18, ".", color="tab:blue", markersize=4)
        right.plot(row["whole"], index - 0.18, "|", color="tab:red", markersize=12)
    for label, colour in (("body part score", "tab:blue"), ("voxel fraction x 100", "tab:orange")):
        right.plot([], [], ".", color=colour, label=label)
    left.set(xlabel=f"mm above {lowest}", ylabel="body part score", title="whole scan")
    right.set(xlabel="coordinate in points of 100", title=f"the same level in {TEST_CROPS} fields of view")
    right.set_yticks(range(len(rows)), list(rows))
    right.legend(loc="lower right", fontsize=8)
    left.grid(alpha=0.3)
    right.grid(alpha=0.3, axis="x")
    save_figure(figure, file, 110)


def level_table(record: Record) -> str:
    """Scores of each level; spread: largest minus smallest over the crops that show it, in points of 100."""
    rows = record["levels"]
    base = min(row["mm"] for row in rows.values())
    cells = []
    for name, row in rows.items():
        crops, fractions = row["crops"], row["fractions"]
        spreads = [f"{np.ptp(values):.1f}" if values else "-" for values in (crops, fractions)]
        mean = f"{np.mean(crops):.1f}" if crops else "-"
        cells.append(
            [
                name.removeprefix("vertebrae_"),
                f"{row['mm'] - base:.0f}",
                f"{row['whole']:.1f}",
                len(crops),
                mean,
                *spreads,
            ]
        )
    heads = ("level", "mm along S", "score, whole scan", "crops", "mean score", "spread")
    return table((*heads, "spread of the voxel fraction"), cells)


def summary(record: Record) -> str:
    """How far scores in crops are from those in the whole scan, and whether they rise."""
    rows = sorted(record["levels"].values(), key=lambda row: row["mm"])
    deviations = [abs(value - row["whole"]) for row in rows for value in row["crops"]]
    rises = int((np.diff([row["whole"] for row in rows]) > 0).sum())
    return (
        f"A level's score in a crop differs from that in the whole scan by {np.median(deviations):.2f} points in the "
        f"median, {np.percentile(deviations, 95):.2f} in 95 % and {max(deviations):.2f} at most. From each level to "
        f"the next the score rises in {rises} of {len(rows) - 1} steps. {len(record['problems'])} crops were refused "
        f"as implausible. The fit took {record['seconds']:.0f} s."
    )


def write_report(record: Record, folder: Path) -> None:
    """vertebrae.md and vertebrae.png."""
    parts = [__doc__, measured_on(record["machine"]), level_table(record), summary(record)]
    write_page(folder / "vertebrae.md", "Body part scores along real vertebrae: results", *parts)
    draw(record, folder / "vertebrae.png")


def main() -> None:
    """Measures and writes."""
    parser = described_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with Dataset203_TotalSegCT")
    options = parser.parse_args()
    if not (options.data / "Dataset203_TotalSegCT").is_dir():
        parser.error(f"--data must name a folder with Dataset203_TotalSegCT, got {options.data}")
    folder = Path(__file__).resolve().parent
    record = measure(options.data)
    write_json(folder / "vertebrae.json", record)
    write_report(record, folder)


if __name__ == "__main__":
    main()
