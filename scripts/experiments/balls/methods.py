"""Every trainer's network at one budget on a phantom that only location can segment; writes docs/methods.md's table.

The phantom of `phantom.py`, its volumes and patches large enough for the transformers: 32^3 voxels, 4 per batch
(Swin UNETR, which needs a longer side: 64x32x32, 2 per batch). Networks of their own are made small, about as fast as
the U-Net of 16-32-64 channels that blocks are fitted to; all are trained alike, by AdamW. What the table says of a
network is how far it gets in this budget, not how good it is.

    python -m scripts.experiments.balls.methods                         # every trainer, seed 0
    python -m scripts.experiments.balls.methods --trainers UNETR --seeds 0 1

One JSON line per finished run goes into methods.json beside it; runs found there are not repeated.
"""

import argparse
import json
import os
import re
import time
from pathlib import Path

os.environ.setdefault("nnUNet_results", "/nonexistent")  # nnU-Net asks for its folders while it is imported
os.environ.setdefault("nnUNet_raw", "/nonexistent")
os.environ.setdefault("nnUNet_preprocessed", "/nonexistent")

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from nnunet_locctx.methods.description import fittings
from nnunet_locctx.networks import Fitting, LocatedUNet, network_class
from nnunet_locctx.nnunet.trainers import TRAINERS
from nnunet_locctx.nnunet.whole_network import WholeNetworkTrainer
from scripts.benchmarks.harness import (
    OUT_HELP,
    PLAIN,
    Record,
    describe_machine,
    destinations,
    replace_section,
)
from scripts.experiments.balls import phantom as ball_phantom
from scripts.experiments.balls.phantom import ORGANS, BallPhantom, WithoutLocation, planned_unet

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-5
PHANTOM = BallPhantom(patch=(32, 32, 32), batch=4, sides=(64, 81), radii=(3.7, 5.4))
LONG = BallPhantom(patch=(64, 32, 32), batch=2, sides=PHANTOM.sides, radii=PHANTOM.radii)
PHANTOMS = {"swin_unetr": LONG}
SMALL: dict[str, Record] = {
    "unetr": {"feature_size": 8, "hidden_size": 192, "mlp_dim": 384, "num_heads": 4},
    "swin_unetr": {"feature_size": 12, "depths": [1, 1, 1, 1], "window_size": 4},
    "nnformer": {"embed_dim": 48},
    "unetr_pp": {"dims": [16, 32, 64, 128]},
    "lightmedseg": {},
}
"""Options that make the networks small."""

BEGIN, END = "<!-- phantom: begin -->", "<!-- phantom: end -->"


def make_network(name: str, seed: int) -> tuple[nn.Module, BallPhantom]:
    """A trainer's network for one image channel and location, and the phantom it is trained on."""
    trainer = TRAINERS.get(name)
    if trainer is None:
        return WithoutLocation(planned_unet(seed)), PHANTOM
    if not issubclass(trainer, WholeNetworkTrainer):
        fitted = [Fitting(*one) for one in fittings(trainer)]
        return LocatedUNet(planned_unet(seed), 1, *fitted, patch_size=PHANTOM.patch), PHANTOM
    phantom = PHANTOMS.get(trainer.network_name, PHANTOM)
    options = {**trainer.network_options, **SMALL[trainer.network_name]}
    torch.manual_seed(seed)
    network = network_class(trainer.network_name)(1, ORGANS + 1, phantom.patch, **options)
    return network if trainer.located else WithoutLocation(network), phantom


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """The same for all."""
    return torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def run(name: str, seed: int, iterations: int) -> Record:
    """One line of the results."""
    network, phantom = make_network(name, seed)
    start = time.perf_counter()
    ball_phantom.train(network, phantom, seed, iterations, make_optimizer, name=name)
    trained = time.perf_counter() - start
    per_organ = phantom.dice_per_organ(network, seed)
    return {
        "trainer": name,
        "seed": seed,
        "iterations": iterations,
        "dice": round(float(np.mean(per_organ)), 4),
        "dice_per_organ": per_organ,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": round(trained, 1),
    }


def load(path: Path) -> list[Record]:
    """The finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file as a whole, so that an interrupted run leaves the old one."""
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_text(text)
    temporary.replace(path)


def table(results: list[Record], iterations: int, threads: int) -> str:
    """The section of docs/methods.md."""
    lines = ["| trainer | Dice | per seed | parameters here |", "|---|---|---|---|"]
    for name in (PLAIN, *TRAINERS):
        runs = [one for one in results if one["trainer"] == name and one["iterations"] == iterations]
        if runs:
            runs.sort(key=lambda one: one["seed"])
            dice = [one["dice"] for one in runs]
            seeds = ", ".join(f"{one:.3f}" for one in dice)
            lines.append(f"| `{name}` | {np.mean(dice):.2f} | {seeds} | {runs[0]['parameters']:,} |")
    machine = describe_machine("cpu")
    least, most = PHANTOM.sides[0], PHANTOM.sides[1] - 1
    notes = f"""
{ORGANS} organs and {ball_phantom.LOOK_ALIKES} look-alikes per volume of {least} to {most} voxels a side,
patches of 32^3, batch 4 (Swin UNETR: 64x32x32, batch 2), {iterations} iterations,
AdamW {LEARNING_RATE:g} with polynomial decay, bfloat16 autocast; {ball_phantom.TRAIN_VOLUMES} training and
{ball_phantom.TEST_VOLUMES} unseen volumes per seed. Command: `python -m scripts.experiments.balls.methods
--iterations {iterations}`. Machine: {machine["processor"]}, {threads} thread(s), torch {machine["versions"]["torch"]}.
"""
    return "\n".join(lines) + f"\n{notes}"


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--trainers", default="", help="regular expression; only trainers whose name contains a match"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="one run per trainer and seed (default: 0)"
    )
    parser.add_argument("--iterations", type=int, default=400, help="training steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=OUT_HELP)
    arguments = parser.parse_args()
    chosen = [name for name in (PLAIN, *TRAINERS) if re.search(arguments.trainers, name)]
    if not chosen:
        parser.error(f"no trainer matches {arguments.trainers!r}; there are {', '.join(TRAINERS)}")
    torch.set_num_threads(arguments.threads)
    folder, page = destinations(arguments.out, __file__, "methods.md")
    store = folder / "methods.json"
    for seed in arguments.seeds:
        for name in tqdm(chosen, desc=f"seed {seed}"):
            done = {(one["trainer"], one["seed"], one["iterations"]) for one in load(store)}
            if (name, seed, arguments.iterations) not in done:
                result = run(name, seed, arguments.iterations)
                # read again: another process may have finished a run meanwhile
                write_atomically(store, "".join(json.dumps(one) + "\n" for one in [*load(store), result]))
                tqdm.write(f"{name:28} seed {seed}  Dice {result['dice']:.3f}  {result['seconds']:.0f} s")
    if page.exists():
        replace_section(page, BEGIN, END, table(load(store), arguments.iterations, arguments.threads))
    if arguments.out is None:
        from scripts.experiments.balls.collect import collect

        collect()


if __name__ == "__main__":
    main()
