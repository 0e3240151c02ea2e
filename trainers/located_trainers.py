"""What nnU-Net finds when ``nnUNet_extTrainer`` names this folder: re-exports only.

nnU-Net forgets the modules it loads from here, so a class defined in this file could not be pickled to its
workers.
"""

from nnunet_locctx.nnunet.trainers import CoordConvTrainer, LocBAMTrainer, PriorHeadTrainer, __getattr__

__all__ = ["CoordConvTrainer", "LocBAMTrainer", "PriorHeadTrainer", "__getattr__"]
