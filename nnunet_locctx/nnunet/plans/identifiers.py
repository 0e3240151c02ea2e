"""Which configurations of the plans share preprocessed data."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from nnunet_locctx.nnunet.plans.plans_file import Plans

DECISIVE = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
"""Keys of a configuration that nnU-Net's preprocessing uses; the plans hold the statistics of the intensities."""


def data_identifier(plans: Plans, name: str, new: Mapping[str, Any]) -> str:
    """The name of the folder with a configuration's preprocessed data.

    That of a configuration in the same plans that is preprocessed alike; else a new one, made of the plans' name and
    the voxel size, which no configuration that is preprocessed otherwise has.

    Args:
        plans: The plans that the configuration is added to.
        name: The configuration's name.
        new: The configuration with its new spacing, inheritance resolved; its ``data_identifier`` is not read.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(deepcopy(plans))
    taken: set[str] = set()
    for existing in plans["configurations"]:
        try:
            configuration = manager.get_configuration(existing).configuration
        except (RuntimeError, ValueError, KeyError):  # broken inheritance of another configuration
            continue
        identifier = str(configuration.get("data_identifier", ""))
        if all(configuration.get(key) == new.get(key) for key in DECISIVE):
            return identifier
        if existing != name:
            taken.add(identifier)
    size = "x".join(f"{length:.10g}" for length in new["spacing"])
    identifier = f"{plans['plans_name']}_{size}mm"
    return identifier if identifier not in taken else f"{identifier}_{name}"
