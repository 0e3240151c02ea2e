"""Fitting an anatomical regressor on scans without labels."""

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
from tqdm import tqdm

from nnunet_locctx.denormals import denormals_flushed
from nnunet_locctx.geometry import Array
from nnunet_locctx.regression.anatomical.continuation import linear_fit
from nnunet_locctx.regression.anatomical.gauge import Gauge, fit_gauge
from nnunet_locctx.regression.anatomical.losses import distance_term, equality_term, scan_scale, signed_term
from nnunet_locctx.regression.anatomical.network import EmbeddingNetwork
from nnunet_locctx.regression.anatomical.options import AnatomicalOptions
from nnunet_locctx.regression.anatomical.regressor import (
    SMALLEST_BODY_NODES,
    AnatomicalRegressor,
    node_positions,
    too_little_body,
)
from nnunet_locctx.regression.anatomical.sampling import ScanSample, TrainingScan, sample_pairs
from nnunet_locctx.regression.anatomical.views import body_nodes, embed_views
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.checkpoint import (
    CHECKPOINT,
    content,
    diverged,
    load_checkpoint,
    save_checkpoint,
)
from nnunet_locctx.regression.intensity import body_mask

FEWEST_SCANS = 2
"""With enough of a body; one scan alone cannot tell anatomy from the scan's own looks."""

FEWEST_TO_HOLD_OUT = 5
"""Of fewer scans none is held out."""

VALIDATION_SAMPLES = 8
"""Fixed samples of the held-out scans."""

CLIP = 1.0
"""Largest norm of the gradient."""

MOST_GAUGE_SCANS = 100
"""Training scans that the gauge is fitted on."""


@denormals_flushed()
def fit_anatomical(
    scans: Mapping[str, CanonicalScan],
    options: AnatomicalOptions,
    folder: str | Path,
    *,
    progress: bool = True,
) -> AnatomicalRegressor:
    """Fits a regressor.

    Equal scans, options and machine give an equal regressor, byte for byte, also if the training was interrupted: each
    step draws from a generator of its own, seeded by the seed and the step, so that a checkpoint needs no generator's
    state.

    The weights are those of the last step, at which the learning rate has fallen to 0. The loss of the held-out scans
    is there to be looked at (:attr:`AnatomicalRegressor.history`).

    Args:
        scans: By name, on a grid of `options.spacing`. Scans with too little of a body to be measured are left out
            with a warning.
        options: How to fit.
        folder: Where the checkpoint goes (``checkpoint.pt``); one that fits the options and the scans is resumed,
            another one is restarted with a printed line. It stays there at the end.
        progress: Show a progress bar.

    Raises:
        ValueError: Fewer than 2 scans with enough of a body, a scan on another grid, or a loss that is not finite.
    """
    held = _training_scans(scans, options)
    names = sorted(held)
    held_out = _held_out(names, options)
    network = _new_network(options)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    path = Path(folder) / CHECKPOINT
    scans_of = {name: content(held[name].image, held[name].body, held[name].spacing) for name in names}
    identity = {"options": dataclasses.asdict(options), "scans": scans_of}
    history: dict[str, list[float]] = {"step": [], "train": [], "validation": []}
    done = 0
    stored = load_checkpoint(path, identity)
    if stored is not None:
        network.load_state_dict(stored["network"])
        optimiser.load_state_dict(stored["optimiser"])
        history, done = stored["history"], stored["step"]
    fixed = [
        sample_pairs(held[held_out[i % len(held_out)]], options, np.random.default_rng([options.seed, 1, i]))
        for i in range(VALIDATION_SAMPLES if held_out else 0)
    ]
    trained = [name for name in names if name not in held_out]
    losses: list[float] = []
    bar = tqdm(total=options.steps, initial=done, desc="anatomical", disable=not progress)
    for step in range(done, options.steps):
        generator = np.random.default_rng([options.seed, 0, step])
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, options)
        # without replacement, unless there are fewer scans than a step takes
        count = min(options.scans_per_step, len(trained))
        chosen = generator.choice(len(trained), count, replace=False)
        network.train()
        loss = _loss(network, [sample_pairs(held[trained[i]], options, generator) for i in chosen], options)
        if not torch.isfinite(loss):
            raise diverged(loss.item(), step + 1, options.learning_rate)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        losses.append(loss.item())
        bar.update()
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.steps:
            history["step"].append(step + 1)
            history["train"].append(float(np.mean(losses)))
            history["validation"].append(_validate(network, fixed, options))
            losses.clear()
            bar.set_postfix(
                train=f"{history['train'][-1]:.3f}", validation=f"{history['validation'][-1]:.3f}"
            )
            state = {
                "step": step + 1,
                "network": network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "history": history,
            }
            save_checkpoint(path, identity, state)
    bar.close()
    gauge, typical = _frame(network, {name: scans[name] for name in trained[:MOST_GAUGE_SCANS]}, options)
    return AnatomicalRegressor(options, network, gauge, typical, history)


def learning_rate(step: int, options: AnatomicalOptions) -> float:
    """Rises linearly over `options.warm_up` of the steps, then falls to 0 as half a cosine."""
    rise = max(1, round(options.warm_up * options.steps))
    if step < rise:
        return options.learning_rate * (step + 1) / rise
    share = (step - rise) / max(1, options.steps - rise)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def sample_loss(network: torch.nn.Module, sample: ScanSample, options: AnatomicalOptions) -> Tensor:
    """The loss of one scan's crops: every point of the pairs' first crops against every point of the second ones."""
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
    """Those with as much of a body as measuring needs, in the form the training holds."""
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
        found = TrainingScan.from_canonical(scan, options)
        nodes = body_nodes(found.body)
        if too_little_body(nodes):
            small[name] = nodes
        else:
            held[name] = found
    if len(held) < FEWEST_SCANS:
        raise ValueError(
            f"an anatomical fit needs {FEWEST_SCANS} or more scans with enough of a body, got {len(held)} of "
            f"{len(scans)}; {_told(small, options)}"
        )
    for name, nodes in small.items():
        warnings.warn(f"scan {name} is left out of the fit: {too_little_body(nodes)}", stacklevel=3)
    return held


def _told(small: Mapping[str, npt.NDArray[np.bool_]], options: AnatomicalOptions) -> str:
    """Why scans are too small, and the voxel size at which half of them would not be."""
    reasons = "; ".join(f"{name}: {too_little_body(nodes)}" for name, nodes in list(small.items())[:3])
    reasons += f"; and {len(small) - 3} more" if len(small) > 3 else ""
    usual = float(np.median([nodes.sum() for nodes in small.values()]))
    # less than the volumes say, because nodes at the edge do not count
    finer = math.floor(9 * options.spacing * (usual / SMALLEST_BODY_NODES) ** (1 / 3)) / 10
    return reasons + (
        f". With a smaller voxel size (--spacing {finer:g}) they have more" if finer >= 1 else ""
    )


def _held_out(names: list[str], options: AnatomicalOptions) -> list[str]:
    """The scans that only watch the loss."""
    if len(names) < FEWEST_TO_HOLD_OUT or options.validation == 0:
        return []
    count = max(1, round(options.validation * len(names)))
    chosen = np.random.default_rng([options.seed, 2]).choice(len(names), count, replace=False)
    return sorted(names[i] for i in chosen)


def _new_network(options: AnatomicalOptions) -> EmbeddingNetwork:
    """With initial weights that depend on the seed alone; the global generator is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return EmbeddingNetwork(options.widths, options.depths)


def _frame(
    network: EmbeddingNetwork, scans: Mapping[str, CanonicalScan], options: AnatomicalOptions
) -> tuple[Gauge, Array]:
    """The gauge, and the (3, 3) mean slopes of the training scans along (R, A, S)."""
    network.eval()
    found: list[tuple[Any, Array]] = []
    for scan in scans.values():
        embeddings, affine = embed_views(network, scan, options)
        body = body_nodes(body_mask(scan, options.modality))
        if body.any():
            found.append((embeddings[:, body].T, node_positions(affine, body.shape)[body]))
    gauge = fit_gauge(found)
    # no prior: each scan by its size
    slopes = [linear_fit(gauge.apply(e), p, np.zeros((3, 3)))[0] for e, p in found]
    weights = [len(p) for _, p in found]
    return gauge, np.average(slopes, axis=0, weights=weights)
