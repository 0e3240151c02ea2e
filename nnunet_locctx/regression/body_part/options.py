"""How a body part regressor is fitted."""

from dataclasses import dataclass
from functools import partial

from nnunet_locctx.location.body import check_modality
from nnunet_locctx.regression.body_part.network import ALPHA, BETA, SMALLEST_SIDE
from nnunet_locctx.regression.options import is_number, is_positive, is_whole, require, rises

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
        require(self, LOSSES.__contains__, f"one of {', '.join(LOSSES)}", "loss")
        numbers = ("spacing", "alpha", "beta", "learning_rate")
        require(self, is_positive, "a finite number above 0", *numbers)
        for least, *names in (
            (0, "channel", "seed"),
            (1, "volumes", "steps", "evaluate_every", "patience"),
            (2, "slices"),
            (SMALLEST_SIDE, "side"),
        ):
            require(self, partial(is_whole, least=least), f"a whole number, {least} or more", *names)
        require(self, rises, "two rising numbers", "window")
        # a list in a stored state
        object.__setattr__(self, "window", tuple(float(value) for value in self.window))
        require(self, lambda share: is_number(share) and 0 < share < 1, "between 0 and 1", "validation_share")
