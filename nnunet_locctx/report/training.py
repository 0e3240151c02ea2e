"""What a training left behind, epoch by epoch."""

import math
from collections.abc import Mapping
from typing import Any

SERIES = ("train_loss", "val_loss", "pseudo_dice")


def epoch_series(training: Mapping[str, Any], name: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one quantity; the pseudo Dice is the mean over the classes that have one.

    Args:
        training: training.json.
        name: One of :data:`SERIES`.
    """
    epochs, values = [], []
    for place, entry in enumerate(training.get("epochs") or ()):
        epochs.append(int(entry.get("epoch", place)))
        values.append(_value(entry.get(name)))
    return epochs, values


def _value(entry: Any) -> float:
    if isinstance(entry, list | tuple):
        known = [float(one) for one in entry if isinstance(one, int | float) and math.isfinite(one)]
        return sum(known) / len(known) if known else math.nan
    return float(entry) if isinstance(entry, int | float) and math.isfinite(entry) else math.nan
