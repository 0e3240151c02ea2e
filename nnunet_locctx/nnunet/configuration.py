"""Brings our preprocessor to nnU-Net's prediction without a patch.

nnU-Net looks preprocessors up inside its own package only. Prediction makes one call into a trainer's class,
``build_network_architecture``, and afterwards pickles the configuration to its spawned preprocessing
workers. Changing the class of that object there is enough: it takes the preprocessor with it.
"""

from typing import TYPE_CHECKING, Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_locctx.nnunet.carried import CarriedRegressor, RegressorBuffer
from nnunet_locctx.nnunet.options import LocationOptions

if TYPE_CHECKING:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor


class LocatedConfiguration(ConfigurationManager):
    """A configuration whose preprocessor appends the location channels at prediction.

    Attributes:
        carried: The regressor of a fitted source; None for sources that are not fitted.
    """

    carried: CarriedRegressor | None = None

    @property
    def preprocessor_class(self) -> "type[DefaultPreprocessor]":
        """The configuration's own preprocessor, extended by location."""
        from nnunet_locctx.nnunet.preprocessing import located_preprocessor

        return located_preprocessor(super().preprocessor_class)

    @property
    def location(self) -> LocationOptions:
        """The checked ``location`` key, without the defaults of a block."""
        return LocationOptions.from_configuration(self.configuration)


def locate(configuration: ConfigurationManager) -> LocatedConfiguration:
    """Turns nnU-Net's configuration, in place, into one that brings location to prediction."""
    manager: Any = configuration
    manager.__class__ = LocatedConfiguration
    located: LocatedConfiguration = manager
    return located


def carry_regressor(
    network: nn.Module, configuration: ConfigurationManager, options: LocationOptions
) -> None:
    """Puts the regressor of a fitted source among the network's weights, or room for the one that a checkpoint brings;
    does nothing for other sources."""
    if not options.make_source().fitted:
        return
    located = locate(configuration)
    if located.carried is None:
        located.carried = CarriedRegressor()
    network.add_module("location_regressor", RegressorBuffer(located.carried))
