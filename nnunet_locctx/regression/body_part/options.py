"""How a body part regressor is fitted."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from nnunet_locctx.regression.body_part.losses import ALPHA, BETA
from nnunet_locctx.regression.body_part.network import SMALLEST_SIDE
from nnunet_locctx.regression.intensity import check_modality

LOSSES = ("heuristic", "classification")


@dataclass(frozen=True)
class BodyPartOptions:
    """Everything that decides which regressor comes out of the same scans.

    Attributes:
        modality: ``ct`` or ``mr``.
        channel: The image channel it looks at.
        spacing: Voxel size in mm of the canonical scans and of the slices.
        window: HU that become -1 and 1 (the publication's); ``mr`` uses percentiles of each scan.
        side: Voxels of a slice along both axes; 112 at 4 mm are 448 mm.
        loss: ``heuristic`` (order and distance) or ``classification`` (order alone, with which distances along the
            body are left to chance).
        alpha: Steepness for scores.
        beta: Steepness for mm; scores rise by `beta / alpha` per mm.
        volumes: Scans of a training step.
        slices: Slices of each.
        steps: Training steps, at most.
        learning_rate: Of Adam at the beginning; falls to 0 along a half cosine.
        evaluate_every: Steps between two looks at the validation scans, and between two checkpoints.
        patience: Looks without improvement after which training stops.
        validation_share: Of the scans; with fewer than 5 scans all are used for both.
        seed: Of everything random.
    """

    modality: str = "ct"
    channel: int = 0
    spacing: float = 4.0
    window: tuple[float, float] = (-1000.0, 1500.0)
    side: int = 112
    loss: str = "heuristic"
    alpha: float = ALPHA
    beta: float = BETA
    volumes: int = 16
    slices: int = 4
    steps: int = 1000
    learning_rate: float = 2e-3
    evaluate_every: int = 100
    patience: int = 5
    validation_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_modality(self.modality)
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("spacing", "alpha", "beta", "learning_rate"):
            value = getattr(self, name)
            if not (_is_number(value) and value > 0):
                raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
        for name, least in (
            ("channel", 0),
            ("side", SMALLEST_SIDE),
            ("volumes", 1),
            ("slices", 2),
            ("steps", 1),
            ("evaluate_every", 1),
            ("patience", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if not (_is_whole(value) and least <= value < 2**63):
                raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
        window: Any = self.window  # callers are not type checked
        rising = isinstance(window, (list, tuple)) and len(window) == 2 and all(map(_is_number, window))
        if not rising or not window[0] < window[1]:
            raise ValueError(f"the window must be two rising numbers, got {window!r}")
        object.__setattr__(self, "window", tuple(float(value) for value in window))
        if not (_is_number(self.validation_share) and 0 < self.validation_share < 1):
            raise ValueError(f"validation_share must lie between 0 and 1, got {self.validation_share!r}")

    def as_dict(self) -> dict[str, Any]:
        """For a file; ``BodyPartOptions(**options.as_dict())`` is equal."""
        return asdict(self)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
