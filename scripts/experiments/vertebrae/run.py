"""Measures body part scores along the vertebrae of a real CT, in fields of view cropped from it.

Only one real patient is available (Dataset203_TotalSegCT, from S1 to T11, with predicted labels), so the regressor is
fitted on crops of the same scan. This can show that scores follow the anatomy and not the field of view, and that real
texture separates the levels. It cannot show that scores agree between patients.

    python -m scripts.experiments.vertebrae.run --data /path/to/data     # the folder that holds Dataset203_TotalSegCT
    python -m scripts.experiments.vertebrae.run --report                 # writes the page from vertebrae.json
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from tqdm import tqdm

from nnunet_locctx.files import write_atomically
from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import BodyPartCurve
from nnunet_locctx.regression.body_part import BodyPartOptions, fit_body_part
from nnunet_locctx.regression.canonical import to_canonical
from nnunet_locctx.scan import Scan
from scripts.benchmarks.harness import (
    OUT_HELP,
    Record,
    describe_machine,
    described_parser,
    destinations,
    replace_section,
    save_figure,
    table,
)

LEVELS = ("vertebrae_S1", "vertebrae_L5", "vertebrae_L4", "vertebrae_L3", "vertebrae_L2", "vertebrae_L1",
          "vertebrae_T12", "vertebrae_T11")  # fmt: skip
TRAINING_CROPS, TEST_CROPS = 24, 40
SHORTEST, LONGEST = 0.3, 1.0
"""Shares of the scan's length."""

BEGIN, END = "<!-- vertebrae: begin -->", "<!-- vertebrae: end -->"
Image = npt.NDArray[np.float32]


def crop(image: Image, frame: Frame, lower: int, upper: int) -> tuple[Image, Frame]:
    """Slices ``lower`` to ``upper`` along the first axis, and their frame."""
    affine = frame.affine_lps.copy()
    affine[:3, 3] = frame.affine_lps[:3, 3] + lower * frame.affine_lps[:3, 0]
    part = np.ascontiguousarray(image[lower:upper])
    return part, Frame.from_affine(part.shape, affine, "LPS")


def draw_crops(random: np.random.Generator, slices: int, count: int) -> list[tuple[int, int]]:
    """Slice ranges of random length and place."""
    ranges = []
    for _ in range(count):
        length = int(np.clip(round(random.uniform(SHORTEST, LONGEST) * slices), 8, slices))
        lower = int(random.integers(0, slices - length + 1))
        ranges.append((lower, lower + length))
    return ranges


def level_heights(folder: Path) -> dict[str, float]:
    """Level -> height of its centroid in mm along S."""
    names = json.loads((folder / "dataset.json").read_text())["labels"]
    segmentation = Scan.read(folder / "labelsTr" / "ct_full.nii.gz")
    heights = {}
    for name in LEVELS:
        index = np.argwhere(segmentation.labels == names.get(name, -1))
        if len(index):
            heights[name] = float(segmentation.frame.millimetres(index.mean(axis=0))[2])
    return heights


def fraction_at(frame: Frame, height: float) -> float:
    """The voxel fraction along S of a height, in points: 0 at the scan's lower face, 100 at its upper one."""
    centre = float(frame.centre[2])
    return 100 * ((height - centre) / float(frame.extent[2]) + 0.5)


def measure(data: Path, seed: int) -> Record:
    """Fits on training crops and scores the whole scan and test crops."""
    folder = data / "Dataset203_TotalSegCT"
    scan = Scan.read(folder / "imagesTr" / "ct_full_0000.nii.gz")
    image, frame = scan.voxels[0].astype(np.float32), scan.frame
    heights = level_heights(folder)
    random = np.random.default_rng(seed)
    options = BodyPartOptions(seed=seed)
    training = draw_crops(random, len(image), TRAINING_CROPS)
    scans = {
        f"crop_{number:02d}": to_canonical(*crop(image, frame, *ends), options.spacing)
        for number, ends in enumerate(training)
    }
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        regressor = fit_body_part(scans, options, Path(work))
    seconds = time.perf_counter() - start
    whole = regressor.measure(image, frame)
    rows: dict[str, dict[str, Any]] = {
        name: {"mm": height, "whole": score(whole, height), "crops": [], "fractions": []}
        for name, height in heights.items()
    }
    problems = []
    for ends in tqdm(draw_crops(random, len(image), TEST_CROPS), desc="test crops"):
        part, part_frame = crop(image, frame, *ends)
        curve = regressor.measure(part, part_frame)
        if curve.problem:
            problems.append({"slices": ends, "problem": curve.problem})
            continue
        half = float(part_frame.extent[2]) / 2
        for name, height in heights.items():
            if abs(height - float(part_frame.centre[2])) < half:
                rows[name]["crops"].append(score(curve, height))
                rows[name]["fractions"].append(fraction_at(part_frame, height))
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


def score(curve: BodyPartCurve, height: float) -> float:
    """The score of a height; the curve's direction is S."""
    return round(float(curve.score_at(height * curve.direction[2])), 3)


def draw(record: Record, file: Path) -> None:
    """Scores along the body with the levels on them, and their spread over fields of view."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = record["levels"]
    base = min(row["mm"] for row in rows.values())
    left.plot(np.array(record["positions"]) - base, record["scores"], color="tab:blue")
    for name, row in rows.items():
        left.plot(row["mm"] - base, row["whole"], "o", color="tab:red", markersize=4)
        place = row["mm"] - base, row["whole"]
        left.annotate(short(name), place, (5, -9), textcoords="offset points", fontsize=8)
    left.set_xlabel(f"mm above {short(min(rows, key=lambda name: rows[name]['mm']))}")
    left.set_ylabel("body part score")
    left.set_title("whole scan")
    left.grid(alpha=0.3)
    for index, row in enumerate(rows.values()):
        offsets = np.linspace(-0.12, 0.12, max(len(row["crops"]), 1))[: len(row["crops"])]
        right.plot(row["fractions"], index + offsets + 0.18, ".", color="tab:orange", markersize=4)
        right.plot(row["crops"], index + offsets - 0.18, ".", color="tab:blue", markersize=4)
        right.plot(row["whole"], index - 0.18, "|", color="tab:red", markersize=12)
    right.plot([], [], ".", color="tab:blue", label="body part score")
    right.plot([], [], ".", color="tab:orange", label="voxel fraction x 100")
    right.set_yticks(range(len(rows)), [short(name) for name in rows])
    right.set_xlabel("coordinate in points of 100")
    right.set_title(f"the same level in {TEST_CROPS} fields of view")
    right.legend(loc="lower right", fontsize=8)
    right.grid(alpha=0.3, axis="x")
    save_figure(figure, file, 110)


def short(name: str) -> str:
    """``vertebrae_L5`` -> ``L5``."""
    return name.removeprefix("vertebrae_")


def report(record: Record) -> str:
    """The section of docs/explanation/results.md."""
    rows = record["levels"]
    base = min(row["mm"] for row in rows.values())
    machine = record["machine"]["processor"]
    lines = [
        f"Fitted on {TRAINING_CROPS} crops of the one scan, {SHORTEST:.0%} to {LONGEST:.0%} of its length, in",
        f"{record['seconds']:.0f} s (wall time, {machine}, other jobs running), seed {record['seed']}. Scored: the",
        f"whole scan, and {TEST_CROPS} other crops, of which {len(record['problems'])} were refused as",
        "implausible. Spread: largest minus smallest over the crops that show the level, in points of 100.",
        "",
    ]
    cells = []
    for name, row in rows.items():
        spreads = [f"{np.ptp(values):.1f}" if values else "-" for values in (row["crops"], row["fractions"])]
        mean = f"{np.mean(row['crops']):.1f}" if row["crops"] else "-"
        height, whole = f"{row['mm'] - base:.0f}", f"{row['whole']:.1f}"
        cells.append([short(name), height, whole, len(row["crops"]), mean, *spreads])
    heads = (
        "mm along S",
        "score, whole scan",
        "crops",
        "mean score",
        "spread",
        "spread of the voxel fraction",
    )
    lines += table(("level", *heads), cells)
    deviations = [abs(value - row["whole"]) for row in rows.values() for value in row["crops"]]
    order = np.array([row["whole"] for row in sorted(rows.values(), key=lambda row: row["mm"])])
    lines += [
        f"A level's score in a crop differs from that in the whole scan by {np.median(deviations):.2f} points in the",
        f"median, {np.percentile(deviations, 95):.2f} in 95 % and {max(deviations):.2f} at most. From each level to",
        f"the next the score rises in {int((np.diff(order) > 0).sum())} of {len(order) - 1} steps.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes the record, the picture and the section."""
    parser = described_parser(__doc__)
    parser.add_argument("--data", type=Path, help="folder with Dataset203_TotalSegCT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help=OUT_HELP)
    parser.add_argument("--report", action="store_true", help="only write picture and page from the record")
    arguments = parser.parse_args()
    folder, page = destinations(arguments.out, __file__, "explanation/results.md")
    file = folder / "vertebrae.json"
    if not arguments.report:
        if arguments.data is None or not (arguments.data / "Dataset203_TotalSegCT").is_dir():
            raise SystemExit(f"--data must name a folder with Dataset203_TotalSegCT, got {arguments.data}")
        record = measure(arguments.data, arguments.seed)
        write_atomically(file, (json.dumps(record) + "\n").encode())
    record = json.loads(file.read_text())
    draw(record, folder / "vertebrae.png")
    replace_section(page, BEGIN, END, report(record))


if __name__ == "__main__":
    main()
