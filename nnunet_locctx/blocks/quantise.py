"""Vector quantisation: tokens replaced by the nearest code of a codebook."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_locctx.blocks.resolution import in_full_precision
from nnunet_locctx.values import check_integer, check_share


class Quantised(NamedTuple):
    """What the quantiser returns.

    Attributes:
        values: (..., D), the codes; the gradient passes straight through to the tokens.
        indices: (...), number of each token's code.
        commitment: Scalar, mean squared distance of the tokens to their codes; gradient to the tokens only.
    """

    values: Tensor
    indices: Tensor
    commitment: Tensor


class VectorQuantiser(nn.Module):
    """Nearest code by squared distance (van den Oord et al., "Neural Discrete Representation Learning", 2017).

    The codebook has no gradient. In training it follows the tokens: each code is the exponential moving average
    of the tokens that chose it, their count smoothed after Laplace (the appendix of the same paper). A code that
    no token chose for `revive_after` steps in a row becomes a random token of the current step. At the start all
    codes count as unused, so that the first step fills the codebook with tokens. In evaluation mode nothing
    changes.

    Where torch.distributed is initialised, counts, sums and the tokens for unused codes are summed over all
    processes in one reduction, so that every process keeps the same codebook, that of all their tokens together.
    Every process has to make the same calls in training mode.

    The random tokens come from a hash of step and code, not from a generator: no random state is touched, they
    are the same compiled or not, and a training taken up again from its checkpoint goes on exactly. All buffers
    are state of the training and stand in the state dict.

    Computed in float32 (float64 for float64 tokens).

    Args:
        dimensions: D.
        codes: Size of the codebook.
        decay: Decay of the moving average, 0 <= decay < 1.
        revive_after: Training steps without use after which a code is replaced.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, dimensions: int, codes: int = 512, decay: float = 0.99, revive_after: int = 100
    ) -> None:
        super().__init__()
        check_integer("dimensions", dimensions, 1)
        check_integer("codes", codes, 2)
        check_integer("revive_after", revive_after, 1)
        check_share("decay", decay)
        self.codes, self.decay, self.revive_after = codes, float(decay), revive_after
        codebook = torch.randn(codes, dimensions) / dimensions**0.5
        self.register_buffer("codebook", codebook)
        self.register_buffer("sums", codebook.clone())
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("unused", torch.full((codes,), revive_after - 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.codebook: Tensor
        self.sums: Tensor
        self.counts: Tensor
        self.unused: Tensor
        self.steps: Tensor

    def forward(self, tokens: Tensor) -> Quantised:
        """(..., D) -> codes (..., D), their numbers (...) and the commitment."""
        tokens = in_full_precision(tokens)
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            flat = tokens.detach().flatten(0, -2)
            codebook = self.codebook.to(tokens.dtype)
            # squared distance, less the token's own square
            distances = torch.addmm(codebook.square().sum(dim=1), flat, codebook.T, alpha=-2)
            chosen = distances.argmin(dim=1)
            values = F.embedding(chosen, codebook).view_as(tokens)
            if self.training:
                self._follow(flat.to(self.codebook.dtype), chosen)
        commitment = (tokens - values).square().mean()
        passed = tokens + (values - tokens).detach()
        return Quantised(passed, chosen.view(tokens.shape[:-1]), commitment)

    def _follow(self, flat: Tensor, chosen: Tensor) -> None:
        """Moves the codebook towards the tokens (M, D) with codes `chosen` (M,)."""
        use = F.one_hot(chosen, self.codes).to(
            flat.dtype
        )  # a product, since scattered sums differ from run to run
        counts, sums, candidates = summed_over_processes(use.sum(dim=0), use.T @ flat, self._candidates(flat))
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self.unused.copy_(torch.where(counts > 0, 0, self.unused + 1))
        dead = self.unused >= self.revive_after
        self.unused.masked_fill_(dead, 0)
        self.counts.masked_fill_(dead, 1)
        self.sums.copy_(torch.where(dead[:, None], candidates, self.sums))
        self.steps.add_(1)
        total = self.counts.sum()
        smoothed = (self.counts + SMOOTHING) * (total / (total + self.codes * SMOOTHING))
        self.codebook.copy_(self.sums / smoothed[:, None])

    def _candidates(self, flat: Tensor) -> Tensor:
        """A random token for each code, (K, D); zeros where another process has to give it."""
        code = torch.arange(self.codes, device=flat.device)
        drawn = flat[hashed(self.steps, 2 * code) % len(flat)]
        rank, processes = process()
        if processes > 1:
            mine = hashed(self.steps, 2 * code + 1) % processes == rank
            drawn = drawn * mine[:, None].to(drawn.dtype)
        return drawn


SMOOTHING = 1e-5
"""Added to each code's count, so that none is divided by zero."""

MERSENNE = 2**31 - 1


def hashed(step: Tensor, code: Tensor) -> Tensor:
    """Integers 0 to 2^31 - 1 that look random, for a step and codes of any shape, int64."""
    value = (step * 48_271 + code * 69_621 + 1) % MERSENNE
    for multiplier in (1_583_458_089, 784_588_716):  # products stay below 2^62
        value = (value ^ (value >> 15)) % MERSENNE * multiplier % MERSENNE
    return value ^ (value >> 16)


def process() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed_over_processes(*tensors: Tensor) -> list[Tensor]:
    """The sums of these tensors over all processes, in one reduction."""
    if process()[1] == 1:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
