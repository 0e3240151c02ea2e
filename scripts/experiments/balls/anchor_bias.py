"""Compares the published LightMedSeg with the default on the phantom: can it use the place of a patch? See grid.py.

In patches that show about one ball at a time. The table also has the numerical rank of the position maps of both forms.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_locctx.blocks.anchors import PositionMaps, even_points
from nnunet_locctx.networks.lightmedseg import LightMedSeg, PatchCoordinates
from scripts.benchmarks import harness
from scripts.benchmarks.harness import Record, describe_machine, replace_section
from scripts.experiments.balls import phantom as ball_phantom
from scripts.experiments.balls.grid import Experiment, dice_cells, grouped, score
from scripts.experiments.balls.phantom import BallPhantom, Trained

FORMS: dict[str, dict[str, Any]] = {
    "published form": {"anchors_from": "paper", "bias": "paper", "coordinates": "patch"},
    "published form, coordinates of the scan": {"anchors_from": "paper", "bias": "paper"},
    "default, coordinates of the patch": {"coordinates": "patch"},
    "default": {},
}
PHANTOM = BallPhantom(patch=(16, 16, 16), batch=16)
HOW = Trained(2e-3, 1e-4)
BEGIN, END = "<!-- position: begin -->", "<!-- position: end -->"


class Fed(nn.Module):
    """A network on [image | location]; the location is dropped for a network without location."""

    def __init__(self, network: LightMedSeg) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + 3, *patch) -> (B, classes, *patch)."""
        return self.network(x if self.network.located else x[:, :1])


def make_network(options: dict[str, Any], seed: int) -> nn.Module:
    """One form of LightMedSeg for the phantom."""
    torch.manual_seed(seed)
    return Fed(LightMedSeg(1, ball_phantom.ORGANS + 1, PHANTOM.patch, **options))


def rank(bias: str, anchors: int) -> int:
    """Singular values of the position maps (anchors x voxels) above a millionth of the largest, in float64."""
    location = PatchCoordinates(torch.empty(1, 1, 1, 1, 1)).at((24, 24, 24)).double()
    maps = PositionMaps(anchors, bias).double()(location, even_points(anchors, 3)[None].double() - 0.5)
    values = np.linalg.svd(maps.detach().flatten(2)[0].numpy(), compute_uv=False)
    return int((values > 1e-6 * values[0]).sum())


def table(results: list[Record], iterations: int) -> str:
    """The section of docs/explanation/lightmedseg.md."""
    groups = grouped(results, "form", list(FORMS), iterations=iterations)
    rows = [[form, *dice_cells(runs), f"{runs[0]['parameters']:,}"] for form, runs in groups.items()]
    lines = harness.table(("form", "Dice, mean of 7 organs", "per seed", "parameters"), rows)
    ranks = "; ".join(f"K = {k}: {rank('paper', k)} against {rank('gauss', k)}" for k in (8, 16, 32))
    machine = describe_machine("cpu")
    notes = f"""
{ball_phantom.ORGANS} organs and {ball_phantom.LOOK_ALIKES} look-alikes per volume of about 50^3 voxels,
{PHANTOM.patch[0]}^3 patches,
{iterations} iterations of batch {PHANTOM.batch}, AdamW {HOW.learning_rate:g} with polynomial decay, bfloat16 autocast,
{ball_phantom.TRAIN_VOLUMES} training volumes; {ball_phantom.TEST_VOLUMES} unseen volumes per seed.
Command: `python -m scripts.experiments.balls.grid anchor_bias --iterations {iterations}`. Machine:
{machine["processor"]}, {torch.get_num_threads()} thread(s), torch {machine["versions"]["torch"]}.

Numerical rank of the position maps, published form against Gaussians:
{ranks}.
"""
    return "\n".join(lines[:-1]) + f"\n{notes}"


def experiment() -> Experiment:
    """The table."""

    def measure(form: str, seed: int, iterations: int) -> Record:
        return score(make_network(FORMS[form], seed), PHANTOM, seed, iterations, HOW, form)

    def write(results: list[Record], iterations: int, folder: Path, page: Path) -> None:
        replace_section(page, BEGIN, END, table(results, iterations))

    return Experiment("form", list(FORMS), measure, write, "explanation/lightmedseg.md", {})
