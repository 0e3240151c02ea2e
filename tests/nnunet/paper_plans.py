"""Plans as nnU-Net makes them for the papers' datasets, roughly: voxel size, median size, normalisation, channels."""

from typing import Any

from tests.nnunet.small_plans import architecture, configuration, plans

SIX_STAGES = (32, 64, 128, 256, 320, 320)


def planned(spacing: list[float], median: list[float], scheme: str, channels: int = 1) -> dict[str, Any]:
    """Plans for scans of this voxel size in mm and size in voxels."""
    fullres = configuration(
        channels=channels,
        patch_size=[64, 64, 64],
        spacing=spacing,
        median_image_size_in_voxels=median,
        normalization_schemes=[scheme] * channels,
        architecture=architecture(3, features=SIX_STAGES),
    )
    made = plans({"3d_fullres": fullres})
    return {**made, "original_median_spacing_after_transp": spacing}


BTCV = planned([3.0, 0.7578125, 0.7578125], [148, 512, 512], "CTNormalization")
BRATS = planned([1.0, 1.0, 1.0], [140, 171, 137], "ZScoreNormalization", 4)
ACDC = planned([5.0, 1.5625, 1.5625], [18, 237, 208], "ZScoreNormalization")
HIPPOCAMPUS = planned([1.0, 1.0, 1.0], [36, 50, 35], "ZScoreNormalization")

DATA = {
    "gpe_synapse": BTCV,
    "lightmedseg_brats": BRATS,
    "lightmedseg_acdc": ACDC,
    "nnformer_acdc_published": ACDC,
    "nnformer_brats_published": BRATS,
    "unetrpp_acdc_published": ACDC,
}
"""Presets that are not LocBAM's -> what they were made for."""
