"""Code shared by the transformers that have a strided stem and halve the resolution behind it."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from nnunet_locctx.values import check_integer

# Any: torch's constructors allow different tuples for different ranks
CONVOLUTION: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

STRIDE = (2, 4, 4)
"""Published stride of the stem: slices are thicker than pixels."""


def stem_stride(
    rank: int, stem: Sequence[int] | None, allowed: Sequence[int] = range(1, 17)
) -> tuple[int, ...]:
    """Stride of the stem along each axis.

    Args:
        rank: Spatial axes, 2 or 3.
        stem: As the network's option; None: the published one, its last two numbers in 2D.
        allowed: Strides that the stem can have.

    Raises:
        ValueError: If it is not allowed.
    """
    if stem is None:
        return STRIDE[-rank:]
    if len(stem) != rank or any(type(n) is not int or n not in allowed for n in stem):
        raise ValueError(
            f"stem must be {rank} of {', '.join(map(str, allowed))}, one for each axis; got {list(stem)}"
        )
    return tuple(stem)


def check_stage_sizes(stages: int, **options: Sequence[int]) -> None:
    """Raises ValueError unless each option has a positive integer for each stage; those named ``decoder_...`` have one
    stage fewer."""
    for name, values in options.items():
        count = stages - 1 if name.startswith("decoder_") else stages
        if len(values) != count:
            raise ValueError(f"{name} must be {count} numbers, one for each stage; got {list(values)}")
        for value in values:
            check_integer(f"each of {name}", value, 1)
