"""What every fitted model can do."""

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
"""Version of the stored form; every other version is refused."""


class Regressor(abc.ABC):
    """Measures where in the body a scan's voxels lie. Can be pickled and stored as bytes.

    Attributes:
        kind: The location source that uses it (``body_part``, ``anatomical``).
        channel: The image channel it looks at.
    """

    kind: ClassVar[str]
    channel: int

    @abc.abstractmethod
    def measure(self, image: npt.NDArray[np.floating], frame: Frame) -> Measurement:
        """Measures one scan. A scan that cannot be measured gives a measurement with a problem, not an error.

        Args:
            image: (i, j, k) intensities of channel :attr:`channel` as stored (CT: HU), any orientation and voxel size.
            frame: Its geometry.
        """

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything of it as tensors, numbers, strings, lists and tables of these."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Regressor":
        """The inverse of :meth:`state`."""

    def to_bytes(self) -> bytes:
        """As the content of a file; equal regressors give equal bytes."""
        buffer = io.BytesIO()
        torch.save({"kind": self.kind, "version": VERSION, "state": self.state()}, buffer)
        return buffer.getvalue()
