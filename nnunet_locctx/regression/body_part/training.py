"""The training loop: seeded, resumable, with early stopping."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nnunet_locctx.geometry import Array
from nnunet_locctx.regression.body_part.augmentation import augment
from nnunet_locctx.regression.body_part.losses import classification_order_loss, heuristic_order_loss
from nnunet_locctx.regression.body_part.network import SliceRegressor, new_network
from nnunet_locctx.regression.body_part.options import BodyPartOptions
from nnunet_locctx.regression.body_part.sampling import SliceBatch, SliceSampler, gather
from nnunet_locctx.regression.body_part.slices import as_input
from nnunet_locctx.regression.checkpoint import diverged, load_checkpoint, save_checkpoint

VALIDATION_VOLUMES = 64
"""Draws of the validation scans, always the same."""

GRADIENT_NORM = 1.0
"""Longer gradients are shortened to this."""

TARGET_BETA = 0.2
"""Raw scores; differences from a target beyond it count linearly (smooth L1)."""


@dataclass(frozen=True)
class TrainingScan:
    """What training needs of a scan.

    Attributes:
        images: (K, side, side) uint8, usable slices from inferior to superior.
        positions: (K,) mm along S.
        wanted: (K,) raw scores known from elsewhere, or None.
    """

    images: npt.NDArray[np.uint8]
    positions: Array
    wanted: Array | None = None


@dataclass
class Progress:
    """Where training stands; all of it goes into the checkpoint."""

    network: SliceRegressor
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    best: float = math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def begin(cls, options: BodyPartOptions) -> "Progress":
        network = new_network(options.seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        return cls(network, optimiser, torch.Generator().manual_seed(options.seed))

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "best_weights": self.best_weights,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.step, self.best, self.best_step = (
            int(state["step"]),
            float(state["best"]),
            int(state["best_step"]),
        )
        self.best_weights = dict(state["best_weights"])


def train(
    training: Sequence[TrainingScan],
    validation: Sequence[TrainingScan],
    options: BodyPartOptions,
    path: Path,
    identity: Mapping[str, Any],
    *,
    progress: bool,
) -> SliceRegressor:
    """The network with the smallest validation loss.

    Args:
        training: Scans to draw from.
        validation: Scans to judge by.
        options: How.
        path: Of the checkpoint; continued if it is of the same `identity`.
        identity: What the result depends on, as plain values.
        progress: Shows a bar.

    Raises:
        ValueError: The loss is not finite.
    """
    state = Progress.begin(options)
    _resume(state, path, identity)
    sampler = SliceSampler([scan.positions for scan in training], options.volumes, options.slices)
    judge = SliceSampler([scan.positions for scan in validation], VALIDATION_VOLUMES, options.slices)
    fixed = judge.draw(torch.Generator().manual_seed(options.seed))
    patience = options.patience * options.evaluate_every
    with tqdm(total=options.steps, initial=state.step, disable=not progress, desc="body part") as bar:
        while state.step < options.steps and state.step - state.best_step < patience:
            for group in state.optimiser.param_groups:
                group["lr"] = (
                    0.5 * options.learning_rate * (1 + math.cos(math.pi * state.step / options.steps))
                )
            _train_step(state, training, sampler.draw(state.generator), options)
            state.step += 1
            bar.update()
            if state.step % options.evaluate_every == 0 or state.step == options.steps:
                _evaluate(state, validation, fixed, options)
                save_checkpoint(path, identity, state.state())
                bar.set_postfix_str(f"validation loss {state.best:.5f} (step {state.best_step})")
    state.network.load_state_dict(state.best_weights)
    return state.network


def _train_step(
    state: Progress, scans: Sequence[TrainingScan], batch: SliceBatch, options: BodyPartOptions
) -> None:
    state.network.train()
    slices = augment(_unpack(scans, batch), state.generator)
    loss = _loss(state.network(slices), scans, batch, options)
    if not torch.isfinite(loss):
        raise diverged(loss.item(), state.step + 1, options.learning_rate)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), GRADIENT_NORM)
    state.optimiser.step()


@torch.no_grad()
def _evaluate(
    state: Progress, scans: Sequence[TrainingScan], batch: SliceBatch, options: BodyPartOptions
) -> None:
    state.network.eval()
    loss = float(_loss(state.network(_unpack(scans, batch)), scans, batch, options))
    if not math.isfinite(loss):
        raise diverged(loss, state.step, options.learning_rate)
    if loss < state.best or not state.best_weights:
        state.best, state.best_step = loss, state.step
        state.best_weights = {name: value.clone() for name, value in state.network.state_dict().items()}


def _unpack(scans: Sequence[TrainingScan], batch: SliceBatch) -> Tensor:
    return as_input(gather([scan.images for scan in scans], batch))


def _loss(
    scores: Tensor, scans: Sequence[TrainingScan], batch: SliceBatch, options: BodyPartOptions
) -> Tensor:
    scores = scores.view(batch.levels.shape)
    if scans[0].wanted is not None:
        wanted = np.stack(
            [scans[scan].wanted[levels] for scan, levels in zip(batch.scans, batch.levels, strict=True)]
        )
        return F.smooth_l1_loss(scores, torch.from_numpy(wanted).float(), beta=TARGET_BETA)
    if options.loss == "classification":
        return classification_order_loss(scores)
    return heuristic_order_loss(scores, torch.from_numpy(batch.gaps), options.alpha, options.beta)


def _resume(state: Progress, path: Path, identity: Mapping[str, Any]) -> None:
    """Continues from a checkpoint of the same fit, if there is one."""
    stored = load_checkpoint(path, identity)
    if stored is None:
        return
    try:
        state.load(stored)
    except Exception as error:  # lookup and shape errors: of another version
        print(f"{path} cannot be read ({error}): starting again")
        return
    print(f"continuing at step {state.step} of {path}")
