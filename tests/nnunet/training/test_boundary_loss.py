"""The boundary term: known numbers, and nnU-Net's targets of every kind."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from nnunet_locctx.nnunet.training.losses import (
    LEAST_PROBABILITY,
    BoundaryLoss,
    BoundaryTerm,
    ClassWeightedDice,
    add_boundary_term,
    boundary_band,
    inverse_frequencies,
)

SURE = 10.0
IGNORED = 2


def halves(planes: int = 12, at: int = 6, batch: int = 2) -> Tensor:
    """Labels (batch, 1, planes, 4, 5): 0, and 1 from the plane `at` on."""
    labels = torch.zeros(batch, 1, planes, 4, 5)
    labels[:, :, at:] = 1
    return labels


def sure(labels: Tensor, classes: int = 2) -> Tensor:
    """Logits that predict these labels."""
    return SURE * F.one_hot(labels[:, 0].long(), classes).movedim(-1, 1).float()


def cross_and_dice(ignore_label: int | None = None) -> DC_and_CE_loss:
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(options, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss)


def test_the_band_is_two_voxels_on_each_side() -> None:
    band = boundary_band(halves(), None, 2)
    assert band[0, 0, :, 0, 0].nonzero().flatten().tolist() == [4, 5, 6, 7]
    assert (band == band[:, :, :, :1, :1]).all()


@pytest.mark.parametrize("size", [(9, 8, 7), (8, 9)])
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_the_band_by_its_definition(size: tuple[int, ...], radius: int) -> None:
    labels = (torch.rand(1, 1, *size) > 0.97).float() + 2 * (torch.rand(1, 1, *size) > 0.97)
    valid = torch.rand(1, 1, *size) > 0.1
    band = boundary_band(labels, valid, radius)
    places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), dim=-1).flatten(0, -2)
    near = (places[:, None] - places[None]).abs().amax(dim=2) <= radius
    flat, known = labels.flatten(), valid.flatten()
    differs = (flat[:, None] != flat[None]) & known[None]
    assert torch.equal(band.flatten(), (near & differs).any(dim=1) & known)


def test_a_perfect_prediction_costs_next_to_nothing() -> None:
    labels = halves()
    wrong = math.log1p(math.exp(-SURE))  # what softmax leaves
    assert float(BoundaryTerm()(sure(labels), labels)) == pytest.approx(wrong, rel=0.05)


@pytest.mark.parametrize("shift", [1, 2])
def test_a_shifted_prediction(shift: int) -> None:
    """Of the four planes of the band `shift` are wrong, and there each of the two classes costs -log(exp(-SURE))."""
    loss = BoundaryTerm()(sure(halves(at=6 + shift)), halves())
    assert float(loss) == pytest.approx(shift / 4 * SURE, rel=0.001)


def test_what_is_wrong_elsewhere_costs_nothing() -> None:
    labels = halves()
    elsewhere = labels.clone()
    elsewhere[:, :, :4] = 1
    assert torch.equal(BoundaryTerm()(sure(elsewhere), labels), BoundaryTerm()(sure(labels), labels))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_prediction_without_opinion(classes: int) -> None:
    share = 1 / classes
    expected = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    loss = BoundaryTerm()(torch.zeros(2, classes, 12, 4, 5), halves())
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_wrong_with_certainty_is_bounded_and_has_a_gradient() -> None:
    logits = (100 * sure(1 - halves())).half().requires_grad_()
    loss = BoundaryTerm()(logits, halves())
    loss.backward()
    assert float(loss.detach()) == pytest.approx((100 * SURE - math.log(LEAST_PROBABILITY)) / 2, rel=1e-3)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.any()


@pytest.mark.parametrize("labels", [torch.zeros(2, 1, 6, 6, 6), torch.full((2, 1, 6, 6, 6), float(IGNORED))])
def test_without_a_boundary_it_is_zero(labels: Tensor) -> None:
    logits = torch.randn(2, 2, 6, 6, 6, requires_grad=True)
    loss = BoundaryTerm(ignore_label=IGNORED)(logits, labels)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_ignored_voxels_have_no_boundary_and_no_loss() -> None:
    term = BoundaryTerm(ignore_label=IGNORED)
    labels = halves()
    labels[:, :, 8:] = IGNORED  # beyond the band: nothing changes, there is no second boundary
    logits = sure(halves(at=7))
    assert torch.equal(term(logits, labels), BoundaryTerm()(logits, halves()))
    labels[:, :, 6:] = IGNORED  # the boundary itself: nothing is left
    assert float(term(logits, labels)) == 0
    labels = halves()
    labels[:, :, 6] = IGNORED  # the wrong plane
    assert float(term(logits, labels)) < 1e-3
    changed = logits.clone()
    changed[:, :, 6] = torch.randn_like(changed[:, :, 6])
    assert torch.equal(term(changed, labels), term(logits, labels))


def regions(ignored: bool = False) -> Tensor:
    """Two nested regions (and what is ignored): from plane 4 on, and from plane 10 on."""
    parts = [halves(16, 4), halves(16, 10)]
    return torch.cat([*parts, torch.zeros_like(parts[0])] if ignored else parts, dim=1)


@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_regions_have_their_own_bands(kind: torch.dtype) -> None:
    term = BoundaryTerm(regions=True)
    truth = regions()
    logits = SURE * (2 * truth - 1)
    assert float(term(logits, truth.to(kind))) == pytest.approx(math.log1p(math.exp(-SURE)), rel=0.01)
    shifted = torch.cat([halves(16, 5), halves(16, 10)], dim=1)  # one of eight planes
    assert float(term(SURE * (2 * shifted - 1), truth.to(kind))) == pytest.approx(SURE / 8, rel=0.01)
    far = logits.clone()
    far[:, 1, 2:6] *= -1  # within the band of the other region only
    assert torch.equal(term(far, truth.to(kind)), term(logits, truth.to(kind)))


@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_regions_with_an_ignored_part(kind: torch.dtype) -> None:
    term = BoundaryTerm(regions=True, region_ignore=True)
    truth = regions(ignored=True)
    logits = torch.randn(2, 2, 16, 4, 5)
    assert torch.equal(term(logits, truth.to(kind)), BoundaryTerm(regions=True)(logits, truth[:, :-1]))
    truth[:, 2, :7] = 1
    first = logits.clone()
    first[:, 0] += 1
    first[:, :, :7] += 1
    assert torch.equal(term(first, truth.to(kind)), term(logits, truth.to(kind)))
    truth[:, 2] = 1
    assert float(term(logits, truth.to(kind))) == 0


@pytest.mark.parametrize(
    ("has_regions", "ignore_label"), [(False, None), (False, IGNORED), (True, None), (True, IGNORED)]
)
def test_beside_nnunets_loss_at_every_resolution(has_regions: bool, ignore_label: int | None) -> None:
    """The sum of both at each resolution that nnU-Net's own transform makes, with its weights."""
    seg = regions(ignored=ignore_label is not None)[0] if has_regions else halves(16, 7)[0]
    if ignore_label is not None and not has_regions:
        seg[:, :2] = ignore_label
    scales = [[1, 1, 1], [0.5, 0.5, 1], [0.25, 0.25, 1]]
    made = DownsampleSegForDSTransform(scales)(segmentation=seg.to(torch.int16))["segmentation"]
    targets = [one[None].float() for one in made]
    outputs = [torch.randn(1, 2, *one.shape[2:], requires_grad=True) for one in targets]
    base: nn.Module
    if has_regions:
        options: dict[str, Any] = {"batch_dice": False, "do_bg": True, "smooth": 1e-5, "ddp": False}
        base = DC_and_BCE_loss({}, options, use_ignore_label=ignore_label is not None)
    else:
        base = cross_and_dice(ignore_label)
    weights = (0.6, 0.4, 0.0)
    manager = SimpleNamespace(has_regions=has_regions, ignore_label=ignore_label)
    loss = add_boundary_term(DeepSupervisionWrapper(base, weights), manager)
    assert isinstance(loss, DeepSupervisionWrapper)
    total = loss(outputs, targets)
    term = loss.loss.term
    expected = sum(
        weight * (base(output, target) + 0.5 * term(output, target))
        for weight, output, target in zip(weights, outputs, targets, strict=True)
    )
    torch.testing.assert_close(total, expected)
    total.backward()
    assert all(output.grad is not None and output.grad.isfinite().all() for output in outputs[:2])
    single = add_boundary_term(base, manager, weight=0.0)
    torch.testing.assert_close(single(outputs[0], targets[0]), base(outputs[0], targets[0]))


def test_inverse_frequencies() -> None:
    weights = inverse_frequencies(torch.tensor([60, 30, 10]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, 6.0]) / 3)
    absent = inverse_frequencies(torch.tensor([60, 30, 10, 0]))
    torch.testing.assert_close(absent, torch.tensor([1.0, 2.0, 6.0, 6.0]) / 3)
    rare = inverse_frequencies(torch.tensor([1000, 1]))
    torch.testing.assert_close(rare, torch.tensor([1.0, 10.0]) / 5.5)
    assert torch.equal(inverse_frequencies(torch.zeros(2, dtype=torch.int64)), torch.ones(2))


def test_voxels_per_class_without_those_that_are_ignored() -> None:
    labels = torch.tensor([0.0] * 60 + [1.0] * 30 + [2.0] * 10 + [9.0] * 5).view(1, 1, 105)
    assert BoundaryTerm(ignore_label=9).voxels_per_class(labels, 3).tolist() == [60, 30, 10]
    truth = regions(ignored=True)
    truth[:, 2, :6] = 1
    term = BoundaryTerm(regions=True, region_ignore=True)
    plane = 2 * 4 * 5
    assert term.voxels_per_class(truth, 2).tolist() == [10 * plane, 6 * plane]
    assert term.voxels_per_class(truth.bool(), 2).tolist() == [10 * plane, 6 * plane]


def base_loss(has_regions: bool, ignored: bool, batch_dice: bool = False) -> nn.Module:
    """nnU-Net's, as its trainer builds them."""
    options: dict[str, Any] = {"batch_dice": batch_dice, "smooth": 1e-5, "ddp": False, "do_bg": has_regions}
    if has_regions:
        return DC_and_BCE_loss({}, options, use_ignore_label=ignored, dice_class=MemoryEfficientSoftDiceLoss)
    return DC_and_CE_loss(
        options, {}, ignore_label=3 if ignored else None, dice_class=MemoryEfficientSoftDiceLoss
    )


def some_target(has_regions: bool, ignored: bool) -> Tensor:
    """Three classes or regions of very different sizes, and ignored voxels."""
    torch.manual_seed(3)
    place = torch.rand(2, 1, 8, 7, 6)
    if not has_regions:
        labels = (place > 0.6).float() + (place > 0.9).float()
        return torch.where(torch.rand_like(place) > 0.8, 3.0, labels) if ignored else labels
    truth = torch.cat([place > 0.3, place > 0.6, place > 0.9], dim=1).float()
    return torch.cat([truth, (torch.rand_like(place) > 0.8).float()], dim=1) if ignored else truth


CASES = [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize(("has_regions", "ignored"), CASES)
def test_equal_weights_give_nnunets_dice(has_regions: bool, ignored: bool, batch_dice: bool) -> None:
    """Within nnU-Net's whole loss, labels, regions and ignored voxels as it hands them over."""
    plain, weighted = (base_loss(has_regions, ignored, batch_dice) for _ in range(2))
    weighted.dc = ClassWeightedDice(weighted.dc)
    weighted.dc.weight = torch.full((3,), 0.7)
    logits, target = torch.randn(2, 3, 8, 7, 6), some_target(has_regions, ignored)
    torch.testing.assert_close(weighted(logits, target), plain(logits, target))


def test_takes_a_compiled_dice_loss() -> None:
    dice = base_loss(False, False, True).dc
    weighted = ClassWeightedDice(torch.compile(dice))  # as on a GPU
    assert isinstance(weighted.one_class, MemoryEfficientSoftDiceLoss)
    assert (weighted.first, weighted.one_class.batch_dice, weighted.one_class.smooth) == (1, True, 1e-5)


@pytest.mark.parametrize(("has_regions", "ignored"), CASES)
def test_rare_classes_weigh_more_in_every_term(has_regions: bool, ignored: bool) -> None:
    """By the definitions, written out."""
    logits, target = torch.randn(2, 3, 8, 7, 6), some_target(has_regions, ignored)
    kind = {"ignore_label": None if has_regions or not ignored else 3}
    term = BoundaryTerm(regions=has_regions, region_ignore=has_regions and ignored, **kind)
    loss = BoundaryLoss(base_loss(has_regions, ignored), term, 0.5, True)
    if has_regions:
        truth = target[:, :3]
        valid = 1 - target[:, 3:] if ignored else torch.ones_like(target[:, :1])
        probability, first = logits.sigmoid(), 0
    else:
        truth = torch.stack([(target[:, 0] == index).float() for index in range(3)], dim=1)
        valid = (target != 3).float()
        probability, first = logits.softmax(dim=1), 1
    counts = (truth * valid).sum(dim=(0, 2, 3, 4))
    assert counts.max() > 2 * counts.min()
    weights = inverse_frequencies(counts)
    axes = (2, 3, 4)
    overlap = 2 * (probability * truth * valid).sum(axes)
    dice = (overlap + 1e-5) / (((probability + truth) * valid).sum(axes) + 1e-5)
    shares = weights[first:] / weights[first:].sum()
    expected = -(dice[:, first:].mean(dim=0) * shares).sum()
    if has_regions:
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        entropy = (entropy * weights.view(-1, 1, 1, 1) * valid).sum()
        # nnU-Net divides by the voxels, not by voxels and regions, where some are ignored
        expected = expected + entropy / (valid.sum() if ignored else truth.numel())
    else:
        ignore = {"ignore_index": 3} if ignored else {}
        expected = expected + F.cross_entropy(logits, target[:, 0].long(), weight=weights, **ignore)
    expected = expected + 0.5 * term(logits, target, weights)
    torch.testing.assert_close(loss(logits, target), expected)
    assert not torch.allclose(term(logits, target, weights), term(logits, target))


@pytest.mark.parametrize(("has_regions", "ignored"), CASES)
def test_weighted_classes_in_half_precision(has_regions: bool, ignored: bool) -> None:
    """As on a GPU: the logits are half precision, the loss is computed under autocast."""
    target = some_target(has_regions, ignored)
    kind = {"ignore_label": None if has_regions or not ignored else 3}
    term = BoundaryTerm(regions=has_regions, region_ignore=has_regions and ignored, **kind)
    loss = BoundaryLoss(base_loss(has_regions, ignored, True), term, 0.5, True)
    logits = torch.randn(2, 3, 8, 7, 6)
    expected = loss(logits, target)
    half = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, target)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(expected), abs=0.02)
    assert half.grad is not None
    assert half.grad.isfinite().all()


def test_weights_are_for_nnunets_usual_losses() -> None:
    with pytest.raises(ValueError, match=r"inverse_frequency needs Dice with cross entropy.*got Linear"):
        BoundaryLoss(nn.Linear(1, 1), BoundaryTerm(), inverse_frequency=True)


@pytest.mark.parametrize("radius", [0, 1.5, True])
def test_refuses_a_wrong_radius(radius: Any) -> None:
    with pytest.raises(ValueError, match=r"radius must be an integer >= 1, got"):
        BoundaryTerm(radius)


def test_compiles_without_a_graph_break() -> None:
    loss = BoundaryTerm(ignore_label=IGNORED)
    logits, labels = torch.randn(2, 2, 12, 4, 5), halves()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, labels), loss(logits, labels))
