"""The whole networks by name; each is imported when it is first used, since MONAI takes a while."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from nnunet_locctx.blocks.encoding import options_of
from nnunet_locctx.names import check_known, check_options
from nnunet_locctx.networks.whole import WholeNetwork

NETWORKS: dict[str, str] = {
    "unetr": "nnunet_locctx.networks.unetr:UNETR",
    "swin_unetr": "nnunet_locctx.networks.swin_unetr:SwinUNETR",
    "nnformer": "nnunet_locctx.networks.nnformer:NNFormer",
    "unetr_pp": "nnunet_locctx.networks.unetr_pp:UNETRPP",
    "lightmedseg": "nnunet_locctx.networks.lightmedseg:LightMedSeg",
}


FORM = "form"
PUBLISHED = "published"


def network_class(name: str) -> type[WholeNetwork]:
    """The class of a whole network.

    Raises:
        ValueError: If there is no such network.
    """
    check_known([name], NETWORKS, "network")
    module, class_name = NETWORKS[name].split(":")
    network: type[WholeNetwork] = getattr(import_module(module), class_name)
    return network


def network_options(name: str) -> dict[str, Any]:
    """The options that a whole network takes, with their defaults."""
    return options_of(network_class(name))


def complete_network_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with the defaults of the network filled in: all that decides what it computes.

    Args:
        name: A key of :data:`NETWORKS`.
        options: The network's. Besides, ``form: published`` stands for what
            :meth:`~nnunet_locctx.networks.whole.WholeNetwork.published` fills in; options given beside it win.

    Raises:
        ValueError: If there is no such network or form, or it does not take one of the options.
    """
    defaults = network_options(name)
    if FORM in options:
        own = {option: value for option, value in options.items() if option != FORM}
        if options[FORM] != PUBLISHED:
            raise ValueError(f"form must be {PUBLISHED!r}, got {options[FORM]!r}")
        options = network_class(name).published(**own)
    check_options(options, defaults, f"network {name!r}")
    return {**defaults, **options}
