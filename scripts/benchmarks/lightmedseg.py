"""LightMedSeg against the planned nnU-Net on a CPU: parameters, multiply-adds, time and peak memory of one patch.

Inference in float32, batch 1, no gradient, 4 image channels and 3 classes as for BraTS. Each network runs in a process
of its own; in a round each runs once, and each round starts with another one. Memory is what a pass needs beyond the
process with the network in it. Needs the ``dev`` extra (psutil).

    python -m scripts.benchmarks.lightmedseg                     # 128^3, writes the table of docs/lightmedseg.md
    python -m scripts.benchmarks.lightmedseg --patch 64 --page /tmp/page.md      # small, to see that it works
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from nnunet_locctx.networks.lightmedseg import LightMedSeg
from scripts.benchmarks.harness import (
    REPOSITORY,
    Clock,
    PeakMemory,
    Record,
    describe_machine,
    replace_section,
    say,
    spread,
)

CHANNELS, CLASSES = 4, 3
FEATURES = (32, 64, 128, 256, 320, 320)
PLANNED = "nnU-Net, planned for 128^3"
PAPER = {"anchors_from": "paper", "bias": "paper", "coordinates": "patch"}
FORMS: dict[str, dict[str, Any]] = {
    "LightMedSeg, published form": PAPER,
    "LightMedSeg, published form, ordinary convolutions": {**PAPER, "ghost": False},
    "LightMedSeg (default: located)": {},
    "LightMedSeg (default: located), ordinary convolutions": {"ghost": False},
}
NETWORKS = (PLANNED, *FORMS)
BEGIN, END = "<!-- cost: begin -->", "<!-- cost: end -->"


def make_network(name: str, patch: int) -> nn.Module:
    """A network of the table, in evaluation mode."""
    if name != PLANNED:
        return LightMedSeg(CHANNELS, CLASSES, (patch,) * 3, **FORMS[name]).eval()
    return PlainConvUNet(
        input_channels=CHANNELS,
        n_stages=len(FEATURES),
        features_per_stage=list(FEATURES),
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1, *[2] * (len(FEATURES) - 1)],
        n_conv_per_stage=2,
        num_classes=CLASSES,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    ).eval()


def make_input(name: str, patch: int) -> Tensor:
    """Noise, and coordinates for a located network."""
    image = torch.randn(1, CHANNELS, *(patch,) * 3)
    if FORMS.get(name, PAPER).get("coordinates") == "patch":
        return image
    axis = (torch.arange(patch) + 0.5) / (2 * patch) - 0.25
    location = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    return torch.cat([image, location[None]], dim=1)


def count(name: str, patch: int) -> Record:
    """Parameters, and multiply-adds for a patch by torch's counter; takes neither memory nor time.

    Those of convolutions and linear layers, and all that it counts: LightMedSeg interpolates by matrix products.
    """
    with torch.device("meta"):
        network, x = make_network(name, patch), make_input(name, patch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x)
    counts = {str(one): number // 2 for one, number in counter.get_flop_counts()["Global"].items()}
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "convolutions": counts["aten.convolution"] + counts.get("aten.addmm", 0),
        "multiply_adds": sum(counts.values()),
    }


def measure(name: str, patch: int, threads: int, passes: int) -> Record:
    """Seconds (wall and CPU) of each pass after one to warm up, and the peak memory of the passes."""
    torch.set_num_threads(threads)
    network, x = make_network(name, patch), make_input(name, patch)
    small = make_input(name, 64)
    with torch.inference_mode():
        network(small)  # loads the libraries
        memory = PeakMemory("cpu")
        times = []
        for _ in range(passes):
            clock = Clock()
            network(x)
            times.append(clock.per(1))
        return {"times": times, "peak": memory.read()}


def table(results: dict[str, list[Record]], patch: int) -> list[str]:
    """Markdown: medians over all passes, and ratios to the planned network."""
    titles = (
        f"network, {patch}^3",
        "parameters",
        "multiply-adds of convolutions",
        "all that torch counts",
        "CPU time of a pass, s",
        "wall time, s",
        "peak memory, GiB",
        "CPU time, relative",
        "memory, relative",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]

    def values(name: str, measure: str) -> list[float]:
        if measure == "peak":
            return [one["peak"] / 2**30 for one in results[name]]
        return [time[measure] for one in results[name] for time in one["times"]]

    def median(name: str, measure: str) -> float:
        return statistics.median(values(name, measure))

    for name in NETWORKS:
        counted = count(name, patch)
        cells = [
            name,
            f"{counted['parameters'] / 1e6:.3f} M",
            *(f"{counted[key] / 1e9:.2f} G" for key in ("convolutions", "multiply_adds")),
            *(spread(values(name, measure), 2) for measure in ("cpu", "seconds", "peak")),
            *(f"{median(name, measure) / median(PLANNED, measure):.3f}" for measure in ("cpu", "peak")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measures every network in turn and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument(
        "--patch", type=int, default=128, help="edge, a multiple of 32, at least 64 (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="processes per network (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=2, help="passes per process (default: %(default)s)")
    parser.add_argument(
        "--page", type=Path, default=REPOSITORY / "docs" / "lightmedseg.md", help="where the table goes"
    )
    parser.add_argument("--one", choices=NETWORKS, help=argparse.SUPPRESS)  # what a child process measures
    arguments = parser.parse_args()
    if arguments.patch < 64 or arguments.patch % 32:
        parser.error(f"--patch must be a multiple of 32, at least 64; got {arguments.patch}")
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.patch, arguments.threads, arguments.passes)))
        return
    results: dict[str, list[Record]] = {name: [] for name in NETWORKS}
    with tqdm(total=arguments.rounds * len(NETWORKS), unit="process") as bar:
        for number in range(arguments.rounds):
            first = number % len(NETWORKS)
            for name in NETWORKS[first:] + NETWORKS[:first]:
                bar.set_postfix_str(name)
                sizes = [f"--{key}={getattr(arguments, key)}" for key in ("patch", "threads", "passes")]
                child = subprocess.run(
                    [sys.executable, "-m", "scripts.benchmarks.lightmedseg", "--one", name, *sizes],
                    cwd=REPOSITORY,
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                results[name].append(json.loads(child.stdout.splitlines()[-1]))
                bar.update()
    machine = describe_machine("cpu")
    loads = [time["load"] for many in results.values() for one in many for time in one["times"]]
    given = " ".join(["python", "-m", "scripts.benchmarks.lightmedseg", *sys.argv[1:]])
    notes = f"""
Measured {datetime.date.today().isoformat()} with `{given}` on
{machine["processor"]}, {machine["memory"]}, torch {machine["versions"]["torch"]}, {arguments.threads} thread(s).
Median (range) of {arguments.rounds} processes with {arguments.passes} passes each. Load average (1 min):
{spread(loads, 1)}; CPU time suffers less from a busy machine than wall time does.
"""
    replace_section(arguments.page, BEGIN, END, "\n".join(table(results, arguments.patch)) + f"\n{notes}")
    say(f"written to {arguments.page}")


if __name__ == "__main__":
    main()
