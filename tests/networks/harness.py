"""What every whole network must hold, once: a network's test class inherits `WholeNetworkHarness`."""

import copy
import json
import pickle
import re
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from nnunet_locctx.blocks import GlobalEncoding
from nnunet_locctx.networks.registry import complete_network_options, network_class
from nnunet_locctx.networks.whole import WholeNetwork
from tests.blocks.harness import ramp

CLASSES = 3
Size = tuple[int, ...]


def stir(network: nn.Module, amount: float = 0.1) -> nn.Module:
    """Moves every parameter off its start, where zeros hide gradients and the location; deep networks bear less of
    this than a block does."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return network


def feed(size: Size, located: bool, channels: int = 1, previous: int = 0, batch: int = 2) -> Tensor:
    """Input of a network: [image | location | previous stage]."""
    image, one_hot = torch.randn(batch, channels, *size), torch.rand(batch, previous, *size)
    return torch.cat([image, *([ramp(batch, size)] if located else []), one_hot], dim=1)


def forgetful(x: Tensor) -> Tensor:
    """The input, the second sample's place along R not known."""
    x = x.clone()
    x[1, 1] = torch.nan
    return x


def _pairs(firsts: list[Any], variants: list[str]) -> list[tuple[Any, str]]:
    """The first of `firsts` with every variant, the others with the first variant."""
    return [(firsts[0], variant) for variant in variants] + [(first, variants[0]) for first in firsts[1:]]


def flat(output: Any) -> list[Tensor]:
    return output if isinstance(output, list) else [output]


class WholeNetworkHarness:
    """Subclasses set `name`, `options`, `patches` and `located`, and the others where they differ.

    A test that takes `rank` runs for every rank of `patches`; `variant` stands for "plain" (if `plain`) and each key
    of `located`; `with_location` for the keys of `located` only. Of a pair of these every variant meets the quicker
    rank, and the first the others too.
    """

    name: ClassVar[str]
    """Key of the registry."""
    options: ClassVar[dict[str, Any]]
    """What makes the network small; without location where `plain` holds."""
    patches: ClassVar[dict[int, list[Size]]]
    """Allowed patch sizes per rank, the first for most tests; a rank left out is one the network must refuse."""
    located: ClassVar[dict[str, dict[str, Any]]]
    """Options on top that bring location in, by a name for the variant."""
    plain: ClassVar[bool] = True
    """Whether there is a form without location."""
    differ: ClassVar[tuple[str, ...]] = ()
    """Located variants that do not start as the plain network."""
    without_effect: ClassVar[str] = r"(?!)"
    """Pattern of parameters whose gradient may be zero, such as a bias before a normalisation."""
    twin: ClassVar[dict[str, Any]] = {}
    """Options on top that make the twin without location of a located variant."""
    traced_slowly: ClassVar[bool] = False
    """Whether torch.compile takes longer than a test may that is not slow."""
    autocast_error: ClassVar[float] = 0.05
    """Allowed under bfloat16: norm of the difference over norm of the output."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        located, quick = list(self.located), min(self.patches)
        variants = [*located, *(["plain"] if self.plain else [])]
        ranks = [quick, *(rank for rank in self.patches if rank != quick)]
        sizes = [(rank, size) for rank in ranks for size in self.patches[rank]]
        values: dict[tuple[str, ...], list[Any]] = {
            ("rank",): ranks,
            ("variant",): variants,
            ("with_location",): located,
            ("size", "variant"): _pairs([size for _, size in sizes], variants),
            ("rank", "variant"): _pairs(ranks, variants),
            ("rank", "with_location"): _pairs(ranks, located),
            ("compiled_rank",): [
                pytest.param(rank, marks=pytest.mark.slow if rank != quick or self.traced_slowly else ())
                for rank in ranks
            ],
        }
        taken = tuple(sorted({name for names in values for name in names} & set(metafunc.fixturenames)))
        if taken:
            metafunc.parametrize(",".join(taken), values[taken])

    def given(self, variant: str) -> dict[str, Any]:
        return {**self.options, **self.located.get(variant, {})}

    def make(
        self,
        variant: str,
        size: Size,
        channels: int = 1,
        previous: int = 0,
        deep_supervision: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> WholeNetwork:
        torch.manual_seed(seed)
        return network_class(self.name)(
            channels, CLASSES, size, previous, deep_supervision, **{**self.given(variant), **options}
        )

    def made_and_fed(self, variant: str, rank: int = 0, **arguments: Any) -> tuple[WholeNetwork, Tensor]:
        """A network in the middle of training, in evaluation mode, and its input; without `rank` the quicker 2D form,
        if there is one."""
        size = self.patches[rank or min(self.patches)][0]
        network = self.make(variant, size, **arguments)
        stir(network).eval()
        return network, feed(size, network.located)

    def strides(self, variant: str, rank: int) -> tuple[Size, ...]:
        options = complete_network_options(self.name, self.given(variant))
        return network_class(self.name).supervision_strides(rank, **options)

    def test_logits_for_every_allowed_patch(self, variant: str, size: Size) -> None:
        network = self.make(variant, size).train()
        assert network.located == (variant != "plain")
        complete = complete_network_options(self.name, self.given(variant))
        assert type(network).uses_location(**complete) == network.located
        output = network(feed(size, network.located))
        assert output.shape == (2, CLASSES, *size)
        assert output.dtype == torch.float32
        assert output.isfinite().all()

    def test_several_images_and_the_previous_stage(self, variant: str, rank: int) -> None:
        size = self.patches[rank][0]
        network = self.make(variant, size, channels=2, previous=CLASSES - 1).eval()
        x = feed(size, network.located, channels=2, previous=CLASSES - 1)
        expected = network(x)
        assert expected.shape == (2, CLASSES, *size)
        for channel in (1, x.shape[1] - 1):  # the second image, the end of the previous stage
            changed = x.clone()
            changed[:, channel] += torch.randn(size)
            assert (network(changed) - expected).abs().max() > 1e-4
        with pytest.raises(ValueError, match=rf"input must have {x.shape[1]} channels \(2 image"):
            network(x[:, 1:])

    def test_refuses_other_patches_and_names_allowed_ones(self, rank: int) -> None:
        network_type = network_class(self.name)
        options = complete_network_options(self.name, self.options)
        for size in self.patches[rank]:
            network_type.check_patch(size, **options)
        size = (*self.patches[rank][0][:-1], self.patches[rank][0][-1] + 1)
        for call in (lambda: network_type.check_patch(size, **options), lambda: self.make("", size)):
            with pytest.raises(
                ValueError, match=rf"patch_size {re.escape(str(list(size)))} does not"
            ) as error:
                call()
            nearest = re.findall(r"\[[\d, ]+\]", str(error.value).split("nearest allowed:")[1])
            assert nearest
            for one in nearest:
                network_type.check_patch(json.loads(one), **options)

    def test_refuses_other_ranks(self) -> None:
        options = complete_network_options(self.name, self.options)
        for rank in {1, 2, 3, 4} - set(self.patches):
            with pytest.raises(ValueError, match=rf"got {rank}\b"):
                network_class(self.name).check_patch([64] * rank, **options)

    def test_every_parameter_gets_a_gradient(self, variant: str, rank: int) -> None:
        network, x = self.made_and_fed(variant, rank, deep_supervision=True)
        outputs = flat(network.train()(forgetful(x) if network.located else x))
        torch.stack([(output**2).mean() for output in outputs]).sum().backward()
        none = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        assert none == []  # DDP waits for each of them
        zero = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.any()]
        assert [name for name in zero if not re.search(self.without_effect, name)] == []
        assert all(one.grad is None or one.grad.isfinite().all() for one in network.parameters())

    def test_every_parameter_gets_a_gradient_from_the_start(self, variant: str) -> None:
        """Not through a zero-initialised layer, but defined all the same."""
        size = self.patches[min(self.patches)][0]
        network = self.make(variant, size, deep_supervision=True).train()
        torch.stack([(one**2).mean() for one in flat(network(feed(size, network.located)))]).sum().backward()
        assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []

    def test_deep_supervision_can_be_switched(self, variant: str, rank: int) -> None:
        network, x = self.made_and_fed(variant, rank, deep_supervision=True)
        strides = self.strides(variant, rank)
        assert strides[0] == (1,) * rank
        assert len(network.supervision_weights) == len(strides)
        outputs = flat(network(x))
        size = self.patches[rank][0]
        expected = [tuple(n // s for n, s in zip(size, stride, strict=True)) for stride in strides]
        assert [tuple(output.shape) for output in outputs] == [(2, CLASSES, *one) for one in expected]
        network.decoder.deep_supervision = False
        output = network(x)
        assert torch.equal(output, outputs[0])
        without = self.make(variant, size, deep_supervision=False)
        without.load_state_dict(network.state_dict())  # as in prediction
        assert torch.equal(without.eval()(x), output)

    def test_copies_pickles_and_checkpoints(self, variant: str) -> None:
        network, x = self.made_and_fed(variant)
        expected = network(x)
        assert torch.equal(network(x), expected)  # no chance in evaluation
        loaded = self.make(variant, self.patches[min(self.patches)][0], seed=1).eval()
        loaded.load_state_dict(network.state_dict())
        for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), loaded):
            assert torch.equal(twin(x), expected)

    def test_compiles_without_a_graph_break(self, compiled_rank: int) -> None:
        """Of one variant, since tracing is slow: without location there is less to trace."""
        network, x = self.made_and_fed(
            next(iter(self.located), "plain"), compiled_rank, deep_supervision=True
        )
        network.train()
        x = forgetful(x) if network.located else x
        torch._dynamo.reset()
        call = torch.compile(network, fullgraph=True, backend="eager")
        results = []
        for one in (call, network):
            torch.manual_seed(1)  # dropout
            results.append(flat(one(x)))
        for output, expected in zip(*results, strict=True):
            torch.testing.assert_close(output, expected)

    def test_autocast(self, variant: str) -> None:
        network, x = self.made_and_fed(variant)
        expected = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = network(x).float()
        assert output.isfinite().all()
        assert (output - expected).norm() < self.autocast_error * expected.norm()

    def test_a_batch_is_its_samples(self, variant: str) -> None:
        network, x = self.made_and_fed(variant)
        expected = torch.cat([network(x[:1]), network(x[1:])])
        # another order of summation, and a norm over few tokens enlarges it
        assert (network(x) - expected).abs().max() < 1e-3 * expected.abs().max()

    def test_depends_on_the_absolute_position(self, with_location: str, rank: int) -> None:
        network, x = self.made_and_fed(with_location, rank)
        moved = x.clone()
        moved[:, 1:4] += 0.2
        expected = network(x)
        assert (network(moved) - expected).abs().max() > 1e-3 * expected.abs().max()

    def test_with_an_unknown_location_it_is_its_twin_without(self, with_location: str, rank: int) -> None:
        network, x = self.made_and_fed(with_location, rank, deep_supervision=True)
        of_location = {*GlobalEncoding().options(), "gpe_places", "replace_positions"}
        kept = {name: value for name, value in self.given(with_location).items() if name not in of_location}
        twin = self.make("", self.patches[rank][0], deep_supervision=True, **{**kept, **self.twin})
        assert not twin.located
        # replaced positions
        state = {name: torch.zeros_like(value) for name, value in twin.state_dict().items()}
        twin.load_state_dict({name: network.state_dict().get(name, value) for name, value in state.items()})
        plain = torch.cat([x[:, :1], x[:, 4:]], dim=1)
        x[:, 1:4] = torch.nan
        for training in (True, False):
            results = []
            for one, given in ((network, x), (twin, plain)):
                torch.manual_seed(1)  # dropout
                results.append(flat(one.train(training)(given)))
            for output, expected in zip(*results, strict=True):
                assert torch.equal(output, expected)
        torch.stack([(output**2).mean() for output in flat(network.train()(x))]).sum().backward()
        assert all(one.grad is not None and one.grad.isfinite().all() for one in network.parameters())

    def test_goes_without_an_unknown_axis(self, with_location: str) -> None:
        """By the other two, which it still uses; another sample's unknown axis is not its own."""
        network, x = self.made_and_fed(with_location)
        expected, output = network(x), network(forgetful(x))
        scale = expected.abs().max()
        assert output.isfinite().all()
        assert (output[0] - expected[0]).abs().max() < 1e-3 * scale
        assert (output[1] - expected[1]).abs().max() > 1e-3 * scale
        moved = forgetful(x)
        moved[:, 1:4] += 0.2
        assert (network(moved) - output)[1].abs().max() > 1e-3 * scale
        padded, continued = forgetful(x), forgetful(x)
        padded[:, :4, ..., :2] = 0  # as nnU-Net pads, the unknown channel as well
        continued[:, 0, ..., :2] = 0
        affine = ramp(2, tuple(x.shape[2:]), rotation=0.0)
        for one in (padded, continued):
            inside = one[:, 1:4, ..., 2:]
            inside.copy_(torch.where(inside.isnan(), inside, affine[..., 2:]))
        continued[:, 1:4] = torch.where(continued[:, 1:4].isnan(), continued[:, 1:4], affine)
        assert (network(padded) - network(continued)).abs().max() < 1e-3 * scale

    def test_padding_is_continued_in_evaluation_only(self, with_location: str) -> None:
        """Zeros around a small volume would claim to be its centre."""
        network, x = self.made_and_fed(with_location)
        x[:, 1:4] = ramp(2, tuple(x.shape[2:]), rotation=0.0)
        padded = x.clone()
        padded[..., :2] = 0
        continued = padded.clone()
        continued[:, 1:4] = x[:, 1:4]
        expected = network(continued)
        assert (network(padded) - expected).abs().max() < 1e-3 * expected.abs().max()
        network.train()
        results = []
        for one in (padded, continued):
            torch.manual_seed(1)
            results.append(network(one))
        assert (results[0] - results[1]).abs().max() > 2e-3 * expected.abs().max()

    def test_same_seed_same_weights_with_and_without_location(self, with_location: str, rank: int) -> None:
        if not self.plain:
            pytest.skip("no form without location")
        size = self.patches[rank][0]
        plain = self.make("plain", size).eval()
        state = torch.get_rng_state()
        located = self.make(with_location, size).eval()
        if with_location in self.differ:
            return
        assert torch.equal(torch.get_rng_state(), state)
        for key, value in plain.state_dict().items():
            assert torch.equal(located.state_dict()[key], value), key
        assert len(located.state_dict()) > len(plain.state_dict())
        x = feed(size, located=True)
        torch.testing.assert_close(located(x), plain(torch.cat([x[:, :1], x[:, 4:]], dim=1)))

    def test_options_stand_in_the_plans(self, variant: str) -> None:
        size = self.patches[min(self.patches)][0]
        options = complete_network_options(self.name, self.given(variant))
        read = json.loads(json.dumps(options))
        shapes = [
            {key: value.shape for key, value in self.make(variant, size, **one).state_dict().items()}
            for one in ({}, read)
        ]
        assert shapes[0] == shapes[1]
        with pytest.raises(ValueError, match=f"network '{self.name}' does not take colour; allowed"):
            complete_network_options(self.name, {**options, "colour": "red"})
