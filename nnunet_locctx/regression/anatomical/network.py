"""A small fully convolutional network from a scan to coarse anatomical coordinates, and its use on a whole scan.

A scan's embeddings are averaged over several voxel sizes. The cells of one forward pass are large (4 voxels of the
canonical grid), and the embedding of a place depends on the borders of the cells and on the apparent size of the body.
Passes at other voxel sizes have other cells, and the mean has a smaller error: 18 mm in the median on 10 held-out
whole-body phantoms, against 26 to 29 mm for one pass.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import affine_transform, map_coordinates
from torch import Tensor, nn

from nnunet_locctx.geometry import Array
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.intensity import normalise

INPUT_CHANNELS = 2
"""Intensity from -1 to 1 (0 where unknown), and a mask of known voxels."""

STRIDE = 4
"""Voxels of the input per cell of the output, along each axis."""


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each cell; unlike other norms it does not depend on the field of
    view."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, a, b, c) -> the same shape."""
        return self.norm(features.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """Norm, 3^3 convolution, GELU, 1^3 convolution, added to the input.

    The convolutions are dense. Measured at 32 channels of 16 x 12 x 16 cells, batch 8, backward, one CPU core: dense 32
    ms and depthwise 47 ms in the default memory layout, dense 25 ms and depthwise 15 ms in channels-last, which the
    network uses. Dense ones also mix channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.spatial = nn.Conv3d(width, width, 3, padding=1)
        self.mix = nn.Conv3d(width, width, 1)
        nn.init.zeros_(self.mix.weight)  # every block starts as the identity
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, a, b, c) -> the same shape."""
        return features + self.mix(F.gelu(self.spatial(self.norm(features))))


class EmbeddingNetwork(nn.Module):
    """A feature pyramid: each level halves the resolution; on the way up it is doubled and added to the finer level.

    Source: the pyramid of Goncharov et al., "Anatomical Positional Embeddings", MICCAI 2024 (arXiv:2409.10291), with
    other blocks and a thirtieth of its parameters. The output is linear: a sigmoid would saturate on scans that are
    longer than the training scans.

    Zero padding means "unknown", as in the second channel of the input, so a crop of a scan looks like a scan with that
    field of view.

    Args:
        widths: Channels of each level, finest first; cells of level ``l`` have ``STRIDE * 2**l`` voxels a side.
        depths: Residual blocks of each level on the way down; on the way up each level has one.
    """

    def __init__(
        self, widths: Sequence[int] = (32, 48, 64, 64), depths: Sequence[int] = (1, 2, 2, 2)
    ) -> None:
        super().__init__()
        self.stem = nn.Conv3d(INPUT_CHANNELS, widths[0], STRIDE, stride=STRIDE)
        self.down = nn.ModuleList(
            nn.Sequential(*[ResidualBlock(width) for _ in range(depth)])
            for width, depth in zip(widths, depths, strict=True)
        )
        steps = list(itertools.pairwise(widths))
        self.coarser = nn.ModuleList(
            nn.Sequential(ChannelNorm(fine), nn.Conv3d(fine, coarse, 2, stride=2)) for fine, coarse in steps
        )
        self.finer = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in steps)
        self.up = nn.ModuleList(ResidualBlock(width) for width in widths[:-1])
        self.head = nn.Sequential(ChannelNorm(widths[0]), nn.Conv3d(widths[0], 3, 1))

    def forward(self, volume: Tensor) -> Tensor:
        """(B, 2, a, b, c) -> (B, 3, ceil(a / 4), ceil(b / 4), ceil(c / 4)) embeddings of the cells' centres.

        Cell ``i`` spans the voxels ``4 i`` to ``4 i + 3``; its centre is at index ``4 i + 1.5``.
        """
        features = self.stem(_padded(volume, STRIDE).contiguous(memory_format=torch.channels_last_3d))
        levels = []
        # the coarsest level has no coarser one
        for blocks, coarser in zip(self.down, self.coarser, strict=False):
            features = blocks(features)
            levels.append(features)
            features = coarser(_padded(features, 2))
        features = self.down[-1](features)
        for level in reversed(range(len(levels))):
            skip = levels[level]
            doubled = F.interpolate(
                self.finer[level](features), scale_factor=2, mode="trilinear", align_corners=False
            )
            a, b, c = skip.shape[2:]
            features = self.up[level](skip + doubled[:, :, :a, :b, :c])
        return self.head(features)


def _padded(volume: Tensor, multiple: int) -> Tensor:
    """Pads with zeros at the end of each axis to a multiple."""
    missing = [-n % multiple for n in volume.shape[2:]]
    if not any(missing):
        return volume
    return F.pad(volume, [amount for n in reversed(missing) for amount in (0, n)])


LARGEST_PASS = 8_000_000
"""Voxels in one forward pass (2 m of a body of 50 x 50 cm at 4 mm); larger scans are split into tiles."""

MARGIN = 64
"""Voxels of context on each side of a tile."""


def network_input(scan: CanonicalScan, modality: str, window: tuple[float, float]) -> npt.NDArray[np.float32]:
    """(2, a, b, c) float32: intensity from -1 to 1 (0 outside the scan), and a mask of the scan."""
    known = scan.inside.astype(np.float32)
    return np.stack([normalise(scan, modality, window) * known, known])


def embed(
    network: nn.Module, volume: npt.NDArray[np.float32], largest: int = LARGEST_PASS
) -> npt.NDArray[np.float32]:
    """Embeddings of a whole volume; large volumes are split into tiles.

    Args:
        network: (1, 2, a, b, c) -> (1, 3, cells), as :class:`EmbeddingNetwork`.
        volume: (2, a, b, c).
        largest: Largest number of voxels in one pass, without margins. Tiles are not split below 64 voxels a side.

    Returns:
        (3, *cells) float32, 2 or more cells along each axis; cells beyond the volume see only unknown voxels.
    """
    cells = [max(2, -(-n // STRIDE)) for n in volume.shape[1:]]
    missing = [(0, n * STRIDE - size) for n, size in zip(cells, volume.shape[1:], strict=True)]
    volume = np.pad(volume, [(0, 0), *missing])
    out = np.empty((3, *cells), dtype=np.float32)
    tile = list(volume.shape[1:])
    while math.prod(tile) > largest and max(tile) > MARGIN:
        axis = int(np.argmax(tile))
        # MARGIN holds whole cells of the coarsest level
        tile[axis] = MARGIN * math.ceil(tile[axis] / 2 / MARGIN)
    with torch.inference_mode():
        for corner in itertools.product(
            *[range(0, n, t) for n, t in zip(volume.shape[1:], tile, strict=True)]
        ):
            seen, kept, target = [], [], []
            for at, length, n in zip(corner, tile, volume.shape[1:], strict=True):
                first, last = max(0, at - MARGIN), min(n, at + length + MARGIN)
                stop = min(n, at + length)
                seen.append(slice(first, last))
                kept.append(slice((at - first) // STRIDE, (stop - first) // STRIDE))
                target.append(slice(at // STRIDE, stop // STRIDE))
            part = torch.from_numpy(np.ascontiguousarray(volume[(slice(None), *seen)]))
            out[(slice(None), *target)] = network(part[None])[0].numpy()[(slice(None), *kept)]
    return out


def cell_affine(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(4, 4) index of a cell -> mm LPS, from the voxels' affine. A cell's centre is between its second and third
    voxel."""
    return np.asarray(
        affine @ np.array([[STRIDE, 0, 0, 1.5], [0, STRIDE, 0, 1.5], [0, 0, STRIDE, 1.5], [0, 0, 0, 1]])
    )


VIEWS = (0.8, 0.9, 1.0, 1.1, 1.25)
"""Voxel sizes of the passes as multiples of the canonical one, within the zoom of training crops."""

NODE = 2
"""Distance between nodes of the map in canonical voxels."""


def zoomed(scan: CanonicalScan, factor: float) -> CanonicalScan:
    """The scan with voxels ``factor`` times as large, about the same centre."""
    if factor == 1:
        return scan
    shape = np.array(scan.image.shape)
    new = tuple(int(n) for n in np.maximum(np.ceil(shape / factor - 1e-3), 2))
    offset = (shape - 1) / 2 - factor * (np.array(new) - 1) / 2
    image = affine_transform(scan.image, np.full(3, factor), offset, new, np.float32, order=1, mode="nearest")
    inside = affine_transform(
        scan.inside.astype(np.float32), np.full(3, factor), offset, new, np.float32, order=1, mode="nearest"
    )
    affine = scan.affine.copy()
    affine[:3, 3] += scan.affine[:3, :3] @ offset
    affine[:3, :3] = scan.affine[:3, :3] * factor
    return CanonicalScan(image, inside > 0.5, affine)


def embed_views(
    network: EmbeddingNetwork, scan: CanonicalScan, modality: str, window: tuple[float, float]
) -> tuple[npt.NDArray[np.float32], Array]:
    """Mean embeddings on a grid of nodes.

    Args:
        network: The network.
        scan: On the grid that the network was fitted on.
        modality: As in :func:`network_input`.
        window: As in :func:`network_input`.

    Returns:
        (3, a, b, c) float32, 2 or more nodes along each axis, and (4, 4) index of a node -> mm LPS.
    """
    nodes = [max(2, -(-n // NODE)) for n in scan.image.shape]
    affine = scan.affine @ node_affine()
    total = np.zeros((3, *nodes), dtype=np.float64)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in nodes], indexing="ij"), axis=0)
    for factor in VIEWS:
        view = zoomed(scan, factor)
        cells = embed(network, network_input(view, modality, window))
        matrix = np.linalg.inv(cell_affine(view.affine)) @ affine
        at = np.tensordot(matrix[:3, :3], index, axes=1) + matrix[:3, 3].reshape(3, 1, 1, 1)
        for channel, values in zip(total, cells, strict=True):
            channel += _interpolate(values, at)
    return (total / len(VIEWS)).astype(np.float32), affine


def node_affine() -> Array:
    """(4, 4) index of a node -> index of a canonical voxel."""
    matrix = np.diag([NODE, NODE, NODE, 1.0])
    matrix[:3, 3] = (NODE - 1) / 2
    return matrix


def body_nodes(body: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether each node is body in at least half of its voxels. `body` is (a, b, c), on the canonical grid."""
    full = np.zeros([max(2, -(-n // NODE)) * NODE for n in body.shape], dtype=np.float32)
    full[tuple(slice(n) for n in body.shape)] = body
    blocks = full.reshape([m for n in full.shape for m in (n // NODE, NODE)])
    return np.asarray(blocks.mean(axis=(1, 3, 5)) >= 0.5)


def _interpolate(values: npt.NDArray[np.float32], at: Array) -> Array:
    """Interpolates linearly between cells and extrapolates linearly up to half a cell beyond the outer ones."""
    inside = np.stack([np.clip(a, 0, n - 1) for a, n in zip(at, values.shape, strict=True)])
    interpolated = map_coordinates(values, inside, order=1, output=np.float64)
    # the outer cells' centres lie half a cell within the scan: constant extrapolation would bend the map
    for axis, n in enumerate(values.shape):
        lower = inside.copy()
        lower[axis] = np.clip(np.floor(inside[axis]), 0, n - 2)
        upper = lower.copy()
        upper[axis] += 1
        beyond = at[axis] - inside[axis]
        if np.any(beyond):
            slope = map_coordinates(values, upper, order=1, output=np.float64) - map_coordinates(
                values, lower, order=1, output=np.float64
            )
            interpolated += slope * np.clip(beyond, -0.5, 0.5)
    return np.asarray(interpolated)
