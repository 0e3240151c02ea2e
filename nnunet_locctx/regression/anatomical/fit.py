"""Fits an anatomical regressor on scans without labels.

The losses make the difference of two places' embeddings equal to the places' difference in the patient, in distance and
direction. Source: Goncharov et al., "Anatomical Positional Embeddings", MICCAI 2024 (arXiv:2409.10291), for the
distance and the equality term; the signed term is from this project.

Embeddings and positions are (N, 3); positions are along (R, A, S), in units of the length of one unit of the embedding.
The terms compare two sets of points from different crops of one scan.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_locctx.denormals import denormals_flushed
from nnunet_locctx.geometry import Array
from nnunet_locctx.regression.anatomical.network import EmbeddingNetwork, body_nodes, embed_views
from nnunet_locctx.regression.anatomical.options import AnatomicalOptions
from nnunet_locctx.regression.anatomical.regressor import (
    SMALLEST_BODY_NODES,
    AnatomicalRegressor,
    Gauge,
    fit_gauge,
    linear_fit,
    node_positions,
    too_little_body,
)
from nnunet_locctx.regression.anatomical.sampling import ScanSample, TrainingScan, sample_pairs
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.checkpoint import CHECKPOINT, Course, content, descend, require_finite
from nnunet_locctx.regression.intensity import body_mask

FEWEST_SCANS = 2
"""Smallest number of scans with enough body; a single scan cannot separate anatomy from its own appearance."""

FEWEST_TO_HOLD_OUT = 5
"""Smallest number of scans for which some are held out."""

VALIDATION_SAMPLES = 8
"""Number of fixed samples of the held-out scans."""

CLIP = 1.0
"""Largest norm of the gradient."""

MOST_GAUGE_SCANS = 100
"""Largest number of training scans for fitting the gauge."""


@denormals_flushed()
def fit_anatomical(
    scans: Mapping[str, CanonicalScan],
    options: AnatomicalOptions,
    folder: str | Path,
    *,
    progress: bool = True,
) -> AnatomicalRegressor:
    """Fits a regressor.

    Equal scans, options and machine give an equal regressor, byte for byte, also after an interruption: each step has
    its own random generator, seeded by the seed and the step.

    The weights are those of the last step, at which the learning rate is 0. The loss of the held-out scans is only
    recorded (:attr:`AnatomicalRegressor.history`).

    Args:
        scans: By name, on a grid of `options.spacing`. Scans with too little body are left out with a warning.
        options: Options of the fit.
        folder: Folder of the checkpoint (``checkpoint.pt``). A checkpoint of the same options and scans is resumed;
            otherwise the fit starts again, with a printed line. The checkpoint is not deleted.
        progress: Show a progress bar.

    Raises:
        ValueError: Fewer than 2 scans have enough body, a scan is on another grid, or a loss is not finite.
    """
    held = _training_scans(scans, options)
    names = sorted(held)
    held_out = _held_out(names, options)
    scans_of = {name: content(held[name].image, held[name].body, held[name].spacing) for name in names}
    identity = {"options": dataclasses.asdict(options), "scans": scans_of}
    course = Course(Path(folder) / CHECKPOINT, identity, options.steps, "anatomical", progress=progress)
    state = course.resume(lambda stored: _Progress.begin(options, stored))
    network, history = state.network, state.history
    fixed = [
        sample_pairs(held[held_out[i % len(held_out)]], options, np.random.default_rng([options.seed, 1, i]))
        for i in range(VALIDATION_SAMPLES if held_out else 0)
    ]
    trained = [name for name in names if name not in held_out]
    with course.bar:
        while state.step < options.steps:
            generator = np.random.default_rng([options.seed, 0, state.step])
            rate = learning_rate(state.step, options)
            # without replacement; a step takes fewer scans if there are not enough
            count = min(options.scans_per_step, len(trained))
            chosen = generator.choice(len(trained), count, replace=False)
            network.train()
            loss = _loss(
                network, [sample_pairs(held[trained[i]], options, generator) for i in chosen], options
            )
            require_finite(loss.item(), state.step + 1, options.learning_rate)
            descend(network, state.optimiser, loss, rate, CLIP)
            state.losses.append(loss.item())
            state.step += 1
            due = course.step_ended(state.step)
            if state.step % options.checkpoint_every == 0 or state.step == options.steps:
                history["step"].append(state.step)
                history["train"].append(float(np.mean(state.losses)))
                history["validation"].append(_validate(network, fixed, options))
                state.losses.clear()
                course.bar.set_postfix(train=history["train"][-1], validation=history["validation"][-1])
                due = True
            if due:
                course.save(state.stored())
    gauge, typical = _frame(network, {name: scans[name] for name in trained[:MOST_GAUGE_SCANS]}, options)
    return AnatomicalRegressor(options, network, gauge, typical, history)


@dataclasses.dataclass
class _Progress:
    """State of the training, as stored in the checkpoint.

    Attributes:
        network: The network.
        optimiser: Optimiser of its weights.
        history: Losses, see :class:`AnatomicalRegressor`.
        step: Number of finished steps.
        losses: Losses of the steps since the last entry of the history.
    """

    network: EmbeddingNetwork
    optimiser: torch.optim.Optimizer
    history: dict[str, list[float]]
    step: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)

    @classmethod
    def begin(cls, options: AnatomicalOptions, stored: Mapping[str, Any] | None) -> "_Progress":
        """The stored state, or initial weights that depend only on the seed (the global generator does not change)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            network = EmbeddingNetwork(options.widths, options.depths)
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        if stored is None:
            return cls(network, optimiser, {"step": [], "train": [], "validation": []})
        network.load_state_dict(stored["network"])
        optimiser.load_state_dict(stored["optimiser"])
        # earlier versions saved only at entries of the history
        return cls(network, optimiser, stored["history"], stored["step"], stored.get("losses", []))

    def stored(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return {**vars(self), "network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}


def learning_rate(step: int, options: AnatomicalOptions) -> float:
    """Rises linearly over `options.warm_up` of the steps, then falls to 0 as half a cosine."""
    rise = max(1, round(options.warm_up * options.steps))
    if step < rise:
        return options.learning_rate * (step + 1) / rise
    share = (step - rise) / max(1, options.steps - rise)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def equality_term(first: Tensor, second: Tensor) -> Tensor:
    """Mean square of the difference between two embeddings (N, 3) of the same places, over places and axes."""
    return (first - second).square().mean()


def distance_term(first: Tensor, second: Tensor, first_position: Tensor, second_position: Tensor) -> Tensor:
    """Mean over all ``i, j`` of ``(|e_i - e_j| - |p_i - p_j|)^2``, ``i`` of the first and ``j`` of the second set.

    Unchanged by any rotation, reflection and shift of the embedding.
    """
    distances = _distances(first_position, second_position)
    return (_distances(first, second) - distances).square().mean()


def signed_term(first: Tensor, second: Tensor, first_position: Tensor, second_position: Tensor) -> Tensor:
    """Mean over all ``i, j`` and axes of ``((e_i - e_j) - (p_i - p_j))^2``. Unchanged only by a shift of the embedding.

    With the residual ``r = e - p`` this is the mean of ``(r_i - r_j)^2``, that is the variances of both sets plus the
    square of the difference of their means: no table of all pairs is needed.
    """
    r1, r2 = first - first_position, second - second_position
    between = (r1.mean(0) - r2.mean(0)).square()
    return (r1.var(0, correction=0) + r2.var(0, correction=0) + between).mean()


def scan_scale(position: Tensor) -> tuple[Tensor, Tensor]:
    """(3,) mean and (3,) standard deviation along each axis of positions (N, 3), the paper's normalisation.

    With it the length of one unit of the embedding depends on the field of view and differs between the axes. The
    standard deviation is the unbiased one (divided by N - 1), as in the authors' code, and at least 1e-3.
    """
    return position.mean(0), position.std(0, correction=min(1, len(position) - 1)).clamp_min(1e-3)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) from (N, 3) and (M, 3); torch gives a distance of 0 the gradient 0."""
    return torch.linalg.vector_norm(first[:, None] - second[None], dim=-1)


def sample_loss(network: torch.nn.Module, sample: ScanSample, options: AnatomicalOptions) -> Tensor:
    """The loss of one scan's crops: every point of the first crops is compared with every point of the second ones."""
    embeddings = network(torch.from_numpy(sample.crops))
    # grid_sample takes the last axis first
    grid = torch.from_numpy(sample.places).flip(-1)[:, None, None]
    read = F.grid_sample(embeddings, grid, mode="bilinear", padding_mode="border", align_corners=False)
    points = read[:, :, 0, 0].movedim(1, -1)
    positions = torch.from_numpy(sample.positions)
    half = len(points) // 2
    equality = equality_term(points[:half, : sample.paired], points[half:, : sample.paired])
    first, second = points[:half].flatten(0, 1), points[half:].flatten(0, 1)
    p1, p2 = positions[:half].flatten(0, 1), positions[half:].flatten(0, 1)
    if options.normalise == "scan":
        mean, scale = scan_scale(p1)
    else:
        mean, scale = p1.mean(0), torch.tensor(options.length)
    p1, p2 = (p1 - mean) / scale, (p2 - mean) / scale
    loss = options.equality * equality + distance_term(first, second, p1, p2)
    if options.loss == "signed":
        loss = loss + options.signed * signed_term(first, second, p1, p2)
    return loss


def _loss(network: torch.nn.Module, samples: list[ScanSample], options: AnatomicalOptions) -> Tensor:
    return torch.stack([sample_loss(network, sample, options) for sample in samples]).mean()


def _validate(network: torch.nn.Module, fixed: list[ScanSample], options: AnatomicalOptions) -> float:
    """Loss of the fixed samples; NaN if there are none."""
    network.eval()
    with torch.no_grad():
        return float(
            np.mean([sample_loss(network, sample, options).item() for sample in fixed] or [math.nan])
        )


def _training_scans(
    scans: Mapping[str, CanonicalScan], options: AnatomicalOptions
) -> dict[str, TrainingScan]:
    """The scans with enough body, in the form for training."""
    if len(scans) < FEWEST_SCANS:
        raise ValueError(f"an anatomical fit needs {FEWEST_SCANS} or more scans, got {len(scans)}")
    held: dict[str, TrainingScan] = {}
    small: dict[str, npt.NDArray[np.bool_]] = {}
    for name in scans:
        scan = scans[name]
        if not np.allclose(scan.spacing, options.spacing, rtol=1e-3):
            raise ValueError(
                f"scan {name} has voxels of {scan.spacing.tolist()} mm, the options say {options.spacing:g} mm"
            )
        training_scan = TrainingScan.from_canonical(scan, options)
        nodes = body_nodes(training_scan.body)
        if too_little_body(nodes):
            small[name] = nodes
        else:
            held[name] = training_scan
    if len(held) < FEWEST_SCANS:
        raise ValueError(
            f"an anatomical fit needs {FEWEST_SCANS} or more scans with enough of a body, got {len(held)} of "
            f"{len(scans)}; {_reasons(small, options)}"
        )
    for name, nodes in small.items():
        warnings.warn(f"scan {name} is left out of the fit: {too_little_body(nodes)}", stacklevel=3)
    return held


def _reasons(small: Mapping[str, npt.NDArray[np.bool_]], options: AnatomicalOptions) -> str:
    """The reasons for leaving out scans, and a voxel size at which half of them would have enough body."""
    reasons = "; ".join(f"{name}: {too_little_body(nodes)}" for name, nodes in list(small.items())[:3])
    reasons += f"; and {len(small) - 3} more" if len(small) > 3 else ""
    usual = float(np.median([nodes.sum() for nodes in small.values()]))
    # 0.9: nodes at the edge of the body do not count
    finer = math.floor(9 * options.spacing * (usual / SMALLEST_BODY_NODES) ** (1 / 3)) / 10
    return reasons + (
        f". With a smaller voxel size (--spacing {finer:g}) they have more" if finer >= 1 else ""
    )


def _held_out(names: list[str], options: AnatomicalOptions) -> list[str]:
    """Names of the scans that only the validation loss uses."""
    if len(names) < FEWEST_TO_HOLD_OUT or options.validation == 0:
        return []
    count = max(1, round(options.validation * len(names)))
    chosen = np.random.default_rng([options.seed, 2]).choice(len(names), count, replace=False)
    return sorted(names[i] for i in chosen)


def _frame(
    network: EmbeddingNetwork, scans: Mapping[str, CanonicalScan], options: AnatomicalOptions
) -> tuple[Gauge, Array]:
    """The gauge, and the (3, 3) mean slopes of the training scans along (R, A, S)."""
    network.eval()
    nodes: list[tuple[Any, Array]] = []
    for scan in scans.values():
        embeddings, affine = embed_views(network, scan, options.modality, options.window)
        body = body_nodes(body_mask(scan, options.modality))
        if body.any():
            nodes.append((embeddings[:, body].T, node_positions(affine, body.shape)[body]))
    gauge = fit_gauge(nodes)
    # without prior; each scan is weighted by its size
    slopes = [linear_fit(gauge.apply(e), p, np.zeros((3, 3)))[0] for e, p in nodes]
    weights = [len(p) for _, p in nodes]
    return gauge, np.average(slopes, axis=0, weights=weights)
