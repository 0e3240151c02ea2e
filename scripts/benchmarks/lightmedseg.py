"""LightMedSeg against the planned nnU-Net on a CPU: parameters, multiply-adds, time and peak memory of one patch.

Inference in float32, batch 1, no gradient, 4 image channels and 3 classes as for BraTS. Each network runs in a process
of its own; in a round each runs once, and each round starts with another one. Memory is the peak of a pass minus the
memory of the process with the network. Needs the ``dev`` extra (psutil).

    python -m scripts.benchmarks.lightmedseg                     # 128^3; docs/explanation/lightmedseg.md
    python -m scripts.benchmarks.lightmedseg --patch 64 --page /tmp/page.md      # small, to see that it works
"""

import datetime
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_locctx.networks.lightmedseg import LightMedSeg
from nnunet_locctx.study.seeding import PeakMemory
from scripts.benchmarks.harness import (
    REPOSITORY,
    Clock,
    Record,
    apart,
    command_line,
    describe_machine,
    described_parser,
    planned_unet,
    replace_section,
    rotated,
    say,
    spread,
    table,
)
from scripts.benchmarks.networks import count_operations

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
    network: nn.Module = planned_unet(CHANNELS, CLASSES, FEATURES)
    return network.eval()


def make_input(name: str, patch: int) -> Tensor:
    """Noise, and coordinates for a located network."""
    image = torch.randn(1, CHANNELS, *(patch,) * 3)
    if FORMS.get(name, PAPER).get("coordinates") == "patch":
        return image
    axis = (torch.arange(patch) + 0.5) / (2 * patch) - 0.25
    location = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    return torch.cat([image, location[None]], dim=1)


def count(name: str, patch: int) -> Record:
    """Parameters and multiply-adds for a patch, counted without memory or time (meta device).

    LightMedSeg interpolates by matrix products, so those of convolutions are counted apart.
    """
    with torch.device("meta"):
        return count_operations(make_network(name, patch), make_input(name, patch))


def measure(job: Record) -> Record:
    """Seconds (wall and CPU) of each pass after one to warm up, and the peak memory of the passes."""
    name, patch = job["name"], job["patch"]
    torch.set_num_threads(job["threads"])
    network, x = make_network(name, patch), make_input(name, patch)
    small = make_input(name, 64)
    with torch.inference_mode():
        network(small)  # loads the libraries
        memory = PeakMemory("cpu")
        times = []
        for _ in range(job["passes"]):
            clock = Clock()
            network(x)
            times.append(clock.per(1))
        return {"times": times, "peak": memory.read()}


def cost_table(results: dict[str, list[Record]], patch: int) -> list[str]:
    """Markdown: medians over all passes, and ratios to the planned network."""
    counts = (f"network, {patch}^3", "parameters", "multiply-adds of convolutions", "all that torch counts")
    measures = (
        "CPU time of a pass, s",
        "wall time, s",
        "peak memory, GiB",
        "CPU time, relative",
        "memory, relative",
    )

    def values(name: str, measure: str) -> list[float]:
        if measure == "peak":
            return [run["peak"] / 2**30 for run in results[name]]
        return [time[measure] for run in results[name] for time in run["times"]]

    def median(name: str, measure: str) -> float:
        return statistics.median(values(name, measure))

    rows = []
    for name in NETWORKS:
        counted = count(name, patch)
        row = [
            name,
            f"{counted['parameters'] / 1e6:.3f} M",
            *(f"{counted[key] / 1e9:.2f} G" for key in ("convolutions", "multiply_adds")),
            *(spread(values(name, measure), 2) for measure in ("cpu", "seconds", "peak")),
            *(f"{median(name, measure) / median(PLANNED, measure):.3f}" for measure in ("cpu", "peak")),
        ]
        rows.append(row)
    return table((*counts, *measures), rows)


def main() -> None:
    """Measures every network in turn and writes the table."""
    options = described_parser(__doc__)
    options.add_argument(
        "--patch", type=int, default=128, help="edge, a multiple of 32, at least 64 (default: %(default)s)"
    )
    options.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all)"
    )
    options.add_argument("--rounds", type=int, default=3, help="processes per network (default: %(default)s)")
    options.add_argument("--passes", type=int, default=2, help="passes per process (default: %(default)s)")
    options.add_argument(
        "--page",
        type=Path,
        default=REPOSITORY / "docs" / "explanation" / "lightmedseg.md",
        help="where the table goes",
    )
    arguments = options.parse_args()
    if arguments.patch < 64 or arguments.patch % 32:
        options.error(f"--patch must be a multiple of 32, at least 64; got {arguments.patch}")
    results: dict[str, list[Record]] = {name: [] for name in NETWORKS}
    job = {key: getattr(arguments, key) for key in ("patch", "threads", "passes")}
    order = [name for number in range(arguments.rounds) for name in rotated(NETWORKS, number)]
    for name in tqdm(order, unit="process"):
        results[name].append(apart("lightmedseg.measure", {**job, "name": name}))
    machine = describe_machine("cpu")
    loads = [time["load"] for runs in results.values() for run in runs for time in run["times"]]
    command = command_line("scripts.benchmarks.lightmedseg", None)
    notes = f"""
Measured {datetime.date.today().isoformat()} with `{command}` on
{machine["processor"]}, {machine["memory"]}, torch {machine["versions"]["torch"]}, {arguments.threads} thread(s).
Median (range) of {arguments.rounds} processes with {arguments.passes} passes each. Load average (1 min):
{spread(loads, 1)}; CPU time suffers less from a busy machine than wall time does.
"""
    replace_section(
        arguments.page, BEGIN, END, "\n".join(cost_table(results, arguments.patch)).rstrip() + f"\n{notes}"
    )
    say(f"written to {arguments.page}")


if __name__ == "__main__":
    main()
