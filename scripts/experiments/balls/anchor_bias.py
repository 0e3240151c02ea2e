"""Can the published LightMedSeg use the place of a patch, and can the default? For docs/explanation/lightmedseg.md.

The phantom of balls in patches of 16^3, which show about one ball at a time; 7 organs and 8 look-alikes per volume of
about 50^3 voxels, batch 16, AdamW 0.002 with polynomial decay, bfloat16 autocast, 24 training volumes, 4 unseen volumes
per seed. The second table has the numerical rank of the position maps of both forms.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_locctx.blocks.anchors import PositionMaps, even_points
from nnunet_locctx.networks.lightmedseg import LightMedSeg, PatchCoordinates
from scripts.benchmarks.harness import Record, table
from scripts.experiments.balls.grid import Experiment, Groups, dice_cells, score
from scripts.experiments.balls.phantom import ORGANS, BallPhantom, Trained, WithoutLocation

FORMS: dict[str, dict[str, Any]] = {
    "published form": {"anchors_from": "paper", "bias": "paper", "coordinates": "patch"},
    "published form, coordinates of the scan": {"anchors_from": "paper", "bias": "paper"},
    "default, coordinates of the patch": {"coordinates": "patch"},
    "default": {},
}
PHANTOM = BallPhantom(patch=(16, 16, 16), batch=16)
HOW = Trained(2e-3, 1e-4)


def measure(form: str, seed: int, iterations: int) -> Record:
    """The record of one form of LightMedSeg."""
    torch.manual_seed(seed)
    network = LightMedSeg(1, ORGANS + 1, PHANTOM.patch, **FORMS[form])
    fed: nn.Module = network if network.located else WithoutLocation(network)
    return score(fed, PHANTOM, seed, iterations, HOW, form)


def rank(bias: str, anchors: int) -> int:
    """Singular values of the position maps (anchors x voxels) above a millionth of the largest, in float64."""
    location = PatchCoordinates(torch.empty(1, 1, 1, 1, 1)).at((24, 24, 24)).double()
    maps = PositionMaps(anchors, bias).double()(location, even_points(anchors, 3)[None].double() - 0.5)
    values = np.linalg.svd(maps.detach().flatten(2)[0].numpy(), compute_uv=False)
    return int((values > 1e-6 * values[0]).sum())


def tables(groups: Groups) -> Sequence[str]:
    """Dice of each form, and ranks."""
    rows = [[form, *dice_cells(runs), f"{runs[0]['parameters']:,}"] for form, runs in groups.items()]
    ranks = [[anchors, rank("paper", anchors), rank("gauss", anchors)] for anchors in (8, 16, 32)]
    return [
        table(("form", f"Dice, mean of {ORGANS} organs", "per seed", "parameters"), rows),
        table(("position maps", "rank, published form", "rank, Gaussians"), ranks),
    ]


def experiment() -> Experiment:
    """The table."""
    return Experiment("LightMedSeg and the place of a patch", "form", list(FORMS), measure, tables)
