"""Random changes to single slices, which leave the level of the body as it is.

Kinds and strengths follow Schuhegger, "Body part regression for CT images", 2021 (arXiv:2110.09148), as far as they
are cheap for a whole batch.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CHANCE = 0.5
"""With which a slice gets each change."""

NOISE = 0.04
"""Largest standard deviation of the noise; intensities run from -1 to 1."""

SHIFT = 0.08
"""Largest shift of the intensities."""

CONTRAST = 0.2
"""Largest change of the intensities' scale, as a share."""

SCALE = 0.15
"""Largest change of size, as a share."""

ANGLE = math.radians(10)
"""Largest rotation."""

MOVE = 0.05
"""Largest movement, as a share of the image's side."""

FRAME_CHANCE = 0.25
"""With which a slice is cut to a smaller field of view, a disc."""

FRAME = (0.55, 0.9)
"""Radius of that disc, as a share of half the side."""


def augment(slices: Float[Tensor, "n 1 side side"], generator: torch.Generator) -> Tensor:
    """Changed copies of slices, intensities from -1 to 1, each with its own random changes.

    Size, rotation, movement, left-right flip, intensity scale and shift, blur, noise and a smaller field of view.
    """
    count = len(slices)
    rand = torch.rand(count, 14, generator=generator)
    chosen = (rand[:, :7] < CHANCE).float()
    signed = 2 * rand[:, 7:] - 1
    moved = _move(slices, chosen[:, 0], chosen[:, 1], signed)

    def column(values: Tensor) -> Tensor:
        return values.view(count, 1, 1, 1)

    factor = column(1 + chosen[:, 2] * CONTRAST * signed[:, 4])
    changed = torch.addcmul(column(chosen[:, 3] * SHIFT * signed[:, 5]), moved, factor)
    blurred = F.avg_pool2d(changed, 3, stride=1, padding=1, count_include_pad=False)
    changed = torch.lerp(changed, blurred, column(chosen[:, 4] * rand[:, 13]))
    noise = torch.randn(slices.shape, generator=generator)
    changed.addcmul_(noise, column(chosen[:, 5] * NOISE * rand[:, 12]))
    cut = rand[:, 6] < FRAME_CHANCE
    radius = torch.where(cut, FRAME[0] + (FRAME[1] - FRAME[0]) * rand[:, 8], 2.0)
    axis = torch.linspace(-1, 1, slices.shape[-1])
    outside = (axis[:, None] ** 2 + axis**2)[None, None] > column(radius**2)
    return changed.clamp_(-1, 1).masked_fill_(outside, -1)


def _move(slices: Tensor, chosen: Tensor, flipped: Tensor, signed: Tensor) -> Tensor:
    """Size, rotation, movement (where `chosen`) and left-right flip; what comes in from outside is -1."""
    size = 1 + chosen * SCALE * signed[:, 0]
    angle = chosen * ANGLE * signed[:, 1]
    sign = 1 - 2 * flipped  # images are (R, A): the rows run along R, grid_sample's y
    matrix = torch.zeros(len(slices), 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = size * angle.cos(), -size * angle.sin() * sign
    matrix[:, 1, 0], matrix[:, 1, 1] = size * angle.sin(), size * angle.cos() * sign
    matrix[:, :, 2] = (2 * MOVE * chosen)[:, None] * signed[:, 2:4]
    grid = F.affine_grid(matrix, list(slices.shape), align_corners=False)
    # grid_sample pads with 0
    return F.grid_sample(slices + 1, grid, align_corners=False) - 1
