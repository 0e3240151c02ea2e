"""Fits a body part regressor on unlabelled scans: seeded, resumable, with early stopping."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_locctx.geometry import Array
from nnunet_locctx.location import BodyPartCurve
from nnunet_locctx.location.body_part import HIGHEST_SCORE
from nnunet_locctx.regression.body_part.curve import LEAST_SLICES, SHORT_MM, Line
from nnunet_locctx.regression.body_part.network import (
    SliceRegressor,
    classification_order_loss,
    heuristic_order_loss,
    new_network,
)
from nnunet_locctx.regression.body_part.options import BodyPartOptions
from nnunet_locctx.regression.body_part.regressor import BodyPartRegressor, score_images
from nnunet_locctx.regression.body_part.slices import SliceBatch, SliceSampler, as_input, augment, take_slices
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.checkpoint import CHECKPOINT, Course, content, descend, require_finite

Target = BodyPartCurve | Callable[[Array], npt.ArrayLike]
"""Known scores of a scan: a curve, or a function of positions (K,) in mm along S."""

LEAST_SCANS = 2

FEWEST_FOR_SPLIT = 5
"""Smallest number of scans that is split; fewer scans are all used for training and for validation."""

PERCENTILES = (0.5, 99.5)
"""Percentiles of the training scans' scores that become 0 and 100."""

POINTS_PER_RAW = 10.0
"""Points per raw score of 1 when fitting known scores; keeps raw scores near 1."""

VALIDATION_VOLUMES = 64
"""Number of fixed draws from the validation scans."""

GRADIENT_NORM = 1.0
"""Largest norm of the gradient."""

TARGET_BETA = 0.2
"""Raw score difference above which the loss is linear (smooth L1)."""


@dataclass(frozen=True)
class TrainingScan:
    """A scan in the form for training.

    Attributes:
        images: (K, side, side) uint8, usable slices from inferior to superior.
        positions: (K,) mm along S.
        targets: (K,) raw scores from another tool, or None.
    """

    images: npt.NDArray[np.uint8]
    positions: Array
    targets: Array | None = None


@dataclass
class Progress:
    """State of the training, as stored in the checkpoint."""

    network: SliceRegressor
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    best: float = math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def begin(cls, options: BodyPartOptions, stored: Mapping[str, Any] | None = None) -> "Progress":
        """The initial state, or the stored one."""
        network = new_network(options.seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        state = cls(network, optimiser, torch.Generator().manual_seed(options.seed))
        if stored is not None:
            network.load_state_dict(stored["network"])
            optimiser.load_state_dict(stored["optimiser"])
            state.generator.set_state(stored["generator"])
            state.step, state.best, state.best_step = stored["step"], stored["best"], stored["best_step"]
            state.best_weights = dict(stored["best_weights"])
        return state

    def stored(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return {
            **vars(self),
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }


def fit_body_part(
    scans: Mapping[str, CanonicalScan],
    options: BodyPartOptions,
    folder: Path,
    *,
    progress: bool = True,
    targets: Mapping[str, Target] | None = None,
) -> BodyPartRegressor:
    """Fits a regressor. Equal scans, options and targets give an equal regressor, also after an interruption.

    Scans with too few slices that show a body, and scans without a usable target if `targets` are given, are left out
    with a warning.

    Args:
        scans: Name -> scan at the spacing of the options; each is read once.
        options: Options of the fit.
        folder: Folder of the checkpoint, which is not deleted.
        progress: Show a bar.
        targets: Name -> scores from another tool, which the network then learns, on their scale.

    Raises:
        ValueError: Fewer than 2 scans are usable, or the learned scores do not rise towards superior.
    """
    prepared, left_out = _prepare(scans, options, targets)
    if len(prepared) < LEAST_SCANS:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "none was given"
        raise ValueError(
            f"fitting needs {LEAST_SCANS} scans or more, {len(prepared)} of {len(scans)} can be used ({reasons})"
        )
    for name, reason in left_out.items():
        warnings.warn(f"{name} is left out: {reason}", stacklevel=2)
    names = sorted(prepared)
    training, validation = split(names, options)
    scans_of = {name: content(scan.images, scan.positions, scan.targets) for name, scan in prepared.items()}
    identity = {"options": asdict(options), "scans": scans_of}
    course = Course(Path(folder) / CHECKPOINT, identity, options.steps, "body part", progress=progress)
    network = _train(
        [prepared[name] for name in training], [prepared[name] for name in validation], options, course
    )
    return _calibrated(network, [prepared[name] for name in names], options, targets is not None)


def split(names: Sequence[str], options: BodyPartOptions) -> tuple[list[str], list[str]]:
    """Names of the training and of the validation scans."""
    if len(names) < FEWEST_FOR_SPLIT:
        return list(names), list(names)
    shuffled = [str(name) for name in np.random.default_rng(options.seed).permutation(sorted(names))]
    count = min(max(1, round(options.validation_share * len(names))), len(names) - LEAST_SCANS)
    return sorted(shuffled[count:]), sorted(shuffled[:count])


def _prepare(
    scans: Mapping[str, CanonicalScan], options: BodyPartOptions, targets: Mapping[str, Target] | None
) -> tuple[dict[str, TrainingScan], dict[str, str]]:
    """The usable scans, and the reasons for leaving out the others."""
    prepared: dict[str, TrainingScan] = {}
    left_out: dict[str, str] = {}
    for name in sorted(scans):
        scan = scans[name]
        if not np.allclose(scan.spacing, options.spacing, rtol=1e-3):
            raise ValueError(
                f"{name} has voxels of {scan.spacing.tolist()} mm, the options say {options.spacing:g} mm"
            )
        slices = take_slices(scan, options.modality, options.window, options.side)
        kept, raw = slices.usable, None
        if targets is not None:
            target = targets.get(name)
            if target is None or (isinstance(target, BodyPartCurve) and target.problem):
                left_out[name] = "no known scores" if target is None else f"its scores: {target.problem}"
                continue
            raw = (_known(target, scan, slices.positions) - HIGHEST_SCORE / 2) / POINTS_PER_RAW
            kept = kept & np.isfinite(raw)
        needed = max(options.slices, LEAST_SLICES)  # the regressor could not measure fewer slices
        if kept.sum() < needed:
            left_out[name] = f"{kept.sum()} of {len(kept)} slices show a body, {needed} are needed"
            continue
        raw = None if raw is None else raw[kept]
        prepared[name] = TrainingScan(slices.images[kept], slices.positions[kept], raw)
    return prepared, left_out


def _known(target: Target, scan: CanonicalScan, positions: Array) -> Array:
    """Target scores at positions along S; a curve is evaluated at the middle of each slice."""
    if not isinstance(target, BodyPartCurve):
        return np.asarray(target(positions), dtype=np.float64)
    index = np.tile((np.array(scan.image.shape, dtype=np.float64) - 1) / 2, (len(positions), 1))
    index[:, 2] = np.arange(len(positions))
    return target.score_at((index @ scan.affine[:3, :3].T + scan.affine[:3, 3]) @ target.direction)


def _train(
    training: Sequence[TrainingScan],
    validation: Sequence[TrainingScan],
    options: BodyPartOptions,
    course: Course,
) -> SliceRegressor:
    """The network with the smallest validation loss.

    Raises:
        ValueError: The loss is not finite.
    """
    state = course.resume(lambda stored: Progress.begin(options, stored))
    sampler = SliceSampler([scan.positions for scan in training], options.volumes, options.slices)
    judge = SliceSampler([scan.positions for scan in validation], VALIDATION_VOLUMES, options.slices)
    fixed = judge.draw(torch.Generator().manual_seed(options.seed))
    patience = options.patience * options.evaluate_every
    with course.bar:
        while state.step < options.steps and state.step - state.best_step < patience:
            _train_step(state, training, sampler.draw(state.generator), options)
            state.step += 1
            due = course.step_ended(state.step)
            if state.step % options.evaluate_every == 0 or state.step == options.steps:
                _evaluate(state, validation, fixed, options)
                course.bar.set_postfix_str(f"validation loss {state.best:.5f} (step {state.best_step})")
                due = True
            if due:
                course.save(state.stored())
    state.network.load_state_dict(state.best_weights)
    return state.network


def _train_step(
    state: Progress, scans: Sequence[TrainingScan], batch: SliceBatch, options: BodyPartOptions
) -> None:
    state.network.train()
    slices = augment(_images(scans, batch), state.generator)
    loss = _loss(state.network(slices), scans, batch, options)
    require_finite(loss.item(), state.step + 1, options.learning_rate)
    rate = 0.5 * options.learning_rate * (1 + math.cos(math.pi * state.step / options.steps))
    descend(state.network, state.optimiser, loss, rate, GRADIENT_NORM)


@torch.no_grad()
def _evaluate(
    state: Progress, scans: Sequence[TrainingScan], batch: SliceBatch, options: BodyPartOptions
) -> None:
    state.network.eval()
    loss = float(_loss(state.network(_images(scans, batch)), scans, batch, options))
    require_finite(loss, state.step, options.learning_rate)
    if loss < state.best or not state.best_weights:
        state.best, state.best_step = loss, state.step
        state.best_weights = {name: value.clone() for name, value in state.network.state_dict().items()}


def _images(scans: Sequence[TrainingScan], batch: SliceBatch) -> Tensor:
    """(volumes * slices, 1, side, side), scan by scan."""
    return as_input(batch.of([scan.images for scan in scans]))


def _loss(
    scores: Tensor, scans: Sequence[TrainingScan], batch: SliceBatch, options: BodyPartOptions
) -> Tensor:
    scores = scores.view(batch.levels.shape)
    if scans[0].targets is not None:
        targets = torch.from_numpy(batch.of([scan.targets for scan in scans if scan.targets is not None]))
        return F.smooth_l1_loss(scores, targets.float().view(scores.shape), beta=TARGET_BETA)
    if options.loss == "classification":
        return classification_order_loss(scores)
    return heuristic_order_loss(scores, torch.from_numpy(batch.gaps), options.alpha, options.beta)


def _calibrated(
    network: SliceRegressor, scans: Sequence[TrainingScan], options: BodyPartOptions, known: bool
) -> BodyPartRegressor:
    """The regressor: the network with its scale and usual slope."""
    scores = [score_images(network, scan.images) for scan in scans]
    if known:
        lowest, highest = (side * HIGHEST_SCORE / 2 / POINTS_PER_RAW for side in (-1, 1))
    else:
        lowest, highest = (float(value) for value in np.percentile(np.concatenate(scores), PERCENTILES))
    lengths = np.array([scan.positions[-1] - scan.positions[0] for scan in scans])
    # short scans do not show their slope; without long scans the longest one is used
    least = min(SHORT_MM, lengths.max())
    slopes = np.array(
        [
            Line.through(scan.positions, raw).slope
            for scan, raw, length in zip(scans, scores, lengths, strict=True)
            if length >= least
        ]
    )
    slope = float(np.median(slopes))
    if not slope > 0:
        raise ValueError(
            f"the scores do not rise towards superior (median slope {slope:.2g} per mm over {len(scans)} scans): "
            "more scans, scans of a longer part of the body, or more training steps are needed"
        )
    return BodyPartRegressor(
        options, network, lowest=lowest, highest=highest, raw_slope=slope, raw_spread=float(slopes.std())
    )
