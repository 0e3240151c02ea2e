"""What an embedding should be: places of a scan as far apart, and in the same direction, as they are in the patient.

Source: Goncharov et al., "Anatomical Positional Embeddings", MICCAI 2024 (arXiv:2409.10291), for the distance and the
equality term; the signed term is this project's own.

Embeddings and positions are (N, 3); positions are along (R, A, S) in units of the length that one unit of the embedding
stands for. The first and the second set are read from different crops of one scan.
"""

import torch
from torch import Tensor


def equality_term(first: Tensor, second: Tensor) -> Tensor:
    """Mean square of the difference between two embeddings (N, 3) of the same places, over places and axes."""
    return (first - second).square().mean()


def distance_term(first: Tensor, second: Tensor, first_position: Tensor, second_position: Tensor) -> Tensor:
    """Mean over all ``i, j`` of ``(|e_i - e_j| - |p_i - p_j|)^2``, ``i`` of the first and ``j`` of the second set.

    Unchanged by any rotation, reflection and shift of the embedding.
    """
    wanted = _distances(first_position, second_position)
    return (_distances(first, second) - wanted).square().mean()


def signed_term(first: Tensor, second: Tensor, first_position: Tensor, second_position: Tensor) -> Tensor:
    """Mean over all ``i, j`` and axes of ``((e_i - e_j) - (p_i - p_j))^2``: leaves only a shift free.

    With the residual ``r = e - p`` this is the mean of ``(r_i - r_j)^2``, that is the variances of both sets plus the
    square of the difference of their means: no table of all pairs is needed.
    """
    r1, r2 = first - first_position, second - second_position
    between = (r1.mean(0) - r2.mean(0)).square()
    return (r1.var(0, correction=0) + r2.var(0, correction=0) + between).mean()


def scan_scale(position: Tensor) -> tuple[Tensor, Tensor]:
    """(3,) mean and (3,) standard deviation along each axis of positions (N, 3), the paper's normalisation.

    What one unit of the embedding stands for then depends on the field of view, and differs between the axes. The
    deviation is the unbiased one (divided by N - 1), as in the authors' code, and at least 1e-3.
    """
    return position.mean(0), position.std(0, correction=min(1, len(position) - 1)).clamp_min(1e-3)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) from (N, 3) and (M, 3); torch gives a distance of 0 the gradient 0."""
    return torch.linalg.vector_norm(first[:, None] - second[None], dim=-1)
