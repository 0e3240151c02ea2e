"""nnU-Net's trainer with location: the same loops, batches and losses, three more input channels and a block
that uses them."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import join, load_pickle
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from tqdm import tqdm

from nnunet_locctx.geometry import OBLIQUE, Frame
from nnunet_locctx.location import AXES, LOCATION_CHANNELS, LocationField, Measurement, TrainingRange
from nnunet_locctx.networks.located_unet import Fitting, LocatedUNet
from nnunet_locctx.nnunet.data.class_places import measured_scatter, read_points
from nnunet_locctx.nnunet.data.fitted import CaseMeasurements, fitted_folder
from nnunet_locctx.nnunet.data.fitting import regressor_for_training
from nnunet_locctx.nnunet.options import AUTO, LocationOptions
from nnunet_locctx.nnunet.predicting.carried import Carried
from nnunet_locctx.nnunet.predicting.location_file import describe, make_record
from nnunet_locctx.nnunet.predicting.preprocessing import carry, locate
from nnunet_locctx.nnunet.training.augmentation import JitterLocation, locate_transforms
from nnunet_locctx.nnunet.training.checkpoints import LocationSignature, allow_plain_weights
from nnunet_locctx.nnunet.training.dataset import LocatedDataset
from nnunet_locctx.nnunet.training.losses import LossOfBoth, without_smoothing
from nnunet_locctx.nnunet.training.recipes import split_tables
from nnunet_locctx.places import LATE


class DenormalsFlushed(nnUNetTrainer):
    """nnU-Net's trainer; on the CPU, denormal floats count as 0 from initialisation to the training's end.

    Where location leaves no doubt, as for an organ far from the patch, logits differ by 100 and more, and the gradients
    of such patches are denormal (docs/explanation/benchmarks.md).
    """

    def initialize(self) -> None:
        """As nnU-Net's."""
        if self.device.type == "cpu":
            # before the first large operation: torch's worker threads take the setting over when they are started
            torch.set_flush_denormal(True)
        super().initialize()

    def on_train_end(self) -> None:
        """As nnU-Net's."""
        super().on_train_end()
        if self.device.type == "cpu":
            torch.set_flush_denormal(False)


class LocatedTrainer(DenormalsFlushed):
    """nnU-Net's trainer; its network gets the place in the body where each patch was taken.

    Subclasses name the block; where location enters and what a coordinate means is read from the plans'
    ``location`` key (:class:`~nnunet_locctx.nnunet.options.LocationOptions`).

    Attributes:
        block: Name of the block, a key of :data:`nnunet_locctx.blocks.BLOCKS`; None: a network of its own.
        place: Where it sits; None: the block's default.
        block_options: Options of the block that differ from its defaults; the plans' go on top.
        also: Further blocks of the same network. Of the plans' options they take the span only, which belongs to the
            coordinates.
        unlocated_weight: Weight of learning to do without location, where all places are late; the plans' goes
            first (:class:`~nnunet_locctx.nnunet.options.LocationOptions`).
        smooths: Whether the Dice loss is nnU-Net's, smoothed; else classes that a batch does not hold do not count
            (:func:`~nnunet_locctx.nnunet.training.losses.without_smoothing`).
        epochs: Length of the training, None for nnU-Net's own.
        augments: Whether jitter and dropout of the plans apply; not in the variants without data
            augmentation.
    """

    block: ClassVar[str | None]
    place: ClassVar[str | None] = None
    block_options: ClassVar[Mapping[str, Any]] = {}
    also: ClassVar[tuple[Fitting, ...]] = ()
    unlocated_weight: ClassVar[float] = 0.0
    smooths: ClassVar[bool] = True
    epochs: ClassVar[int | None] = None
    augments: ClassVar[bool] = True

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        """As nnU-Net's trainer.

        Raises:
            ValueError: The plans' ``location`` key is wrong, its source was never fitted, the configuration has no
                network, or nnUNet_results is not set; raised before anything is written.
        """
        resolved = resolve_configuration(plans, configuration)
        self.location = self.location_options(resolved)
        self.measurements: CaseMeasurements | None = None
        self.carried = Carried()
        self._random = np.random.default_rng(0)
        if self.location.make_source().fitted:
            name = plans["dataset_name"]
            data = regressor_for_training(name, self.location.source)
            self.carried = Carried(data)
            self.carried.open()
            self.measurements = CaseMeasurements(fitted_folder(name, self.location.source), data)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.epochs is not None:
            self.num_epochs = self.epochs

    @classmethod
    def location_options(cls, configuration: Mapping[str, Any]) -> LocationOptions:
        """The options of a configuration, on top of this trainer's own.

        Raises:
            ValueError: An unknown key or a value that is not allowed.
        """
        options = LocationOptions.from_configuration(configuration, cls.block, cls.block_options, cls.place)
        places = {str(options.place), *(fitting.place for fitting in cls.also)}
        late = places <= set(LATE)
        weight = options.unlocated_weight
        if weight is None:
            weight = cls.unlocated_weight if late else 0.0
        elif weight and not late:
            raise ValueError(
                f"location.unlocated_weight above 0 needs all blocks at {' or '.join(LATE)}, got {weight} with "
                f"{cls.__name__} at {', '.join(sorted(places))}; elsewhere location.dropout does the same"
            )
        return dataclasses.replace(options, unlocated_weight=weight)

    def initialize(self) -> None:
        """Builds everything nnU-Net builds; cases are then loaded with their location."""
        allow_plain_weights()
        located = locate(self.configuration_manager, self.carried)
        super().initialize()
        if self.location.unlocated_weight:
            for network in self._located_networks():
                network.answer_twice()
        transpose = self.plans_manager.transpose_forward
        stored = self.dataset_class  # type: ignore[has-type]
        self.dataset_class = LocatedDataset(stored, located, transpose, self.measurements)
        self.print_to_log_file(f"location: {self.location}")

    @classmethod
    def build_network_architecture(  # nnU-Net's is static; the class is needed for its block
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The planned network, fitted with this trainer's block.

        The one call that nnU-Net's prediction makes into a plugin, so the configuration learns here to bring
        location along.

        Args:
            num_input_channels: Image channels, and those of the previous stage in a cascade; location is not
                counted.

        Returns:
            A network for (B, image + 3 + previous stage, *patch).
        """
        assert cls.block is not None
        configuration_manager = locate(configuration_manager)
        options = cls.location_options(configuration_manager.configuration)
        shared = {"span": options.block["span"]} if "span" in options.block else {}
        also = [dataclasses.replace(fitting, options={**fitting.options, **shared}) for fitting in cls.also]
        # built first and by nnU-Net itself: with the same seed a plain run starts from the same weights
        planned = nnUNetTrainer.build_network_architecture(
            plans_manager,
            configuration_manager,
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        image_channels = len(configuration_manager.normalization_schemes)
        network = LocatedUNet(
            planned,
            image_channels,
            Fitting(cls.block, str(options.place), options.block),
            *also,
            patch_size=configuration_manager.patch_size,
        )
        carry(network, plans_manager, configuration_manager)
        signature = LocationSignature(
            options.signature(cls.block, also), options.default_signature(cls.block, also)
        )
        network.add_module("location_signature", signature)
        return network

    def configure_optimizers(self) -> Any:
        """nnU-Net's, but hash tables without weight decay (see :mod:`~nnunet_locctx.nnunet.training.recipes`)."""
        optimizer, schedule = super().configure_optimizers()
        tables, others = split_tables(self.network)
        if tables and len(optimizer.param_groups) == 1:
            optimizer.param_groups[0]["params"] = others
            optimizer.add_param_group({"params": tables, "weight_decay": 0.0})
        return optimizer, schedule

    def _build_loss(self) -> Any:
        """nnU-Net's, of what the network says with the location and, if it is to learn that, without."""
        loss = super()._build_loss() if self.smooths else without_smoothing(super()._build_loss())
        weight = self.location.unlocated_weight
        return LossOfBoth(loss, weight) if weight else loss

    def get_dataloaders(self) -> Any:
        """nnU-Net's loaders, after a look at every case: a broken header must not stop a training that has
        begun."""
        self._survey_cases()
        return super().get_dataloaders()

    def on_train_epoch_start(self) -> None:
        """As nnU-Net's; which axes an epoch's batches go without follows from its number, on every GPU alike."""
        super().on_train_epoch_start()
        self._random = np.random.default_rng(self.current_epoch)

    def _located_networks(self) -> list[LocatedUNet]:
        """The network, out of what compiles or distributes it; none where it is of another kind."""
        return [module for module in self.network.modules() if isinstance(module, LocatedUNet)]

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's, of a batch whose axes may have been made unknown."""
        if self.location.unlocated_weight:
            lost = self._lost_axes()
            for network in self._located_networks():
                network.lose(lost)
        step: dict[str, Any] = super().train_step({**batch, "data": self._without_axes(batch["data"])})
        return step

    def _lost_axes(self) -> list[bool]:
        """Which of R, A and S the network also goes without in a step: in half of the steps all, else one of those in
        use."""
        used = self.location.axes
        chosen = int(self._random.integers(2 * len(used)))
        return [chosen >= len(used) or axis == used[chosen] for axis in AXES]

    def _without_axes(self, data: torch.Tensor) -> torch.Tensor:
        """Makes each axis unknown with the probability `dropout`, and all of them with that probability once more.

        The whole batch goes without them. In a batch that mixes patches with and without, a Dice over the batch
        (``batch_dice``) is largest where those without predict background alone.

        Args:
            data: (B, image + 3 + previous stage, *patch); it is not changed.
        """
        dropout = self.location.dropout
        if not (self.augments and dropout):
            return data
        unknown = self._random.random(LOCATION_CHANNELS) < dropout
        if self._random.random() < dropout:
            unknown[:] = True
        if not unknown.any():
            return data
        first = len(self.configuration_manager.normalization_schemes)
        data = data.clone()  # the caller may use its batch again, as benchmarks do
        data[:, first : first + LOCATION_CHANNELS][:, torch.from_numpy(unknown)] = torch.nan
        return data

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's validation; the log says where a case's location is unknown."""
        _, validation = self.do_split()
        frames, broken = self._frames(validation)
        self._log_unknown({name: frame for name, frame in frames.items() if name not in broken})
        super().perform_actual_validation(save_probabilities)

    def _survey_cases(self) -> None:
        """Looks at the place of every case, and keeps for prediction what those to train with cover.

        Raises:
            ValueError: Cases without a usable place, named.
        """
        training, validation = self.do_split()
        frames, broken = self._frames(sorted({*training, *validation}))
        if broken:
            lines = [f"{identifier}: {error}" for identifier, error in broken.items()]
            raise ValueError("cases without a usable place in the patient:\n" + "\n".join(lines))
        self._log_oblique(frames)
        if self.measurements is not None:
            self.measurements.problems(frames)  # names what is missing or damaged
        self.carried.training = None
        self.carried.training = TrainingRange.over(
            locate(self.configuration_manager).locator,
            ((frames[identifier], self._measured(identifier)) for identifier in training),
        )
        self._log_unknown(frames)

    def _frames(self, identifiers: Iterable[str]) -> tuple[dict[str, Frame], dict[str, ValueError]]:
        """The frames of cases, before resampling, and what is wrong with those that have no usable one."""
        frames: dict[str, Frame] = {}
        broken: dict[str, ValueError] = {}
        transpose = self.plans_manager.transpose_forward
        for identifier in tqdm(list(identifiers), desc="checking the place of each case", leave=False):
            properties = load_pickle(join(self.preprocessed_dataset_folder, identifier + ".pkl"))
            shape = properties["shape_after_cropping_and_before_resampling"]
            try:
                frames[identifier] = Frame.from_properties(properties, shape, transpose)
                if self.measurements is not None:
                    self.measurements.check_scan(identifier, properties, transpose)
            except ValueError as error:
                broken[identifier] = error
        return frames, broken

    def _field(self, identifier: str, frame: Frame) -> LocationField:
        """A case's location, as far as it is known now."""
        return locate(self.configuration_manager).locator.field(frame, self._measured(identifier))

    def _measured(self, identifier: str) -> Measurement | None:
        """What was found in a case, for fitted sources."""
        return None if self.measurements is None else self.measurements.read(identifier)

    def _log_oblique(self, frames: Mapping[str, Frame]) -> None:
        oblique = {name: frame.obliquity for name, frame in frames.items() if frame.obliquity > OBLIQUE}
        if oblique:
            worst = sorted(oblique, key=lambda name: -oblique[name])
            named = ", ".join(f"{name} ({oblique[name]:.0f})" for name in worst[:10])
            self.print_to_log_file(
                f"WARNING: {len(oblique)} of {len(frames)} cases are stored more than {OBLIQUE:g} degrees off the "
                f"patient's axes; fractions of their volume are those of its bounding box. Degrees: {named}"
                + (" ..." if len(worst) > 10 else "")
            )

    def _log_unknown(self, frames: Mapping[str, Frame]) -> None:
        """One line for each case with an unknown axis that the plans do not leave out, and one for all."""
        source, axes = self.location.make_source(), self.location.axes
        known = dict.fromkeys(AXES, 0)
        for name, frame in frames.items():
            record = make_record(source, self._field(name, frame))
            for axis in record["known"]:
                known[axis] += 1
            if set(record["unknown"]) & set(axes):
                self.print_to_log_file(describe(name, record))
        counts = ", ".join(f"{axis} in {count}" for axis, count in known.items())
        self.print_to_log_file(f"location ({source.name}): of {len(frames)} cases, {counts} known")

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's augmentation, carrying location; arguments as in nnU-Net's method of this name."""
        transforms = super().get_training_transforms(*args, **kwargs)
        jitter = self.location.jitter
        if not (self.augments and jitter):
            return locate_transforms(transforms)
        return locate_transforms(
            transforms, JitterLocation(self._measured_jitter() if jitter == AUTO else jitter)
        )

    def _measured_jitter(self) -> Any:
        """(3,) scatter of the classes between this fold's training cases."""
        training, _ = self.do_split()
        cases = read_points(
            Path(self.preprocessed_dataset_folder),
            self.dataset_json["labels"],
            self.plans_manager.transpose_forward,
        )
        chosen = [case for case in cases if case.identifier in training]
        jitter = measured_scatter((self._field(case.identifier, case.frame), case.points) for case in chosen)
        self.print_to_log_file(f"jitter (R, A, S): {', '.join(f'{value:.4f}' for value in jitter)}")
        return jitter

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's transforms, carrying location; arguments as in nnU-Net's method of this name."""
        transforms = super().get_validation_transforms(*args, **kwargs)
        return locate_transforms(transforms)

    def get_tr_and_val_datasets(self) -> Any:
        """nnU-Net's datasets; the transforms compute the location, so patches are loaded with the key to it."""
        datasets = super().get_tr_and_val_datasets()
        for dataset in datasets:
            dataset.load_case.keyed = True
        return datasets


def resolve_configuration(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration with everything it inherits, before a training that uses it writes anything.

    Raises:
        ValueError: The configuration has no network, or nnUNet_results is not set.
    """
    if not nnUNet_results.is_set():
        raise ValueError(
            "the environment variable nnUNet_results is not set. It names the folder of nnU-Net's trained models; "
            "set it with: export nnUNet_results=/path/to/nnUNet_results"
        )
    try:
        resolved: dict[str, Any] = PlansManager(plans).get_configuration(configuration).configuration
    except KeyError as error:
        raise ValueError(
            f"configuration {configuration!r} of the plans has no 'architecture', nor {error}, which old plans "
            "have instead. Plan the dataset again with nnUNetv2_plan_experiment."
        ) from error
    return resolved
