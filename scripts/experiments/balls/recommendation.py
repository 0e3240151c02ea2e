"""Which combination of block, place and jitter to recommend? The table behind ``LocCtxTrainer``, for
docs/explanation/recommended.md.

Every candidate and every single method is trained with one budget and three seeds, twice; mean foreground Dice, one
figure per seed:

* on the phantom of balls (24^3 patches, 400 iterations of batch 4), with the Dice under a location that is wrong by a
  constant along the body axis (0 to 25% of the volume);
* with ``--hippocampus`` on Hippocampus MR (16^3 patches, fold 0, 4 epochs of 250 iterations of batch 4) with nnU-Net's
  own trainer, loader, augmentation and validation, without test-time mirroring.
"""

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from nnunet_locctx.networks import Fitting
from scripts.benchmarks.harness import Record, save_figure, table
from scripts.experiments.balls import placement
from scripts.experiments.balls.grid import Experiment, Groups, dice_cells
from scripts.experiments.balls.placement import Row

SHIFTS = (0.0, 0.01, 0.05, 0.10, 0.25)
"""Constant errors of the location along the body axis, fractions of the volume."""

FREQUENCY = {"encoding": "frequency", "stride": 2}
FREE: dict[str, Any] = {**FREQUENCY, "bound": 1e6}
"""The prior block with a practically unbounded scale, used for all rows except the last ones."""
RECOMMENDED = "film decoder_inner + prior logits"
TASKS = ("phantom", "hippocampus")
HIPPOCAMPUS = 201
EPOCHS, ITERATIONS = 4, 250


def candidates() -> list[Row]:
    """The single methods of the trainers, then the combinations."""
    head = Fitting("prior", "logits", FREE)
    coarse_head = Fitting("prior", "logits", {**FREE, "stride": 4})
    last = Fitting("gpe", "decoder_last", {"stride": 2})
    single = [
        Row("none"),
        Row("coordconv input (published)", "coordconv", "input", {"encoding": "identity"}),
        Row("locbam encoder_first (published)", "locbam", "encoder_first", {"faithful": True}),
        Row("gpe stages (published)", "gpe", "stages", {"zero_init": False}),
        Row("gpe stages stride 2", "gpe", "stages", {"stride": 2}),
        Row("locbam decoder", "locbam", "decoder", {}),
        Row("coordconv decoder_last", "coordconv", "decoder_last", FREQUENCY),
        Row("gpe decoder", "gpe", "decoder", {}),
        Row("gpe decoder_last", "gpe", "decoder_last", {}),
        Row("gpe hash decoder", "gpe", "decoder", {"encoding": "hash"}),
        Row("anchors decoder", "anchors", "decoder", {}),
        Row("l2g encoder_deep", "l2g", "encoder_deep", {}),
        Row("prior logits", "prior", "logits", FREE),
    ]
    combined = [
        Row("film decoder", "prior", "decoder", FREE),
        Row("film decoder stride 4", "prior", "decoder", {**FREE, "stride": 4}),
        Row("film decoder_last", "prior", "decoder_last", FREE),
        Row("gpe decoder stride 2", "gpe", "decoder", {"stride": 2}),
        Row("gpe decoder_last stride 2", "gpe", "decoder_last", {"stride": 2}),
        Row("gpe decoder_last + prior logits", "gpe", "decoder_last", {"stride": 2}, (head,)),
        Row("gpe decoder + prior logits", "gpe", "decoder", {"stride": 2}, (head,)),
        Row(RECOMMENDED, "prior", "decoder_inner", FREE, (head,)),
        Row(f"{RECOMMENDED} stride 4", "prior", "decoder_inner", FREE, (coarse_head,)),
        Row("film decoder_inner + gpe decoder_last", "prior", "decoder_inner", FREE, (last,)),
        Row("film decoder + prior logits", "prior", "decoder", FREE, (head,)),
    ]
    jittered = [  # with stride 2 on the logits
        Row(f"{RECOMMENDED}, jitter {sd:g}", "prior", "decoder_inner", FREE, (head,), sd)
        for sd in (0.02, 0.05, 0.1)
    ]
    bound_1, bound_3 = ({**FREQUENCY, "bound": bound} for bound in (1.0, 3.0))
    bounded = [
        Row("prior logits, bound 1", "prior", "logits", bound_1),
        Row("prior logits, bound 3", "prior", "logits", bound_3),
        Row("film decoder, bound 1", "prior", "decoder", bound_1),
    ]
    for name, bound in (("1", bound_1), ("3", bound_3)):
        bounded_head = Fitting("prior", "logits", {**bound, "stride": 4})
        row = f"{RECOMMENDED} stride 4, bound {name}"
        bounded.append(Row(row, "prior", "decoder_inner", bound, (bounded_head,)))
    return [*single, *combined, *jittered, *bounded]


def run_phantom(row: Row, seed: int, iterations: int) -> Record:
    """Dice under every shift."""
    measured, network = placement.run(row, seed, iterations)
    shifts: dict[str, placement.Condition] = {f"{shift:g}": (shift, ()) for shift in SHIFTS[1:]}
    shifted = placement.dice_under(shifts, network, seed) if row.block is not None else {}
    kept = {key: measured[key] for key in ("dice", "block_parameters", "seconds")}
    return {**kept, "shifted": {"0": measured["dice"], **shifted}}


def run_hippocampus(row: Row, seed: int, folder: Path) -> Record:
    """Mean foreground Dice of nnU-Net's validation of fold 0, original grid."""
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_locctx.nnunet.training.trainer import LocatedTrainer

    preprocessed = next((folder / "nnUNet_preprocessed").glob(f"Dataset{HIPPOCAMPUS:03d}_*"))
    plans = load_json(str(preprocessed / "nnUNetPlans_hippocampus-small.json"))
    plans["continue_training"] = False  # nnUNetv2_train sets this key
    base: type[nnUNetTrainer] = nnUNetTrainer
    body: dict[str, Any] = {}
    if row.block is not None:
        base = LocatedTrainer
        body = {"block": row.block, "also": row.also}
        location = {"place": row.place, "block": row.options, "jitter": row.jitter}
        plans["configurations"]["patch16"]["location"] = location
    trainer_class = type("Candidate", (base,), body)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - nnU-Net draws from the global state
    torch.manual_seed(seed)
    start = time.perf_counter()
    dataset = load_json(str(preprocessed / "dataset.json"))
    trainer = trainer_class(plans, "patch16", 0, dataset, torch.device("cpu"))
    trainer.num_epochs, trainer.save_every = EPOCHS, EPOCHS + 1
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = ITERATIONS, 1
    trainer.run_training()
    trained = time.perf_counter() - start
    trainer.inference_allowed_mirroring_axes = None  # eight times faster, the same for all
    trainer.perform_actual_validation()
    summary = load_json(str(Path(trainer.output_folder) / "validation" / "summary.json"))
    return {
        "dice": round(summary["foreground_mean"]["Dice"], 4),
        "dice_per_organ": [round(summary["mean"][label]["Dice"], 4) for label in ("1", "2")],
        "cases": len(summary["metric_per_case"]),
        "seconds": round(trained, 1),
    }


def of_task(groups: Groups, row: str, task: str) -> list[Record]:
    """The runs of a row on a task, seeds ascending."""
    return [run for run in groups.get(row, []) if run["task"] == task]


def shifted_dice(runs: Sequence[Record]) -> list[float]:
    """Mean Dice over the seeds under every shift."""
    return [float(np.mean([run["shifted"][f"{shift:g}"] for run in runs])) for shift in SHIFTS]


def tables(groups: Groups) -> Sequence[str]:
    """Dice on both tasks, and on the phantom under a wrong location (mean over the seeds)."""
    rows, shift_rows = [], []
    for name in groups:
        phantom, hippocampus = (of_task(groups, name, task) for task in TASKS)
        parameters = phantom[0]["block_parameters"] if phantom else "-"
        rows.append([name, *dice_cells(phantom, 3), *dice_cells(hippocampus, 3), parameters])
        runs = [run for run in phantom if len(run["shifted"]) == len(SHIFTS)]
        if runs:
            shift_rows.append([name, *(f"{value:.2f}" for value in shifted_dice(runs))])
    heads = (
        "blocks and places",
        "phantom",
        "per seed",
        "Hippocampus",
        "per seed",
        "parameters added (phantom)",
    )
    wrong = "## A location that is wrong along the body axis (phantom, mean over the seeds)"
    shifts = table(("blocks and places", *(f"{shift:.0%}" for shift in SHIFTS)), shift_rows)
    return [table(heads, rows), wrong, shifts]


DRAWN = {
    "none": ("no location", "#777777"),
    "locbam decoder": ("LocBAMTrainer", "#cc6677"),
    "coordconv decoder_last": ("CoordConvTrainer", "#4477aa"),
    "gpe stages (published)": ("GPE as published", "#aa7744"),
    "gpe hash decoder": ("GPEHashTrainer", "#ddaa33"),
    "anchors decoder": ("AnchorTrainer", "#882255"),
    "prior logits": ("PriorHeadTrainer", "#228833"),
    f"{RECOMMENDED} stride 4": ("LocCtxTrainer", "black"),
}
CURVES = {
    f"{RECOMMENDED} stride 4": ("LocCtxTrainer", "-"),
    **{f"{RECOMMENDED}, jitter {sd:g}": (f"jitter {sd:g}", "--") for sd in (0.02, 0.05, 0.1)},
    "gpe stages (published)": ("GPE as published", ":"),
    "prior logits": ("PriorHeadTrainer", ":"),
}


def draw(groups: Groups, path: Path) -> None:
    """Dice on both tasks, mean and range over the seeds; on the phantom under a wrong location, mean over the seeds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    tasks, curves = figure.subplots(1, 2)
    for row, (label, colour) in DRAWN.items():
        points = [[run["dice"] for run in of_task(groups, row, task)] for task in TASKS]
        if all(points):
            x, y = (float(np.mean(dice)) for dice in points)
            x_error, y_error = ([[np.mean(dice) - min(dice)], [max(dice) - np.mean(dice)]] for dice in points)
            tasks.errorbar(x, y, xerr=x_error, yerr=y_error, fmt="o", color=colour, label=label, capsize=2)
    tasks.set(xlabel="Dice, phantom of balls, 24^3 patches", ylabel="Dice, Hippocampus MR, 16^3 patches")
    for row, (label, style) in CURVES.items():
        runs = of_task(groups, row, "phantom")
        if runs:
            percent = [100 * shift for shift in SHIFTS]
            curves.plot(percent, shifted_dice(runs), style, marker="o", markersize=3, label=label)
    xlabel = "error of the location along the body axis, % of the volume"
    curves.set(xlabel=xlabel, ylabel="Dice, phantom", ylim=(0, 1))
    for axes in (tasks, curves):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save_figure(figure, path, 110)


def experiment(hippocampus: Path | None = None) -> Experiment:
    """The table; `hippocampus` is the folder with the preprocessed scans, None trains on the phantom."""
    by_name = {row.name: row for row in candidates()}
    if hippocampus is not None:
        work = hippocampus.resolve()
        os.environ.update(
            nnUNet_preprocessed=str(work / "nnUNet_preprocessed"),
            nnUNet_results=str(work / "nnUNet_candidates" / str(os.getpid())),
            nnUNet_n_proc_DA="0",  # augmentation in this process: the same seed draws the same patches
            nnUNet_def_n_proc="1",
            nnUNet_compile="f",
        )

    def measure(name: str, seed: int, iterations: int) -> Record:
        row = by_name[name]
        return run_phantom(row, seed, iterations) if hippocampus is None else run_hippocampus(row, seed, work)

    task = {"task": "phantom" if hippocampus is None else "hippocampus"}
    title = "Which combination to recommend"
    return Experiment(title, "row", list(by_name), measure, tables, draw, task, budget=False)
