"""Denormal floats, those below 1.2e-38 in float32: CPUs compute with them many times more slowly, GPUs do not.

They come up in the gradients of networks that are sure, or that look at a few places of a large map
(docs/explanation/benchmarks.md has what they cost).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Denormal floats count as 0 within; also a decorator.

    Torch's worker threads take the setting over when they are started, so this should enclose the first large
    operation; those that run already keep theirs.
    """
    before = flushed()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def flushed() -> bool:
    """Whether this thread counts denormal floats as 0."""
    small = torch.tensor(1e-20)
    return not bool(small * small > 0)
