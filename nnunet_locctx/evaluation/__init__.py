"""Measures of a segmentation."""

from nnunet_locctx.evaluation.dice import DiceScores, mean_dice

__all__ = ["DiceScores", "mean_dice"]
