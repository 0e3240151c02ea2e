"""Datasets in nnU-Net's raw format: the phantom and, later, conversions of public ones."""

from nnunet_locctx.datasets.phantom import make_phantom

__all__ = ["make_phantom"]
