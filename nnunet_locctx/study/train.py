"""The job that trains one fold, by nnU-Net's own ``run_training``, seeded: ``python -m nnunet_locctx.study.train RUN
FOLD`` in the study's work folder.

What is trained is not trained again: a finished fold is only recorded, one without its validation is only validated,
one that was interrupted goes on from ``checkpoint_latest.pth``. A folder that was trained with something else is left
alone: what a model was trained with is kept beside it, so that nothing else is ever taken for it.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx.study.cases import SPLITS, read_splits
from nnunet_locctx.study.jobs import Job, Jobs
from nnunet_locctx.study.methods import ITERATIONS_PER_EPOCH, Run
from nnunet_locctx.study.model import Study
from nnunet_locctx.study.seeding import FACTS, SETTINGS, install, run_seeded_ddp
from nnunet_locctx.study.settings import read_object, write_json

FINGERPRINT = "locctx_study.json"
"""In the fold's folder: what the model is trained with, and the epochs at which the training was taken up again."""

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth")
"""They hold work worth keeping."""


def train(study: Study, run: Run, fold: int) -> dict[str, Any]:
    """Trains, goes on, validates or only records, whatever is missing; returns the record.

    Args:
        study: The study.
        run: What to train.
        fold: Number of the fold.

    Raises:
        ValueError: The fold's folder holds a training of something else, or settings cannot be used.
    """
    from nnunet_locctx.nnunet.plans.planning import read_plans

    folder = run.model / f"fold_{fold}"
    data = Job("preprocess", {"data": run.data}).output
    fingerprint = fingerprint_of(
        study,
        run,
        read_plans(study.preprocessed / f"{study.plans}.json"),
        read_splits(study.preprocessed / SPLITS)[fold],
        json.loads((study.work / data).read_text(encoding="utf-8"))["scans"],
    )
    check_fingerprint(folder, fingerprint)
    final, latest = (folder / name for name in CHECKPOINTS)
    if not final.is_file():
        epoch = int(_load(latest)["current_epoch"]) if latest.is_file() else 0
        resumed = [*_resumed_at(folder), epoch] if epoch else []
        write_json(folder / FINGERPRINT, {"version": 1, "fingerprint": fingerprint, "resumed": resumed})
        _run_training(study, run, fold, epoch, resume=bool(epoch))
    elif not (folder / "validation" / "summary.json").is_file():
        print(f"{folder} is trained; validating")
        _run_training(study, run, fold, 0, validate=True)
    else:
        print(f"{folder} is trained and validated")
    return training_record(folder, run.seed)


def _run_training(
    study: Study, run: Run, fold: int, epoch: int, *, resume: bool = False, validate: bool = False
) -> None:
    """nnU-Net's training, from the epoch at which it is taken up."""
    import torch
    from nnunetv2.run import run_training as command

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if study.device == "cuda":
        torch.set_num_interop_threads(1)  # as nnUNetv2_train does
    settings = {"seed": run.seed, "epoch": epoch, "epochs": run.method.epochs}
    os.environ[SETTINGS] = json.dumps(settings)
    if study.gpus > 1:
        command.run_ddp = run_seeded_ddp  # started by its name in processes that know nothing of this one
    else:
        install(**settings)
    command.run_training(
        study.dataset,
        run.configuration,
        fold,
        run.method.trainer,
        study.plans,
        num_gpus=study.gpus,
        continue_training=resume,
        only_run_validation=validate,
        device=torch.device(study.device),
    )


def fingerprint_of(
    study: Study,
    run: Run,
    plans: Mapping[str, Any],
    split: Mapping[str, Sequence[str]],
    scans: Mapping[str, str],
) -> dict[str, Any]:
    """Everything a training of a study depends on, as JSON holds it.

    Args:
        study: The study.
        run: What is trained.
        plans: The study's plans.
        split: Cases to train and to validate with.
        scans: Case -> fingerprint of the raw files that its preprocessed data was made from.
    """
    from nnunet_locctx.nnunet.options import LocationOptions
    from nnunet_locctx.nnunet.plans.planning import resolve
    from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
    from nnunet_locctx.nnunet.training.trainers import find_trainer

    configuration = resolve(dict(plans), run.configuration)
    trainer = find_trainer(run.method.trainer)
    location = LocationOptions.from_configuration(configuration)
    if trainer is not None and issubclass(trainer, LocatedTrainer):
        location = trainer.location_options(configuration)
    content = {
        "configuration": {key: value for key, value in configuration.items() if key != "inherits_from"},
        "transpose_forward": plans["transpose_forward"],
        "trainer": run.method.trainer,
        # the defaults may be others in the next version
        "dropout": location.dropout,
        "unlocated_weight": location.unlocated_weight or 0.0,
        "smoothed_dice": getattr(trainer, "smooths", True),
        "epochs": run.method.epochs,
        "seed": run.seed,
        "gpus": study.gpus,
        "split": {part: sorted(cases) for part, cases in split.items()},
        "scans": {case: scans[case] for part in split.values() for case in sorted(part) if case in scans},
    }
    fingerprint: dict[str, Any] = json.loads(json.dumps(content))
    return fingerprint


def check_fingerprint(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Refuses a fold's folder that holds a training of something else.

    Raises:
        ValueError: Names what differs, or that nobody knows what it was trained with.
    """
    if not any((folder / name).is_file() for name in CHECKPOINTS):
        return
    file = folder / FINGERPRINT
    advice = "Move the folder away, or give the study another name."
    if not file.is_file():
        raise ValueError(
            f"{folder} holds a training that `locctx study` did not start (no {FINGERPRINT}). {advice}"
        )
    # before there were these, no network learned to do without location, and each with nnU-Net's Dice
    before = {
        "unlocated_weight": 0.0,
        "smoothed_dice": True,
        **json.loads(file.read_text(encoding="utf-8"))["fingerprint"],
    }
    # trainings of earlier versions do not say what their scans and their dropout were
    known = {
        key: value for key, value in fingerprint.items() if key not in ("scans", "dropout") or key in before
    }
    different = differences(before, known)
    if different:
        raise ValueError(f"{folder} was trained with something else: {'; '.join(different)}. {advice}")


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two fingerprints, in words."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            text
            for key in sorted({*before, *now})
            for text in differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    texts = [json.dumps(value) for value in (before, now)]
    old, new = (text if len(text) <= 80 else f"{text[:77]}..." for text in texts)
    return [] if before == now else [f"{name}: {old} before, {new} now"]


def training_record(folder: Path, seed: int) -> dict[str, Any]:
    """What is known of a finished training, from the log that nnU-Net keeps in the checkpoint.

    Args:
        folder: Of the fold.
        seed: The run's.
    """
    log = _load(folder / "checkpoint_final.pth")["logging"]
    facts = read_object(folder / FACTS)
    columns = ("train_losses", "val_losses", "dice_per_class_or_region")
    times = ("epoch_start_timestamps", "epoch_end_timestamps")
    epochs: list[dict[str, Any]] = [
        {
            "epoch": number,
            "train_loss": _number(train_loss),
            "val_loss": _number(val_loss),
            "pseudo_dice": [_number(value) for value in dice],
            "seconds": round(float(end) - float(start), 3),
        }
        for number, (train_loss, val_loss, dice, start, end) in enumerate(
            zip(*(log[name] for name in (*columns, *times)), strict=False)
        )
    ]
    return {
        "seconds": round(sum(epoch["seconds"] for epoch in epochs), 3),
        "iterations": len(epochs) * int(facts.get("iterations_per_epoch", ITERATIONS_PER_EPOCH)),
        "seed": seed,
        **{key: facts.get(key) for key in ("device", "gpu", "parameters", "peak_memory")},
        "resumed": _resumed_at(folder),
        "epochs": epochs,
    }


def _resumed_at(folder: Path) -> list[int]:
    return list(read_object(folder / FINGERPRINT).get("resumed", []))


def _load(checkpoint: Path) -> dict[str, Any]:
    import torch

    content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=False)
    return content


def _number(value: Any) -> float | None:
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    run, fold = arguments
    study = Jobs.load().study
    try:
        record = train(study, study.runs[run], int(fold))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(Path(Job("train", {"run": run, "fold": fold}).output), record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
