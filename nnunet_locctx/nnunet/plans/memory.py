"""GPU memory of a planned U-Net's training, by nnU-Net's own planning rule."""

from collections.abc import Mapping
from typing import Any

import torch

from nnunet_locctx.networks.located_unet import ARCHITECTURES

REFERENCE_VOXELS = {2: 85_000_000, 3: 560_000_000}
REFERENCE_BATCH = {2: 12, 3: 2}
REFERENCE_GB = 8.0
"""nnU-Net 2.8's planner (``ExperimentPlanner.__init__``) takes a batch of 2 patches (2D: 12) with this many feature map
voxels each to need 8 GB."""


def expected_memory(configuration: Mapping[str, Any], classes: int = 2) -> float | None:
    """GB of GPU memory that training a configuration's planned U-Net needs.

    As nnU-Net plans: in proportion to the voxels of all feature maps. nnU-Net's authors measured 7.7 GB for
    configurations planned to 8 GB (documentation/resenc_presets.md of nnU-Net).

    Args:
        configuration: Inheritance resolved.
        classes: Output channels, background included.

    Returns:
        None for another network than nnU-Net's planned U-Nets, of which nothing is known.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = configuration["architecture"]
    if architecture["network_class_name"].rsplit(".", 1)[-1] not in {
        known.__name__ for known in ARCHITECTURES
    }:
        return None
    with torch.device("meta"):  # shapes alone are needed, no weights
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            len(configuration["normalization_schemes"]),
            classes,
            allow_init=False,
        )
    patch = configuration["patch_size"]
    voxels = int(network.compute_conv_feature_map_size(patch))
    share = voxels / REFERENCE_VOXELS[len(patch)] * configuration["batch_size"] / REFERENCE_BATCH[len(patch)]
    return float(REFERENCE_GB * share)
