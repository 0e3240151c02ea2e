"""Can LightMedSeg use where a patch lies? The published network against the default where only position helps.

The phantom of ``phantom.py`` (balls that look alike; their position tells organs from look-alikes), in
patches that show about one ball at a time. Also prints the numerical rank of the position maps of both forms.

    python -m scripts.experiments.balls.anchor_bias                          # every form, one seed, one CPU thread
    python -m scripts.experiments.balls.anchor_bias --forms default --seeds 0 1

One JSON line per finished run goes into anchor_bias.json beside it; runs found there are not repeated. The table goes
into docs/lightmedseg.md.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_locctx.blocks.anchors import PositionMaps, even_points
from nnunet_locctx.networks.lightmedseg import LightMedSeg, PatchCoordinates
from scripts.benchmarks.harness import OUT_HELP, describe_machine, destinations, replace_section
from scripts.experiments.balls import phantom as ball_phantom
from scripts.experiments.balls import placement
from scripts.experiments.balls.phantom import BallPhantom

FORMS: dict[str, dict[str, Any]] = {
    "published form": {"anchors_from": "paper", "bias": "paper", "coordinates": "patch"},
    "published form, coordinates of the scan": {"anchors_from": "paper", "bias": "paper"},
    "default, coordinates of the patch": {"coordinates": "patch"},
    "default": {},
}
PHANTOM = BallPhantom(patch=(16, 16, 16), batch=16)
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-4
BEGIN, END = "<!-- position: begin -->", "<!-- position: end -->"


class Fed(nn.Module):
    """A network on [image | location]; the location is dropped where it takes none."""

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


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """The same for every form."""
    return torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def run(form: str, seed: int, iterations: int) -> dict[str, Any]:
    """One line of the results."""
    start = time.perf_counter()
    network = make_network(FORMS[form], seed)
    ball_phantom.train(network, PHANTOM, seed, iterations, make_optimizer, name=form)
    per_organ = PHANTOM.dice_per_organ(network, seed)
    return {
        "form": form,
        "seed": seed,
        "iterations": iterations,
        "dice": round(float(np.mean(per_organ)), 4),
        "dice_per_organ": per_organ,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def rank(bias: str, anchors: int) -> int:
    """Singular values of the position maps (anchors x voxels) above a millionth of the largest, in float64."""
    location = PatchCoordinates(torch.empty(1, 1, 1, 1, 1)).at((24, 24, 24)).double()
    maps = PositionMaps(anchors, bias).double()(location, even_points(anchors, 3)[None].double() - 0.5)
    values = np.linalg.svd(maps.detach().flatten(2)[0].numpy(), compute_uv=False)
    return int((values > 1e-6 * values[0]).sum())


def table(results: list[dict[str, Any]], iterations: int, threads: int) -> str:
    """The section of docs/lightmedseg.md."""
    lines = ["| form | Dice, mean of 7 organs | per seed | parameters |", "|---|---|---|---|"]
    for form in FORMS:
        runs = [one for one in results if one["form"] == form and one["iterations"] == iterations]
        if runs:
            runs.sort(key=lambda one: one["seed"])
            dice = [one["dice"] for one in runs]
            per_seed = ", ".join(f"{one:.3f}" for one in dice)
            lines.append(f"| {form} | {np.mean(dice):.2f} | {per_seed} | {runs[0]['parameters']:,} |")
    ranks = "; ".join(f"K = {k}: {rank('paper', k)} against {rank('gauss', k)}" for k in (8, 16, 32))
    machine = describe_machine("cpu")
    notes = f"""
{ball_phantom.ORGANS} organs and {ball_phantom.LOOK_ALIKES} look-alikes per volume of about 50^3 voxels,
{PHANTOM.patch[0]}^3 patches,
{iterations} iterations of batch {PHANTOM.batch}, AdamW {LEARNING_RATE:g} with polynomial decay, bfloat16 autocast,
{ball_phantom.TRAIN_VOLUMES} training volumes; {ball_phantom.TEST_VOLUMES} unseen volumes per seed.
Command: `python -m scripts.experiments.balls.anchor_bias --iterations {iterations}`. Machine:
{machine["processor"]}, {threads} thread(s), torch {machine["versions"]["torch"]}.

Numerical rank of the position maps, published form against Gaussians:
{ranks}.
"""
    return "\n".join(lines) + f"\n{notes}"


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="default: all")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="one run per form and seed (default: 0)"
    )
    parser.add_argument("--iterations", type=int, default=400, help="training steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=OUT_HELP)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder, page = destinations(arguments.out, __file__, "lightmedseg.md")
    store = folder / "anchor_bias.json"
    for seed in arguments.seeds:
        for form in arguments.forms:
            results = placement.load(store)
            if (form, seed, arguments.iterations) in {
                (one["form"], one["seed"], one["iterations"]) for one in results
            }:
                continue
            results.append(run(form, seed, arguments.iterations))
            placement.write_atomically(store, "".join(json.dumps(one) + "\n" for one in results))
            print(results[-1], flush=True)
    text = table(placement.load(store), arguments.iterations, arguments.threads)
    replace_section(page, BEGIN, END, text)
    print(text)


if __name__ == "__main__":
    main()
