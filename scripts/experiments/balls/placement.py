"""Finds where location must enter a U-Net to be learned, for docs/explanation/why-location.md; see grid.py.

A small planned-style U-Net is trained on patches, once for each block and place, and segments unseen volumes.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from nnunet_locctx.blocks import block_options
from nnunet_locctx.files import write_atomically
from nnunet_locctx.networks import Fitting, LocatedUNet
from scripts.benchmarks.harness import Record, describe_machine, save_figure, table
from scripts.experiments.balls.grid import Experiment, count, dice_cells, grouped, score
from scripts.experiments.balls.phantom import (
    LOOK_ALIKES,
    ORGANS,
    TEST_VOLUMES,
    TRAIN_VOLUMES,
    BallPhantom,
    Trained,
    WithoutLocation,
    planned_unet,
)

PHANTOM = BallPhantom()
PATCH, BATCH = PHANTOM.patch[0], PHANTOM.batch
HOW = Trained(2e-3)


@dataclass(frozen=True)
class Row:
    """One block at one place.

    Attributes:
        name: Key in the results, matched by ``--rows``.
        block: Key of ``nnunet_locctx.blocks.BLOCKS``, or None for the planned network.
        place: One of ``nnunet_locctx.blocks.PLACES``.
        options: Options of the block.
        also: Further blocks of the same network.
        jitter: Training: standard deviation of a random shift and scale of each patch's location.
        dropout: Training: probability that an axis, or all of them, are unknown in a patch.
        span: Default of the frequency encodings' option. None: doubling frequencies, used for all tables except that of
            unknown locations.
    """

    name: str
    block: str | None = None
    place: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    also: tuple[Fitting, ...] = ()
    jitter: float = 0.0
    dropout: float = 0.0
    span: float | None = None


def rows() -> list[Row]:
    """All rows, in the order of the table."""
    table = [Row("none")]
    for place in ("input", "encoder", "decoder", "decoder_last"):
        for encoding in ("identity", "frequency"):
            everywhere = {} if place == "input" else {"stride": 1}
            options = {"encoding": encoding, **everywhere}
            table.append(Row(f"coordconv {place} {encoding}", "coordconv", place, options))
    for place in ("encoder_first", "decoder", "decoder_last", "logits"):
        table.append(Row(f"locbam faithful {place}", "locbam", place, {"faithful": True}))
        table.append(Row(f"locbam {place}", "locbam", place, {}))
    table.append(Row("locbam decoder identity", "locbam", "decoder", {"encoding": "identity"}))
    table.append(Row("locbam decoder sum", "locbam", "decoder", {"fusion": "sum"}))
    table.append(Row("locbam decoder conv", "locbam", "decoder", {"fusion": "conv"}))
    table.append(Row("locbam decoder 3 layers", "locbam", "decoder", {"layers": 3}))
    for place in ("encoder", "bottleneck", "decoder", "decoder_last", "logits"):
        table.append(Row(f"prior {place} frequency", "prior", place, {"encoding": "frequency", "stride": 1}))
    for block, place in (("prior", "logits"), ("prior", "decoder"), ("coordconv", "decoder_last")):
        table.append(Row(f"{block} {place} stride 2", block, place, {"encoding": "frequency", "stride": 2}))
    table.append(Row("prior logits identity", "prior", "logits", {"encoding": "identity", "stride": 1}))
    for bands in (4, 8):
        options = {"encoding": "frequency", "bands": bands, "stride": 1}
        table.append(Row(f"prior logits {bands} bands", "prior", "logits", options))
        table.append(Row(f"coordconv decoder_last {bands} bands", "coordconv", "decoder_last", options))
    table.append(Row("l2g encoder_deep", "l2g", "encoder_deep", {}))
    table.append(Row("l2g encoder_deep without location", "l2g", "encoder_deep", {"location": False}))
    for place in ("encoder", "decoder", "decoder_last", "logits"):
        table.append(Row(f"anchors {place}", "anchors", place, {}))
    table.append(
        Row("anchors decoder paper", "anchors", "decoder", {"anchors_from": "paper", "bias": "paper"})
    )
    return table


def names() -> list[str]:
    """Names of all rows."""
    return [row.name for row in rows()]


def make_network(row: Row, seed: int) -> nn.Module:
    """The planned-style network, the same weights for every row of a seed, with the row's block."""
    planned = planned_unet(seed)
    if row.block is None:
        return WithoutLocation(planned)
    fittings = [
        replace(fitting, options={"span": row.span, **fitting.options})
        if "span" in block_options(fitting.block, fitting.place)
        else fitting
        for fitting in (Fitting(row.block, row.place, row.options), *row.also)
    ]
    return LocatedUNet(planned, 1, *fittings, patch_size=PHANTOM.patch)


def run(row: Row, seed: int, iterations: int) -> tuple[Record, nn.Module]:
    """The measured record of a row, and its trained network."""
    network = make_network(row, seed)
    measured = score(network, PHANTOM, seed, iterations, HOW, row.name, row.jitter, row.dropout)
    blocks = network.location_blocks if isinstance(network, LocatedUNet) else nn.Identity()
    return {"block": row.block, "place": row.place, "block_parameters": count(blocks), **measured}, network


def machine() -> str:
    """The machine of the measurements."""
    processor = describe_machine("cpu")["processor"]
    return f"{processor}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def write_table(results: list[dict[str, Any]], iterations: int, path: Path) -> None:
    """placement.md: mean over the seeds, their range, size and cost of the block."""
    groups = grouped(results, "row", names(), iterations=iterations)
    seeds = sorted({run["seed"] for runs in groups.values() for run in runs})
    numbers = " ".join(map(str, seeds))
    command = (
        f"python -m scripts.experiments.balls.grid placement --iterations {iterations} --seeds {numbers}"
    )
    setting = (
        f"{ORGANS} organs and {LOOK_ALIKES} look-alikes per volume, {PATCH}^3 patches, {iterations} iterations of "
        f"batch {BATCH}, Adam {HOW.learning_rate:g} with polynomial decay, bfloat16 autocast, {TRAIN_VOLUMES} training "
        f"volumes; mean Dice of the organs on {TEST_VOLUMES} unseen volumes per seed."
    )
    origin = (
        "Written by `grid.py placement`; "
        "[why-location.md](../../../docs/explanation/why-location.md) says what it means."
    )
    lines = [
        "# Placement experiment: results",
        "",
        origin,
        "",
        setting,
        "",
        f"Command: `{command}` (`--rows` chooses some rows). Machine: {machine()}.",
        "",
    ]
    cells = [[name, *dice_cells(runs), runs[0]["block_parameters"]] for name, runs in groups.items()]
    lines += table(("block, place, options", "Dice", "per seed", "parameters added"), cells)
    write_atomically(path, "\n".join(lines).encode())


def draw(results: list[dict[str, Any]], iterations: int, path: Path) -> None:
    """placement.png: one bar per row, a dot per seed."""
    colours = {
        None: "#777777",
        "coordconv": "#4477aa",
        "locbam": "#cc6677",
        "prior": "#228833",
        "l2g": "#aa7744",
    }
    groups = grouped(results, "row", names(), iterations=iterations)
    figure = Figure(figsize=(8, 1.2 + 0.27 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for height, runs in enumerate(groups.values()):
        dice = [run["dice"] for run in runs]
        axes.barh(height, np.mean(dice), color=colours[runs[0]["block"]], alpha=0.75)
        axes.plot(dice, [height] * len(dice), "k.", markersize=4)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"mean Dice on unseen volumes after {iterations} iterations (bar: mean, dots: seeds)")
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path, 120)


def experiment() -> Experiment:
    """The table."""
    by_name = {row.name: row for row in rows()}

    def write(results: list[Record], iterations: int, folder: Path, page: Path) -> None:
        write_table(results, iterations, folder / "placement.md")
        draw(results, iterations, folder / "placement.png")

    def measure(name: str, seed: int, iterations: int) -> Record:
        return run(by_name[name], seed, iterations)[0]

    return Experiment("row", list(by_name), measure, write, "placement.md", {})
