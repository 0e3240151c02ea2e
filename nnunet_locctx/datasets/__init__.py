"""Datasets in nnU-Net's raw format: two phantoms of organs that only their place tells apart."""

from nnunet_locctx.datasets.phantom import make_phantom
from nnunet_locctx.datasets.whole_body import make_whole_body

__all__ = ["make_phantom", "make_whole_body"]
