"""Measures CPU seconds per case and class of `locctx evaluate`, with masks cropped to their common box and without.

One scan of 256 x 384 x 384 voxels of 1.5 x 0.8 x 0.8 mm; the masks are ellipsoids of the size of a lesion, an organ and
the body, the predictions the same ellipsoids shifted by 2 voxels along each axis. Measured: HD95 and NSD by MONAI on
the cropped and on the whole volume (their values must agree), and all measures of a class. CPU time of one thread
hardly depends on other jobs of the machine.

    python -m scripts.benchmarks.evaluate            # writes docs/reference/evaluation.md
    python -m scripts.benchmarks.evaluate --quick    # small volume, prints only
"""

import datetime
import math
import textwrap
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

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
    REPOSITORY,
    by,
    describe_machine,
    described_parser,
    replace_section,
    say,
    spread,
    table,
)

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
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


def measure(shape: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """One row per size of mask."""
    surface_measures(ellipsoid((8, 8, 8), 0.3), ellipsoid((8, 8, 8), 0.3), SPACING, 2.0)  # imports
    rows = []
    for name, share in SIZES.items():
        true, predicted = ellipsoid(shape, share), ellipsoid(shape, share, 2)
        row: dict[str, Any] = {"name": name, "voxels": int(true.sum())}

        def cropped(true: Mask = true, predicted: Mask = predicted) -> tuple[float, float]:
            box = bounding_box(true | predicted, MARGIN)
            assert box is not None
            return surface_measures(true[box], predicted[box], SPACING, 2.0)

        def whole(true: Mask = true, predicted: Mask = predicted) -> tuple[float, float]:
            return surface_measures(true, predicted, SPACING, 2.0)

        for function in (cropped, whole):
            say(f"{name}, {function.__name__}")
            row[function.__name__], values = seconds(function, repeats)
            if not np.allclose(row.setdefault("values", values), values, rtol=1e-6):
                raise RuntimeError(f"cropping changed HD95 and NSD: {row['values']} and {values}")
        labels, guesses = true.astype(np.int32), predicted.astype(np.int32)

        def everything(labels: Any = labels, guesses: Any = guesses) -> Any:
            return measure_case(labels, guesses, SPACING, Classes({"class": 1}), [], Settings())

        row["all"], _ = seconds(everything, repeats)
        rows.append(row)
    return rows


def report(rows: Sequence[dict[str, Any]], shape: Sequence[int]) -> str:
    """The page's section."""
    machine = describe_machine("cpu")
    notes = (
        f"Measured {datetime.date.today()} with `python -m scripts.benchmarks.evaluate`: "
        f"{machine['processor']}; {torch.get_num_threads()} thread; monai {version('monai')}, "
        f"scipy {version('scipy')}. Volume {by(shape)}, voxels of {' x '.join(map(str, SPACING))} mm; CPU "
        "seconds of one process, median (least - greatest)."
    )
    times = ("HD95 + NSD, cropped", "HD95 + NSD, whole volume", "all measures")
    cells = [
        [row["name"], row["voxels"], f"{row['values'][0]:.2f}", f"{row['values'][1]:.3f}"]
        + [spread(row[time], 2) for time in ("cropped", "whole", "all")]
        for row in rows
    ]
    lines = table(("mask", "voxels", "HD95 mm", "NSD at 2 mm", *times), cells)
    return "\n".join([textwrap.fill(notes, 120), "", *lines])


def main() -> None:
    """Measures, prints and writes."""
    parser = described_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a small volume; nothing is written")
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="of each measurement (default: 3)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of PyTorch (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = tuple(math.ceil(n / 4) for n in SHAPE) if options.quick else SHAPE
    text = report(measure(shape, options.repeats), shape)
    print(text)
    if not options.quick:
        replace_section(REPOSITORY / "docs" / "reference" / "evaluation.md", BEGIN, END, text)


if __name__ == "__main__":
    main()
