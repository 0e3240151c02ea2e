"""Where does a location have to enter a U-Net to be learned? The experiment behind docs/why-location.md.

A phantom of balls that look alike in noise: some are organs, told apart by nothing but their position, others
are look-alikes without a label. A small planned-style U-Net is trained on patches, once for each block and
place, and segments unseen volumes.

    python scripts/experiment_placement.py                    # all rows, one seed
    python scripts/experiment_placement.py --seeds 0 1 2 --rows 'prior|none'

One JSON line per finished run goes into docs/placement.json; runs found there are not repeated.
docs/placement.md and docs/placement.png are written anew after each run.
"""

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_locctx.blocks import CoordConvStem, auxiliary_losses
from nnunet_locctx.networks import Fitting, LocatedUNet

PATCH = 24
BATCH = 4
TRAIN_VOLUMES, TEST_VOLUMES = 24, 4
ORGANS, LOOK_ALIKES = 7, 8
GRID = 0.28
"""Spacing, in fractions of the volume, of the 3 x 3 x 3 places where a ball can sit."""


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


# ----------------------------------------------------------------------------------------------- the phantom


@dataclass(frozen=True)
class Volume:
    """One volume: image (1, *shape), location (3, *shape) and labels (*shape), array axes (z, y, x)."""

    image: Tensor
    location: Tensor
    labels: Tensor
    centres: npt.NDArray[np.float64]


def make_volume(rng: np.random.Generator) -> Volume:
    """A volume of 44 to 56 voxels a side with 7 organs and 8 look-alikes, every ball of contrast 2 in noise
    of sd 1.

    Balls of radius 2.6 to 3.8 voxels sit at fixed fractions of the volume, displaced by sd 0.025 each.
    """
    shape = rng.integers(44, 57, size=3)
    places = np.stack(np.meshgrid(*[[-GRID, 0.0, GRID]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    places = places[np.random.default_rng(20).permutation(len(places))][: ORGANS + LOOK_ALIKES]
    fractions = places + rng.normal(0, 0.025, size=places.shape)
    axes = [(np.arange(n) + 0.5) / n - 0.5 for n in shape]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    labels = np.zeros(shape, dtype=np.int64)
    image = rng.normal(0, 1, size=shape)
    centres = (fractions + 0.5) * shape - 0.5
    for ball, centre in enumerate(centres):
        inside = ((index - centre.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) <= rng.uniform(2.6, 3.8) ** 2
        image[inside] += 2
        if ball < ORGANS:
            labels[inside] = ball + 1
    # channel 0 (R) varies along the last array axis, as nnU-Net stores scans
    location = np.stack(np.meshgrid(*axes, indexing="ij")[::-1])
    return Volume(
        torch.from_numpy(image[None]).float(),
        torch.from_numpy(location).float(),
        torch.from_numpy(labels),
        centres,
    )


def draw_batch(volumes: list[Volume], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(BATCH, 1 + 3, PATCH^3) and labels (BATCH, PATCH^3): half of the patches around a random ball, half
    anywhere."""
    inputs, labels = [], []
    for item in range(BATCH):
        volume = volumes[rng.integers(len(volumes))]
        room = np.array(volume.labels.shape) - PATCH
        lower = rng.integers(0, room + 1)
        if item % 2 == 0:
            centre = volume.centres[rng.integers(len(volume.centres))] + rng.integers(-6, 7, size=3)
            lower = np.clip(np.rint(centre).astype(int) - PATCH // 2, 0, room)
        box = tuple(slice(int(low), int(low) + PATCH) for low in lower)
        inputs.append(torch.cat([volume.image[(slice(None), *box)], volume.location[(slice(None), *box)]]))
        labels.append(volume.labels[box])
    return torch.stack(inputs), torch.stack(labels)


# ----------------------------------------------------------------------------------------------- the network


class WithoutLocation(nn.Module):
    """The planned network on the image channel alone."""

    def __init__(self, planned: nn.Module) -> None:
        super().__init__()
        self.planned = planned

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + 3, *spatial) -> (B, classes, *spatial)."""
        return self.planned(x[:, :1])


def make_network(row: Row, seed: int) -> nn.Module:
    """The planned-style network, the same weights for every row of a seed, with the row's block."""
    torch.manual_seed(seed)
    planned = PlainConvUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=[16, 32, 64],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2],
        n_conv_per_stage=2,
        num_classes=ORGANS + 1,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    planned.apply(planned.initialize)
    if row.block is None:
        return WithoutLocation(planned)
    return LocatedUNet(
        planned, 1, Fitting(row.block, row.place, row.options), *row.also, patch_size=(PATCH,) * 3
    )


def loss_function(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy + soft Dice over the batch, foreground only: nnU-Net's loss."""
    probabilities = logits.softmax(dim=1)[:, 1:]
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].float()
    axes = (0, 2, 3, 4)
    overlap = 2 * (probabilities * truth).sum(axes)
    dice = (overlap + 1e-5) / (probabilities.sum(axes) + truth.sum(axes) + 1e-5).clip(1e-8)
    return F.cross_entropy(logits, labels) - dice.mean()


def train(row: Row, seed: int, iterations: int) -> nn.Module:
    """The trained network, in evaluation mode."""
    rng = np.random.default_rng(seed)
    volumes = [make_volume(rng) for _ in range(TRAIN_VOLUMES)]
    jitter_rng = np.random.default_rng([seed, 1])  # of its own: the patches stay those of the other rows
    network = make_network(row, seed).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=iterations, power=0.9)
    progress = tqdm(range(iterations), desc=f"{row.name} (seed {seed})", mininterval=5, leave=False)
    for _ in progress:
        x, labels = draw_batch(volumes, rng)
        if row.jitter:
            x[:, 1:4] = jittered(x[:, 1:4], row.jitter, jitter_rng)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # as nnU-Net trains, and twice as fast here
            logits = network(x)
        loss = loss_function(logits.float(), labels) + sum(auxiliary_losses(network))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return network.eval()


def jittered(location: Tensor, sd: float, rng: np.random.Generator) -> Tensor:
    """Location (B, 3, *spatial) scaled and shifted at random, per sample and axis."""
    shift, scale = (
        torch.from_numpy(rng.normal(0, sd, (len(location), 3, 1, 1, 1))).float() for _ in range(2)
    )
    return location * (1 + scale) + shift


LEARNING_RATE = 2e-3


# -------------------------------------------------------------------------------------------- the evaluation


def windows(shape: torch.Size) -> Iterator[tuple[slice, ...]]:
    """Boxes of PATCH^3 that cover a volume with at least half a patch of overlap."""
    starts = []
    for n in shape:
        count = int(np.ceil((n - PATCH) / (PATCH // 2))) + 1
        starts.append([round(s) for s in np.linspace(0, n - PATCH, count)])
    for corner in np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 3):
        yield tuple(slice(int(low), int(low) + PATCH) for low in corner)


@torch.inference_mode()
def predict(network: nn.Module, volume: Volume, shift: float = 0.0) -> Tensor:
    """Labels (*shape), from logits averaged over sliding windows; the location shifted along the body axis by `shift`
    of the volume's length."""
    x = torch.cat([volume.image, volume.location])
    x[3] += shift
    total = torch.zeros(ORGANS + 1, *volume.labels.shape)
    boxes = list(windows(volume.labels.shape))
    for start in range(0, len(boxes), BATCH):
        some = boxes[start : start + BATCH]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(torch.stack([x[(slice(None), *box)] for box in some])).float()
        for box, one in zip(some, logits, strict=True):
            total[(slice(None), *box)] += one
    return total.argmax(dim=0)


def dice_per_organ(network: nn.Module, seed: int, shift: float = 0.0) -> list[float]:
    """Dice of each organ, its voxels pooled over the unseen volumes."""
    rng = np.random.default_rng(100_000 + seed)
    overlap, size = np.zeros(ORGANS), np.zeros(ORGANS)
    for _ in range(TEST_VOLUMES):
        volume = make_volume(rng)
        prediction = predict(network, volume, shift)
        for organ in range(ORGANS):
            predicted, true = prediction == organ + 1, volume.labels == organ + 1
            overlap[organ] += 2 * float((predicted & true).sum())
            size[organ] += float(predicted.sum() + true.sum())
    return [round(float(value), 4) for value in overlap / size]


def run(row: Row, seed: int, iterations: int) -> dict[str, Any]:
    """One line of the results."""
    start = time.perf_counter()
    network = train(row, seed, iterations)
    per_organ = dice_per_organ(network, seed)
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
    """docs/placement.md: mean over the seeds, their range, size and cost of the block."""
    groups = grouped(results, iterations)
    seeds = sorted({one["seed"] for runs in groups.values() for one in runs})
    command = f"python scripts/experiment_placement.py --iterations {iterations} --seeds {' '.join(map(str, seeds))}"
    setting = (
        f"{ORGANS} organs and {LOOK_ALIKES} look-alikes per volume, {PATCH}^3 patches, {iterations} iterations of "
        f"batch {BATCH}, Adam {LEARNING_RATE:g} with polynomial decay, bfloat16 autocast, {TRAIN_VOLUMES} training "
        f"volumes; mean Dice of the organs on {TEST_VOLUMES} unseen volumes per seed."
    )
    lines = [
        "# Placement experiment: results",
        "",
        "Written by `scripts/experiment_placement.py`; [why-location.md](why-location.md) says what it means.",
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
    """docs/placement.png: one bar per row, a dot per seed."""
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
        default=Path(__file__).resolve().parents[1] / "docs",
        help="folder (default: docs)",
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
    if arguments.out == parser.get_default("out"):
        from collect_methods import collect

        collect()


if __name__ == "__main__":
    main()
