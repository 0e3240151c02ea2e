"""The published forms against numbers from their authors' code, and what each of their options has a share in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nnunet_locctx.networks import Fitting, LocatedUNet
from nnunet_locctx.networks.registry import complete_network_options, network_class
from nnunet_locctx.networks.window_attention import relative_positions
from nnunet_locctx.nnunet.training.trainers import TRAINERS
from tests.networks.monai_cases import parameters
from tests.networks.published_cases import BOXES, CASES, location, sampled
from tests.networks.test_located_unet import plan

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "published_networks.npz"


def theirs(case: str) -> dict[str, Tensor]:
    with np.load(FIXTURE) as fixture:
        return {
            key.removeprefix(f"{case}."): torch.from_numpy(fixture[key])
            for key in fixture.files
            if key.rsplit(".", 1)[0] == case
        }


def furthest(case: str, **other: Any) -> float:
    """Largest distance of an output from the authors', relative by norm."""
    network, expected = CASES[case].make(**other), theirs(case)
    with torch.no_grad():
        outputs = sampled(network(CASES[case].feed(network)))
    assert set(outputs) == set(expected)
    assert all(outputs[key].shape == expected[key].shape for key in outputs)
    return max(float((outputs[key] - expected[key]).norm() / expected[key].norm()) for key in outputs)


@pytest.mark.parametrize("case", CASES)
def test_the_published_form_gives_the_authors_numbers(case: str) -> None:
    assert furthest(case) < 1e-5


@pytest.mark.parametrize(
    ("case", "option"),
    [
        ("unetr_pp", {"scrambled_tokens": False}),
        ("unetr_pp_frequency", {"gate": False}),
        ("unetr_pp_frequency", {"scrambled_tokens": True}),
        ("unetr_pp_frequency", {"replace_positions": False}),
        ("unetr_pp_frequency", {"band_limit": True}),
        ("unetr_pp_frequency", {"sampling": "centres"}),
        ("unetr_pp_hash", {"attention_prelu": False}),
        ("unetr_pp_hash", {"sampling": "centres"}),
        ("unetr_pp_hash", {"hash": {"levels": 3, "log2_entries": 8, "base_resolution": 4}}),  # gain 30
        ("unetr_pp_hash", {"shared_table": True}),
        ("unetr_pp_hash", {"gpe_places": "all"}),
        ("p_network", {"gpe_places": "tokens"}),
        ("nnformer_filled_up", {"published_windows": False}),
        ("nnformer_acdc", {"published_windows": False}),
        ("nnformer_brats", {"decoder_num_heads": None}),
        ("nnformer_frequency", {"sampling": "centres"}),
        ("unetr_frequency", {"conv_block": True}),
        ("unetr_hash", {"shared_table": True}),
        ("swin_unetr", {"duplicate_neighbours": False}),
    ],
)
def test_each_of_its_options_has_a_share(case: str, option: dict[str, Any]) -> None:
    assert furthest(case, **option) > 1e-4


SYNAPSE = (64, 128, 128)


@pytest.mark.parametrize(
    ("network", "options", "size", "count"),
    [
        ("unetr_pp", TRAINERS["PNetworkTrainer"].network_options, SYNAPSE, 59_015_031),  # type: ignore[union-attr]
        ("unetr_pp", {}, SYNAPSE, 42_952_850),
        ("unetr_pp", {"encoding": "frequency"}, SYNAPSE, 42_608_786),
        # published: 50.60 M, with a table and a projection at full resolution that nothing reads
        ("unetr_pp", {"encoding": "hash"}, SYNAPSE, 50_603_399 - 953_344 - 32 * 16 - 32),
        ("nnformer", {"encoding": "frequency"}, SYNAPSE, 150_324_546),
    ],
)
def test_published_parameter_counts(
    network: str, options: dict[str, Any], size: tuple[int, ...], count: int
) -> None:
    complete = complete_network_options(network, {"form": "published", **options})
    with torch.device("meta"):
        made = network_class(network)(1, 14, size, deep_supervision=True, **complete)
    assert parameters(made) == count


def test_options_given_beside_the_form_win() -> None:
    complete = complete_network_options(
        "unetr_pp", {"encoding": "hash", "form": "published", "zero_init": True, "hash": {"levels": 4}}
    )
    assert complete["zero_init"] is True
    assert complete["hash"] == {"gain": 1.0, "levels": 4}
    assert (complete["band_limit"], complete["shared_table"]) == (False, False)
    assert "form" not in complete


@pytest.mark.parametrize(
    ("network", "form", "message"),
    [
        ("unetr", "paper", "form must be 'published', got 'paper'"),
        ("lightmedseg", "published", "LightMedSeg has no form 'published'"),
    ],
)
def test_no_such_form(network: str, form: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        complete_network_options(network, {"form": form})


def test_published_biases_that_run_out_are_refused() -> None:
    assert relative_positions((3, 4, 5), published=True).max() < 5 * 7 * 9
    with pytest.raises(ValueError, match=r"windows of \[1, 10, 1\] tokens cannot have the published bias"):
        relative_positions((1, 10, 1), published=True)


def authors_grid(size: tuple[int, ...]) -> Tensor:
    """Evenly from border to border of the boxes, both included, 0 to 1 over the volume."""
    grids = []
    for box in BOXES:
        axes = [torch.linspace(low, high, n) for low, high, n in zip(box[::2], box[1::2], size, strict=True)]
        grids.append(torch.stack(torch.meshgrid(*axes, indexing="ij")))
    return torch.stack(grids)


@pytest.mark.parametrize("encoding", ["frequency", "hash"])
def test_in_a_planned_network_the_block_samples_as_published(encoding: str) -> None:
    """Every stage gets the first voxel of each of its tokens, and its own table."""
    size, table = (
        (8, 16, 16),
        {"hash": {"levels": 2, "log2_entries": 8, "gain": 1}} if encoding == "hash" else {},
    )
    options = {"encoding": encoding, "band_limit": False, "sampling": "published", "shared_table": False}
    network = LocatedUNet(
        plan(), 1, Fitting("gpe", "stages", {**options, "zero_init": False, **table})
    ).eval()
    seen: list[Tensor] = []
    for block in network.location_blocks:
        encode: Any = block.encoding
        encode.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    network(torch.cat([torch.randn(2, 1, *size), location(size)], dim=1))
    assert len({id(block.encoding) for block in network.location_blocks}) == len(network.location_blocks)
    assert len(seen) == len(network.location_blocks)
    expected = authors_grid(size) - (0.5 if encoding == "hash" else 0.0)
    for one in seen:
        stride = [n // m for n, m in zip(size, one.shape[2:], strict=True)]
        first = expected[:, :, :: stride[0], :: stride[1], :: stride[2]]
        torch.testing.assert_close(one, first, atol=1e-6, rtol=0)


def test_published_sampling_goes_without_stride() -> None:
    with pytest.raises(ValueError, match="sampling 'published' goes with stride 1, got stride 2"):
        LocatedUNet(plan(), 1, Fitting("gpe", "stages", {"sampling": "published", "stride": 2}))
    with pytest.raises(ValueError, match=r"sampling must be one of centres, published; got 'middle'"):
        LocatedUNet(plan(), 1, Fitting("gpe", "stages", {"sampling": "middle"}))


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        (
            {"strides": [[2, 2, 2]]},
            SYNAPSE,
            r"strides must be 3 times 3 of 1, 2, one for each axis; got \[\[2, 2, 2\]\]",
        ),
        (
            {"strides": [[1, 2, 2]] * 3, "stem": [1, 4, 4]},
            (14, 16, 64),
            r"at least \[1, 32, 32\] voxels are needed",
        ),
        (
            {"window_size": [[3, 5], 4, 4, 4]},
            SYNAPSE,
            r"a window_size must be a number or 3, .*; got \[3, 5\]",
        ),
        ({"window_size": [0, 4, 4, 4]}, SYNAPSE, "each of window_size must be an integer >= 1, got 0"),
        ({"decoder_num_heads": [1, 1]}, SYNAPSE, r"decoder_num_heads must be 3 numbers.*got \[1, 1\]"),
        ({"decoder_num_heads": [5, 2, 1]}, SYNAPSE, r"divide the stages' channels, .*and \[5, 2, 1\]"),
    ],
)
def test_nnformers_options_are_checked(options: dict[str, Any], size: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_class("nnformer")(1, 3, size, **options)


def test_nnformer_without_supervision_has_one_head() -> None:
    case = CASES["nnformer_brats"]
    network = case.make()
    assert len(network.heads) == 1  # type: ignore[arg-type] # a ModuleList
    assert network.supervision_weights == (1.0,)
    strides = network_class("nnformer").supervision_strides(3, supervision=False)
    assert strides == ((1, 1, 1),)
    network.train()
    output = network(case.feed(network))
    assert len(output) == 1
    output[0].square().mean().backward()
    assert all(isinstance(one, nn.Parameter) and one.grad is not None for one in network.parameters())
