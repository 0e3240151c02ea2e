"""Denormal floats count as 0 within a block of code, and as before after it."""

import numpy as np
import pytest
import torch

from nnunet_locctx.denormals import denormals_flushed, flushed

DENORMAL = np.float32(1e-40)


def test_within_and_after() -> None:
    assert not flushed()
    with denormals_flushed():
        assert flushed()
        assert torch.full((8,), 1e-20).square().max() == 0
    assert not flushed()
    assert torch.full((8,), 1e-20).square().min().item() == pytest.approx(DENORMAL, rel=1e-3)


def test_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="stop"), denormals_flushed():
        raise RuntimeError("stop")
    assert not flushed()


def test_within_another() -> None:
    with denormals_flushed():
        with denormals_flushed():
            pass
        assert flushed()
    assert not flushed()


def test_as_a_decorator_more_than_once() -> None:
    @denormals_flushed()
    def ask() -> bool:
        return flushed()

    assert ask()
    assert not flushed()
    assert ask()
