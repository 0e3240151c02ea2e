"""LightMedSeg against the planned nnU-Net on a CPU: parameters, multiply-adds, time and peak memory of one patch.

Inference in float32, 128^3 voxels, batch 1, no gradient, 4 image channels and 3 classes as for BraTS. Each network runs
in a process of its own; in a round each runs once, and each round starts with another one. Memory is the peak of a pass
minus the memory of the process with the network. CPU time suffers less from a busy machine than wall time does. Needs
the ``dev`` extra (psutil).

    python -m scripts.benchmarks.lightmedseg      # writes lightmedseg.json and lightmedseg.md beside the script
"""

import datetime
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_locctx.networks.lightmedseg import LightMedSeg
from nnunet_locctx.study.seeding import PeakMemory
from scripts.benchmarks.harness import (
    Clock,
    Record,
    apart,
    describe_machine,
    described_parser,
    measured_on,
    planned_unet,
    rotated,
    spread,
    table,
    write_json,
    write_page,
)
from scripts.benchmarks.networks import count_operations, whole_volume

CHANNELS, CLASSES, PATCH, PASSES = 4, 3, 128, 2
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


def make_network(name: str) -> nn.Module:
    """A network of the table, in evaluation mode."""
    planned = name == PLANNED
    network: nn.Module = (
        planned_unet(CHANNELS, CLASSES, FEATURES)
        if planned
        else LightMedSeg(CHANNELS, CLASSES, (PATCH,) * 3, **FORMS[name])
    )
    return network.eval()


def make_input(name: str, patch: int = PATCH) -> Tensor:
    """Noise, and the location of a patch that is the whole volume for a located network."""
    image = torch.randn(1, CHANNELS, *(patch,) * 3)
    located = FORMS.get(name, PAPER).get("coordinates") != "patch"
    return torch.cat([image, whole_volume((patch,) * 3)[None]], dim=1) if located else image


def measure(job: Record) -> Record:
    """Seconds (wall and CPU) of each pass after one to warm up, and the peak memory of the passes."""
    name = job["name"]
    torch.set_num_threads(job["threads"])
    network, x, small = make_network(name), make_input(name), make_input(name, 64)
    with torch.inference_mode():
        network(small)  # loads the libraries
        memory = PeakMemory("cpu")
        times = []
        for _ in range(PASSES):
            clock = Clock()
            network(x)
            times.append(clock.per(1))
        return {"times": times, "peak": memory.read()}


def cost_table(results: Mapping[str, Sequence[Record]], counts: Mapping[str, Record]) -> str:
    """Median (range) over all passes, and ratios of the medians to the planned network."""
    measures: dict[str, dict[str, list[float]]] = {
        name: {
            "CPU time of a pass, s": [time["cpu"] for run in runs for time in run["times"]],
            "wall time, s": [time["seconds"] for run in runs for time in run["times"]],
            "peak memory, GiB": [run["peak"] / 2**30 for run in runs],
        }
        for name, runs in results.items()
    }
    relative = {"CPU time, relative": "CPU time of a pass, s", "memory, relative": "peak memory, GiB"}
    rows = []
    for name, counted in counts.items():
        row = [name, f"{counted['parameters'] / 1e6:.3f} M"]
        row += [f"{counted[key] / 1e9:.2f} G" for key in ("convolutions", "multiply_adds")]
        row += [spread(values, 2) for values in measures[name].values()]
        medians = [
            [statistics.median(measures[one][key]) for one in (name, PLANNED)] for key in relative.values()
        ]
        rows.append([*row, *(f"{own / planned:.3f}" for own, planned in medians)])
    counted_heads = ("parameters", "multiply-adds of convolutions", "all that torch counts")
    return table((f"network, {PATCH}^3", *counted_heads, *measures[PLANNED], *relative), rows)


def main() -> None:
    """Measures every network in turn and writes the table."""
    parser = described_parser(__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="processes per network (default: %(default)s)")
    options = parser.parse_args()
    counts = {}
    for name in NETWORKS:  # without memory or time; LightMedSeg interpolates by matrix products
        with torch.device("meta"):
            counts[name] = count_operations(make_network(name), make_input(name))
    results: dict[str, list[Record]] = {name: [] for name in NETWORKS}
    for name in tqdm([name for number in range(options.rounds) for name in rotated(NETWORKS, number)]):
        results[name].append(apart("lightmedseg.measure", {"threads": options.threads, "name": name}))
    machine, file = describe_machine("cpu"), Path(__file__).resolve()
    record = {"date": str(datetime.date.today()), "machine": machine, "options": vars(options)}
    write_json(file.with_suffix(".json"), {**record, "counts": counts, "results": results})
    loads = [time["load"] for runs in results.values() for run in runs for time in run["times"]]
    notes = f"{options.threads} thread(s), {options.rounds} processes of {PASSES} passes"
    machine_line = measured_on(machine, notes, f"load average (1 min) {spread(loads, 1)}")
    tables = cost_table(results, counts)
    write_page(file.with_suffix(".md"), "Cost of LightMedSeg", __doc__, machine_line, tables)


if __name__ == "__main__":
    main()
