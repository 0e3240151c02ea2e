"""Which trainers take a configuration of the plans, before one is started."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nnunet_locctx.networks.located_unet import ARCHITECTURES
from nnunet_locctx.networks.registry import network_class
from nnunet_locctx.nnunet.options import LocationOptions
from nnunet_locctx.nnunet.plans.topology import Topology
from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
from nnunet_locctx.nnunet.training.trainers import TRAINERS, Trainer
from nnunet_locctx.nnunet.training.whole_network import NETWORK_KEY, WholeNetworkTrainer


@dataclass(frozen=True)
class Suitability:
    """Answer of :func:`suitable_trainers`.

    Attributes:
        names: The trainers that take the configuration, in the order of ``TRAINERS``.
        reasons: Why the others do not: reason -> their names.
    """

    names: list[str] = field(default_factory=list)
    reasons: dict[str, list[str]] = field(default_factory=dict)

    def explained(self) -> str:
        """The reasons as one line of text."""
        return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in self.reasons.items())


def suitable_trainers(configuration: Mapping[str, Any]) -> Suitability:
    """Asks every trainer of the package.

    Args:
        configuration: A configuration of the plans, inheritance resolved.
    """
    suitability = Suitability()
    for name, trainer in TRAINERS.items():
        try:
            check_trainer(trainer, configuration)
        except (ValueError, ImportError) as error:
            # a network that cannot be imported stops no plan for another
            suitability.reasons.setdefault(str(error).replace(name, "the trainer"), []).append(name)
        else:
            suitability.names.append(name)
    return suitability


def check_trainer(trainer: Trainer, configuration: Mapping[str, Any]) -> None:
    """Raises ValueError, saying why, unless a trainer takes and uses what a configuration says: patch size, location
    and network options."""
    if issubclass(trainer, LocatedTrainer):
        LocationOptions.from_configuration(configuration, trainer.block, trainer.block_options, trainer.place)
    if issubclass(trainer, WholeNetworkTrainer):
        _check_whole_network(trainer, configuration)
    else:
        _check_planned_network(configuration)


def _check_whole_network(trainer: type[WholeNetworkTrainer], configuration: Mapping[str, Any]) -> None:
    options = trainer.check_configuration(configuration)
    if not configuration.get(NETWORK_KEY):
        return
    channels = len(configuration["normalization_schemes"])
    with torch.device("meta"):  # made without memory or time: only the network knows which values it takes
        network = network_class(trainer.network_name)(channels, 2, configuration["patch_size"], **options)
    if network.located != trainer.located:
        raise ValueError(
            "these options are for a network " + ("with" if network.located else "without") + " location"
        )


def _check_planned_network(configuration: Mapping[str, Any]) -> None:
    if configuration.get(NETWORK_KEY):
        raise ValueError(f"uses the planned U-Net, which takes no {NETWORK_KEY!r} options")
    name = configuration["architecture"]["network_class_name"].rsplit(".", 1)[-1]
    if name not in [architecture.__name__ for architecture in ARCHITECTURES]:
        raise ValueError(f"a location cannot be fitted to the planned {name}")
    topology = Topology.of(configuration["architecture"]["arch_kwargs"])
    if not topology.fits(configuration["patch_size"]):
        raise ValueError(
            f"patch_size {list(configuration['patch_size'])} is not divisible by the total stride "
            f"{list(topology.total_stride)} of the planned U-Net"
        )
