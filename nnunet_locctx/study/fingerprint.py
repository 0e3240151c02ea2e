"""What a trained model was trained with, kept beside it, so that nothing else is ever taken for it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_locctx.files import write_atomically

FINGERPRINT = "locctx_study.json"
TRAINED = ("checkpoint_final.pth", "checkpoint_latest.pth")
"""Checkpoints that hold work worth keeping."""


def fingerprint_of(
    plans: Mapping[str, Any],
    configuration: str,
    trainer: str,
    epochs: int,
    seed: int,
    gpus: int,
    split: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything a training of a study depends on, as JSON holds it.

    Args:
        plans: The study's plans.
        configuration: Its name in them.
        split: Cases to train and to validate with.
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
    }
    found: dict[str, Any] = json.loads(json.dumps(content))
    return found


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
    different = differences(there, now)
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
