"""What a model needs to locate new scans, on its way from training to prediction: among the network's weights, and from
there to the workers.

nnU-Net loads a checkpoint into the network and only then pickles the configuration to its preprocessing workers. What
is loaded into the modules below, which take no part in the forward pass, is handed to the configuration.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_locctx.location import TrainingRange
from nnunet_locctx.regression.registry import load_regressor
from nnunet_locctx.regression.regressor import Regressor


class Carried:
    """What travels. Can be pickled to workers.

    Attributes:
        regressor: The fitted source's regressor, as stored
            (:meth:`~nnunet_locctx.regression.regressor.Regressor.to_bytes`); None: none yet, or the source needs none.
        training: What the model's training has seen; None: not known.
    """

    def __init__(self, regressor: bytes | None = None, training: TrainingRange | None = None) -> None:
        self.regressor = regressor
        self.training = training
        self._opened: Regressor | None = None

    def open(self) -> Regressor:
        """The regressor.

        Raises:
            ValueError: There is none, or it cannot be read.
        """
        if self.regressor is None:
            raise ValueError(
                "this model's location source is fitted, but no regressor was loaded; it is part of the checkpoint"
            )
        if self._opened is None:
            self._opened = load_regressor(self.regressor)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class RegressorBuffer(nn.Module):
    """Keeps a regressor among a network's weights.

    Args:
        carried: Its regressor is stored; loading a checkpoint gives it that of the checkpoint.
    """

    data: torch.Tensor

    def __init__(self, carried: Carried) -> None:
        super().__init__()
        self.carried = carried
        self.register_buffer("data", _tensor(carried.regressor or b""))

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
        if self.carried.regressor not in (None, data):
            raise ValueError(
                "the checkpoint carries another fitted regressor than the one in use (that of another fold, or of the "
                "preprocessed dataset, which was fitted again since). Coordinates of the two do not agree: train all "
                "folds with one regressor"
            )
        self.carried.regressor = data
        self.data = _tensor(data).to(self.data.device)


class TrainingRangeRecord(nn.Module):
    """Keeps what training has seen among a network's weights.

    Checkpoints of earlier versions have no such entry; nothing is then known about their training. An ensemble takes
    the range of the first fold that is loaded: nnU-Net prepares a scan once for all folds.

    Args:
        carried: Its range is stored; loading a checkpoint gives it that of the checkpoint.
    """

    def __init__(self, carried: Carried) -> None:
        super().__init__()
        self.carried = carried

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        training = self.carried.training
        if training is not None:
            ranges = np.concatenate([training.coordinates, training.extents], axis=1)
            destination[prefix + "ranges"] = torch.from_numpy(ranges.astype(np.float32))
            destination[prefix + "geometry"] = torch.tensor(training.geometry)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Raises ValueError for an entry that is no training range."""
        ranges, geometry = (state_dict.get(prefix + name) for name in ("ranges", "geometry"))
        if ranges is None or geometry is None or self.carried.training is not None:
            return
        values = ranges.cpu().double().numpy()
        self.carried.training = TrainingRange(values[:, :2], values[:, 2:], bool(geometry))


def _tensor(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
