"""What nnU-Net finds when ``nnUNet_extTrainer`` names this folder: re-exports only.

nnU-Net forgets the modules it loads from here, so a class defined in this file could not be pickled to its
workers. ``__getattr__`` answers for every trainer's name, suffixes included.
"""

from nnunet_locctx.nnunet.training.trainers import TRAINERS, __getattr__

__all__ = ["TRAINERS", "__getattr__"]
