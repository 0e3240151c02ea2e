"""nnU-Net's trainer with location: the same loops, batches and losses, three more input channels and a block
that uses them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from batchgenerators.utilities.file_and_folder_operations import join, load_pickle
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from tqdm import tqdm

from nnunet_locctx.geometry import OBLIQUE, Frame
from nnunet_locctx.networks.located_unet import Fitting, LocatedUNet
from nnunet_locctx.nnunet.data.fitted import CaseMeasurements, fitted_folder
from nnunet_locctx.nnunet.data.fitting import regressor_for_training
from nnunet_locctx.nnunet.options import LocationOptions
from nnunet_locctx.nnunet.predicting.carried import CarriedRegressor
from nnunet_locctx.nnunet.predicting.preprocessing import carry_regressor, locate
from nnunet_locctx.nnunet.training import pretraining
from nnunet_locctx.nnunet.training.augmentation import PerturbLocation, locate_transforms
from nnunet_locctx.nnunet.training.dataset import LocatedDataset
from nnunet_locctx.nnunet.training.denormals import DenormalsFlushed
from nnunet_locctx.nnunet.training.recipes import split_tables
from nnunet_locctx.nnunet.training.signature import LocationSignature


class LocatedTrainer(DenormalsFlushed):
    """nnU-Net's trainer, told where in the body each patch was taken.

    Subclasses name the block; where location enters and what a coordinate means is read from the plans'
    ``location`` key (:class:`~nnunet_locctx.nnunet.options.LocationOptions`).

    Attributes:
        block: Name of the block, a key of :data:`nnunet_locctx.blocks.BLOCKS`; None: a network of its own.
        place: Where it sits; None: the block's default.
        block_options: Options of the block that differ from its defaults; the plans' go on top.
        also: Further blocks of the same network, which the plans do not change.
        epochs: Length of the training, None for nnU-Net's own.
        augments: Whether jitter and dropout of the plans apply; not in the variants without data
            augmentation.
    """

    block: ClassVar[str | None]
    place: ClassVar[str | None] = None
    block_options: ClassVar[Mapping[str, Any]] = {}
    also: ClassVar[tuple[Fitting, ...]] = ()
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
        self.location = LocationOptions.from_configuration(
            resolved, self.block, self.block_options, self.place
        )
        self.measurements: CaseMeasurements | None = None
        self.regressor: CarriedRegressor | None = None
        if self.location.make_source().fitted:
            name = plans["dataset_name"]
            data = regressor_for_training(name, self.location.source)
            self.regressor = CarriedRegressor(data)
            self.regressor.open()
            self.measurements = CaseMeasurements(fitted_folder(name, self.location.source), data)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.epochs is not None:
            self.num_epochs = self.epochs

    def initialize(self) -> None:
        """Builds everything nnU-Net builds; cases are then loaded with their location."""
        pretraining.install()
        locate(self.configuration_manager).carried = self.regressor
        super().initialize()
        source, transpose = self.location.make_source(), self.plans_manager.transpose_forward
        stored = self.dataset_class  # type: ignore[has-type]
        self.dataset_class = LocatedDataset(stored, source, transpose, self.measurements)
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
        options = LocationOptions.from_configuration(
            configuration_manager.configuration, cls.block, cls.block_options, cls.place
        )
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
            *cls.also,
            patch_size=configuration_manager.patch_size,
        )
        carry_regressor(network, configuration_manager, options)
        signature = LocationSignature(
            options.signature(cls.block, cls.also), options.default_signature(cls.block, cls.also)
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

    def get_dataloaders(self) -> Any:
        """nnU-Net's loaders, after a look at every case: a broken header must not stop a training that has
        begun."""
        if self.local_rank == 0:
            self._check_cases()
        return super().get_dataloaders()

    def _check_cases(self) -> None:
        broken: list[str] = []
        oblique: dict[str, float] = {}
        identifiers = sorted({key for keys in self.do_split() for key in keys})
        for identifier in tqdm(identifiers, desc="checking the place of each case", leave=False):
            properties = load_pickle(join(self.preprocessed_dataset_folder, identifier + ".pkl"))
            shape = properties["shape_after_cropping_and_before_resampling"]
            try:
                frame = Frame.from_properties(properties, shape, self.plans_manager.transpose_forward)
                if self.measurements is not None:
                    self.measurements.check_scan(identifier, properties, self.plans_manager.transpose_forward)
            except ValueError as error:
                broken.append(f"{identifier}: {error}")
            else:
                if frame.obliquity > OBLIQUE:
                    oblique[identifier] = frame.obliquity
        if broken:
            raise ValueError("cases without a usable place in the patient:\n" + "\n".join(broken))
        if oblique:
            worst = sorted(oblique, key=lambda identifier: -oblique[identifier])
            named = ", ".join(f"{identifier} ({oblique[identifier]:.0f})" for identifier in worst[:10])
            self.print_to_log_file(
                f"WARNING: {len(oblique)} of {len(identifiers)} cases are stored more than {OBLIQUE:g} degrees off the "
                f"patient's axes; fractions of their volume are those of its bounding box. Degrees: {named}"
                + (" ..." if len(worst) > 10 else "")
            )
        if self.measurements is not None:
            for identifier, problem in self.measurements.problems(identifiers).items():
                self.print_to_log_file(
                    f"WARNING: case {identifier} could not be measured ({problem}); it has voxel fractions instead"
                )

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's augmentation, carrying location; arguments as in nnU-Net's method of this name."""
        transforms = super().get_training_transforms(*args, **kwargs)
        perturb = None
        if self.augments and (self.location.jitter or self.location.dropout):
            perturb = PerturbLocation(
                self.location.jitter, self.location.dropout, self.location.make_source().neutral
            )
        return locate_transforms(transforms, perturb)

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's transforms, carrying location; arguments as in nnU-Net's method of this name."""
        transforms = super().get_validation_transforms(*args, **kwargs)
        return locate_transforms(transforms)

    def get_tr_and_val_datasets(self) -> Any:
        """nnU-Net's datasets; the transforms ask for the location, so patches are loaded with the key to it."""
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
            "have instead. Plan the data set again with nnUNetv2_plan_experiment."
        ) from error
    return resolved
