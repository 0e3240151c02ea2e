"""The job that trains: ``python -m nnunet_locctx.study.train ...``; one fold, by nnU-Net's own
``run_training``, seeded.

What is trained is not trained again: a finished fold is only recorded, one without its validation is only validated,
one that was interrupted goes on from ``checkpoint_latest.pth``. A folder that was trained with something else is left
alone: what a model was trained with is kept beside it, so that nothing else is ever taken for it.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx.files import write_atomically
from nnunet_locctx.study.cases import SPLITS, read_splits
from nnunet_locctx.study.methods import ITERATIONS_PER_EPOCH
from nnunet_locctx.study.seeding import FACTS, SETTINGS, install, run_seeded_ddp

FINGERPRINT = "locctx_study.json"
TRAINED = ("checkpoint_final.pth", "checkpoint_latest.pth")
"""Checkpoints that hold work worth keeping."""


def train(options: argparse.Namespace) -> None:
    """Trains, goes on, validates or only records, whatever is missing.

    Raises:
        ValueError: The fold's folder holds a training of something else, or settings cannot be used.
    """
    from nnunet_locctx.nnunet.plans.planning import read_plans

    preprocessed = Path(os.environ["nnUNet_preprocessed"]) / options.dataset
    plans = read_plans(preprocessed / f"{options.plans}.json")
    split = read_splits(preprocessed / SPLITS)[options.fold]
    scans = json.loads(Path(options.data).read_text(encoding="utf-8"))["scans"]
    now = fingerprint_of(
        plans,
        options.configuration,
        options.trainer,
        options.epochs,
        options.seed,
        options.gpus,
        split,
        scans,
    )
    model = f"{options.trainer}__{options.plans}__{options.configuration}"
    folder = Path(os.environ["nnUNet_results"]) / options.dataset / model / f"fold_{options.fold}"
    check_fingerprint(folder, now)
    final, latest = folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"
    if final.is_file():
        if (folder / "validation" / "summary.json").is_file():
            print(f"{folder} is trained and validated")
        else:
            print(f"{folder} is trained; validating")
            _run(options, 0, validate=True)
    else:
        epoch = _epoch(latest) if latest.is_file() else 0
        write_fingerprint(folder, now, [*resumed_at(folder), epoch] if epoch else [])
        _run(options, epoch, resume=bool(epoch))
    record = training_record(folder, options.seed)
    write_atomically(Path(options.record), (json.dumps(record, indent=1) + "\n").encode())


def _epoch(checkpoint: Path) -> int:
    import torch

    return int(torch.load(checkpoint, map_location="cpu", weights_only=False)["current_epoch"])


def _run(options: argparse.Namespace, epoch: int, *, resume: bool = False, validate: bool = False) -> None:
    import torch
    from nnunetv2.run import run_training as command

    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    if options.device == "cuda":
        torch.set_num_interop_threads(1)  # as nnUNetv2_train does
    os.environ[SETTINGS] = json.dumps({"seed": options.seed, "epoch": epoch, "epochs": options.epochs})
    if options.gpus > 1:
        command.run_ddp = run_seeded_ddp  # started by its name in processes that know nothing of this one
    else:
        install(options.seed, epoch, options.epochs)
    command.run_training(
        options.dataset,
        options.configuration,
        options.fold,
        options.trainer,
        options.plans,
        num_gpus=options.gpus,
        continue_training=resume,
        only_run_validation=validate,
        device=torch.device(options.device),
    )


def fingerprint_of(
    plans: Mapping[str, Any],
    configuration: str,
    trainer: str,
    epochs: int,
    seed: int,
    gpus: int,
    split: Mapping[str, Any],
    scans: Mapping[str, str],
) -> dict[str, Any]:
    """Everything a training of a study depends on, as JSON holds it.

    Args:
        plans: The study's plans.
        configuration: Its name in them.
        split: Cases to train and to validate with.
        scans: Case -> fingerprint of the raw files that its preprocessed data was made from.
    """
    from nnunet_locctx.nnunet.plans.planning import resolve

    content = {
        "configuration": {
            k: v for k, v in resolve(dict(plans), configuration).items() if k != "inherits_from"
        },
        "transpose_forward": plans["transpose_forward"],
        "trainer": trainer,
        "epochs": epochs,
        "seed": seed,
        "gpus": gpus,
        "split": {part: sorted(cases) for part, cases in split.items()},
        "scans": {case: scans[case] for part in split.values() for case in sorted(part) if case in scans},
    }
    fingerprint: dict[str, Any] = json.loads(json.dumps(content))
    return fingerprint


def differences(there: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two fingerprints, in words."""
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        keys = sorted({*there, *now})
        return [
            text
            for key in keys
            for text in differences(there.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    if there == now:
        return []
    return [f"{name}: {_short(there)} there, {_short(now)} now"]


def check_fingerprint(folder: Path, now: Mapping[str, Any]) -> None:
    """Refuses a fold's folder that holds a training of something else.

    Raises:
        ValueError: Names what differs, or that nobody knows what it was trained with.
    """
    if not any((folder / name).is_file() for name in TRAINED):
        return
    file = folder / FINGERPRINT
    move = "Move the folder away, or give the study another name."
    if not file.is_file():
        raise ValueError(
            f"{folder} holds a training that `locctx study` did not start (no {FINGERPRINT}). {move}"
        )
    there = json.loads(file.read_text(encoding="utf-8"))["fingerprint"]
    # trainings of earlier versions do not say what their scans were
    different = differences(
        there, {key: value for key, value in now.items() if key != "scans" or key in there}
    )
    if different:
        raise ValueError(f"{folder} was trained with something else: {'; '.join(different)}. {move}")


def write_fingerprint(folder: Path, now: Mapping[str, Any], resumed: list[int]) -> None:
    """Keeps it beside the model, with the epochs at which the training was taken up again."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"version": 1, "fingerprint": now, "resumed": resumed}
    write_atomically(folder / FINGERPRINT, (json.dumps(content, indent=1) + "\n").encode())


def resumed_at(folder: Path) -> list[int]:
    """The epochs at which the training was taken up again."""
    file = folder / FINGERPRINT
    return list(json.loads(file.read_text(encoding="utf-8")).get("resumed", [])) if file.is_file() else []


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def training_record(folder: Path, seed: int) -> dict[str, Any]:
    """What is known of a finished training, from the log that nnU-Net keeps in the checkpoint.

    Args:
        folder: Of the fold.
        seed: The study's.
    """
    import torch

    checkpoint = torch.load(folder / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    log: Mapping[str, Sequence[Any]] = checkpoint["logging"]
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8")) if (folder / FACTS).is_file() else {}
    epochs: list[dict[str, Any]] = []
    columns = (
        "train_losses",
        "val_losses",
        "dice_per_class_or_region",
        "epoch_start_timestamps",
        "epoch_end_timestamps",
    )
    for number, row in enumerate(zip(*(log[name] for name in columns), strict=False)):
        train_loss, val_loss, dice, start, end = row
        epochs.append(
            {
                "epoch": number,
                "train_loss": _number(train_loss),
                "val_loss": _number(val_loss),
                "pseudo_dice": [_number(value) for value in dice],
                "seconds": round(float(end) - float(start), 3),
            }
        )
    return {
        "seconds": round(sum(float(epoch["seconds"]) for epoch in epochs), 3),
        "iterations": len(epochs) * int(facts.get("iterations_per_epoch", ITERATIONS_PER_EPOCH)),
        "seed": seed,
        "device": facts.get("device"),
        "gpu": facts.get("gpu"),
        "parameters": facts.get("parameters"),
        "resumed": resumed_at(folder),
        "epochs": epochs,
    }


def _number(value: Any) -> float | None:
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("dataset", "plans", "configuration", "trainer", "device", "data", "record"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("fold", "epochs", "seed", "gpus"):
        parser.add_argument(f"--{name}", type=int, required=True)
    try:
        train(parser.parse_args(arguments))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
