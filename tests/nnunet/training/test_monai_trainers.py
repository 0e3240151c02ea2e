"""Trainers of MONAI's networks build them from plans, the located twins with the same weights."""

from typing import Any

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_locctx.networks.whole import WholeNetwork
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from tests.networks.monai_cases import HASH
from tests.nnunet.small_plans import configuration, plans

SMALL: dict[str, dict[str, Any]] = {
    "UNETR": {"feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2},
    "SwinUNETR": {"feature_size": 12, "depths": [1] * 4, "num_heads": [1, 2, 2, 4], "window_size": 3},
}
SIZE = (64, 32)


def build(name: str, network: dict[str, Any], size: tuple[int, ...] = SIZE) -> WholeNetwork:
    """With two images and three channels of a previous stage."""
    made = configuration(len(size), channels=2, patch_size=list(size), network=network)
    manager = PlansManager(plans({"c": made}))
    torch.manual_seed(0)
    found = TRAINERS[name].build_network_architecture(manager, manager.get_configuration("c"), 2 + 3, 4)
    assert isinstance(found, WholeNetwork)
    return found.eval()


@pytest.mark.parametrize("name", SMALL)
def test_twins_start_as_the_network_without_location(name: str) -> None:
    x = torch.randn(1, 2 + 3 + 3, *SIZE)
    expected = build(f"{name}Trainer", SMALL[name])(torch.cat([x[:, :2], x[:, 5:]], dim=1))
    assert expected.shape == (1, 4, *SIZE)
    for prefix, options in (("GPE", {}), ("GPEHash", {"hash": HASH["hash"]})):
        located = build(f"{prefix}{name}Trainer", {**SMALL[name], **options})
        torch.testing.assert_close(located(x), expected)
        assert len(list(located.positions.parameters())) > 0


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("UNETRTrainer", (20, 40, 40), "[16, 32, 32] or [32, 48, 48]"),
        ("SwinUNETRTrainer", (40, 80, 80), "[32, 64, 64] or [64, 96, 96]"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(name: str, size: tuple[int, ...], nearest: str) -> None:
    with pytest.raises(ValueError, match="nearest allowed:") as error:
        build(name, {}, size)
    assert str(error.value).endswith(f"nearest allowed: {nearest}")
