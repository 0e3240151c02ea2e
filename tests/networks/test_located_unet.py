"""LocatedUNet against the planned network it is made from, on tiny plans."""

import copy
import pickle
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunet_locctx.blocks import BLOCKS, DEFAULTS, PLACES
from nnunet_locctx.networks import Fitting, LocatedUNet
from nnunet_locctx.places import LATE
from tests.blocks.harness import ramp, randomise

FEATURES = [4, 6, 8]
CLASSES = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "coordconv": {"bands": 2},
    "locbam": {"bands": 2},
    "gpe": {"bands": 2},
    "prior": {"bands": 2, "hidden": 4},
    "anchors": {"anchors": 3, "hidden": 4},
    "l2g": {"codes": 16, "references": 8},
}
SIZES = {2: (8, 12), 3: (4, 8, 8)}


def plan(
    architecture: type[nn.Module] = PlainConvUNet,
    rank: int = 3,
    channels: int = 1,
    deep_supervision: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A planned network of three stages, initialised as nnU-Net does."""
    torch.manual_seed(seed)
    blocks = {"n_blocks_per_stage": 1} if architecture is ResidualEncoderUNet else {"n_conv_per_stage": 2}
    network = architecture(
        input_channels=channels,
        n_stages=3,
        features_per_stage=FEATURES,
        conv_op=nn.Conv3d if rank == 3 else nn.Conv2d,
        kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3]] if rank == 3 else 3,
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]] if rank == 3 else [1, 2, 2],
        num_classes=CLASSES,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d if rank == 3 else nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
        **blocks,
    )
    network.apply(network.initialize)
    return network


def fit(
    planned: nn.Module, block: str = "prior", place: str = "logits", image_channels: int = 1, **options: Any
) -> LocatedUNet:
    size = SIZES[2 if planned.encoder.conv_op is nn.Conv2d else 3]
    return LocatedUNet(
        planned, image_channels, Fitting(block, place, {**OPTIONS[block], **options}), patch_size=size
    )


def feed(rank: int = 3, channels: int = 1, previous: int = 0) -> tuple[Tensor, Tensor]:
    """The input of a located network and of the planned one."""
    size = SIZES[rank]
    image, one_hot = torch.randn(2, channels, *size), torch.rand(2, previous, *size)
    return torch.cat([image, ramp(2, size), one_hot], dim=1), torch.cat([image, one_hot], dim=1)


def flat(output: Any) -> list[Tensor]:
    return output if isinstance(output, list) else [output]


BLOCKS_AND_PLACES = [
    *((block, DEFAULTS[block].place) for block in BLOCKS),
    *(("prior", place) for place in PLACES if place != DEFAULTS["prior"].place),
]
"""Every block, and every place: what a block does does not depend on where it stands."""


@pytest.mark.parametrize(("block", "place"), BLOCKS_AND_PLACES)
@pytest.mark.parametrize(("architecture", "rank"), [(PlainConvUNet, 2), (ResidualEncoderUNet, 3)])
def test_starts_as_the_planned_network(
    architecture: type[nn.Module], rank: int, block: str, place: str
) -> None:
    planned = plan(architecture, rank, channels=2 + 3, deep_supervision=True)
    reference = copy.deepcopy(planned)
    located = fit(planned, block, place, image_channels=2)
    x, without = feed(rank, channels=2, previous=3)
    outputs, expected = located(x), reference(without)
    assert [output.shape for output in outputs] == [output.shape for output in expected]
    for output, target in zip(outputs, expected, strict=True):
        assert torch.equal(output, target)


@pytest.mark.parametrize(("block", "place"), BLOCKS_AND_PLACES)
@pytest.mark.parametrize("rank", [2, 3])
def test_with_an_unknown_location_it_is_the_planned_network(rank: int, block: str, place: str) -> None:
    planned = plan(rank=rank, channels=3, deep_supervision=True)
    reference = copy.deepcopy(planned)
    located = fit(planned, block, place)
    randomise(located.location_blocks)
    x, without = feed(rank, previous=2)
    one_axis = x.clone()
    one_axis[:, 1] = torch.nan
    x[:, 1:4] = torch.nan
    for training in (True, False):
        outputs, expected = located.train(training)(x), reference.train(training)(without)
        assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))
        assert all(output.isfinite().all() for output in located(one_axis))
    torch.stack([(output**2).sum() for output in located.train()(x)]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in located.parameters())


class TestTwoAnswers:
    """Networks that also say what they say without location."""

    def both(self, supervised: bool = True) -> tuple[nn.Module, LocatedUNet]:
        """The planned network and a located one with blocks at all late places."""
        planned = plan(deep_supervision=supervised)
        fittings = [Fitting("prior", place, OPTIONS["prior"]) for place in LATE]
        located = LocatedUNet(copy.deepcopy(planned), 1, *fittings)
        located.answer_twice()
        randomise(located.location_blocks)
        return planned, located

    def test_the_second_answer_goes_without_what_is_lost(self) -> None:
        planned, located = self.both()
        once = LocatedUNet(copy.deepcopy(planned), 1, *located.fittings)
        once.load_state_dict(located.state_dict())
        x, image = feed()
        for lost in ((True, True, True), (False, True, False), (True, False, True)):
            located.lose(lost)
            without = x.clone()
            without[:, 1:4][:, list(lost)] = torch.nan
            expected = planned(image) if all(lost) else once(without)
            for output, target in zip(located(x), [*once(x), *expected], strict=True):
                torch.testing.assert_close(output, target)

    def test_by_default_all_axes_are_lost(self) -> None:
        planned, located = self.both()
        x, image = feed()
        for output, target in zip(located(x)[2:], planned(image), strict=True):
            torch.testing.assert_close(output, target)

    def test_without_deep_supervision_there_are_two(self) -> None:
        planned, located = self.both(supervised=False)
        x, image = feed()
        first, second = located(x)
        torch.testing.assert_close(second, planned(image))
        assert (first - second).abs().max() > 1e-3

    def test_there_is_one_in_evaluation(self) -> None:
        _, located = self.both(supervised=False)
        x, _ = feed()
        assert located.eval()(x).shape == (2, CLASSES, *SIZES[3])

    def test_both_teach_all_parameters_and_nothing_is_stored(self) -> None:
        planned, located = self.both()
        located.lose([False, True, False])
        x, _ = feed()
        for half in (slice(0, 2), slice(2, 4)):
            located.zero_grad(set_to_none=True)
            torch.stack([(output**2).sum() for output in located(x)[half]]).sum().backward()
            assert all(parameter.grad is not None for parameter in located.parameters())
        blocks = {key for key in located.state_dict() if key.startswith("location_blocks.")}
        assert set(located.state_dict()) == {*planned.state_dict(), *blocks}

    def test_two_networks_are_compiled_for_all_axes_and_for_some(self) -> None:
        _, located = self.both()
        x, _ = feed()
        torch._dynamo.reset()
        compiled = torch.compile(located, fullgraph=True, backend="eager")
        for lost in ((True, True, True), (False, True, False)):
            located.lose(lost)
            compiled(x)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for lost in ((True, True, True), (False, False, True), (True, True, False)):
                located.lose(lost)
                for output, expected in zip(compiled(x), located(x), strict=True):
                    torch.testing.assert_close(output, expected)

    @pytest.mark.parametrize("place", [place for place in PLACES if place not in LATE])
    def test_needs_late_places(self, place: str) -> None:
        with pytest.raises(ValueError, match=f"places among decoder_last, logits, got {place}"):
            fit(plan(), "prior", place).answer_twice()


def test_a_location_with_unknown_axes_can_be_exported() -> None:
    located = fit(plan(), "prior", "decoder").eval()
    randomise(located.location_blocks)
    x, _ = feed()
    exported = torch.export.export(located, (x,)).module()
    x[1, 2] = torch.nan
    torch.testing.assert_close(exported(x), located(x))


@pytest.mark.parametrize(("block", "place"), BLOCKS_AND_PLACES)
def test_every_parameter_of_a_block_counts(block: str, place: str) -> None:
    located = fit(plan(deep_supervision=True), block, place).train()
    randomise(located.location_blocks)
    x, _ = feed()
    torch.stack([(output**2).sum() for output in located(x)]).sum().backward()
    without = [
        name
        for name, parameter in located.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    # a bias before instance norm has no effect, in the planned network as well
    assert [name for name in without if name.startswith("location_blocks.")] == []
    moved = x.clone()
    moved[:, 1:4] += 0.2
    assert (located.eval()(moved)[0] - located(x)[0]).abs().max() > 1e-5


@pytest.mark.parametrize(("block", "place"), BLOCKS_AND_PLACES)
def test_planned_weights_go_both_ways(block: str, place: str) -> None:
    architecture = ResidualEncoderUNet
    one, other = plan(architecture, seed=1), plan(architecture, seed=2)
    located = fit(copy.deepcopy(one), block, place)
    own = {key for key in located.state_dict() if key.startswith("location_blocks.")}
    assert own
    shared = {key: value for key, value in located.state_dict().items() if key not in own}
    assert shared.keys() == one.state_dict().keys()
    other.load_state_dict(shared)  # located -> planned
    x, without = feed()
    assert torch.equal(other(without), one(without))
    located = fit(plan(architecture, seed=3), block, place)
    missing, unexpected = located.load_state_dict(one.state_dict(), strict=False)  # planned -> located
    assert (set(missing), unexpected) == (own, [])
    assert torch.equal(located(x), one(without))


@pytest.mark.parametrize(("block", "place"), BLOCKS_AND_PLACES)
def test_same_seed_same_planned_weights_and_random_state(block: str, place: str) -> None:
    planned = plan()
    state = torch.get_rng_state()
    located = fit(planned, block, place)
    assert torch.equal(torch.get_rng_state(), state)
    again = plan()
    for key, value in again.state_dict().items():
        assert torch.equal(located.state_dict()[key], value)


@pytest.mark.parametrize("place", PLACES)
def test_deep_supervision_can_be_switched(place: str) -> None:
    located = fit(plan(deep_supervision=True), "prior", place).eval()
    randomise(located.location_blocks)
    x, _ = feed()
    several = located(x)
    assert [tuple(output.shape[1:]) for output in several] == [(CLASSES, 4, 8, 8), (CLASSES, 4, 4, 4)]
    located.decoder.deep_supervision = False
    assert torch.equal(located(x), several[0])


def test_number_of_blocks_per_place() -> None:
    channels = {
        "input": [1],
        "encoder_first": [4],
        "encoder": [4, 6, 8],
        "encoder_deep": [4],
        "bottleneck": [8],
        "decoder": [6, 4],
        "decoder_inner": [6],
        "decoder_last": [4],
        "stages": [4, 6, 8, 6, 4],
        "logits": [3],
    }
    assert {
        place: [block.channels for block in fit(plan(), "prior", place).location_blocks] for place in PLACES
    } == channels


@pytest.mark.parametrize("block", ["coordconv", "prior"])
def test_the_stage_sees_its_own_token_centres(block: str) -> None:
    located = fit(plan(), block, "encoder").eval()
    seen: list[Tensor] = []
    for one in located.location_blocks:
        one.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    x, _ = feed()
    located(x)
    location = x[:, 1:4]
    halved = location.view(2, 3, 4, 4, 2, 4, 2).mean(dim=(4, 6))
    quartered = location.view(2, 3, 2, 2, 2, 4, 2, 4).mean(dim=(3, 5, 7))
    for one, expected in zip(seen, [location, halved, quartered], strict=True):
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize(
    ("block", "place"), [("coordconv", "input"), ("prior", "logits"), ("locbam", "encoder_first")]
)
def test_padding_is_continued_in_evaluation_only(block: str, place: str) -> None:
    """Zeros around a small volume would claim to be its centre."""
    located = fit(plan(), block, place)
    randomise(located.location_blocks)
    x, _ = feed()
    x[:, 1:4] = ramp(2, SIZES[3], rotation=0.0)
    padded = x.clone()
    padded[..., :2] = 0
    continued = padded.clone()
    continued[:, 1:4] = x[:, 1:4]
    located.eval()
    torch.testing.assert_close(located(padded), located(continued))
    located.train()
    assert (located(padded) - located(continued)).abs().max() > 1e-4


@pytest.mark.parametrize(("block", "place"), BLOCKS_AND_PLACES)
def test_pickles_and_copies(block: str, place: str) -> None:
    located = fit(plan(), block, place).eval()
    randomise(located.location_blocks)
    x, _ = feed()
    for twin in (copy.deepcopy(located), pickle.loads(pickle.dumps(located))):
        assert torch.equal(twin(x), located(x))


@pytest.mark.parametrize(
    ("block", "place"),
    [("coordconv", "input"), ("coordconv", "encoder"), ("locbam", "decoder"), ("prior", "logits")],
)
def test_compiles_without_a_graph_break(block: str, place: str) -> None:
    training = place != "input"
    located = fit(plan(deep_supervision=True), block, place).train(training)
    randomise(located.location_blocks)
    x, _ = feed()
    torch._dynamo.reset()
    compiled = torch.compile(located, fullgraph=True, backend="eager")
    for output, expected in zip(compiled(x), located(x), strict=True):
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_autocast(block: str) -> None:
    located = fit(plan(), block, "decoder").eval()
    randomise(located.location_blocks)
    x, _ = feed()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = located(x)
    share = 0.98 if block == "l2g" else 1.0  # a few voxels get another code where rounding tips the balance
    error = (output.float() - located(x)).abs().flatten().quantile(share)
    assert error < 0.1 * located(x).abs().max()


def test_refuses_other_architectures() -> None:
    with pytest.raises(TypeError, match="fitted to a PlainConvUNet or ResidualEncoderUNet, got a Sequential"):
        LocatedUNet(nn.Sequential(), 1, Fitting("prior", "logits"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "prior", "logits"), "image_channels must be 1 to 1, .*got 0"),
        ((2, "prior", "logits"), "image_channels must be 1 to 1, .*got 2"),
        ((1, "film", "logits"), "unknown block 'film'; there are coordconv, .*prior"),
        ((1, "prior", "head"), "unknown place 'head'; there are input"),
    ],
)
def test_refuses_wrong_arguments(arguments: tuple[int, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocatedUNet(plan(), arguments[0], Fitting(*arguments[1:]))


def test_refuses_unknown_options() -> None:
    with pytest.raises(ValueError, match="block 'prior' does not take reduction; allowed: encoding, bands"):
        LocatedUNet(plan(), 1, Fitting("prior", "logits", {"reduction": 4}))


@pytest.mark.parametrize(
    ("channels", "shape", "message"),
    [
        (
            1,
            (1, 1, 4, 8, 8),
            r"must have 4 channels \(1 image \+ 3 location\) and 3 spatial axes, got shape \(1, 1, 4, 8, 8\)",
        ),
        (1, (1, 4, 8, 8), r"3 spatial axes, got shape \(1, 4, 8, 8\)"),
        (
            3,
            (1, 4, 4, 8, 8),
            r"must have 6 channels \(1 image \+ 3 location \+ 2 previous stage\).*got shape \(1, 4, 4, 8, 8\)",
        ),
    ],
)
def test_says_which_input_it_wants(channels: int, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(plan(channels=channels))(torch.zeros(shape))
