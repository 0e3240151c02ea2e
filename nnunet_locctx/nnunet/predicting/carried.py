"""A fitted regressor on its way to prediction: among the network's weights, and from there to the workers.

nnU-Net loads a checkpoint into the network and only then pickles the configuration to its preprocessing workers. The
network holds the regressor as bytes in a buffer; loading them hands them to the configuration.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_locctx.regression.registry import load_regressor
from nnunet_locctx.regression.regressor import Regressor


class CarriedRegressor:
    """A regressor as bytes, or none yet. Can be pickled to workers.

    Args:
        data: A stored regressor (:meth:`~nnunet_locctx.regression.regressor.Regressor.to_bytes`).
    """

    def __init__(self, data: bytes | None = None) -> None:
        self.data = data
        self._opened: Regressor | None = None

    def open(self) -> Regressor:
        """The regressor.

        Raises:
            ValueError: There is none, or it cannot be read.
        """
        if self.data is None:
            raise ValueError(
                "this model's location source is fitted, but no regressor was loaded; it is part of the checkpoint"
            )
        if self._opened is None:
            self._opened = load_regressor(self.data)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "_opened": None}


class RegressorBuffer(nn.Module):
    """Keeps a regressor among a network's weights; no parameter, and not part of the forward pass.

    Args:
        carried: Its regressor is stored; loading a checkpoint gives it that of the checkpoint.
    """

    data: torch.Tensor

    def __init__(self, carried: CarriedRegressor) -> None:
        super().__init__()
        self.carried = carried
        self.register_buffer("data", _tensor(carried.data or b""))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Takes the stored regressor, of any length.

        Raises:
            ValueError: The checkpoint has none, or another one than was loaded before.
        """
        stored = state_dict.get(prefix + "data")
        if stored is None or stored.numel() == 0:
            raise ValueError(
                "the plans name a fitted location source, but the checkpoint carries no regressor. Use the plans.json "
                "of the model folder as training wrote it"
            )
        data = bytes(stored.cpu().numpy())
        if self.carried.data not in (None, data):
            raise ValueError(
                "the checkpoint carries another fitted regressor than the one in use (that of another fold, or of the "
                "preprocessed dataset, which was fitted again since). Coordinates of the two do not agree: train all "
                "folds with one regressor"
            )
        self.carried.data = data
        self.data = _tensor(data).to(self.data.device)


def _tensor(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
