import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_locctx.blocks import resize_location
from nnunet_locctx.blocks.resolution import coarser, spread


def affine(size: tuple[int, ...], matrix: torch.Tensor) -> torch.Tensor:
    """(1, 3, *size): matrix (3, rank) @ index."""
    index = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in size], indexing="ij"))
    return torch.tensordot(matrix, index, dims=1)[None]


sizes = st.lists(
    st.integers(1, 13).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), min_size=2, max_size=3
)


@given(sizes)
def test_gives_token_centres_of_an_affine_location(pairs: list[tuple[int, int]]) -> None:
    matrix = torch.arange(1.0, 1 + 3 * len(pairs), dtype=torch.float64).view(3, -1) / 7
    fine, coarse = zip(*pairs, strict=True)
    resized = resize_location(affine(fine, matrix), coarse)
    centres = [(torch.arange(m, dtype=torch.float64) + 0.5) * n / m - 0.5 for n, m in pairs]
    expected = torch.tensordot(matrix, torch.stack(torch.meshgrid(*centres, indexing="ij")), dims=1)[None]
    torch.testing.assert_close(resized, expected)


@given(sizes, st.integers(0, 2))
def test_commutes_with_mirroring(pairs: list[tuple[int, int]], axis: int) -> None:
    fine, coarse = zip(*pairs, strict=True)
    axis = 2 + axis % len(pairs)
    location = torch.randn(2, 3, *fine)
    mirrored = resize_location(location.flip(axis), coarse)
    torch.testing.assert_close(mirrored, resize_location(location, coarse).flip(axis))


def test_is_the_block_average_where_it_can_be() -> None:
    location = torch.randn(1, 3, 4, 6, 8)
    expected = location.view(1, 3, 2, 2, 3, 2, 8).mean(dim=(3, 5))
    torch.testing.assert_close(resize_location(location, (2, 3, 8)), expected)


def test_same_size_is_the_same() -> None:
    location = torch.randn(1, 3, 4, 5)
    assert torch.equal(resize_location(location, (4, 5)), location)


@given(sizes, st.booleans())
def test_spreads_linearly(pairs: list[tuple[int, int]], half: bool) -> None:
    fine, coarse = zip(*pairs, strict=True)
    field = torch.randn(2, 4, *coarse)
    mode = "trilinear" if len(fine) == 3 else "bilinear"
    expected = torch.nn.functional.interpolate(field, size=fine, mode=mode, align_corners=False)
    torch.testing.assert_close(spread(field, fine), expected)
    if half:
        assert spread(field.bfloat16(), fine).dtype == torch.bfloat16


def test_coarser() -> None:
    assert coarser((8, 9, 1), 2) == (4, 5, 1)
    assert coarser(torch.Size((8, 9)), 1) == (8, 9)


def test_half_precision_becomes_single() -> None:
    assert resize_location(torch.randn(1, 3, 4, 6).half(), (2, 3)).dtype == torch.float32


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((2, 2), r"spatial size \(4, 4, 4\) cannot be given at size \(2, 2\)"),
        ((2, 8, 2), r"at most as many as the location has voxels, \(4, 4, 4\); got \(2, 8, 2\)"),
        ((2, 0, 2), r"at least 1 token.*got \(2, 0, 2\)"),
    ],
)
def test_refuses(size: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_location(torch.zeros(1, 3, 4, 4, 4), size)
