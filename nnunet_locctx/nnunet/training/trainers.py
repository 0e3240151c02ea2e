"""The trainers that ``nnUNetv2_train -tr`` finds, and their variants by suffix.

``LocBAMTrainer_100epochs_noMirroring`` needs no class of its own: any combination of the suffixes
``_<N>epochs``, ``_noDA`` and ``_noMirroring`` is made when its name is first used. The class carries the full
name, which nnU-Net writes into result folders and checkpoints. Trainers of whole networks also take
``_nnUNetSchedule``: nnU-Net's optimiser, learning rates and length of training instead of the method's own.
LightMedSeg's take ``_weightedClasses``: classes weigh as the inverse of their voxels in all terms of the loss.
"""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

from nnunet_locctx.networks.located_unet import Fitting
from nnunet_locctx.nnunet.options import UNLOCATED_WEIGHT
from nnunet_locctx.nnunet.training.losses import AuxiliaryLoss, BoundaryLossTrainer
from nnunet_locctx.nnunet.training.recipes import (
    LIGHTMEDSEG_RECIPE,
    NNFORMER_RECIPE,
    PNETWORK_RECIPE,
    SWIN_UNETR_RECIPE,
    UNETR_RECIPE,
    UNETRPP_RECIPE,
)
from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
from nnunet_locctx.nnunet.training.whole_network import LocatedWholeNetworkTrainer, WholeNetworkTrainer


class CoordConvTrainer(LocatedTrainer):
    """CoordConv (Liu et al. 2018): location concatenated to features before a convolution."""

    block = "coordconv"


class LocBAMTrainer(LocatedTrainer):
    """LocBAM (Hooft et al., ISBI 2026): location-based axial attention."""

    block = "locbam"


class PriorHeadTrainer(LocatedTrainer):
    """Prior head: a learned, continuous atlas that scales and shifts the logits. This project's own.

    It is trained with the loss of :class:`LocCtxTrainer`.
    """

    block = "prior"
    unlocated_weight = UNLOCATED_WEIGHT
    smooths = False


class LocCtxTrainer(LocatedTrainer):
    """The combination to start with: FiLM on the last features and a prior head on the logits, both from location.

    The last decoder stage's features are scaled and shifted by functions of location (FiLM, Perez et al. 2018), the
    logits by a learned atlas. All of the planned network in front of them does without location, and each training
    step also asks it for what it says without, so that it loses little where the location is unknown. The loss of both
    answers is nnU-Net's with a Dice that is not smoothed. This project's own; the measurements:
    docs/explanation/recommended.md. The plans' options concern the block on the features.
    """

    block = "prior"
    place = "decoder_last"
    block_options: ClassVar[Mapping[str, Any]] = {"stride": 4}
    also = (Fitting("prior", "logits", {"stride": 4}),)
    unlocated_weight = UNLOCATED_WEIGHT
    smooths = False


class GPETrainer(LocatedTrainer):
    """Global positional encoding (Le and Le 2025): an encoded location, projected and added."""

    block = "gpe"


class GPEHashTrainer(GPETrainer):
    """GPE in the decoder, with a hash table instead of sines and cosines (Le and Le 2025; Müller et al. 2022)."""

    place = "decoder"
    block_options: ClassVar[Mapping[str, Any]] = {"encoding": "hash"}


class L2GTrainer(LocatedTrainer):
    """Local to global, after L2GNet (Gorade et al. 2026): codes sent to learned references by optimal transport."""

    block = "l2g"
    loss_term = "the codebook's commitment"

    def _build_loss(self) -> AuxiliaryLoss:
        """nnU-Net's loss plus the codebook's commitment loss."""
        return AuxiliaryLoss(super()._build_loss(), self.network)


class AnchorTrainer(LocatedTrainer):
    """Anchors (after LightMedSeg, Tyagi et al. 2026): FiLM and a position bias from points found in the features."""

    block = "anchors"


class UNETRTrainer(WholeNetworkTrainer):
    """UNETR (Hatamizadeh et al., WACV 2022), without location."""

    network_name = "unetr"
    recipe = UNETR_RECIPE


class SwinUNETRTrainer(WholeNetworkTrainer):
    """Swin UNETR (Hatamizadeh et al., 2022), without location."""

    network_name = "swin_unetr"
    recipe = SWIN_UNETR_RECIPE


class nnFormerTrainer(WholeNetworkTrainer):  # noqa: N801 - the network's name
    """nnFormer (Zhou et al., IEEE TIP 2023), without location."""

    network_name = "nnformer"
    recipe = NNFORMER_RECIPE


class UNETRPPTrainer(WholeNetworkTrainer):
    """UNETR++ (Shaker et al., IEEE TMI 2024), without location."""

    network_name = "unetr_pp"
    recipe = UNETRPP_RECIPE


class PNetworkTrainer(LocatedWholeNetworkTrainer):
    """P-Network (Le and Le 2025): UNETR++ with a hash encoding before the blocks of every stage."""

    network_name = "unetr_pp"
    network_options: ClassVar[Mapping[str, Any]] = {
        "encoding": "hash",
        "gpe_places": "all",
        "hash": {"levels": 32},
    }
    recipe = PNETWORK_RECIPE


class LightMedSegTrainer(BoundaryLossTrainer, LocatedWholeNetworkTrainer):
    """LightMedSeg (Tyagi et al. 2026), its anchors points of the scan; Dice, cross entropy and a boundary term."""

    network_name = "lightmedseg"
    recipe = LIGHTMEDSEG_RECIPE


class LightMedSegPaperTrainer(BoundaryLossTrainer, WholeNetworkTrainer):
    """LightMedSeg as published (Tyagi et al. 2026), without location."""

    network_name = "lightmedseg"
    network_options: ClassVar[Mapping[str, Any]] = {
        "anchors_from": "paper",
        "bias": "paper",
        "coordinates": "patch",
    }
    recipe = LIGHTMEDSEG_RECIPE


def _with_location(trainer: type[WholeNetworkTrainer], encoding: str) -> type[LocatedWholeNetworkTrainer]:
    """The twin of a plain trainer that adds the global positional encoding, everything else the same."""
    prefix = {"frequency": "GPE", "hash": "GPEHash"}[encoding]
    plain = str(trainer.__doc__).removesuffix(", without location.")
    body = {
        "__module__": __name__,
        "__doc__": f"{plain}, with global positional encoding ({encoding}; Le and Le 2025).",
        "network_name": trainer.network_name,
        "network_options": {**trainer.network_options, "encoding": encoding},
        "recipe": trainer.recipe,
    }
    return type(prefix + trainer.__name__, (LocatedWholeNetworkTrainer,), body)


_PLAIN = (UNETRTrainer, SwinUNETRTrainer, nnFormerTrainer, UNETRPPTrainer)

_TWINS = tuple(_with_location(trainer, encoding) for trainer in _PLAIN for encoding in ("frequency", "hash"))

Trainer: TypeAlias = type[LocatedTrainer] | type[WholeNetworkTrainer]

_ALL: tuple[Trainer, ...] = (
    LocCtxTrainer,
    CoordConvTrainer,
    LocBAMTrainer,
    PriorHeadTrainer,
    GPETrainer,
    GPEHashTrainer,
    L2GTrainer,
    AnchorTrainer,
    *_PLAIN,
    *_TWINS,
    PNetworkTrainer,
    LightMedSegTrainer,
    LightMedSegPaperTrainer,
)

TRAINERS: dict[str, Trainer] = {trainer.__name__: trainer for trainer in _ALL}

RECOMMENDED = "LocCtxTrainer"
"""The trainer that `locctx` proposes."""

SUFFIXES = ("_<N>epochs", "_noDA", "_noMirroring", "_nnUNetSchedule", "_weightedClasses")


@functools.cache
def find_trainer(name: str) -> Trainer | None:
    """The trainer of that name, suffixes included; None if the name does not belong to this package.

    Raises:
        ValueError: One of our trainers with a suffix that does not exist.
    """
    base_name, *parts = name.split("_")
    base = TRAINERS.get(base_name)
    if base is None:
        return None
    if not parts:
        return base
    variants: list[type] = []
    own: dict[str, Any] = {}
    epochs: int | None = None
    for part in parts:
        number = re.fullmatch(r"([1-9]\d*)epochs?", part)
        if number and epochs is None:
            epochs = int(number[1])
        elif part == "noDA" and nnUNetTrainerNoDA not in variants:
            variants.append(nnUNetTrainerNoDA)
        elif part == "noMirroring" and nnUNetTrainerNoMirroring not in variants:
            variants.append(nnUNetTrainerNoMirroring)
        elif part == "nnUNetSchedule" and parts.count(part) == 1 and getattr(base, "recipe", None):
            own["recipe"] = None
        elif part == "weightedClasses" and parts.count(part) == 1 and issubclass(base, BoundaryLossTrainer):
            own["boundary_options"] = {**base.boundary_options, "inverse_frequency": True}
        else:
            weighted = issubclass(base, BoundaryLossTrainer)
            allowed = SUFFIXES[: 5 if weighted else 4 if getattr(base, "recipe", None) else 3]
            raise ValueError(
                f"trainer {name!r}: suffix '_{part}' is unknown or repeated; allowed: {', '.join(allowed)}, each once"
            )
    body = {
        **own,
        "__module__": __name__,
        "__doc__": base.__doc__,
        "epochs": epochs,
        "augments": nnUNetTrainerNoDA not in variants,
    }
    return type(name, (base, *variants), body)


def __getattr__(name: str) -> Trainer:
    try:
        trainer = find_trainer(name)
    except ValueError as error:
        # somebody's subclass; nnU-Net goes on to the folder that has it
        folders = filter(None, os.environ.get("nnUNet_extTrainer", "").split(os.pathsep))
        files = (file for folder in folders for file in Path(folder).rglob("*.py"))
        if any(f"class {name}(" in file.read_text(encoding="utf-8", errors="replace") for file in files):
            raise AttributeError(str(error)) from error
        raise
    if trainer is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return trainer
