"""Phantoms in nnU-Net's raw format: two kinds of scans whose organs differ only in their place."""

from nnunet_locctx.phantoms.twin_organs import make_phantom
from nnunet_locctx.phantoms.whole_body import make_whole_body

__all__ = ["make_phantom", "make_whole_body"]
