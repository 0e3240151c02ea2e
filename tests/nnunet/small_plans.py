"""Plans as nnU-Net writes them, small enough to read."""

import copy
from typing import Any

CONV = {
    2: ("torch.nn.modules.conv.Conv2d", "torch.nn.modules.instancenorm.InstanceNorm2d"),
    3: ("torch.nn.modules.conv.Conv3d", "torch.nn.modules.instancenorm.InstanceNorm3d"),
}
RESAMPLING = "resample_data_or_seg_to_shape"


def architecture(rank: int, residual: bool = False, features: tuple[int, ...] = (4, 6, 8)) -> dict[str, Any]:
    """A planned U-Net of three stages."""
    conv, norm = CONV[rank]
    stages = len(features)
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": conv,
            "kernel_sizes": [[3] * rank] * stages,
            "strides": [[1] * rank] + [[2] * rank] * (stages - 1),
            blocks: [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": norm,
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(rank: int = 3, channels: int = 1, **changes: Any) -> dict[str, Any]:
    """One configuration; `changes` replace its keys."""
    order = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    made = {
        "data_identifier": f"nnUNetPlans_{rank}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8] * rank,
        "median_image_size_in_voxels": [20.0] * rank,
        "spacing": [2.0] * rank,
        "normalization_schemes": ["NoNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": RESAMPLING,
        "resampling_fn_seg": RESAMPLING,
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_data_kwargs": order,
        "resampling_fn_seg_kwargs": order | {"is_seg": True},
        "resampling_fn_probabilities_kwargs": order,
        "architecture": architecture(rank),
        "batch_dice": False,
    }
    return copy.deepcopy({**made, **changes})


def plans(configurations: dict[str, Any], transpose: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """A plans file with these configurations."""
    return {
        "dataset_name": "Dataset001_Test",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.0] * 3,
        "original_median_shape_after_transp": [20] * 3,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): {} for c in range(4)},
        "configurations": configurations,
        "continue_training": False,
    }
