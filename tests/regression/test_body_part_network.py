import pytest
import torch

from nnunet_locctx.regression.body_part.network import SMALLEST_SIDE, SliceRegressor, new_network


def test_has_about_400_thousand_parameters() -> None:
    assert sum(p.numel() for p in SliceRegressor().parameters()) == pytest.approx(0.4e6, rel=0.05)


@pytest.mark.parametrize("size", [(SMALLEST_SIDE, SMALLEST_SIDE), (112, 112), (97, 130)])
def test_one_score_per_slice(size: tuple[int, int]) -> None:
    network = SliceRegressor().eval()
    slices = torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(0))
    scores = network(slices)
    assert scores.shape == (3,)
    torch.testing.assert_close(network(slices[1:2]), scores[1:2])  # a slice's score is its own


def test_every_parameter_is_trained() -> None:
    network = SliceRegressor()
    network(torch.randn(2, 1, 112, 112, generator=torch.Generator().manual_seed(0))).diff().backward()
    for name, parameter in network.named_parameters():
        # a constant before a norm, or added to every score, changes no difference
        lost = name == "score.bias" or (name.endswith("bias") and name in NORMED)
        assert parameter.grad is not None
        assert lost or parameter.grad.abs().max() > 0, name


NORMED = {f"features.{3 * depth}.bias" for depth in range(SliceRegressor.HALVINGS)}


def test_seeded_without_touching_the_global_generator() -> None:
    before = torch.get_rng_state()
    first, again, other = new_network(1), new_network(1), new_network(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
