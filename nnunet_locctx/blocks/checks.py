"""Checks that every block makes of its arguments."""

import torch
from torch import Tensor


def check_channels(channels: int, rank: int) -> None:
    """Raises ValueError unless `channels` is positive and `rank` is 2 or 3."""
    if channels < 1:
        raise ValueError(f"a block needs at least 1 feature channel, got {channels}")
    if rank not in (2, 3):
        raise ValueError(f"rank must be 2 or 3 spatial axes, got {rank}")


def check_input(features: Tensor, location: Tensor, known: Tensor | None, channels: int, rank: int) -> None:
    """Raises ValueError unless features (B, channels, *spatial), location (B, 3, *spatial) and known (B, 3) fit each
    other and the block.

    Skipped while torch.compile traces, where a check costs a graph break and shapes were seen before.
    """
    if torch.compiler.is_compiling():
        return
    if features.dim() != rank + 2 or features.shape[1] != channels:
        axes = ", ".join(["B", str(channels), *["size"] * rank])
        raise ValueError(f"features must have shape ({axes}), got {tuple(features.shape)}")
    expected = (features.shape[0], 3, *features.shape[2:])
    if tuple(location.shape) != expected:
        raise ValueError(
            f"location must have shape {expected}, the batch and spatial size of the features, "
            f"got {tuple(location.shape)}"
        )
    if known is not None and (tuple(known.shape) != expected[:2] or known.dtype != torch.bool):
        raise ValueError(
            f"known must be a mask of shape {expected[:2]}, one truth value for each sample and axis; got "
            f"{tuple(known.shape)}, {known.dtype}"
        )
