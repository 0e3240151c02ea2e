"""The network of the anatomical embeddings."""

import pytest
import torch

from nnunet_locctx.regression.anatomical.network import EmbeddingNetwork
from nnunet_locctx.regression.anatomical.options import AnatomicalOptions

SMALL = ((8, 12, 16), (1, 1, 1))


def randomised(widths: tuple[int, ...], depths: tuple[int, ...]) -> EmbeddingNetwork:
    """With blocks that are not the identity."""
    network = EmbeddingNetwork(widths, depths).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)
    return network


def test_size_of_the_default_network() -> None:
    count = sum(p.numel() for p in EmbeddingNetwork().parameters())
    assert 400_000 <= count <= 920_000
    assert AnatomicalOptions().widths == (32, 48, 64, 64)


@pytest.mark.parametrize("size", [(32, 32, 32), (1, 1, 1), (5, 17, 4), (33, 12, 50)])
def test_any_size_gives_one_cell_for_every_four_voxels(size: tuple[int, int, int]) -> None:
    embeddings = randomised(*SMALL)(torch.zeros(2, 2, *size))
    assert embeddings.shape == (2, 3, *[-(-n // 4) for n in size])


def test_padding_equals_unknown_surroundings() -> None:
    """A volume whose size is no multiple of the stride gives what the same volume in zeros gives."""
    network = randomised(*SMALL)
    volume = torch.randn(1, 2, 14, 18, 21)
    wide = torch.zeros(1, 2, 16, 32, 24)
    wide[:, :, :14, :18, :21] = volume
    with torch.no_grad():
        embeddings, expected = network(volume)[..., 0, 0, 0], network(wide)[..., 0, 0, 0]
    # the first cell is far from the end; only the bias of the convolutions in empty cells differs
    assert torch.allclose(embeddings, expected, atol=0.2 * float(expected.abs().max()))
    assert network(torch.zeros(1, 2, 14, 18, 21)).shape == (1, 3, 4, 5, 6)


def test_no_sigmoid_the_output_is_linear_in_the_head() -> None:
    network = randomised(*SMALL)
    volume = torch.randn(1, 2, 16, 16, 16)
    with torch.no_grad():
        before = network(volume)
        network.head[1].weight.mul_(50)
        network.head[1].bias.mul_(50)
        torch.testing.assert_close(network(volume), 50 * before, rtol=1e-4, atol=1e-3)


def test_every_parameter_takes_part() -> None:
    network = randomised(*SMALL)
    network(torch.randn(1, 2, 24, 24, 24)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters())


def test_the_context_spans_hundreds_of_millimetres() -> None:
    """A change 320 mm away reaches a cell."""
    network = randomised((8, 8, 8, 8), (1, 2, 2, 2))
    volume = torch.randn(1, 2, 96, 8, 8, requires_grad=True)
    network(volume)[0, :, 2].sum().backward()
    assert volume.grad is not None
    assert bool(volume.grad[0, :, 10 + 80].abs().sum() > 0)


def test_a_cell_does_not_depend_on_the_batch() -> None:
    network = randomised(*SMALL)
    batch = torch.randn(3, 2, 16, 20, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(batch)[1:2], network(batch[1:2]), rtol=1e-4, atol=1e-4)
