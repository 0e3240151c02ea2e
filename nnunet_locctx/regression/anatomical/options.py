"""How an anatomical regressor is fitted."""

from dataclasses import dataclass

from nnunet_locctx.location.body import check_modality
from nnunet_locctx.regression.anatomical.network import STRIDE
from nnunet_locctx.values import (
    HIGHEST_SEED,
    check_choice,
    check_integer,
    check_number,
    check_positive,
    check_range,
    check_share,
)

LOSSES = ("signed", "paper")
NORMALISATIONS = ("length", "scan")
MOST_POINTS = 4096
"""Largest number of points of one scan and step in each set; the distance term needs a table of all pairs."""


@dataclass(frozen=True)
class AnatomicalOptions:
    """How an anatomical regressor is fitted.

    Attributes:
        modality: ``ct`` or ``mr``, see :data:`~nnunet_locctx.location.body.MODALITIES`.
        channel: Image channel that the regressor uses.
        spacing: Voxel size of the canonical grid in mm.
        window: HU that become -1 and 1 (CT only).
        seed: Seed of the initial weights and of all random draws.
        steps: Optimiser steps.
        scans_per_step: Scans in each step.
        pairs_per_scan: Overlapping pairs of crops per scan and step.
        crop: Voxels of a crop along (R, A, S), multiples of 4.
        zoom: Smallest and largest voxel size of a crop, in canonical voxels; drawn for each axis of each crop.
        visible: Smallest and largest visible share of a crop along each axis. The rest is unknown, so that also a scan
            shorter than a crop appears in many fields of view and the network cannot use the scan's borders as a frame.
        paired_points: Points in the body within the overlap of a pair, read from both crops.
        body_points: Further points in the body, read from one crop.
        background_points: Points outside the body, read from one crop.
        length: Length of one unit of the embedding in mm.
        loss: ``signed``: equality, distance and signed term, which determine the embedding up to a shift; ``paper``:
            without the signed term.
        normalise: ``length``: positions are divided by `length`; ``scan``: by their standard deviation along each axis
            in the step's crops of the scan, as in the paper.
        equality, signed: Weights of these terms; the weight of the distance term is 1.
        augment: Probability of each change of intensities.
        masked: Probability of hiding blocks of a crop.
        learning_rate: Highest learning rate.
        weight_decay: Weight decay of AdamW.
        warm_up: Share of the steps in which the learning rate rises.
        validation: Share of the scans held out for the validation loss; none of fewer than 5.
        checkpoint_every: Steps between checkpoints.
        widths, depths: Widths and depths of :class:`~nnunet_locctx.regression.anatomical.network.EmbeddingNetwork`.

    Raises:
        ValueError: A value out of range.
    """

    modality: str = "ct"
    channel: int = 0
    spacing: float = 8.0
    window: tuple[float, float] = (-1000.0, 300.0)
    seed: int = 0
    steps: int = 2000
    scans_per_step: int = 1
    pairs_per_scan: int = 4
    crop: tuple[int, int, int] = (40, 32, 48)
    zoom: tuple[float, float] = (0.75, 1.4)
    visible: tuple[float, float] = (0.999, 1.0)
    paired_points: int = 64
    body_points: int = 48
    background_points: int = 16
    length: float = 100.0
    loss: str = "signed"
    normalise: str = "length"
    equality: float = 1.0
    signed: float = 1.0
    augment: float = 0.5
    masked: float = 0.1
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    warm_up: float = 0.05
    validation: float = 0.1
    checkpoint_every: int = 200
    widths: tuple[int, ...] = (32, 48, 64, 64)
    depths: tuple[int, ...] = (1, 2, 2, 2)

    def __post_init__(self) -> None:
        check_modality(self.modality)
        for name in ("window", "crop", "zoom", "visible", "widths", "depths"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple):
                raise ValueError(f"{name} must be a list of numbers, got {value!r}")
            object.__setattr__(self, name, tuple(value))  # a list in a stored state
        check_integer("seed", self.seed, 0, HIGHEST_SEED)
        for name in ("channel", "body_points", "background_points"):
            check_integer(name, getattr(self, name), 0)
        for name in ("steps", "scans_per_step", "pairs_per_scan", "paired_points", "checkpoint_every"):
            check_integer(name, getattr(self, name), 1)
        for name in ("spacing", "length", "learning_rate"):
            check_positive(name, getattr(self, name))
        for name in ("equality", "signed", "weight_decay"):
            check_number(name, getattr(self, name), 0)
        for name in ("augment", "masked", "warm_up", "validation"):
            check_share(name, getattr(self, name))
        check_choice("loss", self.loss, LOSSES)
        check_choice("normalise", self.normalise, NORMALISATIONS)
        check_range("window", self.window)
        check_range("zoom", self.zoom, 0.25, 4)
        check_range("visible", self.visible, 0.01, 1)
        for name in ("crop", "widths", "depths"):
            for number in getattr(self, name):
                check_integer(f"each of {name}", number, 4 * STRIDE if name == "crop" else 1)
        sides = list(self.crop)
        if len(sides) != 3 or any(side % STRIDE for side in sides):
            raise ValueError(f"crop must be three multiples of {STRIDE}, got {self.crop!r}")
        if not 2 <= len(self.widths) == len(self.depths):
            raise ValueError(
                f"widths and depths must be as many, two or more; got {self.widths!r} and {self.depths!r}"
            )
        points = self.pairs_per_scan * (self.paired_points + self.body_points + self.background_points)
        if points > MOST_POINTS:
            raise ValueError(f"pairs_per_scan x points of a crop must be at most {MOST_POINTS}, got {points}")
