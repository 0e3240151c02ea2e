"""A fit's checkpoint is replaced as a whole."""

from pathlib import Path

import pytest
import torch

from nnunet_locctx.regression.checkpoint import load_checkpoint, save_checkpoint
from tests.broken_files import full_disk


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    file = tmp_path / "fit" / "checkpoint.pt"
    save_checkpoint(file, {"seed": 1}, {"step": 3, "weights": torch.ones(9)})
    with full_disk(5000), pytest.raises(OSError, match=f"File too large: '{file}'"):
        save_checkpoint(file, {"seed": 1}, {"step": 4, "weights": torch.ones(9999)})
    stored = load_checkpoint(file, {"seed": 1})
    assert stored is not None
    assert stored["step"] == 3
    assert list(file.parent.iterdir()) == [file]
