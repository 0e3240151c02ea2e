"""Options that make each whole network small enough for tests; every one takes patches of 32 voxels a side."""

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "unetr": {"feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2},
    "swin_unetr": {
        "feature_size": 12,
        "depths": [2, 1, 1, 1],  # two, for one with shifted windows
        "num_heads": [1, 2, 2, 4],
        "window_size": 3,
        "mlp_ratio": 1.0,
    },
    "nnformer": {
        "embed_dim": 8,
        "depths": [2, 1, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": [3, 2, 2, 2],
        "mlp_ratio": 1.0,
        "dropout_path_rate": 0.02,  # a block dropped for both samples has no gradient
    },
    "unetr_pp": {
        "feature_size": 4,
        "dims": [8, 8, 12, 16],
        "depths": [1, 1, 1, 1],
        "decoder_depths": [1, 1, 1],
        "num_heads": 2,
        "projections": [6, 5, 4, 3],
        "decoder_projections": [4, 5, 6],
    },
    "lightmedseg": {},
}
