"""Cost and benefit of location dropout and of frequencies that do not repeat, in the network of `LocCtxTrainer` until
2026-11-29 (FiLM in the inner decoder stages) on the phantom of balls; for docs/explanation/unknown-location.md.

24^3 patches, batch 4. Each row is scored on unseen volumes with the true location, with an unknown body axis, with an
unknown location, and with a location that is wrong by a constant along the body axis: mean Dice of the organs over the
seeds, their range in brackets.
"""

from collections.abc import Sequence

import numpy as np

from nnunet_locctx.blocks.encoding import SPAN
from nnunet_locctx.networks import Fitting
from scripts.benchmarks.harness import Record, table
from scripts.experiments.balls import placement
from scripts.experiments.balls.grid import Experiment, Groups
from scripts.experiments.balls.placement import Row

CONDITIONS: dict[str, placement.Condition] = {
    "S unknown": (0.0, (2,)),
    "all unknown": (0.0, (0, 1, 2)),
    **{f"shifted {shift:.0%}": (shift, ()) for shift in (0.05, 0.1, 0.25, 1.0)},
}
HEADINGS = ("true", *CONDITIONS)


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
    others = placement.dice_under(CONDITIONS, network, seed) if row.block is not None else {}
    kept = {key: trained[key] for key in ("dice", "seconds")}
    return {**kept, "conditions": {"true": trained["dice"], **others}}


def tables(groups: Groups) -> Sequence[str]:
    """Means over the seeds and their range, by condition."""
    lines = []
    for name, runs in groups.items():
        cells = [name]
        for heading in HEADINGS:
            dice = [run["conditions"][heading] for run in runs if heading in run["conditions"]]
            spread = f" ({min(dice):.2f} to {max(dice):.2f})" if len(dice) > 1 else ""
            cells.append(f"{np.mean(dice):.3f}{spread}" if dice else "-")
        lines.append(cells)
    return [table(("training", *HEADINGS), lines)]


def experiment() -> Experiment:
    """The table."""
    by_name = {row.name: row for row in rows()}

    def run(name: str, seed: int, iterations: int) -> Record:
        return measure(by_name[name], seed, iterations)

    return Experiment("Unknown and wrong locations", "row", list(by_name), run, tables)
