"""Attention within windows of tokens, regular or shifted: nnFormer's transformer block."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.networks.blocks.mlp import MLPBlock
from monai.networks.layers.drop_path import DropPath
from monai.networks.nets.swin_unetr import get_window_size, window_partition, window_reverse
from torch import Tensor, nn


@dataclass(frozen=True)
class WindowGrid:
    """The division of a grid of tokens into windows.

    The grid is padded at its end to a multiple of the window, and moved cyclically by `shift` towards its beginning.

    Attributes:
        size: Tokens along each axis.
        window: Tokens of a window along each axis.
        shift: Tokens by which the grid is moved along each axis.
        ends_apart: Whether the two ends of an axis, which the move brings into one window, do not see each other.
        filling_apart: Whether tokens do not see those that fill up their window.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]
    ends_apart: bool = True
    filling_apart: bool = True

    @classmethod
    def fit(cls, size: Sequence[int], window: int | Sequence[int], shifted: bool) -> "WindowGrid":
        """Windows of `window` tokens along each axis, moved by half their length if `shifted`; an axis that is no
        longer than a window is one window, and not moved."""
        lengths = _each(window, len(size))
        lengths, shift = get_window_size(size, lengths, [n // 2 for n in lengths])
        return cls(tuple(size), tuple(lengths), tuple(shift) if shifted else (0,) * len(size))

    @classmethod
    def published(cls, size: Sequence[int], window: int | Sequence[int], shifted: bool) -> "WindowGrid":
        """The windows of nnFormer's code.

        A number: if the shortest axis is no longer than it, all windows are cubes of that length and not moved.
        One for each axis, as for ACDC: windows of these lengths, moved unless one of them is the whole grid, and
        everything in a window sees each other. Tokens that fill up a window are seen.
        """
        cubes = isinstance(window, int)
        lengths = _each(window, len(size))
        if cubes and min(size) <= lengths[0]:
            lengths, shifted = (min(size),) * len(size), False
        elif lengths == tuple(size):
            shifted = False
        shift = tuple(n // 2 for n in lengths) if shifted and min(lengths) > 1 else (0,) * len(size)
        return cls(tuple(size), lengths, shift, ends_apart=cubes, filling_apart=False)

    @property
    def padded(self) -> tuple[int, ...]:
        """Tokens along each axis with those that fill up the last window."""
        return tuple(-(-n // w) * w for n, w in zip(self.size, self.window, strict=True))

    def partition(self, tokens: Tensor) -> Tensor:
        """(B, *size, C) -> (B, windows, tokens of a window, C)."""
        axes = tuple(range(1, len(self.size) + 1))
        if self.padded != self.size:
            filling = [(0, p - n) for p, n in zip(self.padded, self.size, strict=True)]
            tokens = F.pad(tokens, [0, 0, *[number for pair in reversed(filling) for number in pair]])
        if any(self.shift):
            tokens = tokens.roll([-n for n in self.shift], axes)
        windows: Tensor = window_partition(tokens, self.window)
        return windows.view(tokens.shape[0], -1, *windows.shape[1:])

    def merge(self, windows: Tensor) -> Tensor:
        """The inverse: (B, windows, tokens of a window, C) -> (B, *size, C)."""
        axes = tuple(range(1, len(self.size) + 1))
        tokens: Tensor = window_reverse(
            windows.flatten(0, 1).contiguous(), self.window, (windows.shape[0], *self.padded)
        )
        if any(self.shift):
            tokens = tokens.roll(self.shift, axes)
        for axis, n in enumerate(self.size, start=1):
            tokens = tokens.narrow(axis, 0, n)
        return tokens

    def labels(self) -> Tensor | None:
        """Which tokens of a window may see each other: those of the same number, (windows, tokens of a window).

        None: all of them. The cyclic move brings both ends of an axis into one window, where they stay apart; tokens of
        the padding see each other only, so that no row of the attention is empty.
        """
        filled = self.filling_apart and self.padded != self.size
        moved_apart = self.ends_apart and any(self.shift)
        if not filled and not moved_apart:
            return None
        label = torch.zeros((), dtype=torch.int64)
        filling = torch.zeros((), dtype=torch.bool)
        for axis, (n, padded, shift) in enumerate(zip(self.size, self.padded, self.shift, strict=True)):
            moved = torch.arange(padded) + shift
            shape = [padded if a == axis else 1 for a in range(len(self.size))]
            label = 2 * label + (moved >= padded).long().view(shape)
            filling = filling | (moved % padded >= n).view(shape)
        if filled:
            label = label.masked_fill(filling, -1)
        windows: Tensor = window_partition(label[None, ..., None], self.window)
        return windows.squeeze(2)


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of a window, with a learned bias for each head and relative position (Liu
    et al., "Swin Transformer", ICCV 2021).

    Cross-attention (Zhou et al., nnFormer, 2023) takes keys and values from other tokens than the queries, and the
    queries as they are, without a linear layer.

    Args:
        channels: Channels C, a multiple of `heads`.
        window: Tokens of a window along each axis.
        heads: Attention heads.
        cross: Whether keys and values come from elsewhere.
        qkv_bias: Whether queries, keys and values have a bias.
        attention_dropout: Dropout of attention weights.
        dropout: Dropout after the last layer.
        published_index: Whether relative positions are numbered as in nnFormer's code, see :func:`relative_positions`.
    """

    def __init__(
        self,
        channels: int,
        window: tuple[int, ...],
        heads: int,
        *,
        cross: bool,
        qkv_bias: bool,
        attention_dropout: float,
        dropout: float,
        published_index: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.cross, self.attention_dropout = heads, cross, attention_dropout
        self.window_tokens = math.prod(window)
        self.layer = nn.Linear(channels, (2 if cross else 3) * channels, bias=qkv_bias)
        self.bias_table = nn.Parameter(torch.zeros(math.prod(2 * n - 1 for n in window), heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.output = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(dropout))
        # not persistent: follows from the window
        self.register_buffer("bias_index", relative_positions(window, published_index), persistent=False)
        self.bias_index: Tensor

    def forward(self, queries: Tensor, source: Tensor, labels: Tensor | None) -> Tensor:
        """Attention within each window.

        Args:
            queries: (B, windows, N, C).
            source: What keys and values come from, shaped as the queries; those themselves without cross-attention.
            labels: (windows, N), see :meth:`WindowGrid.labels`.

        Returns:
            (B, windows, N, C).
        """
        heads = (-1, self.heads, queries.shape[3] // self.heads)
        if self.cross:
            query = queries.unflatten(3, heads[1:])
            key, value = self.layer(source).unflatten(3, heads).unbind(3)
        else:
            query, key, value = self.layer(queries).unflatten(3, heads).unbind(3)
        bias = (
            self.bias_table[self.bias_index].view(self.window_tokens, self.window_tokens, -1).permute(2, 0, 1)
        )
        # windows count as samples where all have the same bias, and as heads where each has its own
        axis = 0 if labels is None else 1
        if labels is not None:
            apart = labels[:, :, None] != labels[:, None, :]
            bias = torch.where(apart[:, None], -math.inf, bias).flatten(0, 1)
        rate = self.attention_dropout if self.training else 0.0
        query, key, value = (part.transpose(2, 3).flatten(axis, axis + 1) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, bias[None].to(value.dtype), rate)
        attended = attended.reshape(*queries.shape[:2], self.heads, *attended.shape[2:])
        result: Tensor = self.output(attended.transpose(2, 3).flatten(3))
        return result


def relative_positions(window: tuple[int, ...], published: bool = False) -> Tensor:
    """For each pair of tokens of a window the number of their relative position, (N * N,), first token first.

    Args:
        window: Tokens of a window along each axis.
        published: In nnFormer's code a step along the first of three axes counts ``3 w - 1``, with the second axis'
            ``w``, instead of ``(2 w - 1) (2 v - 1)`` with the second's and the third's, and one along the second ``2 w
            - 1`` instead of ``2 v - 1``: distant positions share a number, and many numbers are not used.

    Raises:
        ValueError: If the published numbers exceed those that there are.
    """
    rank = len(window)
    ranges = [2 * n - 1 for n in window]
    steps = [math.prod(ranges[axis + 1 :]) for axis in range(rank)]
    if published:
        steps[-2] = ranges[-2]
        if rank == 3:
            steps[0] = 3 * window[1] - 1
        highest = sum((count - 1) * step for count, step in zip(ranges, steps, strict=True))
        if highest >= math.prod(ranges):
            raise ValueError(f"windows of {list(window)} tokens cannot have the published bias; use others")
    index = torch.zeros((), dtype=torch.int64)
    for axis, (n, step) in enumerate(zip(window, steps, strict=True)):
        difference = torch.arange(n)[:, None] - torch.arange(n) + n - 1
        shape = [n if a % rank == axis else 1 for a in range(2 * rank)]
        index = index + step * difference.view(shape)
    return index.flatten()


def _each(window: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return (window,) * rank if isinstance(window, int) else tuple(window)


class WindowBlock(nn.Module):
    """``x + attention(norm(x))`` within windows, then ``x + mlp(norm(x))``; both with stochastic depth.

    Args:
        channels: Channels C, a multiple of `heads`.
        heads: Attention heads.
        grid: The windows.
        cross: Whether queries, keys and values come from outside, see :class:`WindowAttention`.
        mlp_ratio: Width inside the feed-forward layers, in widths of the block.
        qkv_bias: Whether queries, keys and values have a bias.
        attention_dropout: Dropout of attention weights.
        dropout: Dropout after linear layers.
        drop_path: Rate of stochastic depth.
        published_index: See :class:`WindowAttention`.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        grid: WindowGrid,
        *,
        cross: bool,
        mlp_ratio: float,
        qkv_bias: bool,
        attention_dropout: float,
        dropout: float,
        drop_path: float,
        published_index: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.norm_attention = nn.LayerNorm(channels)
        self.attention = WindowAttention(
            channels,
            grid.window,
            heads,
            cross=cross,
            qkv_bias=qkv_bias,
            attention_dropout=attention_dropout,
            dropout=dropout,
            published_index=published_index,
        )
        self.drop_path = DropPath(drop_path)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = MLPBlock(channels, int(mlp_ratio * channels), dropout, dropout_mode="swin")
        # not persistent: follows from the patch
        self.register_buffer("labels", grid.labels(), persistent=False)
        self.labels: Tensor | None

    def forward(self, x: Tensor, queries: Tensor | None = None, source: Tensor | None = None) -> Tensor:
        """(B, *size, C) -> (B, *size, C).

        Args:
            x: What attention and feed-forward layers are added to.
            queries: With cross-attention: what queries come from, of the same shape.
            source: With cross-attention: what keys and values come from, of the same shape.
        """
        first = self.grid.partition(self.norm_attention(x if queries is None else queries))
        second = first if source is None else self.grid.partition(self.norm_attention(source))
        x = x + self.drop_path(self.grid.merge(self.attention(first, second, self.labels)))
        result: Tensor = x + self.drop_path(self.mlp(self.norm_mlp(x)))
        return result
