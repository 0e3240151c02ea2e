"""Checks that every block makes of its arguments."""

import math

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


def check_integer(name: str, value: object, lowest: int, highest: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer in the range, both ends allowed."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < lowest or (highest is not None and value > highest):  # type: ignore[operator] # it is an int
        allowed = (
            f"an integer from {lowest} to {highest}" if highest is not None else f"an integer >= {lowest}"
        )
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float; a bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_positive(name: str, value: object) -> None:
    """Raises ValueError unless `value` is a finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:  # type: ignore[operator] # it is a number
        raise ValueError(f"{name} must be a positive number, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raises ValueError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def check_share(name: str, value: object) -> None:
    """Raises ValueError unless `value` is a number from 0 up to, but not including, 1."""
    if not is_number(value) or not 0 <= value < 1:  # type: ignore[operator] # it is a number
        raise ValueError(f"{name} must be a number from 0 up to, but not including, 1; got {value!r}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of the names."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
