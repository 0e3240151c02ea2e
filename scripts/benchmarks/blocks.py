"""Measures the cost of each trainer's network relative to the planned U-Net: parameters, multiply-adds, time, memory.

The planned U-Net is nnU-Net's PlainConvUNet for 64x128x128 voxels of 3 x 0.7578 x 0.7578 mm: features
32-64-128-256-320-320, two convolutions per stage; 14 classes, one image channel. Every network is built from plans by
its trainer, as nnU-Net does, with its default place and options.

* size: parameters (with the heads of deep supervision) and multiply-adds of one forward pass at 1 x 64x128x128 without
  deep supervision: those of convolutions and matrix products (torch.utils.flop_counter, halved); interpolation, norms
  and table look-ups are not counted.
* time: forward in evaluation mode without gradients, and forward and backward in training mode with the mean square of
  the logits as loss, no optimiser; batch 1, 32 bit (GPU: autocast), no torch.compile. The plain network and the other
  one alternate in one process after warming up; ratios are of the same round, so the row of the plain network against
  itself is the machine's noise. The patch is the first of 64x64x64 and 64x128x128 (GPU: the second) that fits.
* memory: peak of network, activations and gradients of a step, in a process with this network alone; resident memory,
  on a GPU the allocated one.

One JSON line per finished network and part goes into blocks.json beside the script; a network and part with the same
settings and machine is not measured again. Needs the ``dev`` extra (psutil).

    python -m scripts.benchmarks.blocks                    # all on the CPU; writes blocks.md beside the script
    python -m scripts.benchmarks.blocks --parts size       # counts only
    python -m scripts.benchmarks.blocks --device cuda      # adds the figures of a GPU
"""

import argparse
import datetime
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from scripts.benchmarks.harness import (
    PLAIN,
    Record,
    Records,
    apart,
    by,
    describe_machine,
    described_parser,
    measured_on,
    say,
    spread,
    table,
    write_page,
)

PARTS = ("size", "time", "memory")
PLANNED_FOR = [64, 128, 128]
SETTINGS: Record = {
    "planned_for": PLANNED_FOR,
    "features": [32, 64, 128, 256, 320, 320],
    "spacing": [3.0, 0.7578, 0.7578],
    "classes": 14,
    "batch": 1,
}
PATCHES = {"cpu": [[64, 64, 64], PLANNED_FOR], "cuda": [PLANNED_FOR]}
"""Patches for time and memory; each network takes the first one that it accepts."""

ROUNDS = {"cpu": {"rounds": 5, "repeats": 1}, "cuda": {"rounds": 10, "repeats": 5}}
"""Measurements of each time, and passes per measurement."""


def make_job(part: str, device: str, threads: int, rounds: int | None = None) -> Record:
    """The job for ``networks.answer``, without the trainer's name."""
    if part == "size":
        return {**SETTINGS, "part": part, "patches": [PLANNED_FOR], "device": "cpu", "threads": 0}
    job = {**SETTINGS, "part": part, "patches": PATCHES[device], "device": device, "threads": threads}
    return job if part == "memory" else {**job, **ROUNDS[device], **({"rounds": rounds} if rounds else {})}


def measure(job: Record) -> Record:
    """Measures one job: the time in its own process, the memory in two, of which one has the plain network at the same
    patch.

    Raises:
        RuntimeError: A process failed; the message contains its output.
    """
    if job["part"] == "size":
        from scripts.benchmarks.networks import answer

        return answer(job)
    own = apart("networks.answer", job)
    if job["part"] == "time":
        return own
    plain = apart("networks.answer", {**job, "trainer": PLAIN, "patches": [own["patch"]]})
    return {"patch": own["patch"], "own": own, "plain": plain}


def run(
    results: Records, tasks: Sequence[tuple[str, str]], device: str, threads: int, rounds: int | None = None
) -> list[str]:
    """Measures the tasks (part, trainer) that have no record.

    Returns:
        One line for each failed task.
    """
    machine = describe_machine(device)
    place = machine["gpu"] or f"{machine['processor']}, {threads} thread(s)"
    failed = []
    for part, name in tqdm(tasks, unit="run"):
        job = make_job(part, device, threads, rounds)
        key = {**job, "torch": machine["versions"]["torch"]}
        machine_of = {} if part == "size" else {"place": place}  # sizes are the same on every machine
        finished = results.find(part=part, trainer=name, **machine_of)
        if finished is not None and finished["key"] == key:
            continue
        try:
            measured = measure({**job, "trainer": name})
        except Exception as error:  # a network that cannot be measured does not stop the others
            failed.append(f"{part} {name}: {str(error).strip().splitlines()[-1]}")
            continue
        record = {"trainer": name, "part": part, "place": place, "key": key, "machine": machine}
        record |= {"date": datetime.date.today().isoformat(), "measured": measured}
        results.add(record, "part", "trainer", *machine_of)
    return failed


# ---------------------------------------------------------------------------------------------------------- report


def places(results: Records) -> list[str]:
    """The machines with measured times."""
    return list(dict.fromkeys(record["place"] for record in results.records if record["part"] != "size"))


def size_table(results: Records, names: Sequence[str]) -> str:
    """Parameters and multiply-adds."""
    sizes = {name: found["measured"] for name in names if (found := results.find(part="size", trainer=name))}
    rows = []
    for name, own in sizes.items() if PLAIN in sizes else ():
        parameters, operations = (own[key] / sizes[PLAIN][key] for key in ("parameters", "multiply_adds"))
        million, billion = f"{own['parameters'] / 1e6:.3f} M", f"{own['multiply_adds'] / 1e9:.2f} G"
        rows.append([title(name), million, f"{parameters:.4f}", billion, f"{operations:.4f}"])
    return table(("network of", "parameters", "relative", "multiply-adds", "relative"), rows)


def time_table(results: Records, names: Sequence[str], place: str) -> str:
    """Seconds of both passes and memory of a step on one machine."""
    rows = []
    for name in names:
        timed, watched = (results.find(part=part, trainer=name, place=place) for part in ("time", "memory"))
        cells = ["-"] * 7
        if timed is not None:
            own = timed["measured"]["own"]
            passes = [(spread(own[what], 3), spread(ratios(timed, what), 3)) for what in ("forward", "step")]
            cells[:5] = [by(timed["measured"]["patch"]), *passes[0], *passes[1]]
        if watched is not None:
            cells[5:] = [f"{watched['measured']['own']['step'] / 2**30:.2f}", f"{memory_ratio(watched):.3f}"]
        if set(cells) != {"-"}:
            rows.append([title(name), *cells])
    passes_heads = ("patch", "forward: s", "relative", "with backward: s", "relative")
    return table(("network of", *passes_heads, "peak memory: GiB", "relative"), rows)


def ratios(record: Record, what: str) -> list[float]:
    """Time of a pass relative to the plain network, by round."""
    own, plain = (record["measured"][kind][what] for kind in ("own", "plain"))
    return [a / b for a, b in zip(own, plain, strict=True)]


def memory_ratio(record: Record) -> float:
    """Peak memory of a training step relative to the plain network at the same patch."""
    return float(record["measured"]["own"]["step"] / record["measured"]["plain"]["step"])


def title(name: str) -> str:
    """Name of a row."""
    return "planned U-Net (plain nnU-Net)" if name == PLAIN else f"`{name}`"


def write_report(results: Records, names: Sequence[str]) -> None:
    """The tables beside the records: counts, then times and memory of each machine, median (range) over the rounds."""
    parts = ["## Parameters and multiply-adds", size_table(results, names)]
    for place in places(results):
        of_place = [one for one in results.records if one["place"] == place and one["part"] != "size"]
        timed = [one for one in of_place if one["part"] == "time"]
        load = max((one["measured"]["load"] for one in timed), default=0.0)
        notes = [f"{min(one['date'] for one in of_place)}, highest load average (1 min) {load:.1f}"]
        notes += [f"{one['key']['rounds']} rounds of {one['key']['repeats']} pass(es)" for one in timed[:1]]
        parts += [f"## Time and memory: {place}", measured_on(of_place[0]["machine"], *notes)]
        parts.append(time_table(results, names, place))
    write_page(results.file.with_suffix(".md"), "Cost of the trainers' networks", __doc__, *parts)


# ------------------------------------------------------------------------------------------------------------ main


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    networks = "only trainers whose name contains a match, and the plain one"
    parser.add_argument("--networks", default="", metavar="REGEX", help=networks)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="for time and memory (default: cpu)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all)")
    parser.add_argument("--rounds", type=int, help="measurements of each time (default: 5, on a GPU 10)")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the page; returns 1 if a network could not be measured."""
    options = parse(arguments)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, "/nonexistent")  # not used; nnU-Net warns without
    from nnunet_locctx.nnunet.training.trainers import TRAINERS
    from scripts.experiments.balls.collect import collect

    results = Records(Path(__file__).resolve().with_suffix(".json"))
    names = [PLAIN, *TRAINERS]
    chosen = [name for name in names if name == PLAIN or re.search(options.networks, name)]
    tasks = [(part, name) for part in options.parts for name in chosen]
    failed = run(results, tasks, options.device, options.threads, options.rounds)
    write_report(results, names)
    for line in failed:
        say(f"not measured: {line}")
    say(f"written: {results.file} and blocks.md")
    collect()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
