"""Does a located training leave background behind? Trains a configuration for some steps with nnU-Net's Dice or without
its smoothing and prints loss and Dice; results: take_off.md.

    nnUNet_n_proc_DA=0 python -m scripts.experiments.evidence.take_off -d 905 -p nnUNetPlans_unknown-phantom \\
        -c small_voxel --seed 2 --smoothed
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

from nnunet_locctx.nnunet.training.trainers import find_trainer

EVERY = 125
VALIDATION_BATCHES = 12


def train(options: argparse.Namespace, results: str) -> None:
    """Prints a line every :data:`EVERY` steps; the process needs ``nnUNet_n_proc_DA=0``."""
    folder = Path(str(nnUNet_preprocessed), convert_id_to_dataset_name(options.dataset))
    plans = json.loads((folder / f"{options.plans}.json").read_text())
    dataset = json.loads((folder / "dataset.json").read_text())
    kind = find_trainer(options.trainer)
    assert kind is not None
    kind.smooths = options.smoothed
    random.seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002 - nnU-Net draws from the global state
    torch.manual_seed(options.seed)
    plans["continue_training"] = False
    trainer = kind(plans, options.configuration, 0, dataset, torch.device("cpu"))
    trainer.output_folder = results
    trainer.initialize()
    loaders = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    losses = []
    for step in range(1, options.steps + 1):
        losses.append(float(trainer.train_step(next(loaders[0]))["loss"]))
        if step % EVERY:
            continue
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            outputs = [trainer.validation_step(next(loaders[1])) for _ in range(VALIDATION_BATCHES)]
        trainer.network.train()
        hits, extra, missed = (
            sum(output[key] for output in outputs) for key in ("tp_hard", "fp_hard", "fn_hard")
        )
        dice = 2 * hits / np.maximum(2 * hits + extra + missed, 1)
        print(f"step {step}: loss {np.mean(losses[-EVERY:]):.3f}, Dice {np.round(dice, 2)}", flush=True)


def main() -> None:
    """Reads the options; nnU-Net's three folders come from the environment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-d", "--dataset", type=int, required=True)
    parser.add_argument("-p", "--plans", required=True)
    parser.add_argument("-c", "--configuration", required=True)
    parser.add_argument("--trainer", default="LocCtxTrainer_noMirroring")
    parser.add_argument(
        "--smoothed", action="store_true", help="nnU-Net's Dice, in which absent classes count"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=750)
    with tempfile.TemporaryDirectory() as results:
        train(parser.parse_args(), results)


if __name__ == "__main__":
    main()
