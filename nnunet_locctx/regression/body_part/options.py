"""How a body part regressor is fitted."""

from dataclasses import dataclass

from nnunet_locctx.location.body import check_modality
from nnunet_locctx.regression.body_part.network import ALPHA, BETA, SMALLEST_SIDE
from nnunet_locctx.values import (
    HIGHEST_SEED,
    check_choice,
    check_integer,
    check_positive,
    check_range,
    is_number,
)

LOSSES = ("heuristic", "classification")


@dataclass(frozen=True)
class BodyPartOptions:
    """Options that determine the regressor fitted on given scans.

    Attributes:
        modality: ``ct`` or ``mr``.
        channel: Image channel that it uses.
        spacing: Voxel size in mm of the canonical scans and of the slices.
        window: HU that become -1 and 1 (as in the publication); ``mr`` uses percentiles of each scan.
        side: Voxels of a slice along both axes; 112 at 4 mm are 448 mm.
        loss: ``heuristic`` (order and distance) or ``classification`` (order only: distances along the body are
            arbitrary).
        alpha: Steepness for scores.
        beta: Steepness for mm; scores rise by `beta / alpha` per mm.
        volumes: Scans per training step.
        slices: Slices per scan and step.
        steps: Largest number of training steps.
        learning_rate: Initial learning rate of Adam; falls to 0 along a half cosine.
        evaluate_every: Steps between two validations, and between two checkpoints.
        patience: Number of validations without improvement after which training stops.
        validation_share: Share of the scans for validation; fewer than 5 scans are all used for both.
        seed: Seed of all random numbers.
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
        check_choice("loss", self.loss, LOSSES)
        for name in ("spacing", "alpha", "beta", "learning_rate"):
            check_positive(name, getattr(self, name))
        check_integer("seed", self.seed, 0, HIGHEST_SEED)
        for lowest, *names in (
            (0, "channel"),
            (1, "volumes", "steps", "evaluate_every", "patience"),
            (2, "slices"),
            (SMALLEST_SIDE, "side"),
        ):
            for name in names:
                check_integer(name, getattr(self, name), lowest)
        check_range("window", self.window)
        # a list in a stored state
        object.__setattr__(self, "window", tuple(float(value) for value in self.window))
        if not is_number(self.validation_share) or not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be between 0 and 1, got {self.validation_share!r}")
