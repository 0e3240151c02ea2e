"""Anatomical positional embeddings: a network, fitted without labels, gives each place in the body three
coordinates."""

from nnunet_locctx.regression.anatomical.fit import fit_anatomical
from nnunet_locctx.regression.anatomical.options import AnatomicalOptions
from nnunet_locctx.regression.anatomical.regressor import AnatomicalRegressor

__all__ = ["AnatomicalOptions", "AnatomicalRegressor", "fit_anatomical"]
