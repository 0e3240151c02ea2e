"""UNETR: MONAI's network, and what the location adds to it."""

from typing import Any

import pytest
import torch
from monai.networks.nets import unetr as monai_unetr

from nnunet_locctx.networks.unetr import UNETR
from tests.networks.harness import WholeNetworkHarness
from tests.networks.monai_cases import LOCATED, check_places, full_size, multiply_adds, parameters
from tests.networks.small_networks import SMALL as ALL_SMALL

SMALL = ALL_SMALL["unetr"]


class TestUNETR(WholeNetworkHarness):
    name = "unetr"
    options = SMALL
    patches = {3: [(16, 32, 32), (48, 16, 16)], 2: [(32, 48), (16, 16)]}  # noqa: RUF012
    located = LOCATED
    traced_slowly = True


@pytest.mark.parametrize("size", [(16, 32, 32), (32, 48)])
def test_without_location_it_is_monais_network(size: tuple[int, ...]) -> None:
    """Weights included: dead ones of MONAI's attention blocks aside, its checkpoints fit."""
    theirs = monai_unetr.UNETR(2, 3, size, conv_block=False, spatial_dims=len(size), **SMALL).eval()
    ours = UNETR(2, 3, size, conv_block=False, **SMALL).eval()
    missing, unexpected = ours.network.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == []
    assert all("cross_attn" in key for key in unexpected)
    x = torch.randn(2, 2, *size)
    assert torch.equal(ours(x), theirs(x))


def test_the_location_enters_at_eight_places() -> None:
    network = UNETR(1, 3, (32, 16, 48), encoding="frequency", bands=3, **SMALL)
    assert [block.project.out_channels for block in network.positions] == [1, 24, 24, 24, 64, 32, 16, 8]
    full, tokens = (32, 16, 48), (2, 1, 3)
    upsampled = [tuple(factor * n for n in tokens) for factor in (2, 4, 8)]
    check_places(network, [full, tokens, tokens, tokens, *upsampled, full])


@pytest.mark.parametrize(
    ("options", "millions", "giga_multiply_adds"),
    [
        ({"conv_block": False}, 92.48, 75.2),
        ({"conv_block": False, "encoding": "frequency"}, 92.66, 78.1),
        ({}, 92.81, 87.0),
        ({"encoding": "frequency"}, 92.99, 89.9),
    ],
)
def test_published_size(options: dict[str, Any], millions: float, giga_multiply_adds: float) -> None:
    """Published (without `conv_block`): 92.48 and 92.66 M, 75.69 and 78.60 G with the normalisations."""
    network = full_size("unetr", **options)
    assert parameters(network) == pytest.approx(millions * 1e6, abs=0.005e6)
    assert multiply_adds(network) == pytest.approx(giga_multiply_adds * 1e9, abs=0.05e9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 25}, "hidden_size must be a multiple of num_heads, 2; got 25"),
        ({"feature_size": 0}, "feature_size must be an integer >= 1, got 0"),
        ({"num_heads": 1.5}, "num_heads must be an integer >= 1, got 1.5"),
        ({"dropout_rate": 1}, "dropout_rate must be a number from 0 up to, but not including, 1; got 1"),
        ({"encoding": "sine"}, "encoding must be one of .*got 'sine'"),
        ({"encoding": "frequency", "bands": 0}, "bands must be an integer from 1 to 16, got 0"),
    ],
)
def test_refuses_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNETR(1, 3, (16, 16, 16), **{**SMALL, **options})
