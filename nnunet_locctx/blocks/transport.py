"""LocalToGlobal: local codes related to one another through references that all scans share.

After L2GNet (Gorade et al., "Optimal Local-to-Global Representation", PMLR 317, 2026). Only its abstract was
available: this is a reconstruction, see docs/explanation/l2gnet.md.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_locctx.blocks.checks import check_channels, check_input
from nnunet_locctx.blocks.coordconv import CONV
from nnunet_locctx.blocks.quantise import VectorQuantiser
from nnunet_locctx.blocks.resolution import in_full_precision
from nnunet_locctx.blocks.unknown import hide_unknown, if_any_known
from nnunet_locctx.types import Features, Known, Location
from nnunet_locctx.values import check_flag, check_integer, check_number, check_positive

EPSILON_RANGE = (0.03, 1.0)
"""Where a learned epsilon may go: below, the gradients of ten iterations are poor; above, the plan is uniform."""


class LocalToGlobal(nn.Module):
    """``features + w * conv1x1([q, Y])``: codes q of the tokens, and what the whole patch says about each of them, Y.

    1. A 1x1 convolution to D = min(`dimensions`, C) channels, and the nearest codes q of a codebook
       (:class:`~nnunet_locctx.blocks.quantise.VectorQuantiser`), (N, D).
    2. Optimal transport with entropy (Mialon et al., "A Trainable Optimal Transport Embedding", ICLR 2021) of the N
       tokens to p trainable references, by cosine similarity / epsilon: the plan P, (N, p).
    3. Each reference collects the mean of the codes sent to it, and each token takes up what its references
       collected: ``Y = N P G``, ``G[k] = sum_n P[n, k] q[n] / sum_n P[n, k]``. There are no query, key or value
       matrices.
    4. w is a learned number, zero at first: the block starts as the identity.

    With `location`, reference k has a learned place ``a[k]``, on a grid over -0.5..0.5 at first, and the plan a prior
    ``exp(-|c[n] - a[k]|^2 / (2 sigma^2))``. A prior alone would say nothing about where the patch lies: moving the
    patch multiplies every column of it by a number, which uniform columns normalise away. So the columns take the
    mass that the prior gives them, 1/N sum_n prior[k | n], and the plan is the one closest to the prior that agrees
    with the similarities. Y then also contains ``N P R``, the references themselves, which makes it a learned
    function of the place.

    Without `location` the columns are uniform, and only the first ``min(references, max(1, N // 2))`` references are
    used: with more of them than tokens they would be copies of each other. The location is then not used.

    In training mode the codebook is updated, and ``auxiliary_loss`` is the weighted commitment loss, to be added to the
    loss (:func:`auxiliary_losses`); in evaluation mode it is None. Where a block is called several times in one
    forward pass (place ``logits`` with deep supervision), it is that of the last call.

    Everything but the last convolution is computed in float32: a code jumps where rounding tips the balance. Cost and
    memory grow with N x codes and N x p: meant for deep stages.

    Args:
        channels: Feature channels C.
        rank: Spatial axes, 2 or 3.
        location: Whether references have places.
        dimensions: D at most.
        codes: Size of the codebook.
        decay: Decay of the moving average that the codebook is.
        revive_after: Steps after which an unused code is replaced.
        commitment: Weight of the commitment loss.
        references: p.
        heads: Sets of references; their Y are averaged.
        epsilon: Weight of the entropy. 1 is almost uniform for unit vectors.
        learn_epsilon: Learns log epsilon, kept in 0.03..1.
        iterations: Sinkhorn iterations.
        detach_potentials: Differentiates the plan without its potentials.
        learn_columns: Learns the mass of each reference, as logits.
        sigma: Reach of a reference at first, units of the location; learned. With `location` only.
        add_references: Whether Y contains the references. Default: as `location`.

    Raises:
        ValueError: If an option is not allowed.
    """

    def __init__(
        self,
        channels: int,
        rank: int,
        *,
        location: bool = True,
        dimensions: int = 256,
        codes: int = 512,
        decay: float = 0.99,
        revive_after: int = 100,
        commitment: float = 0.25,
        references: int = 64,
        heads: int = 1,
        epsilon: float = 0.1,
        learn_epsilon: bool = False,
        iterations: int = 10,
        detach_potentials: bool = False,
        learn_columns: bool = False,
        sigma: float = 0.25,
        add_references: bool | None = None,
    ) -> None:
        super().__init__()
        check_channels(channels, rank)
        for name, number in (
            ("dimensions", dimensions),
            ("references", references),
            ("heads", heads),
            ("iterations", iterations),
        ):
            check_integer(name, number, 1)
        for name, switch in (
            ("location", location),
            ("learn_epsilon", learn_epsilon),
            ("detach_potentials", detach_potentials),
            ("learn_columns", learn_columns),
            ("add_references", add_references is None or add_references),
        ):
            check_flag(name, switch)
        check_number("epsilon", epsilon, *EPSILON_RANGE)
        check_positive("sigma", sigma)
        check_number("commitment", commitment, 0)
        self.channels, self.rank, self.location = channels, rank, location
        self.iterations, self.detach_potentials = iterations, detach_potentials
        self.epsilon, self.commitment = float(epsilon), float(commitment)
        self.add_references = location if add_references is None else add_references
        width = min(dimensions, channels)
        self.reduce = CONV[rank](channels, width, 1)
        self.quantiser = VectorQuantiser(width, codes, decay, revive_after)
        self.references = nn.Parameter(torch.randn(heads, references, width) / width**0.5)
        self.anchors = nn.Parameter(anchor_grid(references).repeat(heads, 1, 1)) if location else None
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma))) if location else None
        self.log_epsilon = nn.Parameter(torch.tensor(math.log(epsilon))) if learn_epsilon else None
        self.columns = nn.Parameter(torch.zeros(heads, references)) if learn_columns else None
        self.fuse = CONV[rank](2 * width, channels, 1)
        self.weight = nn.Parameter(torch.zeros(()))
        self.auxiliary_loss: Tensor | None = None

    def forward(self, features: Features, location: Location, known: Known | None = None) -> Features:
        """(B, C, *spatial), (B, 3, *spatial), (B, 3) -> (B, C, *spatial)."""
        check_input(features, location, known, self.channels, self.rank)
        with torch.autocast(features.device.type, enabled=False):
            tokens = self.reduce(in_full_precision(features)).flatten(2).transpose(1, 2)  # (B, N, D)
            quantised = self.quantiser(tokens)
            codes = quantised.values
            place = None
            if self.location:
                place = hide_unknown(in_full_precision(location), known).flatten(2).transpose(1, 2)
            aligned = self._align(codes, place, known)
        self.auxiliary_loss = self.commitment * quantised.commitment if self.training else None
        both = torch.cat([codes, aligned], dim=2).transpose(1, 2)
        both = both.reshape(len(both), -1, *features.shape[2:])
        return features + if_any_known((self.weight * self.fuse(both)).to(features.dtype), known)

    def _align(self, codes: Tensor, place: Tensor | None, known: Known | None) -> Tensor:
        """Y: (B, N, D), (B, N, 3) or None, (B, 3) -> (B, N, D)."""
        log_plan = self.log_plan(codes, place, known)
        collected = log_plan.softmax(dim=2).transpose(2, 3) @ codes.unsqueeze(1)  # (B, heads, p, D)
        if self.add_references:
            collected = collected + self.references[:, : log_plan.shape[3]]
        return (log_plan.softmax(dim=3) @ collected).mean(dim=1)

    def log_plan(self, codes: Tensor, place: Tensor | None, known: Known | None = None) -> Tensor:
        """Logarithm of the transport plan, float32.

        Args:
            codes: (B, N, D).
            place: (B, N, 3), needed with the option `location`.
            known: (B, 3), axes along which a place is near or far.

        Returns:
            (B, heads, N, p).
        """
        references: Tensor = self.references
        if not self.location:
            references = references[:, : max(1, min(references.shape[1], codes.shape[1] // 2))]
        similarity = F.normalize(codes, dim=2).unsqueeze(1) @ F.normalize(references, dim=2).transpose(1, 2)
        log_prior = self._log_prior(place, references.shape[1], known)
        log_kernel = similarity / self.current_epsilon()
        log_columns = None
        if log_prior is not None:
            log_kernel = log_kernel + log_prior
            log_columns = log_prior.log_softmax(dim=3).logsumexp(dim=2) - math.log(log_prior.shape[2])
        return log_sinkhorn(log_kernel, log_columns, self.iterations, self.detach_potentials)

    def _log_prior(self, place: Tensor | None, references: int, known: Known | None = None) -> Tensor | None:
        """Logarithm of the prior, up to a factor per token: (B or 1, heads, N or 1, p); None if it is uniform."""
        log_prior = None
        if self.columns is not None:
            log_prior = self.columns[None, :, None, :references]
        if self.anchors is not None and self.log_sigma is not None:
            assert place is not None
            offset = place[:, None, :, None] - self.anchors[None, :, None]  # (B, heads, N, p, 3)
            if known is not None:
                offset = offset * known[:, None, None, None]
            distance = offset.square().sum(dim=4)
            near = -0.5 * distance * torch.exp(-2 * self.log_sigma)
            log_prior = near if log_prior is None else near + log_prior
        return log_prior

    def current_epsilon(self) -> float | Tensor:
        """Epsilon, within :data:`EPSILON_RANGE`; the gradient passes the bounds, so that it can come back."""
        if self.log_epsilon is None:
            return self.epsilon
        lowest, highest = (math.log(bound) for bound in EPSILON_RANGE)
        return (
            self.log_epsilon + (self.log_epsilon.clamp(lowest, highest) - self.log_epsilon).detach()
        ).exp()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which the graph of a forward pass cannot enter."""
        return {**self.__dict__, "auxiliary_loss": None}


def anchor_grid(count: int) -> Tensor:
    """Places spread over the cube -0.5..0.5: (count, 3). A count of n^3 gives the centres of its n^3 cells."""
    side = next(n for n in range(1, count + 1) if n**3 >= count)
    axis = (torch.arange(side) + 0.5) / side - 0.5
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
    return grid[torch.linspace(0, len(grid) - 1, count).round().long()]


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
    kernel, columns = log_kernel, in_full_precision(log_columns).unsqueeze(-2)
    if detach_potentials:
        kernel, columns = kernel.detach(), columns.detach()
    rows = torch.zeros_like(kernel[..., :1])
    potential = rows[..., :1, :]
    for _ in range(iterations):
        potential = columns - torch.logsumexp(kernel + rows, dim=-2, keepdim=True)
        rows = log_row - torch.logsumexp(kernel + potential, dim=-1, keepdim=True)
    return log_kernel + rows + potential


def auxiliary_losses(network: nn.Module) -> list[Tensor]:
    """What the blocks of a network add to the loss of the forward pass just made in training mode.

    The network may be wrapped (DistributedDataParallel, torch.compile). Each loss is handed out once, so that the
    graph of a step is not kept until the next one. Empty in evaluation mode.
    """
    losses = []
    for module in network.modules():
        if isinstance(module, LocalToGlobal) and module.auxiliary_loss is not None:
            losses.append(module.auxiliary_loss)
            module.auxiliary_loss = None
    return losses
