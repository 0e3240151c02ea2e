"""Trainers of networks that replace the planned one, with and without location."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_locctx.blocks.hash_encoding import hash_arithmetic
from nnunet_locctx.networks.registry import complete_network_options, network_class
from nnunet_locctx.networks.whole import WholeNetwork
from nnunet_locctx.nnunet.options import KEY, LocationOptions
from nnunet_locctx.nnunet.predicting.preprocessing import carry, locate
from nnunet_locctx.nnunet.training.checkpoints import LocationSignature
from nnunet_locctx.nnunet.training.recipes import Recipe
from nnunet_locctx.nnunet.training.trainer import DenormalsFlushed, LocatedTrainer, resolve_configuration

NETWORK_KEY = "network"


class WholeNetworkTrainer(DenormalsFlushed):
    """nnU-Net's trainer with another network; loops, batches and losses stay nnU-Net's.

    The plans' architecture is not used; patch, batch and spacing are. A configuration's ``network`` key sets
    options of the network.

    Attributes:
        network_name: A key of :data:`nnunet_locctx.networks.NETWORKS`.
        network_options: Options that differ from the network's own defaults; the plans' go on top.
        located: Whether the network gets the location.
        recipe: How the method's authors trained it; None: as nnU-Net does.
        epochs: Length of the training by the trainer's name, None for the recipe's.
    """

    network_name: ClassVar[str]
    network_options: ClassVar[Mapping[str, Any]] = {}
    located: ClassVar[bool] = False
    recipe: ClassVar[Recipe | None] = None
    epochs: ClassVar[int | None] = None

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
            ValueError: The ``network`` or ``location`` key is wrong, or the network cannot take the patch size;
                raised before anything is written.
        """
        resolved = resolve_configuration(plans, configuration)
        options = self.check_configuration(resolved)
        super().__init__(plans, configuration, fold, dataset_json, device)
        network = network_class(self.network_name)
        self.supervision_weights = network.supervision_weights
        self.supervision_strides = network.supervision_strides(len(resolved["patch_size"]), **options)
        self.enable_deep_supervision = len(self.supervision_strides) > 1
        if self.recipe is not None:
            self.num_epochs = self.epochs or self.recipe.epochs
            self.initial_lr, self.weight_decay = self.recipe.learning_rate, self.recipe.weight_decay
        elif self.epochs is not None:
            self.num_epochs = self.epochs

    @classmethod
    def check_configuration(cls, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """All options of the network for a configuration of the plans.

        Args:
            configuration: Inheritance resolved.

        Raises:
            ValueError: An option is not allowed, or the network cannot take the patch size.
        """
        planned = configuration.get(NETWORK_KEY, {})
        if not isinstance(planned, Mapping):
            raise ValueError(f"the plans' {NETWORK_KEY!r} key must be a table of options, got {planned!r}")
        options = complete_network_options(cls.network_name, {**cls.network_options, **planned})
        location = configuration.get(KEY, {})
        if isinstance(location, Mapping):
            for key in ("place", "block"):
                if location.get(key):
                    raise ValueError(
                        f"location.{key} is for trainers that fit a block into the planned U-Net; {cls.__name__} "
                        f"brings a network of its own. Its options stand in the configuration's {NETWORK_KEY!r} key"
                    )
        network = network_class(cls.network_name)
        if network.uses_location(**options) != cls.located:
            raise ValueError(
                f"{cls.__name__} {'needs' if cls.located else 'has no'} location, and the options {options} "
                f"{'do not use' if cls.located else 'ask for'} it"
            )
        network.check_patch(configuration["patch_size"], **options)
        return options

    @classmethod
    def build_network_architecture(  # nnU-Net's is static; the class is needed for its network
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network.

        Args:
            num_input_channels: Image channels, and those of the previous stage in a cascade; location is not
                counted.

        Returns:
            A network for (B, image + 3 if located + previous stage, *patch).
        """
        configuration = configuration_manager.configuration
        options = cls.check_configuration(configuration)
        image_channels = len(configuration_manager.normalization_schemes)
        network: WholeNetwork = network_class(cls.network_name)(
            image_channels,
            num_output_channels,
            configuration_manager.patch_size,
            num_input_channels - image_channels,
            enable_deep_supervision,
            **options,
        )
        weighs: dict[str, Any] = {
            "network": cls.network_name,
            "options": {**options, **hash_arithmetic(options)},
        }
        if cls.located:
            weighs |= LocationOptions.from_configuration(configuration).meaning()
            carry(network, plans_manager, locate(configuration_manager))
        defaults = {"options": complete_network_options(cls.network_name, {})}
        signature = LocationSignature(json.dumps(weighs, sort_keys=True), json.dumps(defaults))
        network.add_module("location_signature", signature)
        return network

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and schedule; nnU-Net's without one."""
        if self.recipe is None:
            return super().configure_optimizers()
        return self.recipe.configure(self.network, self.num_epochs)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """The network's resolutions, not those of the planned pooling."""
        if not self.enable_deep_supervision:
            return None
        return [[1 / n for n in strides] for strides in self.supervision_strides]

    def _build_loss(self) -> Any:
        """nnU-Net's loss with the network's weights; nnU-Net gives the lowest resolution none."""
        loss = super()._build_loss()
        if self.enable_deep_supervision:
            weights = np.array(self.supervision_weights)
            loss.weight_factors = tuple(weights / weights.sum())
        return loss

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Does not switch on what the network does not have."""
        super().set_deep_supervision_enabled(enabled and self.enable_deep_supervision)


class LocatedWholeNetworkTrainer(WholeNetworkTrainer, LocatedTrainer):
    """The same with location: its channels, augmentation and checks are those of every located trainer."""

    block = None
    located = True
