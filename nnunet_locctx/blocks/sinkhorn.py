"""Entropic optimal transport between tokens and references, by Sinkhorn's iterations in the log domain."""

import math

import torch
from torch import Tensor

from nnunet_locctx.blocks.resolution import in_full_precision


def log_sinkhorn(
    log_kernel: Tensor,
    log_columns: Tensor | None = None,
    iterations: int = 10,
    detach_potentials: bool = False,
) -> Tensor:
    """Logarithm of the plan with given marginals that is closest to a kernel (Sinkhorn 1967; Cuturi, NIPS 2013).

    The plan ``P[n, k] = exp(log_kernel[n, k] + f[n] + g[k])`` has rows that sum to 1/N and columns that sum to
    ``exp(log_columns)``. Each iteration solves for the columns' potential g, then for the rows' f: the rows are
    exact, the columns as good as the iterations make them. Whatever the kernel holds per row or per column alone
    is taken up by the potentials.

    Computed in float32 (float64 if the kernel is), with sums of exponentials that cannot overflow, whatever the
    autocast mode.

    Args:
        log_kernel: (..., N, p), similarity / epsilon, plus the logarithm of a prior if there is one. Finite.
        log_columns: (..., p), logarithm of the mass of each column; they sum to 1. None: uniform, 1/p.
        iterations: At least 1.
        detach_potentials: Takes the potentials for constants in the gradient, instead of differentiating through
            all iterations: less memory, another gradient.

    Returns:
        (..., N, p), logarithm of the plan.
    """
    log_kernel = in_full_precision(log_kernel)
    tokens, references = log_kernel.shape[-2:]
    log_row = -math.log(tokens)
    if log_columns is None:
        log_columns = log_kernel.new_full((references,), -math.log(references))
    given = (log_kernel.detach(), log_columns.detach()) if detach_potentials else (log_kernel, log_columns)
    kernel, columns = given[0], in_full_precision(given[1]).unsqueeze(-2)
    rows = torch.zeros_like(kernel[..., :1])
    potential = rows[..., :1, :]
    for _ in range(iterations):
        potential = columns - torch.logsumexp(kernel + rows, dim=-2, keepdim=True)
        rows = log_row - torch.logsumexp(kernel + potential, dim=-1, keepdim=True)
    return log_kernel + rows + potential
