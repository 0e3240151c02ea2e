"""A scan's embeddings, averaged over several voxel sizes.

The cells of one forward pass are large (4 voxels of the canonical grid), and what the network makes of a place depends
on where the cells' borders fall and on how large the body looks. Passes at other voxel sizes see other cells; their
mean errs less: on 10 held-out whole-body phantoms 18 mm in the median, one pass 26 to 29 mm.
"""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform, map_coordinates

from nnunet_locctx.geometry import Array
from nnunet_locctx.regression.anatomical.inference import cell_affine, embed, network_input
from nnunet_locctx.regression.anatomical.network import EmbeddingNetwork
from nnunet_locctx.regression.anatomical.options import AnatomicalOptions
from nnunet_locctx.regression.canonical import CanonicalScan

VIEWS = (0.8, 0.9, 1.0, 1.1, 1.25)
"""Voxel sizes of the passes, as multiples of the canonical one; within what crops are zoomed by in training."""

NODE = 2
"""Canonical voxels from one node of the map to the next."""


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
    network: EmbeddingNetwork, scan: CanonicalScan, options: AnatomicalOptions
) -> tuple[npt.NDArray[np.float32], Array]:
    """Mean embeddings on a grid of nodes.

    Args:
        network: The network.
        scan: On a grid of ``options.spacing``.
        options: How the network was fitted.

    Returns:
        (3, a, b, c) float32, 2 or more nodes along each axis, and (4, 4) index of a node -> mm LPS.
    """
    nodes = [max(2, -(-n // NODE)) for n in scan.image.shape]
    affine = scan.affine @ node_affine()
    total = np.zeros((3, *nodes), dtype=np.float64)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in nodes], indexing="ij"), axis=0)
    for factor in VIEWS:
        view = zoomed(scan, factor)
        found = embed(network, network_input(view, options.modality, options.window))
        matrix = np.linalg.inv(cell_affine(view.affine)) @ affine
        at = np.tensordot(matrix[:3, :3], index, axes=1) + matrix[:3, 3].reshape(3, 1, 1, 1)
        for channel, values in zip(total, found, strict=True):
            channel += _interpolate(values, at)
    return (total / len(VIEWS)).astype(np.float32), affine


def node_affine() -> Array:
    """(4, 4) index of a node -> index of a canonical voxel."""
    matrix = np.diag([NODE, NODE, NODE, 1.0])
    matrix[:3, 3] = (NODE - 1) / 2
    return matrix


def body_nodes(body: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which nodes are body in at least half of their voxels. `body` is (a, b, c), on the canonical grid."""
    full = np.zeros([max(2, -(-n // NODE)) * NODE for n in body.shape], dtype=np.float32)
    full[tuple(slice(n) for n in body.shape)] = body
    blocks = full.reshape([m for n in full.shape for m in (n // NODE, NODE)])
    return np.asarray(blocks.mean(axis=(1, 3, 5)) >= 0.5)


def _interpolate(values: npt.NDArray[np.float32], at: Array) -> Array:
    """Linear between cells; half a cell beyond the outer ones, continued linearly."""
    inside = np.stack([np.clip(a, 0, n - 1) for a, n in zip(at, values.shape, strict=True)])
    found = map_coordinates(values, inside, order=1, output=np.float64)
    # the outer cells' centres lie half a cell within the scan: holding their value there would bend the map
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
            found += slope * np.clip(beyond, -0.5, 0.5)
    return np.asarray(found)
