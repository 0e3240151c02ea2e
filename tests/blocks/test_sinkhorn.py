"""The transport plan against its definition and against a naive implementation in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_locctx.blocks.transport import log_sinkhorn


def similarity(tokens: int = 200, references: int = 32, width: int = 256, seed: int = 0) -> Tensor:
    """Cosine similarities of random unit vectors, (2, tokens, references)."""
    torch.manual_seed(seed)
    one, other = torch.randn(2, tokens, width), torch.randn(references, width)
    return F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T


def columns_of(references: int) -> Tensor:
    return torch.randn(2, references).log_softmax(dim=-1)


def naive_plan(kernel: Tensor, columns: Tensor, iterations: int) -> Tensor:
    """Scaling of exp(kernel) in turns, columns first: (N, p), (p,) -> (N, p), float64, no logarithms."""
    plan = kernel.double().exp()
    for _ in range(iterations):
        plan = plan * (columns.double() / plan.sum(dim=0))
        plan = plan * (1 / len(plan) / plan.sum(dim=1, keepdim=True))
    return plan


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("learned", [False, True])
def test_marginals(epsilon: float, learned: bool) -> None:
    columns = columns_of(32) if learned else None
    plan = log_sinkhorn(similarity() / epsilon, columns).exp()
    sums = columns.exp() if columns is not None else torch.full((2, 32), 1 / 32)
    assert (plan.sum(dim=2) - 1 / 200).abs().max() < 1e-7
    assert (plan.sum(dim=1) - sums).abs().max() < 1e-5


@pytest.mark.parametrize("iterations", [1, 10])
def test_agrees_with_scaling_in_turns(iterations: int) -> None:
    kernel, columns = similarity(30, 7) / 0.1, columns_of(7)
    plan = log_sinkhorn(kernel, columns, iterations).exp()
    for one, given, expected in zip(plan, columns, kernel, strict=True):
        torch.testing.assert_close(
            one.double(), naive_plan(expected, given.exp(), iterations), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("epsilon", [0.1, 0.3])
def test_two_tokens_and_two_references_have_a_closed_form(epsilon: float) -> None:
    """P = [[a, 1/2 - a], [1/2 - a, a]], and the odds of the two assignments are those of the kernel."""
    scores = torch.tensor([[0.9, 0.8], [0.8, 0.2]])  # the best assignment is not that of the greatest score
    plan = log_sinkhorn(scores / epsilon, iterations=100).exp()
    odds = math.exp((0.9 + 0.2 - 0.8 - 0.8) / (2 * epsilon))
    a = 0.5 * odds / (1 + odds)
    torch.testing.assert_close(plan, torch.tensor([[a, 0.5 - a], [0.5 - a, a]]))
    assert a < 0.25


def test_entropy_grows_with_epsilon() -> None:
    entropies = []
    for epsilon in (0.03, 0.05, 0.1, 0.5, 1.0):
        log_plan = log_sinkhorn(similarity() / epsilon, iterations=100)
        entropies.append(float(-(log_plan.exp() * log_plan).sum(dim=(1, 2)).mean()) / math.log(200 * 32))
    assert entropies == sorted(entropies)
    assert entropies[0] < 0.9
    assert 0.999 < entropies[-1] <= 1


def test_error_falls_with_iterations() -> None:
    errors = []
    for iterations in (1, 2, 5, 10):
        plan = log_sinkhorn(similarity().double() / 0.03, iterations=iterations).exp()
        errors.append(float((plan.sum(dim=1) - 1 / 32).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_scores_of_half_precision_do_not_overflow(dtype: torch.dtype) -> None:
    kernel = (similarity(40, 8) * 60_000).to(dtype).requires_grad_()
    assert kernel.detach().exp().isinf().any()
    log_plan = log_sinkhorn(kernel)
    assert log_plan.dtype == torch.float32
    assert log_plan.isfinite().all()
    torch.testing.assert_close(log_plan.exp().sum(dim=2), torch.full((2, 40), 1 / 40), rtol=0.02, atol=0)
    (log_plan.exp() * torch.rand_like(log_plan)).sum().backward()
    assert kernel.grad is not None
    assert kernel.grad.isfinite().all()


def test_autocast_changes_nothing() -> None:
    kernel = similarity(40, 8) / 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_plan = log_sinkhorn(kernel)
    assert torch.equal(log_plan, log_sinkhorn(kernel))


@pytest.mark.parametrize("iterations", [1, 4])
def test_gradcheck(iterations: int) -> None:
    kernel = (similarity(5, 3) / 0.1).double().requires_grad_()
    columns = columns_of(3).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda one, other: log_sinkhorn(one, other, iterations).exp(), (kernel, columns)
    )


def test_detached_potentials() -> None:
    """The same plan; its gradient is that of exp(kernel) times constants."""
    kernel, columns = (similarity(6, 3) / 0.1).requires_grad_(), columns_of(3).requires_grad_()
    weights = torch.rand(2, 6, 3)
    plan = log_sinkhorn(kernel, columns, detach_potentials=True).exp()
    assert torch.equal(plan, log_sinkhorn(kernel, columns).exp())
    (plan * weights).sum().backward()
    assert kernel.grad is not None
    torch.testing.assert_close(kernel.grad, (plan * weights).detach())
    assert columns.grad is None


def test_what_a_row_or_a_column_has_in_common_does_not_matter() -> None:
    kernel = similarity(20, 6) / 0.1
    moved = kernel + 3 * torch.randn(2, 20, 1) + 3 * torch.randn(2, 1, 6)
    # the columns' potential comes first and takes up its part at once; the rows' part takes iterations
    torch.testing.assert_close(log_sinkhorn(moved, iterations=50), log_sinkhorn(kernel, iterations=50))
