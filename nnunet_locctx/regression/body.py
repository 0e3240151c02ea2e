"""Finds the body's box in each scan, without a fit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location.body import BodyBox, check_modality, find_body
from nnunet_locctx.regression.regressor import Regressor


@dataclass(frozen=True)
class BodyFinder(Regressor):
    """:func:`~nnunet_locctx.location.body.find_body` as a regressor, so that channel and modality travel with the
    model.

    Args:
        modality: ``ct`` or ``mr``.
        channel: Image channel that it uses.
    """

    kind: ClassVar[str] = "body"
    modality: str = "mr"
    channel: int = 0

    def __post_init__(self) -> None:
        check_modality(self.modality)

    def measure(self, image: npt.NDArray[np.floating], frame: Frame) -> BodyBox:
        return find_body(image, frame, self.modality)

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "BodyFinder":
        return cls(**state)
