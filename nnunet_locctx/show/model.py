"""What a trained model predicts with the true location, and with another one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_locctx.nnunet.predicting.prediction import load_located_model
from nnunet_locctx.show.scan import Comparison, LocatedScan, checked_patch


def compare_predictions(
    images: Sequence[Path],
    model: Path,
    *,
    label: Path | None = None,
    fold: str | None = None,
    shift: Sequence[float] | None = None,
    device: str | None = None,
) -> LocatedScan:
    """Preprocesses a scan as the model's plans say and predicts it twice.

    Args:
        images: One file per channel of the model's data set.
        model: A trained model's folder (TRAINER__PLANS__CONFIGURATION).
        label: A segmentation of the scan.
        fold: The fold to use; None: the first that is there.
        shift: Added to the location (R, A, S; units of the model's source) for the second prediction; None makes the
            location unknown.
        device: Torch device; None: the GPU if there is one.

    Raises:
        ValueError: The folder is no trained model or not one with location, a file is missing, or the model needs the
            predictions of a previous stage.
    """
    for file in [*images, *([label] if label else [])]:
        if not file.is_file():
            raise ValueError(f"no file {file}")
    # mirroring would average predictions and blur what the location does
    loaded = load_located_model(model, fold, device=device, mirroring=False)
    scan = loaded.prepare(images, label)
    located = loaded.labels(scan.data)
    if shift is None:
        scan.location[:] = np.nan
        words = "unknown location"
    else:
        scan.location[:] += np.reshape(np.asarray(shift, dtype=np.float32), (-1, 1, 1, 1))
        words = "location shifted by " + ", ".join(
            f"{name} {value:+g}" for name, value in zip("RAS", shift, strict=True)
        )
    return LocatedScan(
        name=images[0].name,
        image=scan.data[0],
        frame=scan.frame,
        source=loaded.source,
        field=loaded.field(scan),
        label=None if scan.seg is None else np.maximum(scan.seg[0], 0).astype(np.int32),
        patch_size=checked_patch(loaded.configuration.patch_size),
        comparison=Comparison(located, loaded.labels(scan.data), words),
    )
