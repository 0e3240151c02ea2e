"""Measures the cost of each trainer's network relative to the planned U-Net: parameters, multiply-adds, time, memory.

Networks are built from plans by the trainers themselves, as nnU-Net does, in two settings:

* ``size``: parameters and multiply-adds at 1 x 64 x 128 x 128 and 14 classes, without memory or time (meta device);
* ``time`` and ``memory``: forward pass, and forward with backward pass, at a patch that fits the machine. For the time,
  the plain network and the other one alternate in one process; for the memory, a process has one network.

Time and memory of each network are measured in a process of their own. One JSON line per finished network and part goes
into blocks.json beside the script; a network and part with the same settings and machine is not measured again. Needs
the ``dev`` extra (psutil).

    python -m scripts.benchmarks.blocks                            # all on the CPU; docs/explanation/benchmarks.md
    python -m scripts.benchmarks.blocks --parts size               # counts only
    python -m scripts.benchmarks.blocks --device cuda              # adds the figures of a GPU to the page
    python -m scripts.benchmarks.blocks --quick --networks Prior   # to see that it works; writes below benchmark/
"""

import argparse
import dataclasses
import datetime
import json
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from scripts.benchmarks.harness import (
    OUT_HELP,
    PLAIN,
    REPOSITORY,
    Record,
    Records,
    apart,
    by,
    command_line,
    describe_machine,
    described_parser,
    destinations,
    replace_section,
    say,
    spread,
    table,
)

PARTS = ("size", "time", "memory")
BEGIN, END = "<!-- blocks: begin -->", "<!-- blocks: end -->"
GIB = 2**30


@dataclass(frozen=True)
class Settings:
    """What is measured; sizes in voxels, in array order.

    Attributes:
        planned_for: Patch for which the U-Net is planned and its size is counted.
        patches: Patches for time and memory; each network takes the first one that it accepts.
        features: Channels of the U-Net's stages.
        spacing: Voxel size in mm, that of Synapse after resampling.
        classes: Channels of the logits.
        batch: Patches per batch, for time and memory.
        rounds: Measurements of each time.
        repeats: Passes per measurement.
    """

    planned_for: tuple[int, int, int] = (64, 128, 128)
    patches: tuple[tuple[int, int, int], ...] = ((64, 64, 64), (64, 128, 128))
    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    spacing: tuple[float, float, float] = (3.0, 0.7578, 0.7578)
    classes: int = 14
    batch: int = 1
    rounds: int = 5
    repeats: int = 1

    @classmethod
    def of(cls, device: str, quick: bool) -> "Settings":
        """The settings for a device."""
        if quick:
            patches = ((32, 64, 64), (64, 64, 64), (64, 128, 128))
            return cls(patches=patches, features=(8, 16, 32, 32, 32, 32), rounds=1)
        if device == "cuda":
            return cls(patches=((64, 128, 128),), rounds=10, repeats=5)
        return cls()

    def job(self, part: str, device: str, threads: int) -> Record:
        """The job for ``networks.answer``, without the trainer's name."""
        job = dataclasses.asdict(self)
        patches = [self.planned_for] if part == "size" else self.patches
        only_time = {name: job.pop(name) for name in ("rounds", "repeats")}
        job |= {"part": part, "patches": patches, "device": device, "threads": threads}
        if part == "size":
            job |= {"batch": 1, "device": "cpu", "threads": 0}
        if part == "time":
            job |= only_time
        content: Record = json.loads(json.dumps(job))  # lists, as in the records
        return content


def place_of(machine: Record, device: str, threads: int) -> str:
    """Names the machine in records and on the page."""
    return (
        str(machine["gpu"]).removeprefix("; ")
        if device == "cuda"
        else f"{machine['processor']}, {threads} thread(s)"
    )


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
    results: Records,
    jobs: Sequence[tuple[str, str]],
    settings: Settings,
    device: str,
    threads: int,
    fresh: bool = False,
) -> list[str]:
    """Measures the jobs (part, trainer) that have no record.

    Returns:
        One line for each failed job.
    """
    machine = describe_machine(device)
    place = place_of(machine, device, threads)
    failed = []
    with tqdm(jobs, unit="run") as bar:
        for part, name in bar:
            bar.set_postfix_str(f"{part} {name}")
            job = settings.job(part, device, threads)
            key = {**job, "torch": machine["versions"]["torch"]}
            machine_of = {} if part == "size" else {"place": place}  # sizes are the same on every machine
            finished = results.find(part=part, trainer=name, **machine_of)
            if not fresh and finished is not None and finished["key"] == key:
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


def size_table(results: Records, names: Sequence[str]) -> list[str]:
    """Parameters and multiply-adds."""
    plain = results.find(part="size", trainer=PLAIN)
    rows = []
    for name in names:
        record = results.find(part="size", trainer=name)
        if record is None or plain is None:
            continue
        own, base = record["measured"], plain["measured"]
        relative = {key: f"{own[key] / base[key]:.4f}" for key in ("parameters", "multiply_adds")}
        million, billion = f"{own['parameters'] / 1e6:.3f} M", f"{own['multiply_adds'] / 1e9:.2f} G"
        rows.append([title(name), million, relative["parameters"], billion, relative["multiply_adds"]])
    return table(("network of", "parameters", "relative", "multiply-adds", "relative"), rows)


def time_table(results: Records, names: Sequence[str], place: str) -> list[str]:
    """Seconds and bytes of both passes on one machine; ratios of the same round."""
    passes = ("patch", "forward: s", "relative", "with backward: s", "relative")
    rows = []
    for name in names:
        timed, watched = (results.find(part=part, trainer=name, place=place) for part in ("time", "memory"))
        cells = time_cells(timed) + memory_cells(watched)
        if set(cells) != {"-"}:
            rows.append([title(name), *cells])
    return table(("network of", *passes, "peak memory: GiB", "relative"), rows)


def time_cells(record: Record | None) -> list[str]:
    """Patch, seconds and ratio of each pass."""
    if record is None:
        return ["-"] * 5
    cells = [by(record["measured"]["patch"])]
    for what in ("forward", "step"):
        cells += [spread(record["measured"]["own"][what], 3), spread(ratios(record, what), 3)]
    return cells


def ratios(record: Record, what: str) -> list[float]:
    """Time of a pass relative to the plain network, by round."""
    own, plain = (record["measured"][kind][what] for kind in ("own", "plain"))
    return [a / b for a, b in zip(own, plain, strict=True)]


def memory_ratio(record: Record) -> float:
    """Peak memory of a training step relative to the plain network at the same patch."""
    return float(record["measured"]["own"]["step"] / record["measured"]["plain"]["step"])


def memory_cells(record: Record | None) -> list[str]:
    """Bytes and ratio of a training step."""
    if record is None:
        return ["-"] * 2
    return [f"{record['measured']['own']['step'] / GIB:.2f}", f"{memory_ratio(record):.3f}"]


def title(name: str) -> str:
    """Name of a row."""
    return "planned U-Net (plain nnU-Net)" if name == PLAIN else f"`{name}`"


def report(results: Records, names: Sequence[str], settings: Settings, command: str, quick: bool) -> str:
    """The measured section of the page."""
    versions = {
        name: number for record in results.records for name, number in record["machine"]["versions"].items()
    }
    notes = f"""
Written {datetime.date.today().isoformat()} by `{command}`, nnunet_locctx {version("nnunet_locctx")},
{", ".join(f"{name} {number}" for name, number in versions.items())}.

The planned U-Net is nnU-Net's PlainConvUNet for {by(settings.planned_for)} voxels of
{" x ".join(f"{mm:g}" for mm in settings.spacing)} mm: features {"-".join(map(str, settings.features))}, two
convolutions per stage. {settings.classes} classes, one image channel. Every network is the trainer's own with
its default place and options.

### Parameters and multiply-adds

Of one forward pass at 1 x {by(settings.planned_for)} without deep supervision; parameters include the heads of deep
supervision. Multiply-adds are those of convolutions and matrix products (torch.utils.flop_counter, halved);
interpolation, norms and table look-ups are not counted.
"""
    lines = [*wrapped(notes), "", *size_table(results, names)]
    if quick:
        lines.insert(0, "**Quick run: shows that the script works, says nothing about cost.**\n")
    for place in places(results):
        lines += [*place_notes(results, place), "", *time_table(results, names, place)]
    return "\n".join(lines).rstrip() + "\n"


def place_notes(results: Records, place: str) -> list[str]:
    """Notes on the measurements of one machine."""
    records = [run for run in results.records if run["place"] == place and run["part"] != "size"]
    timed = [record for record in records if record["part"] == "time"]
    key, machine = (timed or records)[0]["key"], records[0]["machine"]
    cuda = key["device"] == "cuda"
    load = max((record["measured"]["load"] for record in timed), default=0.0)
    notes = f"""
### Time and memory: {place}

Batch {key["batch"]}; {"autocast" if cuda else "32 bit"}, no torch.compile. Forward: evaluation mode, no gradients, all
heads. Forward and backward: training mode, deep supervision as the trainer has it, mean square of the logits as loss,
no optimiser. {key.get("rounds", 0)} round(s) of {key.get("repeats", 0)} pass(es) after warming up, the plain network
and the other one alternating in one process; median (range). Ratios are of the same round, so the row of the plain
network against itself is the machine's noise. Peak memory:
{"allocated on the GPU" if cuda else "resident memory added"} by network, activations and gradients of a step, in a
process with this network alone. Machine: {machine["processor"]}; {machine["memory"]}; {machine["system"]};
highest load average (1 min) {load:.1f}.
"""
    return wrapped(notes)


def wrapped(text: str) -> list[str]:
    """Paragraphs in lines of 120 characters; a name is not torn apart."""
    filled = (textwrap.fill(part, 120, break_on_hyphens=False) for part in text.strip().split("\n\n"))
    return "\n\n".join(filled).splitlines()


# ------------------------------------------------------------------------------------------------------------ main


def trainer_names() -> list[str]:
    """The plain trainer first, then all of the package."""
    from nnunet_locctx.nnunet.training.trainers import TRAINERS

    return [PLAIN, *TRAINERS]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    parser.add_argument(
        "--networks",
        default="",
        metavar="REGEX",
        help="only trainers whose name contains a match, and the plain one",
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="for time and memory (default: cpu)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all)")
    parser.add_argument("--rounds", type=int, help="measurements of each time (default: 5, on a GPU 10)")
    parser.add_argument(
        "--patch", type=int, nargs=3, metavar="N", help="patch for time and memory, not the default"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small U-Net, one round; writes below benchmark/quick"
    )
    parser.add_argument("--fresh", action="store_true", help="measure anew what has been measured")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write the page from the records"
    )
    parser.add_argument("--out", type=Path, help=OUT_HELP)
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    try:
        re.compile(options.networks)
    except re.error as error:
        parser.error(f"--networks {options.networks!r} is no regular expression: {error}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measures and writes the page; returns 1 if a network could not be measured."""
    options = parse(arguments)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, str(REPOSITORY / "benchmark" / name))  # not used; nnU-Net warns without
    out = options.out or (REPOSITORY / "benchmark" / "quick" if options.quick else None)
    folder, page = destinations(out, __file__, "explanation/benchmarks.md")
    settings = Settings.of(options.device, options.quick)
    if options.rounds is not None:
        settings = dataclasses.replace(settings, rounds=options.rounds)
    if options.patch is not None:
        settings = dataclasses.replace(settings, patches=(tuple(options.patch),))
    results = Records(folder / "blocks.json")
    names = trainer_names()
    chosen = [name for name in names if name == PLAIN or re.search(options.networks, name)]
    failed: list[str] = []
    if not options.report:
        jobs = [(part, name) for part in options.parts for name in chosen]
        failed = run(results, jobs, settings, options.device, options.threads, options.fresh)
    command = command_line("scripts.benchmarks.blocks", arguments)
    measured = report(results, names, settings, command, options.quick)
    replace_section(page, BEGIN, END, measured)
    print(measured)
    say(f"written to {page}")
    for line in failed:
        say(f"not measured: {line}")
    if options.out is None and not options.quick:
        from scripts.experiments.balls.collect import collect

        collect()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
