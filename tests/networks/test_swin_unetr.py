"""Swin UNETR: MONAI's network, and what the location adds to it."""

import re
from typing import Any

import pytest
import torch
from monai.networks.nets import swin_unetr as monai_swin_unetr

from nnunet_locctx.networks.swin_unetr import SwinUNETR
from tests.networks.harness import WholeNetworkHarness
from tests.networks.monai_cases import LOCATED, check_places, full_size, multiply_adds, parameters
from tests.networks.small_networks import SMALL as ALL_SMALL

SMALL = ALL_SMALL["swin_unetr"]
SIZES = {3: (32, 32, 64), 2: (64, 96)}


class TestSwinUNETR(WholeNetworkHarness):
    name = "swin_unetr"
    options = SMALL
    patches = {3: [SIZES[3], (64, 32, 32)], 2: [SIZES[2], (32, 64)]}  # noqa: RUF012
    located = LOCATED
    traced_slowly = True
    autocast_error = 0.1  # the coarsest stage is normalised over two tokens, which enlarges rounding


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("use_v2", [False, True])
def test_without_location_it_is_monais_network(rank: int, use_v2: bool) -> None:
    theirs = monai_swin_unetr.SwinUNETR(2, 3, spatial_dims=rank, use_v2=use_v2, **SMALL).eval()
    ours = SwinUNETR(2, 3, SIZES[rank], use_v2=use_v2, **SMALL).eval()
    ours.network.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 2, *SIZES[rank])
    assert torch.equal(ours(x), theirs(x))


def test_recomputed_activations_give_the_same_gradients() -> None:
    size, gradients = SIZES[2], []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        network = SwinUNETR(1, 3, size, encoding="frequency", use_checkpoint=use_checkpoint, **SMALL)
        (network(torch.randn(1, 4, *size)) ** 2).mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(*gradients)


def test_the_location_enters_at_ten_places() -> None:
    network = SwinUNETR(1, 3, (64, 32, 96), encoding="frequency", bands=3, **SMALL)
    widths = [12, 24, 48, 192, 192, 96, 48, 24, 24]
    assert [block.project.out_channels for block in network.positions] == [1, *widths]
    strides = (1, 2, 4, 8, 32, 16, 8, 4, 2, 1)
    check_places(network, [(64 // n, 32 // n, 96 // n) for n in strides])


@pytest.mark.parametrize(
    ("options", "millions", "giga_multiply_adds"),
    [({}, 62.19, 382.6), ({"encoding": "frequency"}, 62.36, 390.5)],
)
def test_published_size(options: dict[str, Any], millions: float, giga_multiply_adds: float) -> None:
    """Published: 62.19 and 62.36 M, 384.2 and 392.2 G with the normalisations."""
    network = full_size("swin_unetr", **options)
    assert parameters(network) == pytest.approx(millions * 1e6, abs=0.005e6)
    assert multiply_adds(network) == pytest.approx(giga_multiply_adds * 1e9, abs=0.05e9)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((32, 32, 32), [64, 32, 32]), ((5, 40, 50), [32, 32, 64]), ((60, 63), [64, 64]), ((32, 63), [32, 64])],
)
def test_refuses_a_patch_of_one_coarsest_token(size: tuple[int, ...], nearest: list[int]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"and one at least 64; nearest allowed: {nearest}")):
        SwinUNETR.check_patch(size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_size": 20}, "feature_size must be a multiple of 12, got 20"),
        ({"depths": [2, 2]}, r"depths must be 4 numbers, one for each stage; got \[2, 2\]"),
        ({"depths": [2, 2, 0, 2]}, "each of depths must be an integer >= 1, got 0"),
        ({"num_heads": [1, 2, 5, 4]}, r"num_heads must divide the stages' widths, \[12, 24, 48, 96\]; got"),
        ({"window_size": [4, 4]}, r"window_size must be one integer or 3, one for each axis; got \[4, 4\]"),
        ({"window_size": 1}, "window_size must be an integer >= 2, got 1"),
        ({"drop_rate": -0.1}, "drop_rate must be a number from 0 up to, .*got -0.1"),
        ({"encoding": "sine"}, "encoding must be one of .*got 'sine'"),
    ],
)
def test_refuses_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinUNETR(1, 3, (32, 32, 64), **{**SMALL, **options})
