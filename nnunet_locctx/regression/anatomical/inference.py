"""From a canonical scan to the embeddings of its cells."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nnunet_locctx.regression.anatomical.network import STRIDE
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.intensity import normalise

LARGEST_PASS = 8_000_000
"""Voxels in one forward pass (2 m of a body of 50 x 50 cm at 4 mm); larger scans are taken in tiles."""

MARGIN = 64
"""Voxels that a tile sees beyond its own on each side."""


def network_input(scan: CanonicalScan, modality: str, window: tuple[float, float]) -> npt.NDArray[np.float32]:
    """(2, a, b, c) float32: intensity from -1 to 1, 0 outside the scan, and 1 in the scan."""
    known = scan.inside.astype(np.float32)
    return np.stack([normalise(scan, modality, window) * known, known])


def embed(
    network: nn.Module, volume: npt.NDArray[np.float32], largest: int = LARGEST_PASS
) -> npt.NDArray[np.float32]:
    """Embeddings of a whole volume, in tiles where it is large.

    Args:
        network: (1, 2, a, b, c) -> (1, 3, cells), as
            :class:`~nnunet_locctx.regression.anatomical.network.EmbeddingNetwork`.
        volume: (2, a, b, c).
        largest: Voxels in one pass, margins not counted; below a tile of 64 voxels a side it has no effect.

    Returns:
        (3, *cells) float32, 2 or more cells along each axis; cells beyond the volume see only what is unknown.
    """
    cells = [max(2, -(-n // STRIDE)) for n in volume.shape[1:]]
    missing = [(0, n * STRIDE - size) for n, size in zip(cells, volume.shape[1:], strict=True)]
    volume = np.pad(volume, [(0, 0), *missing])
    out = np.empty((3, *cells), dtype=np.float32)
    tile = list(volume.shape[1:])
    while math.prod(tile) > largest and max(tile) > MARGIN:
        axis = int(np.argmax(tile))
        tile[axis] = MARGIN * math.ceil(
            tile[axis] / 2 / MARGIN
        )  # MARGIN holds whole cells of the coarsest level
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
            found = network(part[None])[0].numpy()
            out[(slice(None), *target)] = found[(slice(None), *kept)]
    return out


def cell_affine(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(4, 4) index of a cell -> mm LPS, from that of a voxel: a cell's centre is between its second and third voxel."""
    return np.asarray(
        affine @ np.array([[STRIDE, 0, 0, 1.5], [0, STRIDE, 0, 1.5], [0, 0, STRIDE, 1.5], [0, 0, 0, 1]])
    )
