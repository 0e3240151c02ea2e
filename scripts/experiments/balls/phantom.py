"""A phantom that only location can segment, and a training of a few hundred steps, shared by the experiments.

The phantom consists of identical balls in noise. Some are organs, which differ only in their position; others are
look-alikes without a label.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_locctx.blocks import auxiliary_losses
from scripts.benchmarks import harness

TRAIN_VOLUMES, TEST_VOLUMES = 24, 4
ORGANS, LOOK_ALIKES = 7, 8
GRID = 0.28
"""Spacing, in fractions of the volume, of the 3 x 3 x 3 places where a ball can sit."""


@dataclass(frozen=True)
class Volume:
    """One volume: image (1, *shape), location (3, *shape) and labels (*shape), array axes (z, y, x)."""

    image: Tensor
    location: Tensor
    labels: Tensor
    centres: npt.NDArray[np.float64]


@dataclass(frozen=True)
class BallPhantom:
    """Volumes, batches and evaluation of one size of the phantom.

    Attributes:
        patch: Voxels of a patch, array axes.
        batch: Patches per batch.
        sides: Range of a volume's sides in voxels, the end excluded.
        radii: Range of a ball's radius in voxels.
    """

    patch: tuple[int, int, int] = (24, 24, 24)
    batch: int = 4
    sides: tuple[int, int] = (44, 57)
    radii: tuple[float, float] = (2.6, 3.8)

    def make_volume(self, rng: np.random.Generator) -> Volume:
        """A volume with 7 organs and 8 look-alikes, every ball of contrast 2 in noise of sd 1.

        Balls sit at fixed fractions of the volume, displaced by sd 0.025 each.
        """
        shape = rng.integers(*self.sides, size=3)
        places = np.stack(np.meshgrid(*[[-GRID, 0.0, GRID]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        places = places[np.random.default_rng(20).permutation(len(places))][: ORGANS + LOOK_ALIKES]
        fractions = places + rng.normal(0, 0.025, size=places.shape)
        axes = [(np.arange(n) + 0.5) / n - 0.5 for n in shape]
        index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
        labels = np.zeros(shape, dtype=np.int64)
        image = rng.normal(0, 1, size=shape)
        centres = (fractions + 0.5) * shape - 0.5
        for ball, centre in enumerate(centres):
            inside = ((index - centre.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) <= rng.uniform(*self.radii) ** 2
            image[inside] += 2
            if ball < ORGANS:
                labels[inside] = ball + 1
        # channel 0 (R) varies along the last array axis, as nnU-Net stores scans
        location = np.stack(np.meshgrid(*axes, indexing="ij")[::-1])
        return Volume(
            torch.from_numpy(image[None]).float(),
            torch.from_numpy(location).float(),
            torch.from_numpy(labels),
            centres,
        )

    def draw_batch(self, volumes: list[Volume], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(batch, 1 + 3, *patch) and labels (batch, *patch): half of the patches around a random ball, half
        anywhere."""
        inputs, labels = [], []
        size = np.array(self.patch)
        for item in range(self.batch):
            volume = volumes[rng.integers(len(volumes))]
            room = np.array(volume.labels.shape) - size
            lower = rng.integers(0, room + 1)
            if item % 2 == 0:
                centre = volume.centres[rng.integers(len(volume.centres))] + rng.integers(-6, 7, size=3)
                lower = np.clip(np.rint(centre).astype(int) - size // 2, 0, room)
            box = tuple(slice(int(low), int(low) + n) for low, n in zip(lower, self.patch, strict=True))
            inputs.append(
                torch.cat([volume.image[(slice(None), *box)], volume.location[(slice(None), *box)]])
            )
            labels.append(volume.labels[box])
        return torch.stack(inputs), torch.stack(labels)

    def windows(self, shape: torch.Size) -> Iterator[tuple[slice, ...]]:
        """Boxes of a patch's size that cover a volume with at least half a patch of overlap."""
        starts = []
        for n, edge in zip(shape, self.patch, strict=True):
            count = int(np.ceil((n - edge) / (edge // 2))) + 1
            starts.append([round(s) for s in np.linspace(0, n - edge, count)])
        for corner in np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 3):
            yield tuple(slice(int(low), int(low) + n) for low, n in zip(corner, self.patch, strict=True))

    @torch.inference_mode()
    def predict(
        self, network: nn.Module, volume: Volume, shift: float = 0.0, unknown: tuple[int, ...] = ()
    ) -> Tensor:
        """Labels (*shape), from logits averaged over sliding windows.

        Args:
            network: (B, 1 + 3, *patch) -> (B, classes, *patch).
            volume: The volume.
            shift: Added to the location along the body axis, a fraction of the volume's length.
            unknown: Axes (0: R, 1: A, 2: S) along which the location is not known.
        """
        x = torch.cat([volume.image, volume.location])
        x[3] += shift
        for axis in unknown:
            x[1 + axis] = torch.nan
        total = torch.zeros(ORGANS + 1, *volume.labels.shape)
        boxes = list(self.windows(volume.labels.shape))
        for start in range(0, len(boxes), self.batch):
            batch = boxes[start : start + self.batch]
            with half_precision():
                logits = network(torch.stack([x[(slice(None), *box)] for box in batch])).float()
            for box, patch in zip(batch, logits, strict=True):
                total[(slice(None), *box)] += patch
        return total.argmax(dim=0)

    def dice_per_organ(
        self, network: nn.Module, seed: int, shift: float = 0.0, unknown: tuple[int, ...] = ()
    ) -> list[float]:
        """Dice of each organ, its voxels pooled over the unseen volumes; see :meth:`predict`."""
        rng = np.random.default_rng(100_000 + seed)
        overlap, size = np.zeros(ORGANS), np.zeros(ORGANS)
        for _ in range(TEST_VOLUMES):
            volume = self.make_volume(rng)
            prediction = self.predict(network, volume, shift, unknown)
            for organ in range(ORGANS):
                predicted, true = prediction == organ + 1, volume.labels == organ + 1
                overlap[organ] += 2 * float((predicted & true).sum())
                size[organ] += float(predicted.sum() + true.sum())
        return [round(float(value), 4) for value in overlap / size]


@dataclass(frozen=True)
class Trained:
    """How networks are trained by AdamW; without decay of the weights that is Adam."""

    learning_rate: float
    weight_decay: float = 0.0


def train(
    network: nn.Module,
    phantom: BallPhantom,
    seed: int,
    iterations: int,
    how: Trained,
    perturb: Callable[[Tensor, np.random.Generator], Tensor] | None = None,
    name: str = "",
) -> float:
    """Trains `network` in place and leaves it in evaluation mode; the same patches for every network of a seed.

    Args:
        network: (B, 1 + 3, *patch) -> (B, classes, *patch).
        phantom: Phantom of the patches.
        seed: Seed of volumes and patches.
        iterations: Steps; the learning rate falls as a polynomial of power 0.9.
        how: Learning rate and weight decay.
        perturb: (location (B, 3, *patch), generator) -> the location that the network gets.
        name: Shown with the progress.

    Returns:
        Seconds.
    """
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    # a separate generator, so that all rows get the same patches
    perturbing = np.random.default_rng([seed, 1])
    volumes = [phantom.make_volume(rng) for _ in range(TRAIN_VOLUMES)]
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), how.learning_rate, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=iterations, power=0.9)
    for _ in tqdm(range(iterations), desc=f"{name} (seed {seed})", mininterval=5, leave=False):
        x, labels = phantom.draw_batch(volumes, rng)
        if perturb is not None:
            x[:, 1:4] = perturb(x[:, 1:4], perturbing)
        optimizer.zero_grad()
        with half_precision():
            logits = network(x)
        loss = loss_function(logits.float(), labels) + sum(auxiliary_losses(network))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        schedule.step()
    network.eval()
    return time.perf_counter() - start


def half_precision() -> torch.autocast:
    """bfloat16, similar to nnU-Net's training on a GPU and twice as fast on processors with AVX512; float32 on other
    processors, where bfloat16 is ten times slower."""
    return torch.autocast(
        "cpu", dtype=torch.bfloat16, enabled="AVX512" in torch.backends.cpu.get_cpu_capability()
    )


def perturbed(location: Tensor, rng: np.random.Generator, jitter: float, dropout: float) -> Tensor:
    """Location (B, 3, *spatial) as located trainers perturb it, per sample and axis: scaled and shifted at random
    (standard deviation `jitter`), then each axis, and all of them, unknown with the probability `dropout`."""
    per_axis = (len(location), 3, 1, 1, 1)
    shift, scale = (torch.from_numpy(rng.normal(0, jitter, per_axis)).float() for _ in range(2))
    unknown = (rng.random(per_axis) < dropout) | (rng.random((len(location), 1, 1, 1, 1)) < dropout)
    return torch.where(torch.from_numpy(unknown), torch.nan, location * (1 + scale) + shift)


def loss_function(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy + soft Dice over the batch, foreground only: nnU-Net's loss."""
    probabilities = logits.softmax(dim=1)[:, 1:]
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].float()
    axes = (0, 2, 3, 4)
    overlap = 2 * (probabilities * truth).sum(axes)
    dice = (overlap + 1e-5) / (probabilities.sum(axes) + truth.sum(axes) + 1e-5).clip(1e-8)
    return F.cross_entropy(logits, labels) - dice.mean()


class WithoutLocation(nn.Module):
    """A network on the image channel alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + 3, *spatial) -> (B, classes, *spatial)."""
        return self.network(x[:, :1])


def planned_unet(seed: int) -> nn.Module:
    """A small planned-style network, 16-32-64 channels, initialised as nnU-Net does."""
    torch.manual_seed(seed)
    network: nn.Module = harness.planned_unet(1, ORGANS + 1, (16, 32, 64))
    return network
