"""The kinds of fitted models, and the reading of a stored one."""

import io

import torch

from nnunet_locctx.regression.anatomical import AnatomicalRegressor
from nnunet_locctx.regression.body import BodyFinder
from nnunet_locctx.regression.body_part import BodyPartRegressor
from nnunet_locctx.regression.regressor import VERSION, Regressor

REGRESSORS: dict[str, type[Regressor]] = {
    regressor.kind: regressor for regressor in (AnatomicalRegressor, BodyFinder, BodyPartRegressor)
}
"""Location source -> class of its regressor."""


def load_regressor(data: bytes) -> Regressor:
    """The inverse of :meth:`Regressor.to_bytes`.

    Raises:
        ValueError: `data` is no regressor, is damaged, or has another version.
    """
    try:
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        kind, version, state = stored["kind"], stored["version"], stored["state"]
    except Exception as error:  # zip, pickle and lookup errors
        raise ValueError("not a fitted regressor, or damaged") from error
    if version != VERSION or kind not in REGRESSORS:
        raise ValueError(
            f"the regressor is of kind {kind!r}, version {version!r}; this package reads "
            f"{', '.join(sorted(REGRESSORS))}, version {VERSION}. Fit it again with `locctx fit`."
        )
    try:
        return REGRESSORS[kind].from_state(state)
    except (KeyError, TypeError, RuntimeError) as error:  # unknown options or network
        raise ValueError(
            f"the regressor does not fit this version ({error}). Fit it again with `locctx fit`."
        ) from error
