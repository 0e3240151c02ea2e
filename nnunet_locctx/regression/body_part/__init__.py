"""Body part regression: a score for the level of the body at which an axial slice lies."""

from nnunet_locctx.regression.body_part.curve import make_curve
from nnunet_locctx.regression.body_part.fit import fit_body_part
from nnunet_locctx.regression.body_part.options import BodyPartOptions
from nnunet_locctx.regression.body_part.regressor import BodyPartRegressor, anchored_scale

__all__ = ["BodyPartOptions", "BodyPartRegressor", "anchored_scale", "fit_body_part", "make_curve"]
