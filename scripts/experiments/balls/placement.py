"""Where does a location have to enter a U-Net to be learned? The experiment behind docs/why-location.md.

A phantom of balls that look alike in noise: some are organs, told apart by nothing but their position, others
are look-alikes without a label. A small planned-style U-Net is trained on patches, once for each block and
place, and segments unseen volumes.

    python -m scripts.experiments.balls.placement                    # all rows, one seed
    python -m scripts.experiments.balls.placement --seeds 0 1 2 --rows 'prior|none'

One JSON line per finished run goes into placement.json beside it; runs found there are not repeated.
placement.md and placement.png are written anew after each run.
"""

import argparse
import json
import os
import platform
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from nnunet_locctx.blocks import CoordConvStem
from nnunet_locctx.denormals import denormals_flushed
from nnunet_locctx.networks import Fitting, LocatedUNet
from scripts.experiments.balls.phantom import (
    LOOK_ALIKES,
    ORGANS,
    TEST_VOLUMES,
    TRAIN_VOLUMES,
    BallPhantom,
    WithoutLocation,
    planned_unet,
    train,
)

PHANTOM = BallPhantom()
PATCH, BATCH = PHANTOM.patch[0], PHANTOM.batch
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Row:
    """One block at one place.

    Attributes:
        name: Key in the results, also what ``--rows`` matches.
        block: Key of ``nnunet_locctx.blocks.BLOCKS``, or None for the planned network.
        place: One of ``nnunet_locctx.blocks.PLACES``.
        options: Options of the block.
        also: Further blocks of the same network.
        jitter: Training: standard deviation of a random shift and scale of each patch's location.
    """

    name: str
    block: str | None = None
    place: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    also: tuple[Fitting, ...] = ()
    jitter: float = 0.0


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


# ------------------------------------------------------------------------------------------------- the runs


def make_network(row: Row, seed: int) -> nn.Module:
    """The planned-style network, the same weights for every row of a seed, with the row's block."""
    planned = planned_unet(seed)
    if row.block is None:
        return WithoutLocation(planned)
    fittings = (Fitting(row.block, row.place, row.options), *row.also)
    return LocatedUNet(planned, 1, *fittings, patch_size=PHANTOM.patch)


@denormals_flushed()
def train_row(row: Row, seed: int, iterations: int) -> nn.Module:
    """The row's network, trained, in evaluation mode."""
    return train(make_network(row, seed), PHANTOM, seed, iterations, make_optimizer, row.jitter, row.name)


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """The same for every row."""
    return torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)


def run(row: Row, seed: int, iterations: int) -> dict[str, Any]:
    """One line of the results."""
    start = time.perf_counter()
    network = train_row(row, seed, iterations)
    per_organ = PHANTOM.dice_per_organ(network, seed)
    blocks = network.location_blocks.parameters() if isinstance(network, LocatedUNet) else []
    return {
        "row": row.name,
        "block": row.block,
        "place": row.place,
        "options": row.options,
        "seed": seed,
        "iterations": iterations,
        "dice": round(float(np.mean(per_organ)), 4),
        "dice_per_organ": per_organ,
        "block_parameters": sum(parameter.numel() for parameter in blocks),
        "seconds": round(time.perf_counter() - start, 1),
    }


# --------------------------------------------------------------------------------------------- the mechanism


@torch.inference_mode()
def forgotten(patch: int, padding: Literal["zeros", "replicate"]) -> tuple[float, float]:
    """How far moving a whole patch by half the volume changes the first stage of a network with CoordConv at the input.

    The weights are random, those of the location as large as those of the image.

    Returns:
        Root mean square change relative to the features' standard deviation: 8 voxels or more from the patch's
        border, and everywhere.
    """
    network = make_network(Row("", "coordconv", "input", {}), seed=0)
    assert isinstance(network, LocatedUNet)
    stage = network.encoder.stages[0]
    stem = network.location_blocks[0]
    assert isinstance(stem, CoordConvStem)
    nn.init.kaiming_normal_(stem.conv.weight, a=1e-2)
    for module in (*stage.modules(), stem.conv):
        if isinstance(module, nn.Conv3d):
            module.padding_mode = padding
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(1, 1, *[patch] * 3))).float()
    ramp = (torch.arange(patch) - patch / 2) / 200  # a volume of 200 voxels a side
    here = torch.stack(torch.meshgrid(ramp, ramp, ramp, indexing="ij"))[None]
    before, after = (network._located_stem(image, location) for location in (here, here + 0.5))
    change = (after - before).square()
    inner = (slice(None), slice(None), *[slice(8, -8)] * 3)
    spread = before.std()
    return float(change[inner].mean().sqrt() / spread), float(change.mean().sqrt() / spread)


def print_costs(chosen: list[Row], rounds: int = 9) -> None:
    """CPU time of a training step of each row relative to the planned network's, alternating; medians of pairs."""
    networks = {row.name: make_network(row, seed=0) for row in (Row("none"), *chosen)}
    x = torch.randn(BATCH, 4, PATCH, PATCH, PATCH)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds + 1):
        for name, network in networks.items():
            start = time.process_time()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = network(x)
            logits.float().sum().backward()
            seconds[name].append(time.process_time() - start)
    print("| row | CPU time of a step, relative |\n|---|---|")
    for name, times in seconds.items():  # the first round warms up
        ratios = np.array(times[1:]) / np.array(seconds["none"][1:])
        print(f"| {name} | {np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f}) |")


def print_mechanism() -> None:
    """The table of docs/why-location.md on what InstanceNorm leaves of a patch's position."""
    paddings: tuple[Literal["zeros"], Literal["replicate"]] = ("zeros", "replicate")
    print("| patch | padding of the convolutions | change inside | change everywhere |\n|---|---|---|---|")
    for patch in (24, 48, 96):
        for padding in paddings:
            inside, everywhere = forgotten(patch, padding)
            print(f"| {patch}^3 | {padding} | {inside:.1%} | {everywhere:.1%} |")


# ----------------------------------------------------------------------------------------------- the results


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file as a whole, so that an interrupted run leaves the old one."""
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_text(text)
    temporary.replace(path)


def load(path: Path) -> list[dict[str, Any]]:
    """The finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_table(results: list[dict[str, Any]], iterations: int, path: Path) -> None:
    """placement.md: mean over the seeds, their range, size and cost of the block."""
    groups = grouped(results, iterations)
    seeds = sorted({one["seed"] for runs in groups.values() for one in runs})
    numbers = " ".join(map(str, seeds))
    command = f"python -m scripts.experiments.balls.placement --iterations {iterations} --seeds {numbers}"
    setting = (
        f"{ORGANS} organs and {LOOK_ALIKES} look-alikes per volume, {PATCH}^3 patches, {iterations} iterations of "
        f"batch {BATCH}, Adam {LEARNING_RATE:g} with polynomial decay, bfloat16 autocast, {TRAIN_VOLUMES} training "
        f"volumes; mean Dice of the organs on {TEST_VOLUMES} unseen volumes per seed."
    )
    lines = [
        "# Placement experiment: results",
        "",
        "Written by `placement.py`; [why-location.md](../../../docs/why-location.md) says what it means.",
        "",
        setting,
        "",
        f"Command: `{command}` (`--rows` chooses some rows). Machine: {machine()}.",
        "",
        "| block, place, options | Dice | per seed | parameters added |",
        "|---|---|---|---|",
    ]
    for name, runs in groups.items():
        dice = [one["dice"] for one in runs]
        per_seed = ", ".join(f"{one['dice']:.3f}" for one in runs)
        lines.append(f"| {name} | {np.mean(dice):.2f} | {per_seed} | {runs[0]['block_parameters']} |")
    write_atomically(path, "\n".join(lines) + "\n")


def grouped(results: list[dict[str, Any]], iterations: int) -> dict[str, list[dict[str, Any]]]:
    """Runs of one budget by row, in the table's order, seeds ascending."""
    groups = {
        row.name: [one for one in results if one["row"] == row.name and one["iterations"] == iterations]
        for row in rows()
    }
    return {name: sorted(runs, key=lambda one: one["seed"]) for name, runs in groups.items() if runs}


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found.group(1) if found else model
    return (
        f"{model}, {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores, torch {torch.__version__}"
    )


def draw(results: list[dict[str, Any]], iterations: int, path: Path) -> None:
    """placement.png: one bar per row, a dot per seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {
        None: "#777777",
        "coordconv": "#4477aa",
        "locbam": "#cc6677",
        "prior": "#228833",
        "l2g": "#aa7744",
    }
    groups = grouped(results, iterations)
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.27 * len(groups)), layout="constrained")
    for height, runs in enumerate(groups.values()):
        dice = [one["dice"] for one in runs]
        axes.barh(height, np.mean(dice), color=colours[runs[0]["block"]], alpha=0.75)
        axes.plot(dice, [height] * len(dice), "k.", markersize=4)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"mean Dice on unseen volumes after {iterations} iterations (bar: mean, dots: seeds)")
    axes.grid(axis="x", alpha=0.3)
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=120)
    plt.close(figure)
    temporary.replace(path)


def main() -> None:
    """Runs what is missing and writes the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument(
        "--rows", default="", help="regular expression; only rows whose name contains a match"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="one run of each row per seed (default: 0)"
    )
    parser.add_argument(
        "--iterations", type=int, default=400, help="training steps per run (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="folder (default: this script's)",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    parser.add_argument(
        "--costs",
        action="store_true",
        help="print the CPU time that a step of the chosen rows takes, and stop",
    )
    parser.add_argument(
        "--mechanism",
        action="store_true",
        help="print what the first InstanceNorm leaves of a patch's position, and stop",
    )
    arguments = parser.parse_args()
    chosen = [row for row in rows() if re.search(arguments.rows, row.name)]
    if not chosen:
        parser.error(f"no row matches {arguments.rows!r}; see --list")
    if arguments.mechanism:
        print_mechanism()
        return
    if arguments.costs:
        torch.set_num_threads(arguments.threads)
        print_costs(chosen)
        return
    if arguments.list:
        print("\n".join(row.name for row in chosen))
        return
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = arguments.out / "placement.json"
    runs = [(row, seed) for seed in arguments.seeds for row in chosen]
    for row, seed in tqdm(runs, desc="runs"):
        done = {(one["row"], one["seed"], one["iterations"]) for one in load(store)}
        if (row.name, seed, arguments.iterations) not in done:
            result = run(row, seed, arguments.iterations)
            # read again: another process may have finished a row meanwhile
            results = [*load(store), result]
            write_atomically(store, "".join(json.dumps(one) + "\n" for one in results))
            tqdm.write(f"{row.name:32} seed {seed}  Dice {result['dice']:.3f}  {result['seconds']:.0f} s")
        write_table(load(store), arguments.iterations, arguments.out / "placement.md")
        draw(load(store), arguments.iterations, arguments.out / "placement.png")


if __name__ == "__main__":
    main()
