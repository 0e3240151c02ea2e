"""Every trainer's network at one budget on the phantom of balls, for docs/reference/methods.md.

Volumes and patches are large enough for the transformers: 64 to 80 voxels a side, 32^3 voxels, 4 per batch (Swin UNETR,
which needs a longer side: 64x32x32, 2 per batch); 7 organs and 8 look-alikes per volume, 24 training and 4 unseen
volumes per seed. Whole networks are small, about as fast as the U-Net of 16-32-64 channels that gets the blocks; all
are trained by AdamW 0.001 with polynomial decay, bfloat16 autocast. The table shows the progress of a network within
this budget, not its quality.
"""

from collections.abc import Sequence

import torch
from torch import nn

from nnunet_locctx.methods.description import fittings
from nnunet_locctx.networks import Fitting, LocatedUNet, network_class
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from nnunet_locctx.nnunet.training.whole_network import WholeNetworkTrainer
from scripts.benchmarks.harness import PLAIN, Record, table
from scripts.experiments.balls.grid import Experiment, Groups, dice_cells, score
from scripts.experiments.balls.phantom import ORGANS, BallPhantom, Trained, WithoutLocation, planned_unet

HOW = Trained(1e-3, 1e-5)
PHANTOM = BallPhantom(patch=(32, 32, 32), batch=4, sides=(64, 81), radii=(3.7, 5.4))
LONG = BallPhantom(patch=(64, 32, 32), batch=2, sides=PHANTOM.sides, radii=PHANTOM.radii)
SMALL: dict[str, Record] = {
    "unetr": {"feature_size": 8, "hidden_size": 192, "mlp_dim": 384, "num_heads": 4},
    "swin_unetr": {"feature_size": 12, "depths": [1, 1, 1, 1], "window_size": 4},
    "nnformer": {"embed_dim": 48},
    "unetr_pp": {"dims": [16, 32, 64, 128]},
    "lightmedseg": {},
}
"""Options that make the networks small."""


def make_network(name: str, seed: int) -> tuple[nn.Module, BallPhantom]:
    """A trainer's network for one image channel and location, and the phantom it is trained on."""
    trainer = TRAINERS.get(name)
    if trainer is None:
        return WithoutLocation(planned_unet(seed)), PHANTOM
    if not issubclass(trainer, WholeNetworkTrainer):
        fitted = [Fitting(*arguments) for arguments in fittings(trainer)]
        return LocatedUNet(planned_unet(seed), 1, *fitted, patch_size=PHANTOM.patch), PHANTOM
    phantom = LONG if trainer.network_name == "swin_unetr" else PHANTOM
    options = {**trainer.network_options, **SMALL[trainer.network_name]}
    torch.manual_seed(seed)
    network = network_class(trainer.network_name)(1, ORGANS + 1, phantom.patch, **options)
    return network if trainer.located else WithoutLocation(network), phantom


def measure(name: str, seed: int, iterations: int) -> Record:
    """The record of a trainer."""
    network, phantom = make_network(name, seed)
    return score(network, phantom, seed, iterations, HOW, name)


def tables(groups: Groups) -> Sequence[str]:
    """Dice and size of each trainer's network."""
    rows = [[f"`{name}`", *dice_cells(runs), f"{runs[0]['parameters']:,}"] for name, runs in groups.items()]
    return [table(("trainer", "Dice", "per seed", "parameters here"), rows)]


def experiment() -> Experiment:
    """The table."""
    return Experiment("Every trainer at one budget", "trainer", (PLAIN, *TRAINERS), measure, tables)
