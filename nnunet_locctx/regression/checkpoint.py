"""Runs the steps of a fit: shows progress, estimates the time and saves checkpoints."""

import hashlib
import io
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from nnunet_locctx.files import write_atomically

CHECKPOINT = "checkpoint.pt"

SAVE_SECONDS = 60.0
"""Time after which the next finished step is followed by a checkpoint."""

TIMED_STEPS = 10
"""Number of steps from which the time of the fit is estimated; the first step is not timed, as torch warms up in it."""

State = TypeVar("State")


def content(*arrays: npt.NDArray[Any] | None) -> str:
    """A digest of arrays, for the identity of a fit."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none;")
            continue
        digest.update(f"{array.dtype.str}{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def require_finite(loss: float, step: int, learning_rate: float) -> None:
    """Raises ValueError for a loss that is not finite."""
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss is {loss} at step {step}: the learning rate {learning_rate:g} is too high; fit again "
            "with a lower learning rate"
        )


def descend(
    network: nn.Module, optimiser: Optimizer, loss: Tensor, learning_rate: float, longest: float
) -> None:
    """One step of the optimiser at a learning rate, with gradients clipped to the norm `longest`."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), longest)
    optimiser.step()


class Course:
    """Progress and checkpoint of a fit.

    Args:
        path: Path of the checkpoint.
        identity: Plain values that determine the result of the fit.
        steps: Largest number of steps of the fit.
        name: Displayed name of the fit.
        progress: Show a bar and the estimated time.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], steps: int, name: str, *, progress: bool
    ) -> None:
        self.path, self.identity, self.steps, self.name, self.progress = path, identity, steps, name, progress
        self.bar = tqdm(total=steps, desc=name, disable=not progress)
        self._saved = time.monotonic()
        self._times: list[float] = []

    def resume(self, begin: Callable[[Mapping[str, Any] | None], State]) -> State:
        """The state of the checkpoint if it belongs to this fit, or a new state.

        A printed line names the step at which the fit continues, or the reason for starting again.

        Args:
            begin: Makes the state from the mapping given to :meth:`save`, or a new state from None.
        """
        stored = self._stored()
        if stored is not None:
            try:
                state = begin(stored)
                self.bar.update(stored["step"])
                print(f"continuing at step {stored['step']} of {self.steps} ({self.path})")
                return state
            except Exception as error:  # lookup and shape errors: a checkpoint of another version
                print(f"{self.path} cannot be read ({error}): starting again")
        return begin(None)

    def step_ended(self, finished: int) -> bool:
        """Counts a step; returns whether a checkpoint is due.

        Args:
            finished: Number of finished steps.
        """
        self.bar.update()
        now = time.monotonic()
        if len(self._times) <= TIMED_STEPS:
            self._times.append(now)
            if len(self._times) > TIMED_STEPS and self.progress:
                seconds = (now - self._times[0]) / TIMED_STEPS
                minutes = seconds * (self.steps - finished) / 60
                self.bar.write(
                    f"{self.name}: {seconds:.2g} s a step on this machine, {self.steps - finished} steps to go: "
                    f"{max(1, round(minutes))} min at most"
                )
        return now - self._saved >= SAVE_SECONDS

    def save(self, state: Mapping[str, Any]) -> None:
        """Writes the state of the fit; an interruption leaves the previous checkpoint.

        Args:
            state: Tensors and plain values; ``step`` counts the finished steps.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # writing to a file, torch does not report a full disk
        torch.save({"identity": dict(self.identity), **state}, buffer)
        write_atomically(self.path, buffer.getvalue())
        self._saved = time.monotonic()

    def _stored(self) -> dict[str, Any] | None:
        """The stored state of this fit; None, with a printed line, if the checkpoint belongs to another fit or cannot
        be read."""
        if not self.path.is_file():
            return None
        try:
            stored: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            fits = stored["identity"] == dict(self.identity)
        except Exception as error:  # zip, pickle and lookup errors, all of which mean the same
            print(f"{self.path} cannot be read ({error}): starting again")
            return None
        if not fits:
            print(f"{self.path} was made with other options or scans: starting again")
            return None
        return stored
