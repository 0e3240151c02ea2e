"""Networks that use a location."""

from nnunet_locctx.networks.located import Located
from nnunet_locctx.networks.located_unet import Fitting, LocatedUNet
from nnunet_locctx.networks.registry import NETWORKS, complete_network_options, network_class, network_options
from nnunet_locctx.networks.whole import WholeNetwork

__all__ = [
    "NETWORKS",
    "Fitting",
    "Located",
    "LocatedUNet",
    "WholeNetwork",
    "complete_network_options",
    "network_class",
    "network_options",
]
