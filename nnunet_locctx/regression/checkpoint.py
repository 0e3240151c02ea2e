"""The state of an interrupted fit."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from nnunet_locctx.files import write_atomically

CHECKPOINT = "checkpoint.pt"


def content(*arrays: npt.NDArray[Any] | None) -> str:
    """Tells what scans hold, for the identity of a fit: equal for equal arrays alone."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none;")
            continue
        digest.update(f"{array.dtype.str}{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def diverged(loss: float, step: int, learning_rate: float) -> ValueError:
    """The error of a fit whose loss is not finite."""
    return ValueError(
        f"the loss is {loss} at step {step}: the learning rate {learning_rate:g} is too high; fit again with a lower "
        "learning rate"
    )


def save_checkpoint(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Writes everything that the next step depends on; an interruption leaves the checkpoint before.

    Args:
        path: Of the checkpoint.
        identity: What the result of the fit depends on, as plain values.
        state: Tensors and plain values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # to a file, torch does not say that the disk is full
    torch.save({"identity": dict(identity), **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of a fit of the same identity; None if there is none.

    A checkpoint that does not fit or cannot be read is reported in a printed line, and is overwritten by the next one.
    """
    if not path.is_file():
        return None
    try:
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        fits = stored["identity"] == dict(identity)
    except Exception as error:  # zip, pickle and lookup errors, all of which mean the same
        print(f"{path} cannot be read ({error}): starting again")
        return None
    if not fits:
        print(f"{path} was made with other options or scans: starting again")
        return None
    return stored
