"""Anchors: points found in the features that condition a network, and maps of where a voxel lies relative to them.

After LightMedSeg (Tyagi, Rathi and Goyal, arXiv 2603.07228, 2026), whose anchors and maps are kept as ``"paper"``.
"""

import math

import torch
from torch import Tensor, nn

from nnunet_locctx.blocks.checks import check_channels, check_input
from nnunet_locctx.blocks.coordconv import CONV
from nnunet_locctx.blocks.resolution import coarser, in_full_precision, resize_location, spread
from nnunet_locctx.blocks.unknown import hide_unknown, if_any_known
from nnunet_locctx.types import Features, Known, Location
from nnunet_locctx.values import check_choice, check_integer

ANCHORS_FROM = ("soft_argmax", "paper")
BIASES = ("gauss", "paper")


class AnchorPoints(nn.Module):
    """Features and their location to K points in the location's coordinates.

    ``"soft_argmax"``: K score maps, each a softmax over the voxels, average the location: where the features show what
    the map looks for. These points lie within the patch and move with it, so a voxel's offset to them says nothing
    about the scan. The anchors are therefore K learned points of the scan, corrected by a small network that sees the
    points found: the mean place of a landmark, and what the patch says about this scan. The correction is zero at
    first.

    ``"paper"``: the mean of the features over the patch, a hidden layer and a sigmoid. The mean knows what is in the
    patch, not where. The points span the cube of side 1 around the origin (published: 0 to 1, a shift only).

    Args:
        channels: Feature channels C.
        rank: Spatial axes, 2 or 3.
        anchors: Number of points K.
        anchors_from: One of :data:`ANCHORS_FROM`.
        hidden: Width of the hidden layer.
        dimensions: Channels of the location.

    Raises:
        ValueError: If an option is not allowed.
    """

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        anchors: int = 8,
        anchors_from: str = "soft_argmax",
        hidden: int = 32,
        dimensions: int = 3,
    ) -> None:
        super().__init__()
        check_integer("anchors", anchors, 1)
        check_integer("hidden", hidden, 1)
        check_choice("anchors_from", anchors_from, ANCHORS_FROM)
        self.anchors, self.dimensions = anchors, dimensions
        values = anchors * dimensions
        self.searching = anchors_from == "soft_argmax"
        last = nn.Linear(hidden, values)
        if self.searching:
            self.score = CONV[rank](channels, anchors, 1, bias=False)  # softmax does not see a bias
            self.reference = nn.Parameter(even_points(anchors, dimensions) - 0.5)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.regress = nn.Sequential(
            nn.Linear(values if self.searching else channels, hidden), nn.SiLU(), last
        )

    def forward(self, features: Features, location: Tensor, known: Known | None = None) -> Tensor:
        """(B, C, *spatial), (B, dimensions, *spatial), (B, dimensions) -> (B, K, dimensions), float32.

        Points are 0 along the axes that are not known; the location must be so, too.
        """
        if self.searching:
            seen = soft_argmax(self.score(features), location)
            points = self.reference + self.regress(seen.flatten(1)).unflatten(1, seen.shape[1:])
        else:
            mean = features.mean(dim=tuple(range(2, features.dim())))
            points = in_full_precision(self.regress(mean).sigmoid() - 0.5)
            points = points.unflatten(1, (self.anchors, self.dimensions))
        return points if known is None else points * known.unsqueeze(1)


class PositionMaps(nn.Module):
    """One map per anchor of where each voxel lies relative to it.

    ``"gauss"``: ``exp(-|x - s_k|^2 / (2 sigma_k^2))``, sigma learned: K maps of rank K.

    ``"paper"``: the sum over the axes of ``x - s_k``. These K maps differ by constants only. Their rank is 2: any
    weighting of them is one diagonal ramp plus a constant.

    Args:
        anchors: Number of anchors K.
        bias: One of :data:`BIASES`.

    Raises:
        ValueError: If an option is not allowed.
    """

    def __init__(self, anchors: int, bias: str = "gauss") -> None:
        super().__init__()
        check_choice("bias", bias, BIASES)
        self.gauss = bias == "gauss"
        if self.gauss:
            spacing = anchors ** (-1 / 3)  # of anchors spread evenly over a volume of side 1
            self.log_sigma = nn.Parameter(torch.full((anchors,), math.log(SIGMA * spacing)))

    def forward(self, location: Tensor, points: Tensor) -> Tensor:
        """(B, dimensions, *spatial), (B, K, dimensions) -> (B, K, *spatial), float32."""
        location = in_full_precision(location)
        flat = [1] * (location.dim() - 2)
        if not self.gauss:
            constant = points.sum(dim=2).view(*points.shape[:2], *flat)
            return location.sum(dim=1, keepdim=True) - constant
        # -(|x|^2 - 2 x.s + |s|^2) / (2 sigma^2), summed up term by term: no tensor of voxels x anchors x axes, and
        # addcmul keeps nothing of that size for the gradient
        precision = torch.exp(-2 * self.log_sigma).view(1, -1, 1)
        squares = -precision * points.square().sum(dim=2, keepdim=True) / 2
        exponent = torch.addcmul(
            squares.view(*points.shape[:2], *flat),
            -precision.view(1, -1, *flat) / 2,
            location.square().sum(dim=1, keepdim=True),
        )
        for axis in range(points.shape[2]):
            slope = (precision * points)[..., axis].reshape(*points.shape[:2], *flat)
            exponent = torch.addcmul(exponent, slope, location[:, axis : axis + 1])
        return exponent.exp()


SIGMA = 0.5
"""Width of the Gaussians at first, in spacings of evenly spread anchors."""


class AnchorBlock(nn.Module):
    """``features * (1 + gamma(s)) + beta(s) + P maps(x, s)`` with anchors s found in the features.

    LightMedSeg's conditioning (FiLM from the anchors, and a position bias) as a block for any stage. gamma, beta and
    the projection P of the position maps are zero at first, so the block starts as exactly the identity. FiLM also
    gets the patch's extent in the scan, as far as the location tells. Along an axis that is not known, location and
    anchors are 0: no distance to anything.

    ``anchors_from="paper", bias="paper"`` is the published form, but with the coordinates of the scan: relative to the
    patch it would not use the location at all.

    Args:
        channels: Feature channels C.
        rank: Spatial axes, 2 or 3.
        anchors: Number of anchors K.
        anchors_from: One of :data:`ANCHORS_FROM`, see :class:`AnchorPoints`.
        bias: One of :data:`BIASES`, see :class:`PositionMaps`.
        hidden: Width of the hidden layer between features and anchors.
        box: Whether FiLM sees the patch's extent.
        stride: Computes the position bias for every `stride`-th voxel along each axis, at its exact centre, and
            linearly between. 1: everywhere.

    Raises:
        ValueError: If an option is not allowed.
    """

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        anchors: int = 8,
        anchors_from: str = "soft_argmax",
        bias: str = "gauss",
        hidden: int = 32,
        box: bool = True,
        stride: int = 2,
    ) -> None:
        super().__init__()
        check_channels(channels, rank)
        check_integer("stride", stride, 1)
        self.channels, self.rank, self.box, self.stride = channels, rank, box, stride
        self.points = AnchorPoints(channels, rank, anchors=anchors, anchors_from=anchors_from, hidden=hidden)
        self.maps = PositionMaps(anchors, bias)
        self.film = nn.Linear(3 * anchors + 6 * int(box), 2 * channels)
        self.project = CONV[rank](anchors, channels, 1, bias=False)  # beta is a bias
        for parameter in (*self.film.parameters(), *self.project.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, features: Features, location: Location, known: Known | None = None) -> Features:
        """(B, C, *spatial), (B, 3, *spatial), (B, 3) -> (B, C, *spatial)."""
        check_input(features, location, known, self.channels, self.rank)
        size = features.shape[2:]
        location = hide_unknown(location, known)
        points = self.points(features, location, known)
        coarse = resize_location(location, coarser(size, self.stride))
        film = if_any_known(self.film(anchor_values(points, coarse if self.box else None)), known)
        gamma, beta = film.view(*film.shape, *[1] * self.rank).chunk(2, dim=1)
        position = spread(if_any_known(self.project(self.maps(coarse, points)), known), size)
        return torch.addcmul(features + position + beta, features, gamma)


def anchor_values(points: Tensor, location: Tensor | None) -> Tensor:
    """What FiLM sees: (B, K, D), and the location (B, D, *spatial) of a patch for its extent -> (B, K D [+ 2 D])."""
    if location is None:
        return points.flatten(1)
    inside = in_full_precision(location).flatten(2)
    return torch.cat([points.flatten(1), inside.amin(dim=2), inside.amax(dim=2)], dim=1)


def soft_argmax(scores: Tensor, location: Tensor) -> Tensor:
    """Mean location under the softmax of each score map: (B, K, *spatial), (B, D, *spatial) -> (B, K, D), float32."""
    weights = in_full_precision(scores).flatten(2).softmax(dim=2)
    # sums, not a matrix product: autocast would round the coordinates
    channels = in_full_precision(location).flatten(2).unbind(dim=1)
    return torch.stack([(weights * channel.unsqueeze(1)).sum(dim=2) for channel in channels], dim=2)


def even_points(count: int, dimensions: int) -> Tensor:
    """Points spread evenly over the unit cube, the first in its middle: (count, dimensions).

    Multiples, modulo 1, of the inverse powers of the generalised golden ratio (Roberts, 2018).
    """
    ratio = 2.0
    for _ in range(50):  # to the root of ratio ** (dimensions + 1) = ratio + 1
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    steps = torch.tensor([ratio ** -(axis + 1) for axis in range(dimensions)])
    return (0.5 + torch.arange(count)[:, None] * steps) % 1
