"""Where must location enter a U-Net to be learned? For docs/explanation/why-location.md.

A small planned-style U-Net is trained on patches of the phantom of balls, once for each block and place, and segments
unseen volumes: 7 organs and 8 look-alikes per volume, 24^3 patches, batch 4, Adam 0.002 with polynomial decay, bfloat16
autocast, 24 training volumes; mean Dice of the organs on 4 unseen volumes per seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from nnunet_locctx.blocks import block_options
from nnunet_locctx.networks import Fitting, LocatedUNet
from scripts.benchmarks.harness import Record, save_figure, table
from scripts.experiments.balls.grid import Experiment, Groups, count, dice_cells, score
from scripts.experiments.balls.phantom import BallPhantom, Trained, WithoutLocation, planned_unet

PHANTOM = BallPhantom()
HOW = Trained(2e-3)
Condition = tuple[float, tuple[int, ...]]
"""Error of the location along the body axis as a fraction of the volume, and the axes along which it is unknown."""


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
    everywhere: dict[str, Any] = {"stride": 1}
    frequency = {"encoding": "frequency", **everywhere}
    table = [Row("none")]
    for place in ("input", "encoder", "decoder", "decoder_last"):
        for encoding in ("identity", "frequency"):
            options = {"encoding": encoding, **({} if place == "input" else everywhere)}
            table.append(Row(f"coordconv {place} {encoding}", "coordconv", place, options))
    for place in ("encoder_first", "decoder", "decoder_last", "logits"):
        table.append(Row(f"locbam faithful {place}", "locbam", place, {"faithful": True}))
        table.append(Row(f"locbam {place}", "locbam", place, {}))
    for name, options in (
        ("identity", {"encoding": "identity"}),
        ("sum", {"fusion": "sum"}),
        ("conv", {"fusion": "conv"}),
        ("3 layers", {"layers": 3}),
    ):
        table.append(Row(f"locbam decoder {name}", "locbam", "decoder", options))
    for place in ("encoder", "bottleneck", "decoder", "decoder_last", "logits"):
        table.append(Row(f"prior {place} frequency", "prior", place, frequency))
    for block, place in (("prior", "logits"), ("prior", "decoder"), ("coordconv", "decoder_last")):
        table.append(Row(f"{block} {place} stride 2", block, place, {**frequency, "stride": 2}))
    table.append(Row("prior logits identity", "prior", "logits", {"encoding": "identity", **everywhere}))
    for bands in (4, 8):
        for block, place in (("prior", "logits"), ("coordconv", "decoder_last")):
            table.append(Row(f"{block} {place} {bands} bands", block, place, {**frequency, "bands": bands}))
    table.append(Row("l2g encoder_deep", "l2g", "encoder_deep", {}))
    table.append(Row("l2g encoder_deep without location", "l2g", "encoder_deep", {"location": False}))
    for place in ("encoder", "decoder", "decoder_last", "logits"):
        table.append(Row(f"anchors {place}", "anchors", place, {}))
    paper = {"anchors_from": "paper", "bias": "paper"}
    return [*table, Row("anchors decoder paper", "anchors", "decoder", paper)]


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


def dice_under(conditions: Mapping[str, Condition], network: nn.Module, seed: int) -> dict[str, float]:
    """Mean Dice of a trained network under conditions by name."""
    dice = {name: PHANTOM.dice_per_organ(network, seed, *condition) for name, condition in conditions.items()}
    return {name: round(float(np.mean(per_organ)), 4) for name, per_organ in dice.items()}


def tables(groups: Groups) -> Sequence[str]:
    """Mean over the seeds, each seed's, size of the block."""
    cells = [[name, *dice_cells(runs), runs[0]["block_parameters"]] for name, runs in groups.items()]
    return [table(("block, place, options", "Dice", "per seed", "parameters added"), cells)]


def draw(groups: Groups, path: Path) -> None:
    """One bar per row, a dot per seed."""
    colours = {"coordconv": "#4477aa", "locbam": "#cc6677", "prior": "#228833", "l2g": "#aa7744"}
    figure = Figure(figsize=(8, 1.2 + 0.27 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for height, runs in enumerate(groups.values()):
        dice = [run["dice"] for run in runs]
        axes.barh(height, np.mean(dice), color=colours.get(runs[0]["block"], "#777777"), alpha=0.75)
        axes.plot(dice, [height] * len(dice), "k.", markersize=4)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="mean Dice on unseen volumes (bar: mean, dots: seeds)")
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path, 120)


def experiment() -> Experiment:
    """The table."""
    by_name = {row.name: row for row in rows()}

    def measure(name: str, seed: int, iterations: int) -> Record:
        return run(by_name[name], seed, iterations)[0]

    return Experiment("Where location enters the network", "row", list(by_name), measure, tables, draw)
