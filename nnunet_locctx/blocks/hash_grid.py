"""Lookup in a pyramid of grids whose vertices share hash tables (Müller et al., Instant Neural Graphics Primitives,
SIGGRAPH 2022), and its gradient.

Memory is bounded: a chunk of points and one level at a time, and for the gradient nothing is kept but the location;
indices and weights are computed again.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

PRIMES = (1, 2654435761, 805459861)

CHUNK_OF_POINTS = {"cpu": 2**14, "other": 2**20}
"""Points looked up at once: on a CPU what fits into its caches, elsewhere as many as memory allows."""


@dataclass(frozen=True)
class HashGrid:
    """Shape of the pyramid and order of its table, as of tiny-cuda-nn's ``HashGrid``.

    Attributes:
        levels: Number of grids.
        features: Numbers stored at a vertex.
        log2_entries: Binary logarithm of the most entries that a level has.
        base_resolution: Vertices per axis of the coarsest grid.
        scale: Growth of the resolution from level to level.
    """

    levels: int
    features: int
    log2_entries: int
    base_resolution: int
    scale: float

    @property
    def scales(self) -> tuple[float, ...]:
        """Cells per unit of length of each level.

        ``exp2(level * log2(scale)) * base_resolution - 1``, every step rounded to float32: at fine levels another
        rounding is another place in the table. exp2 and log2 are rounded once, from float64.
        """
        log2_scale = np.float32(math.log2(np.float32(self.scale)))
        growth = [np.float32(2.0 ** float(np.float32(level) * log2_scale)) for level in range(self.levels)]
        return tuple(float(factor * np.float32(self.base_resolution) - np.float32(1)) for factor in growth)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Vertices per axis of each level."""
        return tuple(-int(-scale // 1) + 1 for scale in self.scales)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each level: its vertices, rounded up to a multiple of 8, or fewer that they share by hashing."""
        return tuple(min(-(-(n**3) // 8) * 8, 2**self.log2_entries) for n in self.resolutions)

    @property
    def offsets(self) -> tuple[int, ...]:
        """First entry of each level."""
        return tuple(sum(self.sizes[:level]) for level in range(self.levels))

    @property
    def integers(self) -> list[int]:
        """The attributes but the scale."""
        return [self.levels, self.features, self.log2_entries, self.base_resolution]

    @classmethod
    def of(cls, integers: Sequence[int], scale: float) -> "HashGrid":
        """A grid from its `integers` and its scale."""
        levels, features, log2_entries, base_resolution = integers
        return cls(levels, features, log2_entries, base_resolution, scale)

    @property
    def parameters(self) -> int:
        """Length of the table."""
        return sum(self.sizes) * self.features

    def vertices(self, position: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Entries of the eight vertices around each point.

        Integers stay below 2^31 where they are computed in 32 bits, and below 2^53 else: exact, on every device. Of a
        hash in 32 bits only the lowest `log2_entries` bits count, which follow from those of its factors.

        Args:
            position: (..., 3, points), 0 to 1.
            level: Index of the level.

        Returns:
            (2, 2, 2, ..., points), by upper or lower vertex along the third, second and first coordinate; and the
            point's place between them, (..., 3, points), 0 to 1.
        """
        wide = position if position.device.type == "mps" else position.double()  # mps has no float64
        scaled = (wide * self.scales[level] + 0.5).to(
            position.dtype
        )  # rounded once, as by a fused multiply-add
        cell = scaled.floor()
        between = scaled - cell
        size, resolution = self.sizes[level], self.resolutions[level]
        dense = resolution**3 <= size
        cell = cell.to(torch.int32 if dense or self.log2_entries <= 15 else torch.int64)
        mask = 2**self.log2_entries - 1
        axes = []
        for axis in range(3):
            factor = resolution**axis if dense else PRIMES[axis] & mask
            low = (cell[..., axis, :] if dense else cell[..., axis, :] & mask) * factor
            axes.append(torch.stack([low, low + factor]))
        first, second, third = axes[0][None, None], axes[1][None, :, None], axes[2][:, None, None]
        if dense:
            entries = first + second + third  # less than twice the size
            return entries - size * (entries >= size), between
        return ((first ^ second) ^ third) & mask, between


def look_up(grid: HashGrid, table: Tensor, location: Tensor, weights: Tensor, extent: float) -> Tensor:
    """Features interpolated linearly between the vertices around each point.

    Args:
        grid: Shape of the pyramid.
        table: (parameters,).
        location: (B, 3, points), of the same type.
        weights: (B, levels), factor on each level; a level without any is not looked up.
        extent: Side of the cube around the origin that the grids span; what lies outside is moved to its surface.

    Returns:
        (B, levels * features, points), level by level.
    """
    batch, _, points = location.shape
    features = location.new_zeros((batch, grid.levels, grid.features, points))
    visible = _visible(weights)
    by_feature = {
        level: [column.contiguous() for column in _part(table, grid, level).unbind(dim=1)]
        for level in visible
    }
    for sample, point, position in _chunks(location, extent):
        for level in visible:
            entries, between = grid.vertices(position, level)
            x, y, z = between.unbind(dim=-2)
            for feature, values in enumerate(by_feature[level]):
                corners = values.index_select(0, entries.view(-1)).view(entries.shape)
                planes = torch.lerp(corners[0], corners[1], z)
                lines = torch.lerp(planes[0], planes[1], y)
                value = torch.lerp(lines[0], lines[1], x)
                features[sample, level, feature, point] = value * weights[sample, level, None]
    return features.flatten(1, 2)


def scatter(grid: HashGrid, gradient: Tensor, location: Tensor, weights: Tensor, extent: float) -> Tensor:
    """Gradient of the table from that of the features, (B, levels * features, points); other arguments as above."""
    gradient = gradient.unflatten(1, (grid.levels, grid.features))
    visible = _visible(weights)
    sums = {level: gradient.new_zeros((grid.features, grid.sizes[level])) for level in visible}
    for sample, point, position in _chunks(location, extent):
        for level in visible:
            entries, between = grid.vertices(position, level)
            x, y, z = (torch.stack([1 - place, place]) for place in between.unbind(dim=-2))
            share = z[:, None, None] * (y[:, None] * (x * weights[sample, level, None]))
            for feature in range(grid.features):
                shares = (share * gradient[sample, level, feature, point]).view(-1)
                sums[level][feature].index_add_(0, entries.view(-1), shares)
    table = gradient.new_zeros(grid.parameters)
    for level in visible:
        _part(table, grid, level).copy_(sums[level].T)
    return table


def _chunks(location: Tensor, extent: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """Parts of a batch: samples, points, and their positions (samples, 3, points)."""
    batch, _, points = location.shape
    most = CHUNK_OF_POINTS["cpu" if location.device.type == "cpu" else "other"]
    samples = max(1, most // max(points, 1))
    for first in range(0, batch, samples):
        for start in range(0, points, most):
            sample, point = slice(first, first + samples), slice(start, start + most)
            yield sample, point, (location[sample, :, point] / extent + 0.5).clamp(0, 1)


def _visible(weights: Tensor) -> list[int]:
    """Levels with a weight in any sample."""
    return [level for level, weight in enumerate(weights.amax(dim=0).tolist()) if weight > 0]


def _part(table: Tensor, grid: HashGrid, level: int) -> Tensor:
    """The entries of one level: (entries, features), a view."""
    first, size = grid.offsets[level], grid.sizes[level]
    return table[first * grid.features : (first + size) * grid.features].view(size, grid.features)


# Operators of their own: torch.compile passes them as a whole, without unrolling levels and chunks, and which levels
# are looked up may depend on the data. Schemas are written out: torch 2.4 cannot infer them from collections.abc.
_SCHEMA = "(Tensor {}, Tensor location, Tensor weights, int[] integers, float scale, float extent) -> Tensor"


@torch.library.custom_op("nnunet_locctx::hash_lookup", mutates_args=(), schema=_SCHEMA.format("table"))
def hash_lookup(
    table: Tensor, location: Tensor, weights: Tensor, integers: Sequence[int], scale: float, extent: float
) -> Tensor:
    """:func:`look_up`, with the gradient of the table; the grid is given by its integers and its scale."""
    return look_up(HashGrid.of(integers, scale), table, location, weights, extent)


@torch.library.custom_op("nnunet_locctx::hash_scatter", mutates_args=(), schema=_SCHEMA.format("gradient"))
def hash_scatter(
    gradient: Tensor, location: Tensor, weights: Tensor, integers: Sequence[int], scale: float, extent: float
) -> Tensor:
    """:func:`scatter`; the grid is given by its integers and its scale."""
    return scatter(HashGrid.of(integers, scale), gradient, location, weights, extent)


@hash_lookup.register_fake
def _(
    table: Tensor, location: Tensor, weights: Tensor, integers: Sequence[int], scale: float, extent: float
) -> Tensor:
    return location.new_empty((location.shape[0], integers[0] * integers[1], location.shape[2]))


@hash_scatter.register_fake
def _(
    gradient: Tensor, location: Tensor, weights: Tensor, integers: Sequence[int], scale: float, extent: float
) -> Tensor:
    return gradient.new_empty(HashGrid.of(integers, scale).parameters)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, location, weights, *grid = inputs
    ctx.save_for_backward(location, weights)
    ctx.grid = grid


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    location, weights = ctx.saved_tensors
    return hash_scatter(gradient, location, weights, *ctx.grid), None, None, None, None, None


hash_lookup.register_autograd(_backward, setup_context=_keep)
