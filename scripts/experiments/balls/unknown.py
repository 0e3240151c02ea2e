"""Measures cost and benefit of location dropout and of frequencies that do not repeat, in `LocCtxTrainer`'s network;
see grid.py.

Each row is scored on unseen volumes with the true location, with an unknown body axis, with an unknown location, and
with a location that is wrong by a constant along the body axis.
"""

from pathlib import Path

import numpy as np

from nnunet_locctx.blocks.encoding import SPAN
from nnunet_locctx.files import write_atomically
from nnunet_locctx.networks import Fitting
from scripts.benchmarks.harness import Record, table
from scripts.experiments.balls import placement
from scripts.experiments.balls.grid import Experiment, grouped
from scripts.experiments.balls.placement import PHANTOM, Row

BODY_AXIS = 2
SHIFTS = (0.05, 0.1, 0.25, 1.0)
"""Errors along the body axis as fractions of the volume."""

HEADINGS = ("true", "S unknown", "all unknown", *(f"shifted {shift:.0%}" for shift in SHIFTS))


def rows() -> list[Row]:
    """Plain, and the network of `LocCtxTrainer` with each encoding and dropout."""
    head = (Fitting("prior", "logits", {"stride": 4}),)
    located = [
        Row(f"{waves}, dropout {dropout:g}", "prior", "decoder_inner", {}, head, 0.0, dropout, span)
        for waves, span in (("doubling frequencies", None), (f"span {SPAN:g}", SPAN))
        for dropout in (0.0, 0.1)
    ]
    return [Row("no location"), *located]


def measure(row: Row, seed: int, iterations: int) -> Record:
    """Dice under every condition."""
    trained, network = placement.run(row, seed, iterations)
    dice = [trained["dice"]]
    if row.block is not None:
        conditions = [(0.0, (BODY_AXIS,)), (0.0, (0, 1, 2)), *((shift, ()) for shift in SHIFTS)]
        dice += [
            float(np.mean(PHANTOM.dice_per_organ(network, seed, *condition))) for condition in conditions
        ]
    return {
        "dice": dice[0],
        "conditions": {name: round(value, 4) for name, value in zip(HEADINGS, dice, strict=False)},
        "seconds": trained["seconds"],
    }


def write_table(results: list[Record], iterations: int, path: Path) -> None:
    """unknown.md: means over the seeds, and the range of the true location's."""
    groups = grouped(results, "row", [row.name for row in rows()], iterations=iterations)
    lines = []
    for name, runs in groups.items():
        cells = [name]
        for heading in HEADINGS:
            dice = [run["conditions"][heading] for run in runs if heading in run["conditions"]]
            spread = f" ({min(dice):.2f} to {max(dice):.2f})" if len(dice) > 1 else ""
            cells.append(f"{np.mean(dice):.3f}{spread}" if dice else "-")
        lines.append(cells)
    seeds = sorted({run["seed"] for runs in groups.values() for run in runs})
    setting = (
        f"`LocCtxTrainer`'s network on the phantom of balls, {iterations} iterations of batch {PHANTOM.batch}, "
        f"{PHANTOM.patch[0]}^3 patches; mean Dice of the organs over {len(seeds)} seed(s), their range in brackets. "
        f"Written by `grid.py unknown`. Machine: {placement.machine()}."
    )
    text = ["# Unknown and wrong locations: results", "", setting, "", *table(["training", *HEADINGS], lines)]
    write_atomically(path, ("\n".join(text) + "\n").encode())


def experiment() -> Experiment:
    """The table."""
    by_name = {row.name: row for row in rows()}

    def write(results: list[Record], iterations: int, folder: Path, page: Path) -> None:
        write_table(results, iterations, folder / "unknown.md")

    def run(name: str, seed: int, iterations: int) -> Record:
        return measure(by_name[name], seed, iterations)

    return Experiment("row", list(by_name), run, write, "explanation/unknown-location.md", {})
