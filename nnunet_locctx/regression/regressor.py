"""The interface of all fitted models."""

import abc
import io
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import Measurement

VERSION = 1
"""Version of the stored form; other versions are refused."""


class Regressor(abc.ABC):
    """Measures where in the body a scan's voxels lie. Can be pickled and stored as bytes.

    Attributes:
        kind: The location source that uses it (``body_part``, ``anatomical``).
        channel: Image channel that it uses.
    """

    kind: ClassVar[str]
    channel: int

    @abc.abstractmethod
    def measure(self, image: npt.NDArray[np.floating], frame: Frame) -> Measurement:
        """Measures one scan. For a scan that cannot be measured the measurement has a problem; no error is raised.

        Args:
            image: (i, j, k) intensities of channel :attr:`channel` as stored (CT: HU), any orientation and voxel size.
            frame: Frame of the array.
        """

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """The state as tensors, numbers, strings, and lists and dicts of these."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Regressor":
        """The inverse of :meth:`state`."""

    def to_bytes(self) -> bytes:
        """The content of its file; equal regressors give equal bytes."""
        buffer = io.BytesIO()
        torch.save({"kind": self.kind, "version": VERSION, "state": self.state()}, buffer)
        return buffer.getvalue()
