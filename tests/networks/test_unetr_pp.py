"""UNETR++ and P-Network: what the location adds to them, and the paired attention against its formula."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_locctx.networks.paired_attention import PairedAttention, PairedAttentionBlock
from nnunet_locctx.networks.unetr_pp import UNETRPP
from nnunet_locctx.nnunet.training.trainers import PNetworkTrainer
from tests.networks.harness import WholeNetworkHarness, feed
from tests.networks.monai_cases import multiply_adds, parameters
from tests.networks.small_networks import SMALL as ALL_SMALL
from tests.networks.token_centres import hooked_locations, token_means

SMALL = ALL_SMALL["unetr_pp"]
TABLE = {"levels": 3, "log2_entries": 8, "base_resolution": 4}
PATCH = (16, 32, 64)


class TestUNETRPP(WholeNetworkHarness):
    name = "unetr_pp"
    options = SMALL
    patches = {3: [PATCH, (32, 32, 32)], 2: [(32, 64), (96, 32)]}  # noqa: RUF012
    located = {  # noqa: RUF012
        "frequency": {"encoding": "frequency", "bands": 3},
        "hash": {"encoding": "hash", "hash": TABLE, "gpe_places": "all"},
        "published": UNETRPP.published(encoding="frequency", bands=3),
        "published hash": UNETRPP.published(encoding="hash", hash=TABLE),
    }
    differ = ("published", "published hash")


def small(**options: Any) -> UNETRPP:
    torch.manual_seed(0)
    return UNETRPP(1, 3, PATCH, deep_supervision=True, **{**SMALL, **options})


def full_size(**options: Any) -> UNETRPP:
    with torch.device("meta"):
        return UNETRPP(1, 14, (64, 128, 128), deep_supervision=True, **options)


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({}, 42.95),
        ({"encoding": "frequency", "replace_positions": True}, 42.61),
        ({"encoding": "hash", "gpe_places": "all", "shared_table": False}, 50.60),
        # published: 59.29, of which 0.28 are a loss that nothing calls
        ({**PNetworkTrainer.network_options, "shared_table": False, "attention_prelu": True}, 59.01),
    ],
)
def test_published_parameter_counts(options: dict[str, Any], millions: float) -> None:
    """The flags of unknown axes are ours."""
    network = full_size(**options)
    flags = sum(value.numel() for name, value in network.named_parameters() if ".flags." in name)
    assert (parameters(network) - flags) / 1e6 == pytest.approx(millions, abs=0.006)


def test_published_multiply_adds() -> None:
    """Published with what normalisations cost, 0.42 G, which is not counted here."""
    assert multiply_adds(full_size()) / 1e9 == pytest.approx(47.89 - 0.42, abs=0.01)


def test_shared_table_is_counted_once() -> None:
    shared, own = (
        small(encoding="hash", hash=TABLE, gpe_places="all", shared_table=flag) for flag in (True, False)
    )
    (table,) = (one for name, one in shared.named_parameters() if name.endswith(".table"))
    assert parameters(own) - parameters(shared) == 7 * table.numel()


def attend_slowly(attention: PairedAttention, tokens: Tensor) -> Tensor:
    """The formula, head by head, channel by channel and token by token."""
    count, channels = tokens.shape
    width = channels // attention.heads
    parts = (tokens @ attention.queries_keys_values.weight.T).view(count, 4, attention.heads, width)
    matrix, bias = attention.project.weight, attention.project.bias
    by_token, by_channel = torch.zeros(count, channels), torch.zeros(count, channels)
    for head in range(attention.heads):
        query, key, value, other = parts[:, :, head].unbind(1)
        unit, unit_key = query / query.norm(dim=0), key / key.norm(dim=0)
        for row in range(width):
            logits = torch.stack([unit[:, row] @ unit_key[:, column] for column in range(width)])
            weights = (attention.channel_temperature[head].squeeze() * logits).softmax(0)
            by_channel[:, head * width + row] = sum(weights[i] * value[:, i] for i in range(width))
        keys, values = matrix @ key + bias[:, None], matrix @ other + bias[:, None]
        for token in range(count):
            logits = attention.token_temperature[head].squeeze() * (keys @ unit[token])
            by_token[token, head * width : (head + 1) * width] = logits.softmax(0) @ values
    both = [attention.token_output(by_token), attention.channel_output(by_channel)]
    result: Tensor = attention.activation(torch.cat(both, dim=1))
    return result


@pytest.mark.parametrize("activation", [False, True])
def test_paired_attention_is_its_formula(activation: bool) -> None:
    torch.manual_seed(0)
    attention = PairedAttention(8, 12, 2, 5, dropout=0.5, activation=activation).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn_like(parameter))
        tokens = torch.randn(3, 12, 8)
        expected = torch.stack([attend_slowly(attention, one) for one in tokens])
        torch.testing.assert_close(attention(tokens), expected, atol=1e-4, rtol=1e-4)


def test_paired_attention_drops_weights_in_training_only() -> None:
    torch.manual_seed(0)
    attention, tokens = PairedAttention(8, 12, 2, 5, dropout=0.5), torch.randn(1, 12, 8)
    assert not torch.equal(attention(tokens), attention(tokens))
    attention.eval()
    assert torch.equal(attention(tokens), attention(tokens))


def test_normalisation_of_queries_survives_half_precision() -> None:
    """Sums of squares over the tokens of a whole patch exceed the largest float16."""
    torch.manual_seed(0)
    attention = PairedAttention(4, 512, 1, 4, dropout=0.0).eval()
    tokens = 300 * torch.randn(1, 512, 4)
    expected = attention(tokens)
    half = attention.half()(tokens.half()).float()
    assert (half - expected).norm() < 0.02 * expected.norm()


def test_block_starts_without_attention() -> None:
    torch.manual_seed(0)
    options = {"attention_dropout": 0.0, "dropout": 0.0}
    block = PairedAttentionBlock(8, (2, 3, 4), 2, 4, **options).eval()  # type: ignore[arg-type] # numbers
    x = torch.randn(1, 8, 2, 3, 4)
    torch.testing.assert_close(block(x), x + block.mix(block.residual(x)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("places", "sizes"),
    [
        ("paper", [(2, 2, 4), (2, 2, 4), (1, 1, 2), (2, 2, 4)]),
        ("all", [(8, 8, 16), (4, 4, 8), (2, 2, 4), (1, 1, 2), (2, 2, 4), (4, 4, 8), (8, 8, 16), PATCH]),
    ],
)
@pytest.mark.parametrize("flipped", [False, True])
def test_encodings_get_the_token_centres(places: str, sizes: list[tuple[int, ...]], flipped: bool) -> None:
    """Each place the means of the location over its tokens' voxels, flipped where the input is."""
    network = small(encoding="frequency", bands=2, gpe_places=places, depths=[1, 1, 2, 1]).eval()
    x = feed(PATCH, located=True)
    expected = [token_means(x[:, 1:4], size) for size in sizes]
    axes = (2, 4)
    seen = hooked_locations(network, x.flip(axes) if flipped else x)
    assert [tuple(one.shape[2:]) for one in seen] == sizes
    for one, mean in zip(seen, expected, strict=True):
        torch.testing.assert_close(one.flip(axes) if flipped else one, mean, atol=1e-4, rtol=0)


def test_positions_stay_or_are_replaced_where_encodings_stand() -> None:
    names = {
        flag: {
            name
            for name, _ in small(
                encoding="frequency", replace_positions=flag, depths=[1, 1, 2, 1]
            ).named_parameters()
        }
        for flag in (False, True)
    }
    gone = {f"stages.{stage}.{block}.position" for stage, block in [(2, 0), (2, 1), (3, 0), (4, 0)]}
    assert names[False] - names[True] == gone
    plain = {name for name, _ in small(depths=[1, 1, 2, 1]).named_parameters()}
    assert plain <= names[False]


def test_replaced_positions_start_as_the_plain_network() -> None:
    x = feed(PATCH, located=True)
    replaced = small(encoding="frequency", replace_positions=True).eval()
    for output, expected in zip(replaced(x), small().eval()(x[:, :1]), strict=True):
        torch.testing.assert_close(output, expected)


def test_published_start_differs_from_the_plain_network() -> None:
    x = feed(PATCH, located=True)
    difference = small(encoding="frequency", zero_init=False).eval()(x)[0] - small().eval()(x[:, :1])[0]
    assert difference.abs().max() > 1e-3


def test_own_tables_are_all_used() -> None:
    network = small(encoding="hash", hash=TABLE, gpe_places="all", shared_table=False, zero_init=False)
    torch.stack([one.square().mean() for one in network(feed(PATCH, located=True))]).sum().backward()
    tables = {name: one for name, one in network.named_parameters() if name.endswith("table")}
    assert len(tables) == 8
    assert all(one.grad is not None and one.grad.any() for one in tables.values())


def test_stem_decides_patches_and_resolutions() -> None:
    assert UNETRPP.patch_multiple(3) == (16, 32, 32)
    assert UNETRPP.patch_multiple(2) == (32, 32)
    assert UNETRPP.supervision_strides(3) == ((1, 1, 1), (2, 4, 4), (4, 8, 8))
    assert UNETRPP.patch_multiple(3, stem=[1, 2, 4]) == (8, 16, 32)
    assert UNETRPP.supervision_strides(3, stem=[1, 2, 4]) == ((1, 1, 1), (1, 2, 4), (2, 4, 8))
    network = UNETRPP(1, 3, (8, 32, 32), deep_supervision=True, **{**SMALL, "stem": [1, 2, 4]})
    sizes = [tuple(one.shape[2:]) for one in network(torch.randn(2, 1, 8, 32, 32))]
    assert sizes == [(8, 32, 32), (8, 16, 8), (4, 8, 4)]


def test_channels_that_groups_do_not_divide() -> None:
    """The published stem has a group for each image channel: 3 do not divide 8."""
    network = UNETRPP(3, 2, (16, 32, 64), **SMALL).eval()
    assert network(torch.randn(1, 3, 16, 32, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": [8, 8, 12]}, r"dims must be 4 numbers, one for each stage; got \[8, 8, 12\]"),
        ({"decoder_depths": [1, 1, 1, 1]}, "decoder_depths must be 3 numbers"),
        ({"depths": [1, 1, 0, 1]}, "each of depths must be an integer >= 1, got 0"),
        ({"dims": [8, 8, 9, 16]}, r"dims must be even multiples of num_heads, 2; got \[8, 8, 9, 16\]"),
        ({"num_heads": 0}, "num_heads must be an integer >= 1, got 0"),
        ({"drop_rate": 1.0}, "drop_rate must be a number from 0 up to"),
        ({"gpe_places": "encoder"}, "gpe_places must be one of paper, tokens, all; got 'encoder'"),
        ({"replace_positions": True}, "replace_positions needs an encoding"),
        ({"stem": [2, 4]}, r"stem must be 3 of 1, 2, .*, one for each axis; got \[2, 4\]"),
        ({"encoding": "waves"}, "encoding must be one of"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
