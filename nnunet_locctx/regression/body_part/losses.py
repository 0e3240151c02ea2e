"""Losses that need no labels: the slices of a scan are in order, and their distances are known.

Source: Schuhegger, "Body part regression for CT images", 2021 (arXiv:2110.09148); the classification loss is that of
Yan, Lu, Summers, "Unsupervised body part regression via spatially self-ordering convolutional neural networks", ISBI
2018.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ALPHA = 1.0
"""Steepness of the sigmoid of score differences (the published model's)."""

BETA = 0.01
"""Steepness of the sigmoid of distances, per mm (the published model's)."""


def heuristic_order_loss(
    scores: Float[Tensor, "volumes slices"],
    gaps: Float[Tensor, "volumes gaps"],
    alpha: float = ALPHA,
    beta: float = BETA,
) -> Float[Tensor, ""]:
    """Mean of ``(sigmoid(beta * gap) - sigmoid(alpha * difference)) ** 2`` over neighbouring slices.

    Smallest where scores rise by ``beta / alpha`` per mm: the loss calibrates the scale itself.

    Args:
        scores: Each volume's slices from inferior to superior.
        gaps: Distances in mm between each slice and the next.
        alpha: Steepness for scores.
        beta: Steepness for mm.
    """
    wanted = torch.sigmoid(beta * gaps)
    return F.mse_loss(torch.sigmoid(alpha * scores.diff(dim=1)), wanted)


def classification_order_loss(scores: Float[Tensor, "volumes slices"]) -> Float[Tensor, ""]:
    """Mean of ``-log sigmoid(difference)`` over neighbouring slices: order only, no distance.

    Args:
        scores: Each volume's slices from inferior to superior.
    """
    return -F.logsigmoid(scores.diff(dim=1)).mean()
