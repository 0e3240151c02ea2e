"""Gathers the figures that `locctx methods` prints from the files of the benchmarks and experiments.

Reads scripts/benchmarks/blocks.json, methods.json beside the script and the reports of the studies
scripts/experiments/evidence/methods_*.yaml, if they exist, and writes nnunet_locctx/methods/measured.json. The scripts
that write the first two call it themselves.

    python -m scripts.experiments.balls.collect
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from nnunet_locctx.methods.measured import MEASURED_FILE, Figures
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from scripts.benchmarks import blocks as benchmark_blocks
from scripts.benchmarks.harness import PLAIN, REPOSITORY, Record, Records, by, write_json
from scripts.experiments.balls.grid import ITERATIONS
from scripts.experiments.balls.phantom import LOOK_ALIKES, ORGANS

BLOCKS = REPOSITORY / "scripts" / "benchmarks" / "blocks.json"
EVIDENCE = REPOSITORY / "scripts" / "experiments" / "evidence"
METHODS = Path(__file__).with_name("methods.json")
ANATOMY = {"heads": "14 human heads", "mice": "18 mouse brains"}
"""Dataset -> what it shows; ``methods_DATASET`` is the report of its study."""


def collect(
    blocks: Path = BLOCKS, methods: Path = METHODS, file: Path = MEASURED_FILE, evidence: Path = EVIDENCE
) -> None:
    """Writes the file of figures."""
    costs, runs = (
        Records(blocks),
        [run for run in Records(methods).records if run["iterations"] == ITERATIONS],
    )
    place, anatomy = timed_on(costs), on_anatomy(evidence)
    figures: dict[str, Figures] = {}
    for name in TRAINERS:
        real: Record = {data: dice[name] for data, dice in anatomy.items() if name in dice}
        measured = Figures(**sizes(costs, name), **times(costs, name, place), **effect(runs, name), **real)
        if measured != Figures():
            figures[name] = measured
    known = {
        name: {key: value for key, value in dataclasses.asdict(measured).items() if value is not None}
        for name, measured in figures.items()
    }
    notes = [size_note(costs), time_note(costs, place), effect_note(figures.values()), anatomy_note(anatomy)]
    write_json(file, {"figures": known, "notes": [note for note in notes if note]})


# ------------------------------------------------------------------------------------------------------------ cost


def sizes(costs: Records, name: str) -> Record:
    """Parameters and multiply-adds, absolute and relative."""
    own, plain = (costs.find(part="size", trainer=one) for one in (name, PLAIN))
    if own is None or plain is None:
        return {}
    absolute = {key: own["measured"][key] for key in ("parameters", "multiply_adds")}
    relative = {f"{key}_ratio": round(value / plain["measured"][key], 4) for key, value in absolute.items()}
    return {**absolute, **relative}


def timed_on(costs: Records) -> str | None:
    """The machine whose times are shown: preferably a GPU."""
    timed = [record for record in costs.records if record["part"] == "time"]
    places = {record["place"]: record["key"]["device"] for record in timed}
    return min(places, key=lambda place: places[place] != "cuda", default=None)


def times(costs: Records, name: str, place: str | None) -> Record:
    """Time and memory of a training step, relative."""
    timed, watched = (costs.find(part=part, trainer=name, place=place) for part in ("time", "memory"))
    ratios: Record = {}
    if timed is not None:
        ratios["step_ratio"] = round(statistics.median(benchmark_blocks.ratios(timed, "step")), 3)
    if watched is not None:
        ratios["memory_ratio"] = round(benchmark_blocks.memory_ratio(watched), 3)
    return ratios


def size_note(costs: Records) -> str | None:
    """The note on the ratios of parameters and multiply-adds."""
    plain = costs.find(part="size", trainer=PLAIN)
    if plain is None:
        return None
    measured = plain["measured"]
    return (
        f"parameters, MACs (multiply-adds): relative to nnU-Net's planned U-Net, {measured['parameters'] / 1e6:.2f} M "
        f"and {measured['multiply_adds'] / 1e9:.1f} G at {by(measured['patch'])} voxels and {plain['key']['classes']} "
        "classes."
    )


def time_note(costs: Records, place: str | None) -> str | None:
    """The note on the times."""
    records = [run for run in costs.records if run["part"] == "time" and run["place"] == place]
    if not records:
        return None
    patches = sorted({by(run["measured"]["patch"]) for run in records})
    return (
        f"step: time of a forward and backward pass relative to the planned U-Net, batch {records[0]['key']['batch']}, "
        f"patch {' or '.join(patches)}, {place}; asking twice in a step (LocCtxTrainer, PriorHeadTrainer) is not in "
        "it. docs/explanation/benchmarks.md leads to the ranges."
    )


# ---------------------------------------------------------------------------------------------------------- effect


def effect(runs: Sequence[Record], name: str) -> Record:
    """Mean Dice of the trainer's network and of the plain one, over the seeds."""
    own, plain = ([run["dice"] for run in runs if run["trainer"] == trainer] for trainer in (name, PLAIN))
    if not own or not plain:
        return {}
    means = {"dice": statistics.mean(own), "dice_plain": statistics.mean(plain)}
    return {**{key: round(mean, 4) for key, mean in means.items()}, "seeds": len(own)}


def effect_note(figures: Iterable[Figures]) -> str | None:
    """The note on the Dice."""
    scored = [measured for measured in figures if measured.dice is not None]
    if not scored:
        return None
    counts = sorted({measured.seeds or 0 for measured in scored})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"phantom: mean Dice (0-1) over the {ORGANS} organs of a phantom, which only their position tells from "
        f"{LOOK_ALIKES} look-alikes, unseen volumes; every network small and trained for the same {ITERATIONS} "
        f"iterations, {seeds} seed(s); the U-Net without location: {scored[0].dice_plain:.2f}. "
        "docs/reference/methods.md says more."
    )


def on_anatomy(evidence: Path) -> dict[str, Record]:
    """Mean foreground Dice by dataset and trainer, of the studies' reports that exist."""
    reports = {data: evidence / f"methods_{data}" / "overview.csv" for data in ANATOMY}
    return {
        data: pd.read_csv(report).set_index("method")["dice"].dropna().round(4).to_dict()
        for data, report in reports.items()
        if report.is_file()
    }


def anatomy_note(anatomy: Mapping[str, Record]) -> str | None:
    """The note on the Dice of :func:`on_anatomy`."""
    if not anatomy:
        return None
    return (
        f"{', '.join(anatomy)}: mean Dice (0-1) on unseen scans of {' and '.join(ANATOMY[data] for data in anatomy)}, "
        "16^3 patches, every network trained for the same 2000 steps without mirroring, one seed; the U-Net without "
        f"location: {', '.join(f'{dice[PLAIN]:.2f}' for dice in anatomy.values())}. docs/explanation/evidence.md says "
        "more."
    )


if __name__ == "__main__":
    collect()
