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
"""Of the stored form; another one is refused."""

REGRESSORS: "dict[str, type[Regressor]]" = {}


class Regressor(abc.ABC):
    """Measures where in the body a scan's voxels lie. Can be pickled and stored as bytes.

    Attributes:
        kind: The location source that uses it (``body_part``, ``anatomical``).
        channel: The image channel it looks at.
    """

    kind: ClassVar[str]
    channel: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        REGRESSORS[cls.kind] = cls

    @abc.abstractmethod
    def measure(self, image: npt.NDArray[np.floating], frame: Frame) -> Measurement:
        """Measures one scan. A scan that cannot be measured gives a measurement with a problem, not an error.

        Args:
            image: (i, j, k) intensities of channel :attr:`channel` as stored (CT: HU), any orientation and voxel size.
            frame: That array's.
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


def load_regressor(data: bytes) -> Regressor:
    """The inverse of :meth:`Regressor.to_bytes`.

    Raises:
        ValueError: `data` is no regressor, damaged, or of another version.
    """
    from nnunet_locctx.regression import anatomical, body_part  # noqa: F401 - they make themselves known

    try:
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        kind, version, state = stored["kind"], stored["version"], stored["state"]
    except Exception as error:  # zip, pickle and lookup errors, all of which mean the same
        raise ValueError(f"not a fitted regressor, or damaged: {error}") from error
    if version != VERSION or kind not in REGRESSORS:
        raise ValueError(
            f"the regressor is of kind {kind!r}, version {version!r}; this package reads "
            f"{', '.join(sorted(REGRESSORS))}, version {VERSION}. Fit it again with `locctx fit`."
        )
    try:
        return REGRESSORS[kind].from_state(state)
    except (
        KeyError,
        TypeError,
        RuntimeError,
    ) as error:  # a network or options that this version does not have
        raise ValueError(
            f"the regressor does not fit this version ({error}). Fit it again with `locctx fit`."
        ) from error
