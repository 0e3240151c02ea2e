"""What some methods add to nnU-Net's losses: the losses of their blocks, and LightMedSeg's boundary term (Tyagi, Rathi
and Goyal, arXiv 2603.07228, 2026).

The paper's radius is lost; 2 voxels are this project's. Its weights by inverse voxel frequency, in all three terms, are
an option (suffix ``_weightedClasses`` of a trainer's name), since they change with every batch's classes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_locctx.blocks import auxiliary_losses
from nnunet_locctx.values import check_integer

RADIUS = 2
WEIGHT = 0.5
LEAST_PROBABILITY = 1e-6
"""Least chance of another class: bounds the term for a class that is excluded with certainty and wrongly."""


class BoundaryTerm(nn.Module):
    """Binary cross entropy of every class near the boundaries of the classes, divided by the number of voxels there.

    A voxel belongs to the band if a voxel of another class (with regions: outside or inside of the same region) is at
    most `radius` voxels away along each axis. Ignored voxels are no class: they have no boundary and are not in the
    band. Without a band the term is 0.

    Args:
        radius: Half the width of the band, in voxels of the target's resolution.
        ignore_label: Label that is ignored; None without one, and with regions.
        regions: Whether the target has one channel per region (sigmoid) instead of labels (softmax).
        region_ignore: With regions: whether the target's last channel says which voxels are ignored.

    Raises:
        ValueError: If the radius is not a positive integer.
    """

    def __init__(
        self,
        radius: int = RADIUS,
        ignore_label: int | None = None,
        regions: bool = False,
        region_ignore: bool = False,
    ) -> None:
        super().__init__()
        check_integer("radius", radius, 1)
        self.radius, self.ignore_label = radius, ignore_label
        self.regions, self.region_ignore = regions, region_ignore

    def forward(self, logits: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Loss of one resolution.

        Args:
            logits: (B, C, *spatial).
            target: (B, 1, *spatial) labels, or (B, C [+ 1 ignored], *spatial) regions.
            class_weights: (C,), mean 1.

        Returns:
            A number.
        """
        logits = logits.float()
        with torch.no_grad():
            if self.regions:
                truth, valid = target.float(), None
                if self.region_ignore:
                    truth, valid = truth[:, :-1], truth[:, -1:] < 0.5
                band = boundary_band(truth, valid, self.radius)
            else:
                labels = target.float()
                valid = None if self.ignore_label is None else labels != self.ignore_label
                band = boundary_band(labels, valid, self.radius)
                known = labels if valid is None else torch.where(valid, labels, 0.0)
                classes = torch.arange(logits.shape[1], device=logits.device)
                truth = known == classes.view(1, -1, *[1] * (logits.dim() - 2))
        entropy = (
            F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            if self.regions
            else one_against_rest(logits, truth)
        )
        if class_weights is not None:
            entropy = entropy * class_weights.view(1, -1, *[1] * (logits.dim() - 2))
        # the sum over the band, the mean over the classes
        share = entropy.shape[1] if band.shape[1] == 1 else 1
        return torch.where(band, entropy, 0.0).sum() / (band.sum() * share).clamp(min=1)

    def voxels_per_class(self, target: Tensor, classes: int) -> Tensor:
        """Number of each class's or region's voxels in a target, those that are ignored left out: (classes,) int64."""
        with torch.no_grad():
            if not self.regions:  # an ignored label is not among the classes
                return torch.stack([(target == index).sum() for index in range(classes)])
            truth = target > 0.5
            if self.region_ignore:
                truth = truth[:, :-1] & ~truth[:, -1:]
            return truth.sum(dim=(0, *range(2, target.dim())))


def boundary_band(labels: Tensor, valid: Tensor | None, radius: int) -> Tensor:
    """Whether another label is within `radius` voxels along each axis: (B, C, *spatial) -> the same, bool.

    Args:
        labels: Labels or truth of regions, each channel for itself.
        valid: (B, 1, *spatial); voxels that are not are neither labelled nor in the band. None: all are.
        radius: In voxels.
    """
    highest = labels if valid is None else torch.where(valid, labels, -torch.inf)
    lowest = -labels if valid is None else torch.where(valid, -labels, -torch.inf)
    for axis in range(2, labels.dim()):
        highest, lowest = running_maximum(highest, axis, radius), running_maximum(lowest, axis, radius)
    band = highest != -lowest
    return band if valid is None else band & valid


def running_maximum(values: Tensor, axis: int, radius: int) -> Tensor:
    """Maximum over ``2 radius + 1`` voxels along one axis."""
    moved = values.movedim(axis, -1)
    flat = moved.reshape(1, -1, moved.shape[-1])
    return F.max_pool1d(flat, 2 * radius + 1, 1, radius).view(moved.shape).movedim(-1, axis)


def one_against_rest(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross entropy of each class's softmax probability: (B, C, *spatial), twice -> the same."""
    log_probability = logits.log_softmax(dim=1)
    rest = (1 - log_probability.exp()).clamp(min=LEAST_PROBABILITY)
    return -torch.where(truth, log_probability, rest.log())


def uncompiled(dice: Any) -> Any:
    """nnU-Net's soft Dice loss itself, which it may have compiled."""
    return getattr(dice, "_orig_mod", dice)


class ClassWeightedDice(nn.Module):
    """nnU-Net's soft Dice loss with weighted classes: ``-sum(w_c Dice_c) / sum(w_c)``; with equal weights nnU-Net's.

    Calls nnU-Net's loss for one class at a time.

    Args:
        dice: nnU-Net's soft Dice loss, compiled or not.

    Attributes:
        weight: (C,), all classes or regions; to be set before each call. The background's has no effect where nnU-Net's
            loss leaves the background out.
    """

    weight: Tensor

    def __init__(self, dice: Any) -> None:
        super().__init__()
        dice = uncompiled(dice)
        self.nonlinearity, self.first = dice.apply_nonlin, 0 if dice.do_bg else 1
        self.one_class = type(dice)(
            apply_nonlin=None, batch_dice=dice.batch_dice, do_bg=True, smooth=dice.smooth, ddp=dice.ddp
        )

    def forward(self, logits: Tensor, target: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """As nnU-Net's: (B, C, *spatial), (B, 1, *spatial) labels or (B, C, *spatial) regions -> a number."""
        probability = self.nonlinearity(logits)
        classes = range(self.first, logits.shape[1])
        regions = logits.shape == target.shape
        losses = [
            self.one_class(
                probability[:, index : index + 1],
                (target[:, index : index + 1] if regions else target == index).float(),
                loss_mask,
            )
            for index in classes
        ]
        weight = self.weight[self.first :]
        return (weight * torch.stack(losses)).sum() / weight.sum()


class BoundaryLoss(nn.Module):
    """nnU-Net's Dice and cross entropy (or binary cross entropy, with regions) and the boundary term.

    Args:
        base: nnU-Net's loss of one resolution; changed in place if classes are to be weighted.
        term: The boundary term.
        weight: Weight of the term; the other two have theirs.
        inverse_frequency: Whether classes weigh as the inverse of their share of the batch, in all three terms
            (:func:`inverse_frequencies`).

    Raises:
        ValueError: If classes are to be weighted in a loss that is not nnU-Net's usual one.
    """

    def __init__(
        self, base: nn.Module, term: BoundaryTerm, weight: float = WEIGHT, inverse_frequency: bool = False
    ) -> None:
        super().__init__()
        self.base, self.term, self.weight, self.inverse_frequency = base, term, weight, inverse_frequency
        if not inverse_frequency:
            return
        if not isinstance(base, DC_and_CE_loss | DC_and_BCE_loss):
            raise ValueError(
                "inverse_frequency needs Dice with cross entropy, DC_and_CE_loss or DC_and_BCE_loss; "
                f"got {type(base).__name__}"
            )
        base.dc = ClassWeightedDice(base.dc)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of one resolution, see :class:`BoundaryTerm`."""
        weights = None
        if self.inverse_frequency:
            weights = self._set_weights(logits, target)
        return self.base(logits, target) + self.weight * self.term(logits, target, weights)

    def _set_weights(self, logits: Tensor, target: Tensor) -> Tensor:
        base: Any = self.base
        weights = inverse_frequencies(self.term.voxels_per_class(target, logits.shape[1]))
        base.dc.weight = weights
        flat = [1] * (logits.dim() - 2)
        base.ce.weight = weights.view(-1, *flat) if self.term.regions else weights
        return weights


HIGHEST_WEIGHT = 10.0


def inverse_frequencies(voxels: Tensor) -> Tensor:
    """Weight of each class, inverse to its number of voxels; mean 1 over the classes present: (C,) -> (C,) float32.

    No class weighs more than 10 times the lightest; an absent one as much as the heaviest. (The paper says neither.)

    Args:
        voxels: Number of each class's or region's voxels.
    """
    counts = voxels.float()
    present = counts > 0
    inverse = counts.max().clamp(min=1) / counts.clamp(min=1)
    weights = torch.where(present, inverse.clamp(max=HIGHEST_WEIGHT), 0.0)
    weights = torch.where(present, weights, weights.max().clamp(min=1))
    return weights / ((weights * present).sum() / present.sum().clamp(min=1)).clamp(min=1)


def add_boundary_term(
    loss: nn.Module,
    label_manager: Any,
    *,
    radius: int = RADIUS,
    weight: float = WEIGHT,
    inverse_frequency: bool = False,
) -> nn.Module:
    """nnU-Net's loss with the boundary term at every resolution.

    Args:
        loss: What nnU-Net builds, with or without deep supervision; in the first case changed in place.
        label_manager: nnU-Net's.
        radius: See :class:`BoundaryTerm`.
        weight: See :class:`BoundaryLoss`.
        inverse_frequency: See :class:`BoundaryLoss`.
    """
    regions, ignored = label_manager.has_regions, label_manager.ignore_label
    term = BoundaryTerm(
        radius,
        ignore_label=None if regions else ignored,
        regions=regions,
        region_ignore=regions and ignored is not None,
    )
    if isinstance(loss, DeepSupervisionWrapper):
        loss.loss = BoundaryLoss(loss.loss, term, weight, inverse_frequency)
        return loss
    return BoundaryLoss(loss, term, weight, inverse_frequency)


class BoundaryLossTrainer(nnUNetTrainer):
    """Adds the boundary term to whatever loss the other base class builds; comes first among the bases.

    Attributes:
        boundary_options: Of :func:`add_boundary_term`.
        loss_term: What the class changes of nnU-Net's loss, in words.
    """

    boundary_options: ClassVar[Mapping[str, Any]] = {}
    loss_term: ClassVar[str] = "boundary term"

    def _build_loss(self) -> Any:
        """nnU-Net's loss and the boundary term."""
        return add_boundary_term(super()._build_loss(), self.label_manager, **self.boundary_options)


class LossOfBoth:
    """A loss of nnU-Net's of what a network says with the location, plus that of what it says without
    (:meth:`~nnunet_locctx.networks.LocatedUNet.answer_twice`).

    Args:
        loss: Of predictions and targets, lists of them with deep supervision.
        weight: Of the second answer's.
    """

    def __init__(self, loss: Any, weight: float) -> None:
        self.loss, self.weight = loss, weight

    def __call__(self, output: Any, target: Any) -> Tensor:
        """The loss, a scalar. In evaluation mode a network answers once: nnU-Net's loss.

        Args:
            output: Predictions, of each resolution with deep supervision; in training a list of both answers.
            target: As for the wrapped loss.
        """
        supervised = isinstance(target, list | tuple)
        count = len(target) if supervised else 1
        if not isinstance(output, list | tuple) or len(output) == count:
            total: Tensor = self.loss(output, target)
            return total
        with_location, without = output[:count], output[count:]
        if not supervised:
            with_location, without = with_location[0], without[0]
        total = self.loss(with_location, target) + self.weight * self.loss(without, target)
        return total


def without_smoothing(loss: Any) -> Any:
    """nnU-Net's loss, changed in place: classes that a batch does not hold do not count in its Dice.

    nnU-Net adds 1e-5 above and below the fraction line. Of an absent class the Dice is then 1 if nothing is predicted
    and close to 0 if anything is, however little. A network that cannot yet tell several small organs apart is best off
    with a certain background, and trainings ended there (scripts/experiments/evidence/take_off.md). Without it such a
    class has no gradient. nnU-Net has a trainer for the same loss, ``nnUNetTrainerDiceCELoss_noSmooth``.

    Args:
        loss: As ``nnUNetTrainer._build_loss`` makes it; another one than Dice with cross entropy stays as it is.
    """
    one_resolution = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
    if isinstance(one_resolution, DC_and_CE_loss | DC_and_BCE_loss):
        uncompiled(one_resolution.dc).smooth = 0.0
    return loss


class AuxiliaryLoss:
    """A loss of nnU-Net's plus the auxiliary losses of the network's last forward pass.

    Blocks leave their losses in an attribute during a forward pass in training mode, and none in evaluation mode: the
    loss of the online validation stays nnU-Net's.

    The sum goes through the gradient scaler with the rest of the loss. A function that injects a gradient in its
    backward pass would need no hook here, but under fp16 the gradients that pass it are scaled by a factor that it does
    not know and that changes from step to step: what it adds would be divided by that factor afterwards.

    Args:
        loss: Of predictions and targets, lists of them with deep supervision.
        network: As nnU-Net runs it, compiled or in DistributedDataParallel or not.
    """

    def __init__(self, loss: Any, network: nn.Module) -> None:
        self.loss, self.network = loss, network

    def __call__(self, output: Any, target: Any) -> Tensor:
        """The loss, a scalar; arguments as for the wrapped loss."""
        total: Tensor = self.loss(output, target)
        for loss in auxiliary_losses(self.network):
            total = total + loss
        return total
