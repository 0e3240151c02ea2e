"""The network that scores one axial slice, and losses without labels, from the order of a scan's slices and their
distances.

Source: Schuhegger, "Body part regression for CT images", 2021 (arXiv:2110.09148); the classification loss is that of
Yan, Lu, Summers, "Unsupervised body part regression via spatially self-ordering convolutional neural networks", ISBI
2018.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 128, 128, 128)
"""Channels after each convolution; 0.39 M parameters."""

SMALLEST_SIDE = 80
"""Smallest number of pixels of a slice along each axis: the last norm needs a map of at least 3 x 3."""


class SliceRegressor(nn.Module):
    """Axial slice -> one score.

    3 x 3 convolutions with leaky ReLU, the first :attr:`HALVINGS` with stride 2 and instance norm, then the mean over
    the map and a linear layer. The last convolution keeps its map's size (4 x 4 for slices of 112 x 112) and has no
    norm: a norm right before the mean would fix each channel's mean (up to the ReLU), and a sixth stride of 2 would
        leave only a map of 2 x 2.

    Args:
        widths: Channels after each convolution.
    """

    HALVINGS = 5

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for depth, width in enumerate(widths):
            halve = depth < self.HALVINGS
            layers.append(nn.Conv2d(channels, width, 3, stride=2 if halve else 1, padding=1))
            if halve:
                layers.append(nn.InstanceNorm2d(width, affine=True))
            layers.append(nn.LeakyReLU(0.01))
            channels = width
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(channels, 1)

    def forward(self, slices: Float[Tensor, "n 1 h w"]) -> Float[Tensor, " n"]:
        return self.score(self.features(slices).mean(dim=(2, 3)))[:, 0]


def new_network(seed: int) -> SliceRegressor:
    """A network with seeded weights; the global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SliceRegressor()


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

    The loss is smallest if scores rise by ``beta / alpha`` per mm: it determines the scale.

    Args:
        scores: Each volume's slices from inferior to superior.
        gaps: Distances in mm between each slice and the next.
        alpha: Steepness for scores.
        beta: Steepness for mm.
    """
    return F.mse_loss(torch.sigmoid(alpha * scores.diff(dim=1)), torch.sigmoid(beta * gaps))


def classification_order_loss(scores: Float[Tensor, "volumes slices"]) -> Float[Tensor, ""]:
    """Mean of ``-log sigmoid(difference)`` over neighbouring slices: order only, no distance.

    Args:
        scores: Each volume's slices from inferior to superior.
    """
    return -F.logsigmoid(scores.diff(dim=1)).mean()
