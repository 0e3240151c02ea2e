"""Runs the experiments on the phantom of balls: five tables of rows (a block at a place, a trainer, a network) and
seeds.

    python -m scripts.experiments.balls.grid placement                         # docs/explanation/why-location.md
    python -m scripts.experiments.balls.grid placement --seeds 0 1 2 --rows 'prior|none'
    python -m scripts.experiments.balls.grid recommendation --seeds 0 1 2      # docs/explanation/recommended.md
    python -m scripts.experiments.balls.grid unknown --seeds 0 1 2             # docs/explanation/unknown-location.md
    python -m scripts.experiments.balls.grid methods                           # docs/reference/methods.md
    python -m scripts.experiments.balls.grid anchor_bias                       # docs/explanation/lightmedseg.md

One JSON line per finished run goes into NAME.json beside this script; finished runs are not repeated. Table and picture
are written after the runs; ``--report`` only writes them.
"""

import functools
import importlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from nnunet_locctx.denormals import denormals_flushed
from scripts.benchmarks.harness import OUT_HELP, Record, Records, described_parser, destinations, say
from scripts.experiments.balls.phantom import BallPhantom, Trained, perturbed, train

ITERATIONS = 400


@dataclass(frozen=True)
class Experiment:
    """One table of the grid.

    Attributes:
        key: The field of a record that names its row.
        rows: Names of the rows, in the table's order.
        run: (row, seed, iterations) -> measured record.
        write: (records, iterations, folder of the picture and pages of rows, page in docs) writes the documents.
        page: The page below docs, such as explanation/results.md.
        task: Further fields that every record of this run has, such as the task.
        budget: Whether records name the iterations.
    """

    key: str
    rows: Sequence[str]
    run: Callable[[str, int, int], Record]
    write: Callable[[list[Record], int, Path, Path], None]
    page: str
    task: Record
    budget: bool = True

    def identity(self, row: str, seed: int, iterations: int) -> Record:
        """The fields by which a finished run is found."""
        return {
            **self.task,
            self.key: row,
            "seed": seed,
            **({"iterations": iterations} if self.budget else {}),
        }


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


def grouped(results: list[Record], key: str, rows: Sequence[str], **same: object) -> dict[str, list[Record]]:
    """Runs whose fields are `same`, by row in the table's order, seeds ascending."""
    chosen = [run for run in results if all(run.get(name) == value for name, value in same.items())]
    groups = {row: [run for run in chosen if run[key] == row] for row in rows}
    return {row: sorted(runs, key=lambda run: run["seed"]) for row, runs in groups.items() if runs}


def dice_cells(runs: list[Record], digits: int = 2) -> list[str]:
    """Mean Dice over the seeds, and each seed's."""
    dice = [run["dice"] for run in runs]
    return [f"{np.mean(dice):.{digits}f}", ", ".join(f"{value:.3f}" for value in dice)]


def table_of(name: str, hippocampus: Path | None) -> Experiment:
    """A table by name. Only its module is imported, as nnU-Net reads its folders at import."""
    module = importlib.import_module(f"scripts.experiments.balls.{name}")
    experiment: Experiment = module.experiment(*([hippocampus] if name == "recommendation" else []))
    return experiment


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the missing rows and writes the documents."""
    parser = described_parser(__doc__)
    parser.add_argument("table", choices=("placement", "recommendation", "unknown", "methods", "anchor_bias"))
    parser.add_argument(
        "--rows", default="", help="regular expression; only rows whose name contains a match"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="one run of each row per seed (default: 0)"
    )
    parser.add_argument(
        "--iterations", type=int, default=ITERATIONS, help="training steps (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=OUT_HELP)
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    parser.add_argument("--report", action="store_true", help="only write table and picture")
    where = "recommendation on real scans: folder that holds nnUNet_preprocessed, filled by `locctx study "
    where += "scripts/experiments/real_data/hippocampus.yaml --only preprocess`"
    parser.add_argument("--hippocampus", type=Path, metavar="FOLDER", help=where)
    options = parser.parse_args(arguments)
    if options.hippocampus is not None and options.table != "recommendation":
        parser.error("--hippocampus is for the table recommendation")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, "/nonexistent")  # nnU-Net asks for them
    table = table_of(options.table, options.hippocampus)
    chosen = [row for row in table.rows if re.search(options.rows, row)]
    if not chosen:
        parser.error(f"no row matches {options.rows!r}; see --list")
    if options.list:
        print("\n".join(chosen))
        return
    torch.set_num_threads(options.threads)
    folder, page = destinations(options.out, __file__, table.page)
    store = Records(folder / f"{options.table}.json")
    runs = [] if options.report else [(row, seed) for seed in options.seeds for row in chosen]
    for row, seed in tqdm(runs, desc="runs"):
        identity = table.identity(row, seed, options.iterations)
        if store.find(**identity) is not None:
            continue
        result = {**identity, **table.run(row, seed, options.iterations)}
        store.add(result)
        tqdm.write(f"{row:40} seed {seed}  Dice {result['dice']:.3f}  {result['seconds']:.0f} s")
    table.write(store.records, options.iterations, folder, page)
    if options.table == "methods" and options.out is None:
        from scripts.experiments.balls.collect import collect

        collect()
    say(f"written: {store.file}")


if __name__ == "__main__":
    main()
