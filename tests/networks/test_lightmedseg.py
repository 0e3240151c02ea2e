"""LightMedSeg: the published counts, and where its location enters."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_locctx.networks.lightmedseg import LightMedSeg, PatchCoordinates
from nnunet_locctx.networks.lightmedseg_parts import FiLM, GhostConv, StructurePrior
from tests.blocks.harness import ramp, randomise
from tests.networks.harness import WholeNetworkHarness, feed, stir

PAPER: dict[str, Any] = {"anchors_from": "paper", "bias": "paper", "coordinates": "patch"}
DEFAULT: dict[str, Any] = {"anchors_from": "soft_argmax", "bias": "gauss", "coordinates": "scan"}
LARGE = (128, 128, 128)


class TestLightMedSeg(WholeNetworkHarness):
    name = "lightmedseg"
    options = PAPER
    patches = {3: [(16, 32, 16), (32, 16, 48)], 2: [(32, 48), (16, 16)]}  # noqa: RUF012
    located = {  # noqa: RUF012
        "default": DEFAULT,
        "paper-scan": {**PAPER, "coordinates": "scan"},
    }
    differ = ("default", "paper-scan")
    twin = {"anchors": 0, "box": False}  # noqa: RUF012


OTHER: dict[str, Any] = {
    "anchors": 5,
    "ghost": False,
    "resolution": "half",
    "shared_controller": False,
    "bottleneck": True,
    "encoder_kernel": 3,
    "decoder_kernel": 1,
    "reduction": 4,
    "box": False,
    "stride": 1,
}


LEFT_OUT: dict[str, dict[str, Any]] = {
    "structural prior": {"structure_prior": False},
    "anchors": {"anchors": 0},
    "router": {"router": False},
}
"""The paper's ablations."""


@pytest.mark.parametrize(
    "options",
    [
        OTHER,
        *({**PAPER, **options} for options in LEFT_OUT.values()),
        {"anchors": 0, "structure_prior": False, "router": False, "resolution": "half"},
    ],
    ids=["readings", *LEFT_OUT, "all"],
)
@pytest.mark.parametrize("size", [(32, 16, 16), (32, 16)])
def test_the_other_readings_and_parts_left_out(size: tuple[int, ...], options: dict[str, Any]) -> None:
    network = stir(LightMedSeg(1, 3, size, **options)).train()
    assert network.located == (options.get("coordinates") != "patch")
    output = network(feed(size, network.located))
    assert output.shape == (2, 3, *size)
    output.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def build(image_channels: int = 4, classes: int = 3, **options: Any) -> LightMedSeg:
    with torch.device("meta"):
        return LightMedSeg(image_channels, classes, LARGE, **options)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(network: LightMedSeg) -> dict[str, float]:
    """10^9 for one patch by torch's counter: of convolutions and linear layers, and of all that it counts."""
    channels = network.image_channels + 3 * network.located
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, channels, *network.patch_size, device="meta"))
    counts = {str(one): number / 2e9 for one, number in counter.get_flop_counts()["Global"].items()}
    return {
        "convolutions": counts["aten.convolution"] + counts.get("aten.addmm", 0),
        "all": sum(counts.values()),
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 476_205),
        ({"anchors": 16}, 491_781),
        ({"anchors": 32}, 522_933),
        ({"classes": 4}, 476_214),
        ({"ghost": False}, 691_989),
        ({"bottleneck": True}, 492_717),
        ({"structure_prior": False}, 476_205 - 11_662),
        ({"router": False}, 476_205 - 38_908 + (64 * 64 + 64 + 32 * 32 + 32) + 344),
        (
            {
                "encoder_kernel": 3,
                "decoder_kernel": 3,
                "reduction": 8,
                "shared_controller": False,
                "bottleneck": True,
            },
            477_233,  # reading B
        ),
    ],
)
def test_published_parameters(options: dict[str, Any], expected: int) -> None:
    """The paper: 0.48, 0.49 and 0.52 M for 8, 16 and 32 anchors."""
    assert parameters(build(**PAPER, **options)) == expected


def test_parameters_without_anchors() -> None:
    """Neither detector, nor FiLM (two linear layers from K points), nor position bias (1x1 from K maps)."""
    film = sum(2 * (8 * 3 + 1) * width for width in (16, 32, 64, 128))
    bias = sum((8 + 1) * width for width in (64, 32, 16, 8))
    assert parameters(build(**{**PAPER, "anchors": 0})) == 476_205 - 8_640 - film - bias


@pytest.mark.parametrize(("resolution", "stages"), [("full", (2, 1)), ("half", (3, 2))])
def test_without_the_router_a_level_gets_the_encoder_stage_of_its_resolution(
    resolution: str, stages: tuple[int, int]
) -> None:
    network = LightMedSeg(1, 2, (32, 32), **PAPER, router=False, resolution=resolution)
    seen: list[Tensor] = []
    for stage in network.encoder:
        stage.register_forward_hook(lambda _, __, output: seen.append(output))
    given: list[Tensor] = []
    for stage in network.stages:
        stage.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1]))
    network(torch.randn(1, 1, 32, 32))
    for level, number in enumerate(stages):
        expected = network.router.give[level](seen[number])
        assert given[level].shape == expected.shape
        torch.testing.assert_close(given[level], expected)


def test_without_the_prior_both_paths_of_a_stage_count_half() -> None:
    network = LightMedSeg(1, 2, (16, 16), **PAPER, structure_prior=False)
    stage, x, s = network.encoder[0], torch.randn(1, 8, 6, 6), torch.randn(1, 16)
    assert stage.film is not None
    seen = stage.film(stage.conv(x), s, None)
    torch.testing.assert_close(
        stage(x, None, s, None), stage.excite((stage.detail(seen) + stage.smooth(seen)) / 2)
    )


def test_parameters_of_the_page() -> None:
    """docs/explanation/lightmedseg.md, parts left out."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "explanation" / "lightmedseg.md").read_text()
    rows = re.findall(r"^\| `(\{.*?\})` \| ([\d,]+) \|", page, re.MULTILINE)
    assert len(rows) == 7
    for options, published in rows:
        assert parameters(build(**{**PAPER, **json.loads(options)})) == int(published.replace(",", "")), (
            options
        )


def test_without_anchors_the_extent_alone_brings_location() -> None:
    network = stir(LightMedSeg(1, 2, (16, 16, 16), anchors=0)).eval()
    x = feed((16, 16, 16), located=True)
    moved = x.clone()
    moved[:, 1] += 0.2
    assert (network(moved) - network(x)).abs().max() > 1e-3
    assert not LightMedSeg(1, 2, (16, 16, 16), anchors=0, box=False).located
    assert not LightMedSeg.uses_location(coordinates="scan", anchors=0, box=False)


def test_published_parameters_per_part() -> None:
    network = build(**PAPER)
    counts = {name: parameters(part) for name, part in network.named_children()}
    assert {name: count for name, count in counts.items() if name not in ("encoder", "stages")} == {
        "stem": 556,
        "detector": 8_640,
        "prior": 11_662,
        "router": 38_908,
        "head": 27,
    }
    assert [parameters(stage) for stage in network.encoder] == [5_276, 14_516, 44_900, 154_312]
    assert [parameters(stage) for stage in network.stages] == [144_103, 38_775, 11_071, 3_459]


@pytest.mark.parametrize(
    ("options", "convolutions", "counted"),
    [
        ({}, 14.37, 17.71),
        (
            {"encoder_kernel": 3, "decoder_kernel": 3, "shared_controller": False, "bottleneck": True},
            11.65,
            14.99,
        ),
    ],
)
def test_published_multiply_adds(options: dict[str, Any], convolutions: float, counted: float) -> None:
    """Torch's counter also counts the matrix products by which texture, skips and position bias are interpolated."""
    operations = multiply_adds(build(**PAPER, **options))
    assert operations["convolutions"] == pytest.approx(convolutions, abs=0.005)
    assert operations["all"] == pytest.approx(counted, abs=0.005)


def test_the_default_keeps_the_budget() -> None:
    default = build()
    assert default.located
    assert not build(**PAPER).located
    assert parameters(default) == 476_549  # 0.07% more
    assert multiply_adds(default)["convolutions"] == pytest.approx(14.26, abs=0.005)
    assert multiply_adds(build(stride=1))["convolutions"] == pytest.approx(14.37, abs=0.005)


def test_the_published_form_sees_the_same_wherever_the_patch_lies() -> None:
    """Scan coordinates alone give its bias one ramp and one constant: patches along a diagonal plane look the same."""
    torch.manual_seed(0)
    network = LightMedSeg(1, 2, (16, 16, 16), **{**PAPER, "coordinates": "scan"}, box=False).eval()
    stir(network)
    x = feed((16, 16, 16), located=True)
    moved = x.clone()
    moved[:, 1] += 0.3
    moved[:, 3] -= 0.3
    torch.testing.assert_close(network(moved), network(x), atol=1e-4, rtol=1e-4)
    torch.manual_seed(0)
    default = LightMedSeg(1, 2, (16, 16, 16), box=False).eval()
    stir(default)
    assert (default(moved) - default(x)).abs().max() > 1e-2 * default(x).abs().max()


def test_patch_coordinates() -> None:
    for size in ((4, 2), (2, 3, 4)):
        location = PatchCoordinates(torch.empty(2, 1, *size)).at(size)
        assert location.shape == (2, len(size), *size)
        for axis, n in enumerate(size):
            values = location[0, axis].movedim(axis, 0).flatten(1)
            assert (values == values[:, :1]).all()
            torch.testing.assert_close(values[:, 0], (torch.arange(n) + 0.5) / n - 0.5)


def test_a_ghost_convolution_is_half_dense_half_depthwise() -> None:
    ghost = GhostConv(3, 8, 3)
    x = torch.randn(1, 3, 5, 5, 5)
    dense = ghost.primary(x)
    assert dense.shape == (1, 4, 5, 5, 5)
    assert ghost.cheap is not None
    expected = torch.cat([dense, ghost.cheap(dense)], dim=1)
    torch.testing.assert_close(ghost(x), nn.functional.group_norm(expected, 4))


def test_film_starts_as_the_identity() -> None:
    film, x, s = FiLM(6, 4), torch.randn(2, 4, 3, 3), torch.randn(2, 6)
    assert torch.equal(film(x, s, None), x)
    randomise(film)
    expected = x * (1 + film.gamma(s))[..., None, None] + film.beta(s)[..., None, None]
    torch.testing.assert_close(film(x, s, None), expected)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(film(x, s, nothing), x)


def test_the_structure_prior_mixes_two_projections() -> None:
    """(5): the weights are a softmax of two channels."""
    prior, stem = randomise(StructurePrior(8, 3)), torch.randn(2, 8, 6, 6, 6)
    texture, features = prior(stem)
    assert texture.shape == (2, 1, 6, 6, 6)
    assert ((texture > 0) & (texture < 1)).all()
    weights = prior.weigh(prior.neighbourhood(stem).sigmoid()).softmax(dim=1)
    expected = weights[:, :1] * prior.first(stem) + weights[:, 1:] * prior.second(stem)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchors": -1}, "anchors must be an integer >= 0, got -1"),
        ({"anchors": "8"}, "anchors must be an integer >= 0, got '8'"),
        ({"anchors_from": "image"}, "anchors_from must be one of soft_argmax, paper; got 'image'"),
        ({"bias": "cube"}, "bias must be one of gauss, paper; got 'cube'"),
        ({"coordinates": "voxel"}, "coordinates must be one of scan, patch; got 'voxel'"),
        ({"resolution": "R2"}, "resolution must be one of full, half; got 'R2'"),
        ({"encoder_kernel": 4}, "encoder_kernel must be odd, got 4"),
        ({"decoder_kernel": 0}, "decoder_kernel must be an integer >= 1, got 0"),
        ({"stride": 0}, "stride must be an integer >= 1, got 0"),
        ({"reduction": 0}, "reduction must be an integer >= 1, got 0"),
    ],
)
def test_refuses_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LightMedSeg(1, 3, (16, 16, 16), **options)


def test_location_reaches_encoder_and_decoder() -> None:
    """FiLM sees anchors and the patch's extent, every decoder stage the coordinates of its own token centres."""
    network = LightMedSeg(1, 2, (16, 16, 32)).eval()
    seen: list[Tensor] = []
    for stage in network.stages:
        stage.maps.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    given: list[Tensor] = []
    network.encoder[2].film.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1]))
    location = ramp(1, (16, 16, 32))
    network(torch.cat([torch.randn(1, 1, 16, 16, 32), location], dim=1))
    assert [tuple(one.shape[2:]) for one in seen] == [(2, 2, 4), (4, 4, 8), (8, 8, 16), (8, 8, 16)]
    torch.testing.assert_close(seen[-1], nn.functional.avg_pool3d(location, 2))
    torch.testing.assert_close(seen[0], nn.functional.avg_pool3d(location, 8))
    coarse = seen[0].flatten(2)
    torch.testing.assert_close(given[0][:, -6:], torch.cat([coarse.amin(2), coarse.amax(2)], dim=1))
