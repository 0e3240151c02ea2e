"""What a trained model predicts with the true location, and with another one."""

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import LOCATION_CHANNELS
from nnunet_locctx.resources import trainers_folder
from nnunet_locctx.show.scan import Comparison, LocatedScan, checked_patch

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")


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
        shift: Added to the location (R, A, S; units of the model's source) for the second prediction; None replaces the
            location by the source's neutral value.
        device: Torch device; None: the GPU if there is one.

    Raises:
        ValueError: The folder is no trained model or not one with location, a file is missing, or the model needs the
            predictions of a previous stage.
    """
    for file in [*images, *([label] if label else [])]:
        if not file.is_file():
            raise ValueError(f"no file {file}")
    fold, checkpoint = _find_checkpoint(model, fold)
    os.environ.setdefault("nnUNet_extTrainer", str(trainers_folder()))
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_locctx.nnunet.configuration import LocatedConfiguration

    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with contextlib.redirect_stdout(io.StringIO()):
        # mirroring would average predictions and blur what the location does
        predictor: Any = nnUNetPredictor(use_mirroring=False, device=chosen)
        try:
            predictor.initialize_from_trained_model_folder(str(model), (fold,), checkpoint)
        except RuntimeError as error:
            raise ValueError(f"nnU-Net cannot load the model {model}: {error}") from error
    configuration = predictor.configuration_manager
    if not isinstance(configuration, LocatedConfiguration):
        raise ValueError(f"{model} was trained by {predictor.trainer_name}, which does not use location")
    if configuration.previous_stage_name is not None:
        raise ValueError(
            f"{model} is the second stage of a cascade and needs predictions of {configuration.previous_stage_name!r}; "
            "show a model of the first stage"
        )
    channels = len(configuration.normalization_schemes)
    if len(images) != channels:
        raise ValueError(f"the model takes {channels} image files (one per channel), got {len(images)}")
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, seg, properties = preprocessor.run_case(
        [str(file) for file in images],
        None if label is None else str(label),
        predictor.plans_manager,
        configuration,
        predictor.dataset_json,
    )
    frame = Frame.from_properties(properties, data.shape[1:], predictor.plans_manager.transpose_forward)
    source = configuration.location.make_source()
    located = _predict(predictor, data)
    location = data[channels : channels + LOCATION_CHANNELS]
    if shift is None:
        location[:] = np.reshape(source.neutral, (-1, 1, 1, 1))
        words = "neutral location"
    else:
        location += np.reshape(np.asarray(shift, dtype=np.float32), (-1, 1, 1, 1))
        words = "location shifted by " + ", ".join(
            f"{name} {value:+g}" for name, value in zip("RAS", shift, strict=True)
        )
    return LocatedScan(
        name=images[0].name,
        image=data[0],
        frame=frame,
        source=source,
        field=source.field(frame),
        label=None if label is None else np.maximum(seg[0], 0).astype(np.int32),
        patch_size=checked_patch(configuration.patch_size),
        comparison=Comparison(located, _predict(predictor, data), words),
    )


def _predict(predictor: Any, data: npt.NDArray[np.float32]) -> npt.NDArray[np.integer]:
    """(C, *s) preprocessed data -> (*s) label numbers, without nnU-Net's way back to the scan's own grid."""
    import torch

    with contextlib.redirect_stdout(io.StringIO()):
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        segmentation = predictor.label_manager.convert_logits_to_segmentation(logits)
    return np.asarray(segmentation).astype(np.int32)


def _find_checkpoint(model: Path, fold: str | None) -> tuple[str, str]:
    missing = [name for name in ("plans.json", "dataset.json") if not (model / name).is_file()]
    if missing:
        raise ValueError(
            f"{model} is not the folder of a trained model (TRAINER__PLANS__CONFIGURATION below nnUNet_results): "
            f"{' and '.join(missing)} missing"
        )
    folds = sorted(path.name.removeprefix("fold_") for path in model.glob("fold_*") if path.is_dir())
    if fold is not None and fold not in folds:
        raise ValueError(f"{model} has no fold {fold!r}; it has {', '.join(folds) or 'none'}")
    for candidate in [fold] if fold is not None else folds:
        for checkpoint in CHECKPOINTS:
            if (model / f"fold_{candidate}" / checkpoint).is_file():
                return candidate, checkpoint
    raise ValueError(
        f"{model} has no checkpoint ({', '.join(CHECKPOINTS)}) in fold {fold or ', '.join(folds) or 'none'}"
    )
