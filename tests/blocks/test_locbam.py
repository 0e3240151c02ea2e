from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nnunet_locctx.blocks import LocBAM
from tests.blocks.harness import BlockHarness, ramp, randomise

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "locbam.npz"

FAITHFUL_ONLY: list[tuple[dict[str, object], str]] = [
    ({"faithful": True, "encoding": "frequency"}, "encoding must be 'identity' or left out, got 'frequency'"),
    ({"faithful": True, "fusion": "sum"}, "fusion must be 'conv' or left out, got 'sum'"),
]


class TestLocBAM(BlockHarness):
    block = "locbam"
    wrong_options = [  # noqa: RUF012
        ({"reduction": 0}, "reduction must be an integer >= 1, got 0"),
        ({"min_channels": 2.5}, "min_channels must be an integer >= 1, got 2.5"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"layers": 4}, "layers must be 2 or 3, got 4"),
        ({"dropout": 1.0}, "dropout must be a number from 0 up to, .*got 1.0"),
        ({"norm": "instance"}, "norm must be one of none, layer, batch; got 'instance'"),
        ({"fusion": "mean"}, "fusion must be one of conv, sum, product; got 'mean'"),
        *FAITHFUL_ONLY,
    ]

    @pytest.mark.parametrize(("channels", "middle"), [(1, 32), (32, 32), (256, 64)])
    def test_has_no_narrow_middle(self, channels: int, middle: int) -> None:
        block = self.make(channels)
        assert isinstance(block, LocBAM)
        assert [gate.conv1.out_channels for gate in block.gates] == [middle] * 3

    def test_does_not_depend_on_which_channel_varies_along_which_axis(self) -> None:
        """A location turned by 90 degrees still tells every gate where it is: no coordinate is averaged
        away."""
        block, features, location = self.made_and_fed(6, (6, 6, 6))
        turned = location.transpose(2, 4)
        moved = turned.clone()
        moved[:, 0] += 0.2
        assert (block(features, moved) - block(features, turned)).abs().max() > 1e-3


class TestLocBAMSum(BlockHarness):
    block = "locbam"
    options = {"fusion": "sum", "layers": 3, "min_channels": 8}  # noqa: RUF012


class TestLocBAMConvolved(BlockHarness):
    block = "locbam"
    options = {"fusion": "conv", "norm": "layer", "layers": 2, "encoding": "identity", "dropout": 0.1}  # noqa: RUF012


class TestLocBAMFaithful(BlockHarness):
    block = "locbam"
    options = {"faithful": True}  # noqa: RUF012
    identity_at_start = False

    def test_reproduces_the_authors_output(self) -> None:
        fixture = {name: torch.from_numpy(array) for name, array in np.load(FIXTURE).items()}
        block = LocBAM(32, 3, faithful=True).eval()
        block.load_state_dict(authors_weights(fixture))
        output = block(fixture["features"], fixture["location"])
        torch.testing.assert_close(output, fixture["output"], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("axes", [(2, 1, 0), (1, 2, 0)])
    def test_takes_the_coordinate_that_varies_along_the_axis(self, axes: tuple[int, ...]) -> None:
        """Renaming the coordinates changes nothing: nnU-Net's array axes are not the patient's in order."""
        block, features, _ = self.made_and_fed(6, (5, 6, 7))
        location = ramp(2, (5, 6, 7), rotation=0.0)
        assert torch.equal(block(features, location[:, list(axes)]), block(features, location))

    def test_has_the_published_size(self) -> None:
        assert sum(parameter.numel() for parameter in LocBAM(32, 3, faithful=True).parameters()) == 3914

    def test_drops_channels_in_training_only(self) -> None:
        block, features, location = self.made_and_fed(6, (5, 6, 7))
        assert torch.equal(block(features, location), block(features, location))
        drop = [module for module in block.modules() if isinstance(module, torch.nn.Dropout1d)]
        assert [module.p for module in drop] == [0.1] * 3


def authors_weights(fixture: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fixture's weights under our names."""
    weights = {"fuse.weight": fixture["fuse_weight"], "fuse.bias": fixture["fuse_bias"]}
    ours = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for name, value in fixture.items():
        if name.startswith("axis"):
            axis, layer, what = name.removeprefix("axis").split("_")
            weights[f"gates.{axis}.{layer}.{ours[what]}"] = value
            if layer.startswith("norm"):
                weights[f"gates.{axis}.{layer}.num_batches_tracked"] = torch.tensor(0)
    return weights


def test_batch_norm_would_lose_the_position_of_a_patch() -> None:
    """Why the default has no batch norm: with one patch per batch it removes what is constant over the
    patch."""
    features, location = torch.randn(1, 6, 5, 6, 7), ramp(1, (5, 6, 7), rotation=0.0)
    moved = {}
    for norm in ("batch", "none"):
        block = randomise(LocBAM(6, 3, norm=norm, encoding="identity")).train()
        with torch.no_grad():  # the gate's first layer sees the profile and position; shift all of it
            moved[norm] = (block(features, location + 0.3) - block(features, location)).abs().max().item()
    assert moved["batch"] < 1e-4 < 1e-2 < moved["none"]
