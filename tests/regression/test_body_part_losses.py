from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_locctx.regression.body_part.losses import classification_order_loss, heuristic_order_loss

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
