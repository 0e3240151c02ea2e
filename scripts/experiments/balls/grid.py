"""Runs the experiments on the phantom of balls: five tables of rows (a block at a place, a trainer, a network) and
seeds.

    python -m scripts.experiments.balls.grid placement                         # docs/explanation/why-location.md
    python -m scripts.experiments.balls.grid placement --seeds 0 1 2 --rows 'prior|none'
    python -m scripts.experiments.balls.grid recommendation --seeds 0 1 2      # docs/explanation/recommended.md
    python -m scripts.experiments.balls.grid unknown --seeds 0 1 2             # docs/explanation/unknown-location.md
    python -m scripts.experiments.balls.grid methods                           # docs/reference/methods.md
    python -m scripts.experiments.balls.grid anchor_bias                       # docs/explanation/lightmedseg.md

One JSON line per finished run goes into NAME.json beside this script; finished runs are not repeated. NAME.md, of all
finished runs, and NAME.png are written after the runs.
"""

import functools
import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from nnunet_locctx.denormals import denormals_flushed
from scripts.benchmarks.harness import Record, Records, describe_machine, described_parser, say, write_page
from scripts.experiments.balls.phantom import BallPhantom, Trained, perturbed, train

TABLES = ("placement", "recommendation", "unknown", "methods", "anchor_bias")
ITERATIONS = 400
Groups = Mapping[str, list[Record]]
"""Row -> its runs, seeds ascending."""


@dataclass(frozen=True)
class Experiment:
    """One table of the grid.

    Attributes:
        title: Of its page.
        key: The field of a record that names its row.
        rows: Names of the rows, in the table's order.
        run: (row, seed, iterations) -> measured record.
        tables: Runs -> what its page shows below the module's docstring.
        draw: (runs, file) draws its picture, if it has one.
        task: Further fields that every record of this run has, such as the task.
        budget: Whether records name the iterations.
    """

    title: str
    key: str
    rows: Sequence[str]
    run: Callable[[str, int, int], Record]
    tables: Callable[[Groups], Sequence[str]]
    draw: Callable[[Groups, Path], None] | None = None
    task: Record = field(default_factory=dict)
    budget: bool = True

    def identity(self, row: str, seed: int, iterations: int) -> Record:
        """The fields by which a finished run is found."""
        budget = {"iterations": iterations} if self.budget else {}
        return {**self.task, self.key: row, "seed": seed, **budget}

    def grouped(self, records: Sequence[Record], iterations: int) -> Groups:
        """The runs of this budget by row, in the table's order."""
        runs = [run for run in records if not self.budget or run["iterations"] == iterations]
        groups = {row: [run for run in runs if run[self.key] == row] for row in self.rows}
        return {row: sorted(own, key=lambda run: run["seed"]) for row, own in groups.items() if own}


@denormals_flushed()
def score(
    network: nn.Module,
    phantom: BallPhantom,
    seed: int,
    iterations: int,
    how: Trained,
    name: str,
    jitter: float = 0.0,
    dropout: float = 0.0,
) -> Record:
    """Trains a network and measures its Dice on unseen volumes."""
    perturb = functools.partial(perturbed, jitter=jitter, dropout=dropout) if jitter or dropout else None
    seconds = train(network, phantom, seed, iterations, how, perturb, name)
    per_organ = phantom.dice_per_organ(network, seed)
    return {
        "dice": round(float(np.mean(per_organ)), 4),
        "dice_per_organ": per_organ,
        "parameters": count(network),
        "seconds": round(seconds, 1),
    }


def count(module: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in module.parameters())


def dice_cells(runs: Sequence[Record], digits: int = 2) -> list[str]:
    """Mean Dice over the seeds, and each seed's; without runs two dashes."""
    dice = [run["dice"] for run in runs]
    return (
        [f"{np.mean(dice):.{digits}f}", ", ".join(f"{value:.3f}" for value in dice)] if dice else ["-", "-"]
    )


def write(
    name: str, experiment: Experiment, records: Sequence[Record], iterations: int, text: str | None
) -> None:
    """NAME.md and NAME.png beside this script."""
    groups = experiment.grouped(records, iterations)
    folder = Path(__file__).resolve().parent
    command = f"Written by `python -m scripts.experiments.balls.grid {name}`; {iterations} iterations of each phantom."
    write_page(folder / f"{name}.md", experiment.title, text, command, *experiment.tables(groups))
    if experiment.draw is not None:
        experiment.draw(groups, folder / f"{name}.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the missing rows and writes the documents."""
    parser = described_parser(__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument(
        "--rows", default="", help="regular expression; only rows whose name contains a match"
    )
    seeds = "one run of each row per seed (default: 0)"
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help=seeds)
    parser.add_argument(
        "--iterations", type=int, default=ITERATIONS, help="training steps (default: %(default)s)"
    )
    where = "recommendation on real scans: folder that holds nnUNet_preprocessed, filled by `locctx study "
    where += "scripts/experiments/real_data/hippocampus.yaml --only preprocess`"
    parser.add_argument("--hippocampus", type=Path, metavar="FOLDER", help=where)
    options = parser.parse_args(arguments)
    if options.hippocampus is not None and options.table != "recommendation":
        parser.error("--hippocampus is for the table recommendation")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, "/nonexistent")  # nnU-Net asks for them
    # only the table's module is imported, as nnU-Net reads its folders at import
    module = importlib.import_module(f"scripts.experiments.balls.{options.table}")
    experiment: Experiment = module.experiment(*([options.hippocampus] if options.hippocampus else []))
    chosen = [row for row in experiment.rows if re.search(options.rows, row)]
    if not chosen:
        parser.error(f"no row matches {options.rows!r}; there are {', '.join(experiment.rows)}")
    torch.set_num_threads(1)
    store = Records(Path(__file__).resolve().with_name(f"{options.table}.json"))
    for row, seed in tqdm([(row, seed) for seed in options.seeds for row in chosen], desc="runs"):
        identity = experiment.identity(row, seed, options.iterations)
        if store.find(**identity) is None:
            result = {
                **identity,
                **experiment.run(row, seed, options.iterations),
                "machine": describe_machine("cpu"),
            }
            store.add(result)
            tqdm.write(f"{row:40} seed {seed}  Dice {result['dice']:.3f}  {result['seconds']:.0f} s")
    write(options.table, experiment, store.records, options.iterations, module.__doc__)
    if options.table == "methods":
        from scripts.experiments.balls.collect import collect

        collect()
    say(f"written: {store.file} and {options.table}.md")


if __name__ == "__main__":
    main()
