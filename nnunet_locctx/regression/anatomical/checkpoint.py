"""The state of an interrupted fit."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from nnunet_locctx.regression.anatomical.options import AnatomicalOptions

History = dict[str, list[float]]


def save_checkpoint(
    path: Path,
    step: int,
    options: AnatomicalOptions,
    names: list[str],
    network: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    history: History,
) -> None:
    """Writes everything that the next step depends on; an interruption leaves the checkpoint before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {
        "step": step,
        "options": dataclasses.asdict(options),
        "names": names,
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": history,
    }
    temporary = path.with_name(path.name + ".tmp")
    torch.save(stored, temporary)
    temporary.replace(path)


def load_checkpoint(
    path: Path,
    options: AnatomicalOptions,
    names: list[str],
    network: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    history: History,
) -> int:
    """Takes up a checkpoint of the same options and scans, in place.

    Returns:
        Steps done: 0 if there is no such checkpoint. One that does not fit or cannot be read is reported in a printed
        line, and is overwritten by the next one.
    """
    if not path.is_file():
        return 0
    try:
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        fits = stored["options"] == dataclasses.asdict(options) and stored["names"] == names
    except Exception as error:  # zip, pickle and lookup errors, all of which mean the same
        print(f"{path} cannot be read ({error}): the fit starts again")
        return 0
    if not fits:
        print(f"{path} was made with other options or scans: the fit starts again")
        return 0
    network.load_state_dict(stored["network"])
    optimiser.load_state_dict(stored["optimiser"])
    history.update(stored["history"])
    return int(stored["step"])
