"""The network that scores a slice, and its losses against their authors' code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_locctx.regression.body_part.network import (
    SMALLEST_SIDE,
    SliceRegressor,
    classification_order_loss,
    heuristic_order_loss,
    new_network,
)


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


REFERENCE = np.load(Path(__file__).parents[1] / "fixtures" / "order_loss.npz")
SCORES = torch.from_numpy(REFERENCE["scores"])
GAPS = torch.from_numpy(REFERENCE["gaps_mm"])


def test_heuristic_loss_equals_the_authors() -> None:
    loss = heuristic_order_loss(SCORES, GAPS, float(REFERENCE["alpha"]), float(REFERENCE["beta"]))
    assert float(loss) == pytest.approx(float(REFERENCE["heuristic"]), abs=1e-5)


def test_the_authors_steepness_is_the_default() -> None:
    assert float(heuristic_order_loss(SCORES, GAPS)) == pytest.approx(float(REFERENCE["heuristic"]), abs=1e-5)


def test_classification_loss_equals_the_authors() -> None:
    assert float(classification_order_loss(SCORES)) == pytest.approx(
        float(REFERENCE["classification"]), abs=1e-5
    )


def test_heuristic_loss_is_zero_where_scores_rise_by_beta_over_alpha() -> None:
    gaps = torch.tensor([[5.0, 40.0, 100.0]])
    scores = torch.tensor([[0.0, 5.0, 45.0, 145.0]]) * 0.04
    assert float(heuristic_order_loss(scores + 7, gaps, alpha=0.5, beta=0.02)) == pytest.approx(0, abs=1e-10)
    assert float(heuristic_order_loss(1.2 * scores, gaps, alpha=0.5, beta=0.02)) > 1e-4
