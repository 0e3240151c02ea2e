"""Anchors and the block made of them."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_locctx.blocks import make_block
from nnunet_locctx.blocks.anchors import AnchorPoints, PositionMaps, even_points, soft_argmax
from tests.blocks.harness import BlockHarness, ramp, randomise

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"colour": "red"}, "block 'anchors' does not take colour; allowed: anchors, .*stride$"),
    ({"anchors": 0}, "anchors must be an integer >= 1, got 0"),
    ({"anchors": "8"}, "anchors must be an integer >= 1, got '8'"),
    ({"anchors_from": "image"}, "anchors_from must be one of soft_argmax, paper; got 'image'"),
    ({"bias": "cube"}, "bias must be one of gauss, paper; got 'cube'"),
    ({"hidden": 0}, "hidden must be an integer >= 1, got 0"),
    ({"stride": 0}, "stride must be an integer >= 1, got 0"),
]


class TestAnchorBlock(BlockHarness):
    block = "anchors"

    def test_refuses_unknown_and_impossible_options(self) -> None:  # it has no encoding
        for options, message in WRONG:
            with pytest.raises(ValueError, match=message):
                make_block(self.block, 5, 3, **options)


class TestPaperForm(TestAnchorBlock):
    options = {"anchors_from": "paper", "bias": "paper", "box": False}  # noqa: RUF012


def coordinates(*size: int) -> torch.Tensor:
    axes = [(torch.arange(n) + 0.5) / n - 0.5 for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def rank_of(maps: torch.Tensor) -> int:
    values = np.linalg.svd(maps.detach().flatten(2)[0].double().numpy(), compute_uv=False)
    return int((values > 1e-4 * values[0]).sum())


@pytest.mark.parametrize("anchors", [3, 8, 16])
@pytest.mark.parametrize(("bias", "rank"), [("paper", 2), ("gauss", None)])
def test_rank_of_the_position_maps(anchors: int, bias: str, rank: int | None) -> None:
    """The published maps differ by constants only, whatever the anchors."""
    maps = PositionMaps(anchors, bias)(coordinates(16, 12, 14), even_points(anchors, 3)[None] - 0.5)
    assert rank_of(maps) == (rank or anchors)


def test_the_published_maps_cannot_tell_the_axes_apart() -> None:
    maps = PositionMaps(4, "paper")(coordinates(6, 6, 6), torch.rand(1, 4, 3))
    for axes in ((2, 4), (3, 4), (2, 3)):
        torch.testing.assert_close(maps, maps.transpose(*axes))
    gauss = PositionMaps(4)(coordinates(6, 6, 6), torch.rand(1, 4, 3))
    assert (gauss - gauss.transpose(2, 4)).abs().max() > 0.1


@pytest.mark.parametrize("size", [(5, 4, 6), (7, 3)])
def test_gaussians_by_their_definition(size: tuple[int, ...]) -> None:
    maps = randomise(PositionMaps(3))
    location, points = ramp(2, size), torch.randn(2, 3, 3)
    result = maps(location, points)
    for sample in range(2):
        for k in range(3):
            offset = location[sample] - points[sample, k].view(3, *[1 for _ in size])
            expected = torch.exp(-offset.square().sum(dim=0) / (2 * maps.log_sigma[k].exp() ** 2))
            torch.testing.assert_close(result[sample, k], expected)


def test_far_from_the_origin_the_gaussians_stay_exact() -> None:
    """Scanner coordinates may be metres away: squares are subtracted from squares."""
    maps, location, points = PositionMaps(4), coordinates(6, 6, 6), torch.rand(1, 4, 3) - 0.5
    torch.testing.assert_close(maps(location + 3, points + 3), maps(location, points), atol=1e-3, rtol=0)


def test_soft_argmax_finds_the_place() -> None:
    location = ramp(2, (5, 6, 7))
    scores = torch.zeros(2, 2, 5, 6, 7)
    scores[0, 0, 1, 2, 3] = scores[1, 1, 4, 0, 6] = 100
    points = soft_argmax(scores, location)
    torch.testing.assert_close(points[0, 0], location[0, :, 1, 2, 3])
    torch.testing.assert_close(points[1, 1], location[1, :, 4, 0, 6])
    torch.testing.assert_close(points[0, 1], location[0].mean(dim=(1, 2, 3)))  # no score: the middle


def test_half_precision_does_not_round_the_points_found() -> None:
    location, scores = 1 + 1e-3 * ramp(1, (8, 8, 8)), torch.randn(1, 4, 8, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        points = soft_argmax(scores, location)
    assert torch.equal(points, soft_argmax(scores, location))
    assert points.std() > 1e-6


def test_anchors_start_as_points_of_the_scan_and_are_corrected_by_what_is_found() -> None:
    points = AnchorPoints(5, 3, anchors=6)
    features, location = torch.randn(2, 5, 4, 4, 4), ramp(2, (4, 4, 4))
    assert torch.equal(points(features, location), points.reference.expand(2, 6, 3))
    randomise(points)
    before = points(features, location)
    assert (before[0] - before[1]).abs().max() > 1e-3
    assert (points(features.flip(2), location) - before).abs().max() > 1e-3  # the same mean, another place


def test_published_anchors_do_not_see_where() -> None:
    points = randomise(AnchorPoints(5, 3, anchors=6, anchors_from="paper", hidden=128))
    features, location = torch.randn(2, 5, 4, 4, 4), ramp(2, (4, 4, 4))
    positions = points(features, location)
    assert positions.shape == (2, 6, 3)
    assert positions.abs().max() <= 0.5
    torch.testing.assert_close(points(features.flip(2, 3), location + 1), positions)


@pytest.mark.parametrize(("count", "dimensions"), [(1, 3), (8, 3), (32, 3), (8, 2)])
def test_reference_points_fill_the_cube(count: int, dimensions: int) -> None:
    points = even_points(count, dimensions)
    assert points.shape == (count, dimensions)
    assert ((points > 0) & (points < 1)).all()
    assert torch.equal(points[0], torch.full((dimensions,), 0.5))
    if count >= 8:
        assert torch.pdist(points).min() > 0.5 / math.pow(count, 1 / dimensions)
        assert (points.mean(dim=0) - 0.5).abs().max() < 0.12


def test_parameters() -> None:
    with torch.device("meta"):
        counts = {name: one.numel() for name, one in make_block("anchors", 64, 3).named_parameters()}
    assert counts == {
        "points.reference": 24,
        "points.score.weight": 512,
        "points.regress.0.weight": 24 * 32,
        "points.regress.0.bias": 32,
        "points.regress.2.weight": 32 * 24,
        "points.regress.2.bias": 24,
        "maps.log_sigma": 8,
        "film.weight": 30 * 128,
        "film.bias": 128,
        "project.weight": 8 * 64,
    }
