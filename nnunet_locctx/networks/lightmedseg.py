"""LightMedSeg: a small network conditioned by anchors, as published or with anchors that use the location."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_locctx.blocks.anchors import ANCHORS_FROM, BIASES, AnchorPoints, anchor_values
from nnunet_locctx.blocks.coordconv import CONV
from nnunet_locctx.blocks.resolution import coarser
from nnunet_locctx.networks.inputs import LocationPyramid
from nnunet_locctx.networks.lightmedseg_parts import (
    DecoderStage,
    EncoderStage,
    GhostConv,
    Router,
    StructurePrior,
    halve,
    normalised,
)
from nnunet_locctx.networks.stem import TRANSPOSED
from nnunet_locctx.networks.whole import WholeNetwork
from nnunet_locctx.values import check_choice, check_integer

STEM = 8
ENCODER = (16, 32, 64, 128)
DECODER = (64, 32, 16, 8)
DETECTOR = 8
COORDINATES = ("scan", "patch")
RESOLUTIONS = ("full", "half")


class PatchCoordinates:
    """Coordinates relative to the patch, -0.5 to 0.5 along each array axis: for a network without location.

    Args:
        like: (B, C, *patch); its batch, device and number of axes.
    """

    known = None

    def __init__(self, like: Tensor) -> None:
        self.like = like

    def at(self, size: torch.Size | tuple[int, ...]) -> Tensor:
        """Centres of the tokens: (B, axes, *size)."""
        axes = [(torch.arange(n, device=self.like.device) + 0.5) / n - 0.5 for n in size]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        return grid.expand(self.like.shape[0], *grid.shape)


class AnchorDetector(nn.Module):
    """(1): anchors from the image, by three convolutions of stride 2.

    Args:
        channels: The image's.
        rank: Spatial axes.
        anchors: Number of anchors K.
        anchors_from: See :class:`~nnunet_locctx.blocks.anchors.AnchorPoints`.
        dimensions: Coordinates of an anchor.
    """

    def __init__(self, channels: int, rank: int, anchors: int, anchors_from: str, dimensions: int) -> None:
        super().__init__()
        widths = [channels, DETECTOR, DETECTOR, DETECTOR]
        self.features = nn.Sequential(
            *(normalised(CONV[rank](a, b, 3, stride=2, padding=1), b) for a, b in pairwise(widths))
        )
        self.points = AnchorPoints(
            DETECTOR,
            rank,
            anchors=anchors,
            anchors_from=anchors_from,
            hidden=128 if anchors_from == "paper" else 32,
            dimensions=dimensions,
        )

    def forward(self, image: Tensor, location: "LocationPyramid | PatchCoordinates") -> tuple[Tensor, Tensor]:
        """(B, channels, *patch) -> anchors (B, K, D) and the location (B, D, *patch / 8)."""
        features = self.features(image)
        located = location.at(features.shape[2:])
        return self.points(features, located, location.known), located


class LightMedSeg(WholeNetwork):
    """LightMedSeg (Tyagi, Rathi and Goyal, arXiv 2603.07228, 2026): 0.48 M parameters, 14 G multiply-adds at 4x128^3.

    Anchors scale and shift the features of every encoder stage and add a position bias to every decoder stage. As
    published (``anchors_from="paper", bias="paper", coordinates="patch"``) anchors are functions of the patch's
    content, relative to the patch; the network has no location. By default they are points of the scan, and so is what
    they are compared with (docs/explanation/lightmedseg.md).

    No code was published. This is the reading of the paper whose parameters agree with its tables: 476,205 with three
    classes and four channels.

    Args:
        image_channels: As for :class:`~nnunet_locctx.networks.whole.WholeNetwork`, like those up to
            `deep_supervision`, which has no effect: the network has one output.
        anchors: Number of anchors K; published with 8, 16 and 32. 0: without, no position bias, and FiLM for the
            `box` only.
        anchors_from: ``"soft_argmax"`` or ``"paper"``, see :class:`~nnunet_locctx.blocks.anchors.AnchorPoints`.
        bias: ``"gauss"`` or ``"paper"``, see :class:`~nnunet_locctx.blocks.anchors.PositionMaps`.
        coordinates: ``"scan"``: the location; ``"patch"``: relative to the patch, no location is needed.
        stride: With ``bias="gauss"``: computes the position maps of the last decoder stage for every `stride`-th voxel
            along each axis, at its exact centre, and linearly between. 1: everywhere.
        box: With ``"scan"``: whether FiLM also sees the patch's extent in the scan.
        ghost: False: ordinary convolutions instead of ghost convolutions.
        encoder_kernel: Kernel of the depthwise convolutions in the encoder; 3 is the other reading of the paper.
        decoder_kernel: Kernel of the depthwise convolutions in the decoder.
        resolution: ``"full"``: the last decoder stage has the patch's resolution; ``"half"``: half of it, and the
            logits are upsampled by a transposed convolution (the other reading; less memory).
        reduction: Reduction of squeeze and excite.
        shared_controller: Whether the router weighs for both its levels by one network.
        bottleneck: Whether a 1x1 convolution follows the encoder. The paper's text has one that seeds the decoder, but
            with it the network has 492,717 parameters, 0.49 M where the paper says 0.48 M.
        structure_prior: False: without the structure prior (LSPM); the encoder gets the stem's output, and its paths
            for detail and for the rest count half each.
        router: False: without the router; each coarse decoder level gets the encoder stage of its own resolution.

    Raises:
        ValueError: An option or the patch size is not allowed.
    """

    encoding_defaults = None

    def __init__(
        self,
        image_channels: int,
        classes: int,
        patch_size: Sequence[int],
        previous_channels: int = 0,
        deep_supervision: bool = False,
        *,
        anchors: int = 8,
        anchors_from: str = "soft_argmax",
        bias: str = "gauss",
        coordinates: str = "scan",
        stride: int = 2,
        box: bool = True,
        ghost: bool = True,
        encoder_kernel: int = 5,
        decoder_kernel: int = 5,
        resolution: str = "full",
        reduction: int = 16,
        shared_controller: bool = True,
        bottleneck: bool = False,
        structure_prior: bool = True,
        router: bool = True,
    ) -> None:
        check_integer("anchors", anchors, 0)
        check_choice("anchors_from", anchors_from, ANCHORS_FROM)
        check_choice("bias", bias, BIASES)
        check_choice("coordinates", coordinates, COORDINATES)
        check_choice("resolution", resolution, RESOLUTIONS)
        for name, kernel in (("encoder_kernel", encoder_kernel), ("decoder_kernel", decoder_kernel)):
            check_integer(name, kernel, 1)
            if kernel % 2 == 0:
                raise ValueError(f"{name} must be odd, got {kernel!r}")
        check_integer("reduction", reduction, 1)
        check_integer("stride", stride, 1)
        self.check_patch(patch_size)
        located = self.uses_location(coordinates=coordinates, anchors=anchors, box=box)
        super().__init__(
            image_channels, classes, patch_size, previous_channels, deep_supervision, located=located
        )
        rank, channels = self.rank, image_channels + previous_channels
        dimensions = 3 if located else rank
        self.box = box and located
        self.stride = stride if bias == "gauss" else 1
        values = anchors * dimensions + (2 * dimensions if self.box else 0)
        self.anchors, self.dimensions = anchors, dimensions
        self.detector = AnchorDetector(channels, rank, anchors, anchors_from, dimensions) if anchors else None
        self.stem = GhostConv(channels, STEM, rank, stride=2, ghost=ghost)
        self.prior = StructurePrior(STEM, rank) if structure_prior else None
        widths = (STEM, *ENCODER)
        self.encoder = nn.ModuleList(
            EncoderStage(a, b, rank, values, encoder_kernel, reduction, ghost) for a, b in pairwise(widths)
        )
        self.bottleneck = CONV[rank](ENCODER[-1], ENCODER[-1], 1) if bottleneck else None
        half = resolution == "half"
        direct = None if router else (3, 2) if half else (2, 1)
        self.router = Router(STEM, ENCODER, DECODER, rank, shared_controller, direct)
        widths = (ENCODER[-1], *DECODER)
        self.stages = nn.ModuleList(
            DecoderStage(
                a, b, rank, anchors, bias, decoder_kernel, reduction, ghost, upsample=level > 0 or not half
            )
            for level, (a, b) in enumerate(pairwise(widths))
        )
        self.head = CONV[rank](DECODER[-1], classes, 1)
        self.enlarge = TRANSPOSED[rank](classes, classes, 2, stride=2) if half else None

    @classmethod
    def uses_location(cls, **options: Any) -> bool:
        """Whether coordinates are those of the scan, and anchors or the patch's extent bring them in."""
        return options["coordinates"] == "scan" and bool(options["anchors"] or options["box"])

    @classmethod
    def patch_multiple(cls, rank: int, **options: Any) -> tuple[int, ...]:
        """The stem and three pools halve each side."""
        return (16,) * rank

    def segment(self, image: Tensor, location: LocationPyramid | None) -> Tensor:
        """As in the base: (B, image + previous, *patch) -> (B, classes, *patch)."""
        coordinates = PatchCoordinates(image) if location is None else location
        if self.detector is not None:
            points, coarse = self.detector(image, coordinates)
        else:
            points = image.new_zeros(image.shape[0], 0, self.dimensions)
            coarse = coordinates.at(coarser(image.shape[2:], 8))
        known = coordinates.known
        s = anchor_values(points, coarse if self.box else None)
        stem = self.stem(image)
        texture, features = (None, stem) if self.prior is None else self.prior(stem)
        encoded: list[Tensor] = []
        for stage in self.encoder:
            features = stage(halve(features) if encoded else features, texture, s, known)
            encoded.append(features)
        if self.bottleneck is not None:
            features = self.bottleneck(features)
        fold = 1 if self.enlarge is None else 2
        sizes = [
            torch.Size(n // (fold * 2**level) for n in image.shape[2:])
            for level in reversed(range(len(DECODER)))
        ]
        skips = self.router(stem, encoded, sizes)
        steps = (1, 1, 1, self.stride)
        for stage, skip, size, step in zip(self.stages, skips, sizes, steps, strict=True):
            features = stage(features, skip, coordinates.at(coarser(size, step)), points, known)
        logits: Tensor = self.head(features)
        return logits if self.enlarge is None else self.enlarge(logits)
