"""The vector quantiser against its formulas, and in two processes against one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_locctx.blocks.quantise import VectorQuantiser, hashed
from tests.blocks.two_processes import in_two_processes


def make(dimensions: int = 3, codes: int = 8, **options: Any) -> VectorQuantiser:
    torch.manual_seed(5)
    return VectorQuantiser(dimensions, codes, **options)


def filled(codebook: Tensor, **options: Any) -> VectorQuantiser:
    """A quantiser in the middle of training: a codebook of its own, no code about to be replaced."""
    quantiser = make(codebook.shape[1], len(codebook), **options)
    quantiser.codebook.copy_(codebook)
    quantiser.sums.copy_(codebook)
    quantiser.unused.zero_()
    return quantiser


def distance_to(tokens: Tensor, codes: Tensor) -> Tensor:
    """Distance of each code to the nearest of the tokens."""
    return (codes[:, None] - tokens).norm(dim=2).min(dim=1).values


def state(quantiser: VectorQuantiser) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in quantiser.state_dict().items()}


def test_nearest_codes() -> None:
    quantiser = make(dimensions=4, codes=16).eval()
    tokens = torch.randn(2, 5, 7, 4)
    values, indices, commitment = quantiser(tokens)
    nearest = (tokens[..., None, :] - quantiser.codebook).square().sum(dim=-1).argmin(dim=-1)
    assert torch.equal(indices, nearest)
    torch.testing.assert_close(values, quantiser.codebook[nearest])
    torch.testing.assert_close(commitment, (tokens - quantiser.codebook[nearest]).square().mean())


def test_gradients_go_straight_through_and_to_the_tokens_only() -> None:
    quantiser = make().train()
    tokens = torch.randn(2, 6, 3, requires_grad=True)
    values, indices, commitment = quantiser(tokens)
    weights = torch.rand_like(values)
    (values * weights).sum().backward(retain_graph=True)
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, weights)
    tokens.grad = None
    chosen = make().codebook[indices]  # as it was before the update
    commitment.backward()
    torch.testing.assert_close(tokens.grad, 2 * (tokens.detach() - chosen) / tokens.numel())
    assert list(quantiser.parameters()) == []
    assert not any(buffer.requires_grad for buffer in quantiser.buffers())


def test_codes_are_the_moving_average_of_their_tokens() -> None:
    codebook = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    quantiser = filled(codebook, decay=0.9).train()
    quantiser(torch.tensor([[1.0, 1.0], [2.0, 0.0], [9.0, 1.0]]))
    torch.testing.assert_close(quantiser.counts, torch.tensor([1.1, 1.0, 0.9]))
    expected = torch.tensor([[0.3 / 1.1, 0.1 / 1.1], [9.9, 0.1], [0.0, 10.0]])
    torch.testing.assert_close(quantiser.codebook, expected, rtol=1e-4, atol=1e-4)
    assert quantiser.unused.tolist() == [0, 0, 1]
    for _ in range(300):
        quantiser(torch.tensor([[1.0, 1.0], [2.0, 0.0], [9.0, 1.0], [1.0, 9.0]]))
    expected = torch.tensor([[1.5, 0.5], [9.0, 1.0], [1.0, 9.0]])
    torch.testing.assert_close(quantiser.codebook, expected, rtol=1e-3, atol=1e-3)


def test_smoothing_keeps_the_total_and_divides_by_no_zero() -> None:
    quantiser = filled(torch.tensor([[0.0], [100.0]]), decay=0.0, revive_after=1000).train()
    quantiser(torch.full((10, 1), 2.0))
    assert quantiser.counts.tolist() == [10, 0]
    assert quantiser.codebook.isfinite().all()
    torch.testing.assert_close(quantiser.codebook[0], torch.tensor([2.0]), rtol=1e-4, atol=0)


def test_the_first_step_fills_the_codebook_with_tokens() -> None:
    quantiser = make(dimensions=3, codes=64).train()
    tokens = 50 + torch.randn(40, 3)
    quantiser(tokens)
    assert (
        distance_to(tokens, quantiser.codebook) < 0.01
    ).sum() >= 63  # all but those that the first tokens happened to choose
    assert len(hashed(torch.tensor(0), 2 * torch.arange(64)).remainder(40).unique()) > 25  # varied ones
    assert quantiser(tokens).indices.unique().numel() > 20


def test_unused_codes_are_replaced_by_current_tokens() -> None:
    codebook = torch.tensor([[0.0, 0.0], [50.0, 50.0]])
    quantiser = filled(codebook, revive_after=5).train()
    for step in range(1, 6):
        tokens = torch.rand(30, 2)
        quantiser(tokens)
        if step < 5:
            assert quantiser.unused.tolist() == [0, step]
            torch.testing.assert_close(quantiser.codebook[1], codebook[1], rtol=1e-3, atol=0)
    assert quantiser.unused.tolist() == [0, 0]
    assert distance_to(tokens, quantiser.codebook[1:]) < 1e-3
    assert set(quantiser(torch.rand(30, 2)).indices.tolist()) == {0, 1}


def test_frozen_in_evaluation() -> None:
    quantiser = make().eval()
    before = state(quantiser)
    for _ in range(3):
        quantiser(torch.randn(20, 3))
    assert all(torch.equal(value, before[name]) for name, value in state(quantiser).items())


def test_draws_from_no_generator_and_repeats_itself() -> None:
    runs = []
    for seed in (1, 2):
        quantiser = make(codes=16, revive_after=2).train()
        tokens = torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        for one in tokens:
            quantiser(one)
        assert torch.equal(torch.get_rng_state(), before)
        runs.append(state(quantiser))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_training_taken_up_again_goes_on_exactly() -> None:
    batches = torch.randn(8, 30, 3)
    through, first = make(revive_after=2).train(), make(revive_after=2).train()
    for batch in batches:
        through(batch)
    for batch in batches[:4]:
        first(batch)
    second = VectorQuantiser(3, 8, revive_after=2).train()
    second.load_state_dict(first.state_dict())
    for batch in batches[4:]:
        second(batch)
    assert state(second).keys() == {"codebook", "sums", "counts", "unused", "steps"}
    assert all(torch.equal(value, state(second)[name]) for name, value in state(through).items())


def test_half_precision_and_autocast_choose_the_same_codes() -> None:
    codebook = torch.tensor([[1.0, 0.0], [1.001, 0.0]])  # closer than bfloat16 can tell apart
    tokens = torch.tensor([[1.0002, 0.0], [1.0008, 0.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantised = filled(codebook).eval()(tokens)
    assert quantised.indices.tolist() == [0, 1]
    assert quantised.values.dtype == quantised.commitment.dtype == torch.float32
    assert filled(codebook).eval()(tokens.to(torch.float16)).values.dtype == torch.float32


def test_hash_looks_random() -> None:
    steps = torch.arange(200)[:, None]
    drawn = hashed(steps, 2 * torch.arange(512))
    assert drawn.min() >= 0
    assert drawn.max() < 2**31
    shares = torch.bincount((drawn % 10).flatten(), minlength=10) / drawn.numel()
    assert (shares - 0.1).abs().max() < 0.005
    for one, other in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):  # neighbours are independent
        pairs = torch.stack([one.flatten(), other.flatten()]).double()
        assert pairs.corrcoef()[0, 1].abs() < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 0}, "dimensions must be an integer >= 1, got 0"),
        ({"codes": 1}, "codes must be an integer >= 2, got 1"),
        ({"decay": 1.0}, "decay must be a number from 0 up to, but not including, 1; got 1.0"),
        ({"revive_after": 0}, "revive_after must be an integer >= 1, got 0"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VectorQuantiser(**{"dimensions": 3, **options})


STEPS, TOKENS = 4, (20, 12)
"""The two processes have batches of different sizes, as nnU-Net may deal them."""


def deal(step: int) -> tuple[Tensor, ...]:
    """The tokens of either process, apart from each other."""
    tokens = torch.randn(sum(TOKENS), 3, generator=torch.Generator().manual_seed(step))
    one, other = tokens.split(TOKENS)
    return one.abs(), -other.abs()


def follow(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """States after some steps from a given codebook, and after the first step that fills a new one."""
    quantiser, new = filled(make().codebook).train(), make(codes=64).train()
    for step in range(STEPS):
        quantiser(deal(step)[rank])
    new(deal(0)[rank])
    return state(quantiser), state(new)


@pytest.mark.slow
def test_two_processes_keep_one_codebook() -> None:
    (one, one_new), (other, other_new) = in_two_processes(follow)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert all(torch.equal(value, other_new[name]) for name, value in one_new.items())
    single = filled(make().codebook).train()
    for step in range(STEPS):
        single(torch.cat(deal(step)))
    for name, value in state(single).items():  # as if one process had seen all tokens
        torch.testing.assert_close(one[name], value)
    for tokens in deal(0):  # new codes are tokens of both
        assert (distance_to(tokens, one_new["codebook"]) < 1e-3).sum() >= 15
