"""nnFormer: what the location adds to it, and attention within windows against its formula."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_locctx.networks.nnformer import NNFormer
from nnunet_locctx.networks.window_attention import WindowAttention, WindowBlock, WindowGrid
from tests.networks.harness import WholeNetworkHarness, feed
from tests.networks.monai_cases import multiply_adds, parameters
from tests.networks.small_networks import SMALL as ALL_SMALL
from tests.networks.token_centres import hooked_locations, token_means

SMALL = ALL_SMALL["nnformer"]
TABLE = {"levels": 3, "log2_entries": 8, "base_resolution": 4}
PATCH = (16, 32, 64)


class TestNNFormer(WholeNetworkHarness):
    name = "nnformer"
    options = SMALL
    patches = {3: [PATCH, (32, 32, 32)], 2: [(32, 64), (96, 32)]}  # noqa: RUF012
    located = {  # noqa: RUF012
        "frequency": {"encoding": "frequency", "bands": 3},
        "hash": {"encoding": "hash", "hash": TABLE},
        "published": NNFormer.published(encoding="frequency", bands=3),
    }
    differ = ("published",)
    without_effect = (
        r"stages\.3\.\d\.attention\.bias_table"  # as published, windows there have a single token
    )


def small(**options: Any) -> NNFormer:
    torch.manual_seed(0)
    return NNFormer(1, 3, PATCH, deep_supervision=True, **{**SMALL, **options})


def full_size(**options: Any) -> NNFormer:
    with torch.device("meta"):
        return NNFormer(1, 14, (64, 128, 128), deep_supervision=True, **options)


@pytest.mark.parametrize(("encoding", "millions"), [(None, 150.05), ("frequency", 150.32)])
def test_published_parameter_counts(encoding: str | None, millions: float) -> None:
    assert parameters(full_size(encoding=encoding)) / 1e6 == pytest.approx(millions, abs=0.006)


def test_published_multiply_adds() -> None:
    """Published with what normalisations cost, 0.66 G, which is not counted here."""
    assert multiply_adds(full_size()) / 1e9 == pytest.approx(213.37 - 0.66, abs=0.01)


GRIDS = [
    pytest.param((4, 6), 2, False, id="2d"),
    pytest.param((5, 3), 2, False, id="2d-filled-up"),
    pytest.param((5, 7), 4, True, id="2d-filled-up-and-shifted"),
    pytest.param((4, 2, 6), 3, True, id="3d-shifted-one-axis-a-window"),
    pytest.param((3, 5, 4), 2, True, id="3d-shifted"),
]


def attend_slowly(attention: WindowAttention, grid: WindowGrid, queries: Tensor, source: Tensor) -> Tensor:
    """(*size, C) -> (*size, C): token by token, head by head, over the tokens of the same block of the grid."""
    width = queries.shape[-1] // attention.heads
    tokens = list(itertools.product(*[range(n) for n in grid.size]))
    table = attention.bias_table.view(*[2 * n - 1 for n in grid.window], -1)
    parts = attention.layer(source).unflatten(-1, (-1, attention.heads, width))
    query = queries.unflatten(-1, (attention.heads, width)) if attention.cross else parts[..., 0, :, :]
    key, value = parts[..., -2, :, :], parts[..., -1, :, :]

    def block(token: tuple[int, ...]) -> list[int]:
        return [(n - s) // w for n, s, w in zip(token, grid.shift, grid.window, strict=True)]

    result = torch.zeros_like(queries)
    for token in tokens:
        others = [other for other in tokens if block(other) == block(token)]
        for head in range(attention.heads):
            logits = []
            for other in others:
                apart = [a - b + w - 1 for a, b, w in zip(token, other, grid.window, strict=True)]
                product = query[token][head] @ key[other][head] / math.sqrt(width)
                logits.append(product + table[(*apart, head)])
            weights = torch.stack(logits).softmax(0)
            attended = sum(weight * value[other][head] for weight, other in zip(weights, others, strict=True))
            result[token][head * width : (head + 1) * width] = attended
    output: Tensor = attention.output(result)
    return output


def made(grid: WindowGrid, cross: bool, dropout: float = 0.0) -> WindowAttention:
    attention = WindowAttention(
        4, grid.window, 2, cross=cross, qkv_bias=True, attention_dropout=dropout, dropout=0.0
    )
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return attention


@pytest.mark.parametrize(("size", "window", "shifted"), GRIDS)
@pytest.mark.parametrize("cross", [False, True])
def test_window_attention_is_its_formula(
    size: tuple[int, ...], window: int, shifted: bool, cross: bool
) -> None:
    torch.manual_seed(0)
    grid = WindowGrid.fit(size, window, shifted)
    attention = made(grid, cross)
    queries = torch.randn(2, *size, 4)
    source = torch.randn(2, *size, 4) if cross else queries
    with torch.no_grad():
        windows = attention(grid.partition(queries), grid.partition(source), grid.labels())
        expected = [attend_slowly(attention, grid, *one) for one in zip(queries, source, strict=True)]
    torch.testing.assert_close(grid.merge(windows), torch.stack(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("size", "window", "shifted"), GRIDS)
def test_partition_and_merge_are_inverse(size: tuple[int, ...], window: int, shifted: bool) -> None:
    grid = WindowGrid.fit(size, window, shifted)
    tokens = torch.randn(2, *size, 3)
    windows = grid.partition(tokens)
    assert windows.shape[2] == math.prod(grid.window)
    assert windows.shape[1] * windows.shape[2] == math.prod(grid.padded)
    assert torch.equal(grid.merge(windows), tokens)


def test_windows_fit_each_axis() -> None:
    grid = WindowGrid.fit((3, 4, 9), 4, shifted=True)
    assert (grid.window, grid.shift, grid.padded) == ((3, 4, 4), (0, 0, 2), (3, 4, 12))
    assert WindowGrid.fit((4, 8), 4, shifted=False).labels() is None
    assert WindowGrid.fit((4, 4), 4, shifted=True).labels() is None


def test_filled_up_tokens_have_no_effect_and_no_empty_row() -> None:
    """Shifted by half a window, one window holds nothing but filling beside the tokens from the other end."""
    torch.manual_seed(0)
    grid = WindowGrid.fit((5, 5), 4, shifted=True)
    attention = made(grid, cross=True)
    windows, source = grid.partition(torch.randn(1, 5, 5, 4)), grid.partition(torch.randn(1, 5, 5, 4))
    labels = grid.labels()
    assert labels is not None
    filled = (labels == -1)[None, :, :, None]
    assert filled.sum() == 8 * 8 - 5 * 5
    expected = attention(windows, source, labels)
    assert expected.isfinite().all()
    changed = torch.where(filled, torch.randn_like(source), source)
    assert torch.equal(grid.merge(attention(windows, changed, labels)), grid.merge(expected))


def test_attention_weights_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    grid = WindowGrid.fit((4, 4), 2, shifted=False)
    attention = made(grid, cross=False, dropout=0.5)
    windows = grid.partition(torch.randn(1, 4, 4, 4))
    assert not torch.equal(attention(windows, windows, None), attention(windows, windows, None))
    attention.eval()
    assert torch.equal(attention(windows, windows, None), attention(windows, windows, None))


def test_blocks_of_a_stage() -> None:
    """Windows are shifted in every second block of the encoder, and in all but the first of the decoder, which
    looks across."""
    network = small(depths=[3, 3, 2, 2], dropout_path_rate=0.2)
    attended: list[list[tuple[bool, bool]]] = []
    rates: list[float] = []
    for stage in network.stages:
        assert isinstance(stage, nn.ModuleList)
        blocks = [block for block in stage if isinstance(block, WindowBlock)]
        attended.append([(any(block.grid.shift), block.attention.cross) for block in blocks])
        rates += [block.drop_path.drop_prob for block in blocks]
    here, moved, across = (False, False), (True, False), (False, True)
    assert attended[:2] == [[here, moved, here]] * 2
    assert attended[2] == [here, moved]
    assert attended[3] == [here, here]  # one token along two axes, a window along the third
    assert attended[4:] == [[across, moved], [across, moved, moved], [across, moved, moved]]
    assert rates[:10] == pytest.approx([0.2 * n / 9 for n in range(10)])
    assert rates[10:] == pytest.approx([0.2 * n / 7 for n in range(8)])


@pytest.mark.parametrize("flipped", [False, True])
def test_encodings_get_the_token_centres(flipped: bool) -> None:
    """Each stage the means of the location over its own tokens' voxels, in the decoder too; flipped where the input
    is."""
    network = small(encoding="frequency", bands=2).eval()
    x = feed(PATCH, located=True)
    encoder = [(8, 8, 16), (4, 4, 8), (2, 2, 4), (1, 1, 2)]
    sizes = encoder + encoder[-2::-1]
    expected = [token_means(x[:, 1:4], size) for size in sizes]
    axes = (2, 4)
    seen = hooked_locations(network, x.flip(axes) if flipped else x)
    assert [tuple(one.shape[2:]) for one in seen] == sizes
    for one, mean in zip(seen, expected, strict=True):
        torch.testing.assert_close(one.flip(axes) if flipped else one, mean, atol=1e-4, rtol=0)


def test_encoding_is_added_before_each_block() -> None:
    """And in the first block of a decoder stage to what the attention is added to, only."""
    network = small(encoding="frequency", bands=2, dropout_path_rate=0.0).eval()
    with torch.no_grad():
        for name, parameter in network.positions.named_parameters():
            parameter.fill_(3.0 if name.endswith("bias") else 0.0)
    seen: list[tuple[Tensor, ...]] = []
    outputs: list[Tensor] = []

    def remember(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(arguments)
        outputs.append(output)

    blocks = [block for block in network.stages.modules() if isinstance(block, WindowBlock)]
    for block in blocks:
        block.register_forward_hook(remember)
    network(feed(PATCH, located=True))
    for number, (block, arguments) in enumerate(zip(blocks, seen, strict=True)):
        if block.attention.cross:
            x, queries, source = arguments
            torch.testing.assert_close(x, queries + source + 3)
        elif number and block.grid.size == blocks[number - 1].grid.size:
            torch.testing.assert_close(arguments[0], outputs[number - 1] + 3)


def test_published_start_differs_from_the_plain_network() -> None:
    x = feed(PATCH, located=True)
    difference = small(encoding="frequency", zero_init=False).eval()(x)[0] - small().eval()(x[:, :1])[0]
    assert difference.abs().max() > 1e-3


def test_own_tables_are_all_used() -> None:
    network = small(encoding="hash", hash=TABLE, shared_table=False, zero_init=False)
    torch.stack([one.square().mean() for one in network(feed(PATCH, located=True))]).sum().backward()
    tables = {name: one for name, one in network.named_parameters() if name.endswith("table")}
    tables = {name: one for name, one in tables.items() if "encoding" in name}
    assert len(tables) == 7
    assert all(one.grad is not None and one.grad.any() for one in tables.values())


def test_stem_decides_patches() -> None:
    assert NNFormer.patch_multiple(3) == (16, 32, 32)
    assert NNFormer.patch_multiple(2) == (32, 32)
    assert NNFormer.supervision_strides(3) == ((1, 1, 1), (2, 2, 2), (4, 4, 4))
    assert NNFormer.patch_multiple(3, stem=[1, 2, 4]) == (8, 16, 32)
    network = NNFormer(1, 3, (8, 32, 32), deep_supervision=True, **{**SMALL, "stem": [1, 2, 4]})
    sizes = [tuple(one.shape[2:]) for one in network(torch.randn(2, 1, 8, 32, 32))]
    assert sizes == [(8, 32, 32), (4, 16, 16), (2, 8, 8)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": [1, 1, 1]}, r"depths must be 4 numbers, one for each stage; got \[1, 1, 1\]"),
        ({"window_size": [3, 2, 2, 0]}, "each of window_size must be an integer >= 1, got 0"),
        ({"embed_dim": 7}, "embed_dim must be even"),
        ({"num_heads": [1, 3, 2, 4]}, r"num_heads divide .*, \[8, 16, 32, 64\]; got \[1, 3, 2, 4\]"),
        ({"mlp_ratio": 0}, "mlp_ratio must be a positive number, got 0"),
        ({"dropout_path_rate": 1}, "dropout_path_rate must be a number from 0 up to"),
        ({"stem": [2, 3, 4]}, r"stem must be 3 of 1, 2, 4, one for each axis; got \[2, 3, 4\]"),
        ({"encoding": "waves"}, "encoding must be one of"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
