"""A trained located model, for commands that look into its predictions step by step.

Every step is nnU-Net's own: its predictor loads the model, its preprocessor (extended by location) prepares a scan, its
sliding window predicts and its export brings the labels back to the scan's grid.
"""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.files import file_digest
from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import LOCATION_CHANNELS, LocationField, LocationSource, Locator, Measurement
from nnunet_locctx.nnunet.data.checkpoints import read_checkpoint
from nnunet_locctx.resources import trainer_folders

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")


@dataclass(frozen=True)
class PreparedScan:
    """A scan as the network takes it.

    Attributes:
        data: (C + 3, *shape) float32: image channels, then the location (R, A, S).
        properties: nnU-Net's, for the way back to the scan's own grid.
        frame: Position of the preprocessed array in the patient.
        measured: What a fitted source found in the scan; None for other sources.
    """

    data: npt.NDArray[np.float32]
    properties: dict[str, Any]
    frame: Frame
    measured: Measurement | None

    @property
    def location(self) -> npt.NDArray[np.float32]:
        """(3, *shape) view of the location channels; writing to it changes what the network gets."""
        return self.data[-LOCATION_CHANNELS:]


@dataclass(frozen=True)
class LocatedModel:
    """A trained model that takes location; made by :func:`load_located_model`.

    Attributes:
        folder: The model's folder.
        fold: The fold in use.
        checkpoint: Name of the checkpoint file.
        predictor: nnU-Net's predictor with the model loaded.
    """

    folder: Path
    fold: str
    checkpoint: str
    predictor: Any

    @property
    def configuration(self) -> Any:
        """nnU-Net's configuration manager, with location."""
        return self.predictor.configuration_manager

    @property
    def locator(self) -> Locator:
        """Gives a scan the location that the model takes."""
        locator: Locator = self.configuration.locator
        return locator

    @property
    def source(self) -> LocationSource:
        """Where the model's location comes from."""
        return self.locator.source

    @property
    def channels(self) -> int:
        """Image channels."""
        return len(self.configuration.normalization_schemes)

    @property
    def dataset_json(self) -> dict[str, Any]:
        """The dataset's description as training saw it."""
        content: dict[str, Any] = self.predictor.dataset_json
        return content

    def fingerprint(self) -> str:
        """Differs between models: a digest of checkpoint and plans."""
        checkpoint = self.folder / f"fold_{self.fold}" / self.checkpoint
        return file_digest(self.folder / "plans.json", checkpoint)[:16]

    def prepare(self, images: Sequence[Path]) -> PreparedScan:
        """Preprocesses a scan as the model's plans say.

        Args:
            images: One file per channel.

        Raises:
            ValueError: The number of files is wrong, or the scan has no usable geometry or intensities.
        """
        if len(images) != self.channels:
            raise ValueError(
                f"the model takes {self.channels} image files (one per channel), got {len(images)}"
            )
        plans = self.predictor.plans_manager
        preprocessor = self.configuration.preprocessor_class(verbose=False)
        with contextlib.redirect_stdout(io.StringIO()):
            data, _, properties = preprocessor.run_case(
                [str(file) for file in images], None, plans, self.configuration, self.dataset_json
            )
        from nnunet_locctx.nnunet.predicting.preprocessing import MEASUREMENT

        frame = Frame.from_properties(properties, data.shape[1:], plans.transpose_forward)
        measured = Measurement.from_bytes(properties[MEASUREMENT]) if self.source.fitted else None
        return PreparedScan(data, properties, frame, measured)

    def field(self, scan: PreparedScan) -> LocationField:
        """The true location of a prepared scan, unknown along the axes that the model does not know."""
        return self.locator.field(scan.frame, scan.measured)

    def logits(self, data: npt.NDArray[np.float32]) -> Any:
        """(C + 3, *shape) preprocessed data -> (classes, *shape) tensor on the CPU, by nnU-Net's sliding window."""
        import torch

        with contextlib.redirect_stdout(io.StringIO()):
            return self.predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))

    def labels(self, data: npt.NDArray[np.float32]) -> npt.NDArray[np.integer]:
        """(C + 3, *shape) preprocessed data -> (*shape) label numbers, without the way back to the scan's own grid."""
        with contextlib.redirect_stdout(io.StringIO()):
            segmentation = self.predictor.label_manager.convert_logits_to_segmentation(self.logits(data))
        return np.asarray(segmentation).astype(np.int32)

    def export(self, logits: Any, scan: PreparedScan, file: Path) -> None:
        """Writes a prediction on the scan's own grid, as ``nnUNetv2_predict`` does.

        Args:
            logits: (classes, *shape).
            scan: The scan that was predicted.
            file: What to write; its name ends as the dataset's files do.
        """
        import torch
        from nnunetv2.inference.export_prediction import export_prediction_from_logits

        with contextlib.redirect_stdout(io.StringIO()):
            export_prediction_from_logits(
                logits,
                scan.properties,
                self.configuration,
                self.predictor.plans_manager,
                self.dataset_json,
                str(file).removesuffix(self.dataset_json["file_ending"]),
                num_threads_torch=torch.get_num_threads(),
            )


def load_located_model(
    folder: Path,
    fold: str | None = None,
    *,
    device: str | None = None,
    mirroring: bool = False,
    progress: bool = True,
) -> LocatedModel:
    """Loads one fold of a trained model.

    Args:
        folder: A trained model's folder (TRAINER__PLANS__CONFIGURATION).
        fold: The fold to use; None: the first that is there.
        device: Torch device; None: the GPU if there is one.
        mirroring: Average predictions of mirrored patches, as ``nnUNetv2_predict`` does by default.
        progress: Show the sliding window's progress.

    Raises:
        ValueError: The folder is no trained model or not one with location, its checkpoint is broken or would execute
            something, the device is not there, or the model needs the predictions of a previous stage.
    """
    fold, checkpoint = find_checkpoint(folder, fold)
    os.environ["nnUNet_extTrainer"] = trainer_folders()
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunet_locctx.nnunet.predicting.preprocessing import LocatedConfiguration

    with contextlib.redirect_stdout(io.StringIO()):
        predictor: Any = nnUNetPredictor(
            use_mirroring=mirroring, device=_torch_device(device), allow_tqdm=progress
        )
        read_checkpoint(folder / f"fold_{fold}" / checkpoint)  # nnU-Net would execute what it holds
        try:
            predictor.initialize_from_trained_model_folder(str(folder), (fold,), checkpoint)
        except (RuntimeError, json.JSONDecodeError) as error:
            raise ValueError(f"nnU-Net cannot load the model {folder}: {error}") from error
    configuration = predictor.configuration_manager
    if not isinstance(configuration, LocatedConfiguration):
        raise ValueError(f"{folder} was trained by {predictor.trainer_name}, which does not use location")
    if configuration.previous_stage_name is not None:
        raise ValueError(
            f"{folder} is the second stage of a cascade and needs predictions of "
            f"{configuration.previous_stage_name!r}; choose a model of the first stage"
        )
    return LocatedModel(folder, fold, checkpoint, predictor)


def find_checkpoint(model: Path, fold: str | None) -> tuple[str, str]:
    """Fold and name of the checkpoint file to use.

    Raises:
        ValueError: The folder is no trained model, or has no such fold or no checkpoint.
    """
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


def _torch_device(name: str | None) -> Any:
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"torch knows no device {name!r}; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"the device {name!r} is named, but torch finds no GPU; use cpu")
    return device
