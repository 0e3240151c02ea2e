"""Measures what InstanceNorm leaves of a patch's position, and the cost of a step of each row of placement.py.

python -m scripts.experiments.balls.mechanism
python -m scripts.experiments.balls.mechanism --costs 'stride 2|prior logits f'
"""

import re
import time
from typing import Literal

import numpy as np
import torch
from torch import nn

from nnunet_locctx.blocks import CoordConvStem
from nnunet_locctx.networks import LocatedUNet
from scripts.benchmarks.harness import described_parser, table
from scripts.experiments.balls.placement import PHANTOM, Row, make_network, rows


@torch.inference_mode()
def forgotten(patch: int, padding: Literal["zeros", "replicate"]) -> tuple[float, float]:
    """The change of a network's first stage, with CoordConv at the input, when a patch moves by half the volume.

    The weights are random; those of the location are as large as those of the image.

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
    x = torch.randn(PHANTOM.batch, 4, *PHANTOM.patch)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds + 1):
        for name, network in networks.items():
            start = time.process_time()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = network(x)
            logits.float().sum().backward()
            seconds[name].append(time.process_time() - start)
    cells = []
    for name, times in seconds.items():  # the first round warms up
        ratios = np.array(times[1:]) / np.array(seconds["none"][1:])
        cells.append([name, f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"])
    print(table(("row", "CPU time of a step, relative"), cells))


def print_mechanism() -> None:
    """The table of docs/explanation/why-location.md on what InstanceNorm leaves of a patch's position."""
    paddings: tuple[Literal["zeros"], Literal["replicate"]] = ("zeros", "replicate")
    cells = [
        [f"{patch}^3", padding, *(f"{change:.1%}" for change in forgotten(patch, padding))]
        for patch in (24, 48, 96)
        for padding in paddings
    ]
    print(table(("patch", "padding of the convolutions", "change inside", "change everywhere"), cells))


def main() -> None:
    """Prints one of the two tables."""
    parser = described_parser(__doc__)
    parser.add_argument("--costs", metavar="ROWS", help="print the CPU time of a step of the rows that match")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.costs is None:
        print_mechanism()
    else:
        print_costs([row for row in rows() if re.search(options.costs, row.name)])


if __name__ == "__main__":
    main()
