"""Reads nnU-Net's checkpoints without executing what they hold."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    A checkpoint is a pickle, which may name functions to call, and nnU-Net calls whatever it names. Here only tensors,
    plain values and the numbers of numpy that nnU-Net logs are read.

    Raises:
        ValueError: The file is broken, holds something else, or is no checkpoint of nnU-Net.
    """
    import torch

    scalar: Any = np.float64(0).__reduce__()[0]

    def older(*arguments: Any) -> Any:
        return scalar(*arguments)

    # numpy 1 and 2 name it differently; torch knows what it may call by the name
    older.__module__ = "numpy.core.multiarray" if "_core" in scalar.__module__ else "numpy._core.multiarray"
    older.__name__ = older.__qualname__ = scalar.__name__
    numbers = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")]
    torch.serialization.add_safe_globals([scalar, older, np.dtype, *numbers])
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        missing = {"network_weights", "trainer_name", "init_args"} - set(content)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), repr(error))
        raise ValueError(f"{file} is broken, or holds what is not executed: {reason}") from error
    if missing:
        raise ValueError(f"{file} is no checkpoint of nnU-Net: it has no {', '.join(sorted(missing))}")
    checked: dict[str, Any] = content
    return checked
