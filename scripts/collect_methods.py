"""Gathers the figures that `locctx methods` prints from the files of the benchmarks and experiments.

Reads docs/benchmark_blocks.json, docs/placement.json and docs/recommendation.json, where they exist, and writes
nnunet_locctx/methods/measured.json. The scripts that write the former call it themselves.

    python scripts/collect_methods.py
"""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import benchmark_blocks
import experiment_placement as placement
import experiment_recommendation as recommendation
from benchmark_tools import PLAIN, REPOSITORY, Record, by
from experiment_placement import Row

from nnunet_locctx.blocks import complete_options
from nnunet_locctx.methods import MEASURED_FILE
from nnunet_locctx.methods.description import fittings
from nnunet_locctx.methods.measured import Figures
from nnunet_locctx.nnunet.trainers import TRAINERS
from nnunet_locctx.nnunet.whole_network import WholeNetworkTrainer

ITERATIONS = 400
"""Budget of the runs whose Dice counts."""


def collect(docs: Path = REPOSITORY / "docs", file: Path = MEASURED_FILE) -> None:
    """Writes the file anew."""
    costs = benchmark_blocks.Results(docs / "benchmark_blocks.json")
    place = timed_on(costs)
    runs = list(phantom_runs(docs))
    figures: dict[str, Figures] = {}
    for name in TRAINERS:
        found = Figures(**{**sizes(costs, name), **times(costs, name, place), **effect(runs, name)})
        if found != Figures():
            figures[name] = found
    notes = [*size_note(costs), *time_note(costs, place), *effect_note(figures.values())]
    content = {
        "figures": {
            name: {key: value for key, value in dataclasses.asdict(one).items() if value is not None}
            for name, one in figures.items()
        },
        "notes": notes,
    }
    placement.write_atomically(file, json.dumps(content, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------------------ cost


def sizes(costs: benchmark_blocks.Results, name: str) -> Record:
    """Parameters and multiply-adds, absolute and relative."""
    own, plain = costs.find("size", name), costs.find("size", PLAIN)
    if own is None or plain is None:
        return {}
    found = {key: own["measured"][key] for key in ("parameters", "multiply_adds")}
    relative = {f"{key}_ratio": round(value / plain["measured"][key], 4) for key, value in found.items()}
    return {**found, **relative}


def timed_on(costs: benchmark_blocks.Results) -> str | None:
    """The machine whose times are shown: a GPU where there is one."""
    places = {
        record["place"]: record["key"]["device"] for record in costs.records if record["part"] == "time"
    }
    return min(places, key=lambda place: places[place] != "cuda", default=None)


def times(costs: benchmark_blocks.Results, name: str, place: str | None) -> Record:
    """Time and memory of a training step, relative."""
    if place is None:
        return {}
    found: Record = {}
    timed, watched = costs.find("time", name, place), costs.find("memory", name, place)
    if timed is not None:
        found["step_ratio"] = round(statistics.median(benchmark_blocks.ratios(timed, "step")), 3)
    if watched is not None:
        found["memory_ratio"] = round(benchmark_blocks.memory_ratio(watched), 3)
    return found


def size_note(costs: benchmark_blocks.Results) -> list[str]:
    """What the ratios of parameters and multiply-adds are to."""
    plain = costs.find("size", PLAIN)
    if plain is None:
        return []
    measured, key = plain["measured"], plain["key"]
    note = (
        f"parameters, MACs (multiply-adds): relative to nnU-Net's planned U-Net, {measured['parameters'] / 1e6:.2f} M "
        f"and {measured['multiply_adds'] / 1e9:.1f} G at {by(measured['patch'])} voxels and {key['classes']} classes."
    )
    return [note]


def time_note(costs: benchmark_blocks.Results, place: str | None) -> list[str]:
    """What the times are of."""
    records = [one for one in costs.records if one["part"] == "time" and one["place"] == place]
    if not records:
        return []
    patches = sorted({by(one["measured"]["patch"]) for one in records})
    note = (
        f"step: time of a forward and backward pass relative to the planned U-Net, batch {records[0]['key']['batch']}, "
        f"patch {' or '.join(patches)}, {place}; docs/benchmarks.md has the ranges."
    )
    return [note]


# ---------------------------------------------------------------------------------------------------------- effect


def phantom_runs(docs: Path) -> Iterator[Record]:
    """Runs on the phantom of balls: their network (a Row), seed, Dice and the file they are from."""
    known = {row.name: row for row in (*recommendation.candidates(), *placement.rows())}
    for name in ("placement", "recommendation"):
        for run in placement.load(docs / f"{name}.json"):
            if run.get("iterations", ITERATIONS) != ITERATIONS or run.get("task", "phantom") != "phantom":
                continue
            row = known.get(run["row"])
            if row is None and "block" in run:
                row = Row(run["row"], run["block"], run["place"], run["options"])
            if row is not None:
                yield {"file": name, "row": row, "seed": run["seed"], "dice": run["dice"]}


def effect(runs: Sequence[Record], name: str) -> Record:
    """Mean Dice of the trainer's network with its defaults, and of the plain one, over all seeds; of the files that
    hold both, the one with more seeds."""
    trainer = TRAINERS[name]
    if issubclass(trainer, WholeNetworkTrainer):
        return {}  # none of them is run on the phantom
    wanted = fittings(trainer)
    found: list[Record] = []
    for file in dict.fromkeys(run["file"] for run in runs):
        of_file = [run for run in runs if run["file"] == file]
        own = [run["dice"] for run in of_file if network_of_row(run["row"]) == wanted]
        plain = [run["dice"] for run in of_file if run["row"].block is None]
        if own and plain:
            means = {
                "dice": round(statistics.mean(own), 4),
                "dice_plain": round(statistics.mean(plain), 4),
            }
            found.append({**means, "seeds": len(own)})
    return max(found, key=lambda one: one["seeds"], default={})


def network_of_row(row: Row) -> Any:
    """Blocks, places and all options of a row of an experiment; None: no trainer's (no block, or with jitter)."""
    if row.block is None or row.jitter:
        return None
    return [
        fitted(row.block, row.place, row.options),
        *(fitted(one.block, one.place, dict(one.options)) for one in row.also),
    ]


def fitted(block: str, place: str, options: Record) -> tuple[str, str, Record]:
    """A block with all that decides what it computes."""
    return block, place, complete_options(block, place, options)


def effect_note(figures: Iterable[Figures]) -> list[str]:
    """What the Dice is of."""
    found = [one for one in figures if one.dice is not None]
    if not found:
        return []
    plain = statistics.mean(one.dice_plain or 0.0 for one in found)
    fewest, most = (choose(one.seeds or 0 for one in found) for choose in (min, max))
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    note = (
        f"Dice: mean over the {placement.ORGANS} organs of a phantom, which only their position tells from "
        f"{placement.LOOK_ALIKES} look-alikes; {placement.PATCH}^3 patches, {ITERATIONS} iterations of batch "
        f"{placement.BATCH}, unseen volumes, {seeds} seed(s); the U-Net without location: {plain:.2f}."
    )
    return [note]


if __name__ == "__main__":
    collect()
