"""LightMedSeg: the published counts, and where its location enters."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


@pytest.mark.parametrize("size", [(32, 16, 16), (32, 16)])
def test_the_other_readings(size: tuple[int, ...]) -> None:
    network = stir(LightMedSeg(1, 3, size, **OTHER)).train()
    output = network(feed(size, located=True))
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


def multiply_adds(network: LightMedSeg) -> int:
    """Of convolutions and linear layers, for one patch."""
    total = 0

    def count(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        # a transposed convolution uses its weights once per voxel of the input, the others once per voxel of the output
        voxels = arguments[0] if isinstance(module, nn.ConvTranspose3d) else output
        total += weight.numel() * (voxels.numel() // voxels.shape[1])

    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(count)
    channels = network.image_channels + 3 * network.located
    network.train()(torch.empty(1, channels, *network.patch_size, device="meta"))
    return total


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 476_205),
        ({"anchors": 16}, 491_781),
        ({"anchors": 32}, 522_933),
        ({"classes": 4}, 476_214),
        ({"ghost": False}, 691_989),
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
    ("options", "giga"),
    [
        ({}, 14.37),
        ({"encoder_kernel": 3, "decoder_kernel": 3, "shared_controller": False, "bottleneck": True}, 11.65),
    ],
)
def test_published_multiply_adds(options: dict[str, Any], giga: float) -> None:
    assert multiply_adds(build(**PAPER, **options)) / 1e9 == pytest.approx(giga, abs=0.005)


def test_the_default_keeps_the_budget() -> None:
    default = build()
    assert default.located
    assert not build(**PAPER).located
    assert parameters(default) == 476_549  # 0.07% more
    assert multiply_adds(default) / 1e9 == pytest.approx(14.26, abs=0.005)
    assert multiply_adds(build(stride=1)) / 1e9 == pytest.approx(14.37, abs=0.005)


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
    assert torch.equal(film(x, s), x)
    randomise(film)
    expected = x * (1 + film.gamma(s))[..., None, None] + film.beta(s)[..., None, None]
    torch.testing.assert_close(film(x, s), expected)


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
        ({"anchors": 0}, "anchors must be an integer >= 1, got 0"),
        ({"anchors": "8"}, "anchors must be an integer >= 1, got '8'"),
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
