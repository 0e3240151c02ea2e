"""Trains every trainer's network at one budget on the phantom of balls, for docs/reference/methods.md; see grid.py.

Volumes and patches are large enough for the transformers: 32^3 voxels, 4 per batch (Swin UNETR, which needs a longer
side: 64x32x32, 2 per batch). Whole networks are small, about as fast as the U-Net of 16-32-64 channels that gets the
blocks; all are trained by AdamW. The table shows the progress of a network within this budget, not its quality.
"""

from pathlib import Path

import torch
from torch import nn

from nnunet_locctx.methods.description import fittings
from nnunet_locctx.networks import Fitting, LocatedUNet, network_class
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from nnunet_locctx.nnunet.training.whole_network import WholeNetworkTrainer
from scripts.benchmarks import harness
from scripts.benchmarks.harness import PLAIN, Record, describe_machine, replace_section
from scripts.experiments.balls import phantom as ball_phantom
from scripts.experiments.balls.grid import Experiment, dice_cells, grouped, score
from scripts.experiments.balls.phantom import ORGANS, BallPhantom, Trained, WithoutLocation, planned_unet

HOW = Trained(1e-3, 1e-5)
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
        fitted = [Fitting(*arguments) for arguments in fittings(trainer)]
        return LocatedUNet(planned_unet(seed), 1, *fitted, patch_size=PHANTOM.patch), PHANTOM
    phantom = PHANTOMS.get(trainer.network_name, PHANTOM)
    options = {**trainer.network_options, **SMALL[trainer.network_name]}
    torch.manual_seed(seed)
    network = network_class(trainer.network_name)(1, ORGANS + 1, phantom.patch, **options)
    return network if trainer.located else WithoutLocation(network), phantom


def table(results: list[Record], iterations: int) -> str:
    """The section of docs/reference/methods.md."""
    groups = grouped(results, "trainer", (PLAIN, *TRAINERS), iterations=iterations)
    rows = [[f"`{name}`", *dice_cells(runs), f"{runs[0]['parameters']:,}"] for name, runs in groups.items()]
    lines = harness.table(("trainer", "Dice", "per seed", "parameters here"), rows)
    machine, threads = describe_machine("cpu"), torch.get_num_threads()
    least, most = PHANTOM.sides[0], PHANTOM.sides[1] - 1
    notes = f"""
{ORGANS} organs and {ball_phantom.LOOK_ALIKES} look-alikes per volume of {least} to {most} voxels a side,
patches of 32^3, batch 4 (Swin UNETR: 64x32x32, batch 2), {iterations} iterations,
AdamW {HOW.learning_rate:g} with polynomial decay, bfloat16 autocast; {ball_phantom.TRAIN_VOLUMES} training and
{ball_phantom.TEST_VOLUMES} unseen volumes per seed. Command: `python -m scripts.experiments.balls.grid methods
--iterations {iterations}`. Machine: {machine["processor"]}, {threads} thread(s), torch {machine["versions"]["torch"]}.
"""
    return "\n".join(lines[:-1]) + f"\n{notes}"


def experiment() -> Experiment:
    """The table."""

    def measure(name: str, seed: int, iterations: int) -> Record:
        network, phantom = make_network(name, seed)
        return score(network, phantom, seed, iterations, HOW, name)

    def write(results: list[Record], iterations: int, folder: Path, page: Path) -> None:
        replace_section(page, BEGIN, END, table(results, iterations))

    return Experiment("trainer", (PLAIN, *TRAINERS), measure, write, "reference/methods.md", {})
