"""The trainers that ``nnUNetv2_train -tr`` finds, and their variants by suffix.

``LocBAMTrainer_100epochs_noMirroring`` needs no class of its own: any combination of the suffixes
``_<N>epochs``, ``_noDA`` and ``_noMirroring`` is made when its name is asked for. The class carries the full
name, which nnU-Net writes into result folders and checkpoints.
"""

import functools
import re

from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

from nnunet_locctx.nnunet.trainer import LocatedTrainer


class CoordConvTrainer(LocatedTrainer):
    """CoordConv (Liu et al. 2018): location concatenated to features before a convolution."""

    block = "coordconv"


class LocBAMTrainer(LocatedTrainer):
    """LocBAM (Hooft et al., ISBI 2026): location-based axial attention."""

    block = "locbam"


class PriorHeadTrainer(LocatedTrainer):
    """Prior head: a learned, continuous atlas that scales and shifts the logits. This project's own."""

    block = "prior"


TRAINERS: dict[str, type[LocatedTrainer]] = {
    trainer.__name__: trainer for trainer in (CoordConvTrainer, LocBAMTrainer, PriorHeadTrainer)
}

SUFFIXES = ("_<N>epochs", "_noDA", "_noMirroring")


@functools.cache
def find_trainer(name: str) -> type[LocatedTrainer] | None:
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
    epochs: int | None = None
    for part in parts:
        number = re.fullmatch(r"([1-9]\d*)epochs?", part)
        if number and epochs is None:
            epochs = int(number[1])
        elif part == "noDA" and nnUNetTrainerNoDA not in variants:
            variants.append(nnUNetTrainerNoDA)
        elif part == "noMirroring" and nnUNetTrainerNoMirroring not in variants:
            variants.append(nnUNetTrainerNoMirroring)
        else:
            raise ValueError(
                f"trainer {name!r}: suffix '_{part}' is unknown or repeated; allowed: {', '.join(SUFFIXES)}, each once"
            )
    body = {
        "__module__": __name__,
        "__doc__": base.__doc__,
        "epochs": epochs,
        "augments": nnUNetTrainerNoDA not in variants,
    }
    return type(name, (base, *variants), body)


def __getattr__(name: str) -> type[LocatedTrainer]:
    trainer = find_trainer(name)
    if trainer is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return trainer
