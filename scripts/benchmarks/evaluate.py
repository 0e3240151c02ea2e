"""Measures CPU seconds per case and class of `locctx evaluate`, with masks cropped to their common box and without.

One scan of 256 x 384 x 384 voxels of 1.5 x 0.8 x 0.8 mm; the masks are ellipsoids of the size of a lesion, an organ and
the body, the predictions the same ellipsoids shifted by 2 voxels along each axis. Measured: HD95 and NSD by MONAI on
the cropped and on the whole volume (their values must agree), and all measures of a class. CPU time of one thread
hardly depends on other jobs of the machine.

    python -m scripts.benchmarks.evaluate      # writes evaluate.json and evaluate.md beside the script
"""

import datetime
import functools
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.measures import (
    MARGIN,
    Mask,
    Settings,
    bounding_box,
    measure_case,
    surface_measures,
)
from scripts.benchmarks.harness import (
    Record,
    describe_machine,
    described_parser,
    measured_on,
    spread,
    table,
    write_json,
    write_page,
)

SHAPE = (256, 384, 384)
SPACING = (1.5, 0.8, 0.8)
SIZES = {"lesion": 0.016, "organ": 0.1, "body": 0.36}
"""Semi-axes of the ellipsoid, fractions of the volume's sides."""


def ellipsoid(shape: Sequence[int], share: float, shift: int = 0) -> Mask:
    """(z, y, x) mask in the middle, or off it by `shift` voxels along each axis."""
    total = np.zeros((), dtype=np.float32)
    for axis, n in enumerate(shape):
        place = (np.arange(n, dtype=np.float32) - (n - 1) / 2 - shift) / (share * n)
        total = total + (place**2).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(total <= 1)


def seconds(function: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
    """CPU time of each call, and the last answer."""
    times, answer = [], None
    for _ in range(repeats):
        begin = time.process_time()
        answer = function()
        times.append(time.process_time() - begin)
    return times, answer


def measure(shape: Sequence[int], repeats: int) -> list[Record]:
    """One row per size of mask."""
    surface_measures(ellipsoid((8, 8, 8), 0.3), ellipsoid((8, 8, 8), 0.3), SPACING, 2.0)  # imports
    rows = []
    for name, share in tqdm(SIZES.items()):
        true, predicted = ellipsoid(shape, share), ellipsoid(shape, share, 2)
        box = bounding_box(true | predicted, MARGIN)
        assert box is not None
        cropped = functools.partial(surface_measures, true[box], predicted[box], SPACING, 2.0)
        whole = functools.partial(surface_measures, true, predicted, SPACING, 2.0)
        labels = true.astype(np.int32), predicted.astype(np.int32)
        everything = functools.partial(measure_case, *labels, SPACING, Classes({"class": 1}), [], Settings())
        row: Record = {"name": name, "voxels": int(true.sum())}
        row["cropped"], row["values"] = seconds(cropped, repeats)
        row["whole"], values = seconds(whole, repeats)
        if not np.allclose(row["values"], values, rtol=1e-6):
            raise RuntimeError(f"cropping changed HD95 and NSD: {row['values']} and {values}")
        row["all"], _ = seconds(everything, repeats)
        rows.append(row)
    return rows


def rows_table(rows: Sequence[Record]) -> str:
    """CPU seconds of one process, median (least - greatest)."""
    times = ("HD95 + NSD, cropped", "HD95 + NSD, whole volume", "all measures")
    cells = [
        [row["name"], row["voxels"], f"{row['values'][0]:.2f}", f"{row['values'][1]:.3f}"]
        + [spread(row[time], 2) for time in ("cropped", "whole", "all")]
        for row in rows
    ]
    return table(("mask", "voxels", "HD95 mm", "NSD at 2 mm", *times), cells)


def main() -> None:
    """Measures and writes."""
    parser = described_parser(__doc__)
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="of each measurement (default: 3)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, machine = measure(SHAPE, options.repeats), describe_machine("cpu")
    file = Path(__file__)
    write_json(
        file.with_suffix(".json"), {"date": str(datetime.date.today()), "machine": machine, "rows": rows}
    )
    versions = f"one thread, monai {version('monai')}, scipy {version('scipy')}"
    write_page(
        file.with_suffix(".md"),
        "Time of `locctx evaluate`",
        __doc__,
        measured_on(machine, versions),
        rows_table(rows),
    )


if __name__ == "__main__":
    main()
