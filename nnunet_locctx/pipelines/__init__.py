"""Location for pipelines without nnU-Net: plain Python, MONAI (:mod:`~nnunet_locctx.pipelines.monai`) and TorchIO
(:mod:`~nnunet_locctx.pipelines.torchio`, which needs the extra ``torchio``).
"""
