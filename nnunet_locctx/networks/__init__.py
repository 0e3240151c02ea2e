"""Networks that use a location."""

from nnunet_locctx.networks.located_unet import LocatedUNet

__all__ = ["LocatedUNet"]
