"""The loss of the anatomical embeddings against its formulas in numpy, and against its authors' code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_locctx.regression.anatomical.fit import (
    distance_term,
    equality_term,
    sample_loss,
    scan_scale,
    signed_term,
)
from nnunet_locctx.regression.anatomical.options import AnatomicalOptions
from nnunet_locctx.regression.anatomical.sampling import ScanSample


@pytest.fixture
def sets() -> list[np.ndarray]:
    """Embeddings of two sets, and their positions; sets of different size."""
    generator = np.random.default_rng(3)
    return [generator.normal(size=(n, 3)) for n in (17, 11, 17, 11)]


def tensors(arrays: list[np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def test_distance_term(sets: list[np.ndarray]) -> None:
    e1, e2, p1, p2 = sets
    expected = np.mean(
        [
            (np.linalg.norm(e1[i] - e2[j]) - np.linalg.norm(p1[i] - p2[j])) ** 2
            for i in range(17)
            for j in range(11)
        ]
    )
    assert distance_term(*tensors(sets)).item() == pytest.approx(expected, rel=1e-10)


def test_signed_term(sets: list[np.ndarray]) -> None:
    e1, e2, p1, p2 = sets
    expected = np.mean([((e1[i] - e2[j]) - (p1[i] - p2[j])) ** 2 for i in range(17) for j in range(11)])
    assert signed_term(*tensors(sets)).item() == pytest.approx(expected, rel=1e-10)


def test_equality_term(sets: list[np.ndarray]) -> None:
    expected = np.mean((sets[0] - sets[2]) ** 2)
    assert equality_term(*tensors([sets[0], sets[2]])).item() == pytest.approx(expected, rel=1e-10)


def test_what_each_term_leaves_free(sets: list[np.ndarray]) -> None:
    """A shift costs nothing in either, a reflection in the signed term only."""
    _, _, p1, p2 = tensors(sets)
    shift = torch.tensor([3.0, -1.0, 2.0])
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    assert distance_term(p1 + shift, p2 + shift, p1, p2).item() == pytest.approx(0, abs=1e-8)
    assert signed_term(p1 + shift, p2 + shift, p1, p2).item() == pytest.approx(0, abs=1e-8)
    assert distance_term(p1 * mirror, p2 * mirror, p1, p2).item() == pytest.approx(0, abs=1e-8)
    assert signed_term(p1 * mirror, p2 * mirror, p1, p2).item() > 0.5


def test_the_gradient_is_finite_where_points_coincide() -> None:
    points = torch.zeros(4, 3, requires_grad=True)
    distance_term(points, points, torch.ones(4, 3), torch.ones(4, 3)).backward()
    assert points.grad is not None
    assert bool(torch.isfinite(points.grad).all())


def test_scan_scale_is_per_axis_and_never_zero() -> None:
    position = torch.tensor([[0.0, 0.0, 5.0], [2.0, 20.0, 5.0]])
    mean, scale = scan_scale(position)
    assert mean.tolist() == [1.0, 10.0, 5.0]
    assert scale.tolist() == pytest.approx([2**0.5, 10 * 2**0.5, 1e-3])
    assert scan_scale(position[:1])[1].tolist() == pytest.approx([1e-3] * 3)


class Given(torch.nn.Module):
    """Gives the same embeddings, whatever the crops."""

    def __init__(self, embeddings: np.ndarray) -> None:
        super().__init__()
        self.embeddings = torch.nn.Parameter(torch.from_numpy(embeddings))

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.embeddings


def test_equals_the_authors_loss_and_its_gradient() -> None:
    """What their training step gave for embeddings, places and positions; see tests/fixtures/README.md."""
    with np.load(Path(__file__).parents[1] / "fixtures" / "ape_loss.npz") as reference:
        given = dict(reference)
    places = ((given["voxels"] + 0.5) / given["crop"] * 2 - 1).astype(np.float32)
    crops = np.zeros((len(places), 2, 1, 1, 1), dtype=np.float32)  # not looked at
    sample = ScanSample(crops, places, given["positions_mm"], int(given["paired"]))
    network = Given(given["embeddings"])
    loss = sample_loss(network, sample, AnatomicalOptions(loss="paper", normalise="scan"))
    loss.backward()
    assert loss.item() == pytest.approx(given["loss"].item(), rel=1e-6)
    assert network.embeddings.grad is not None
    scale = np.abs(given["gradient"]).max()
    np.testing.assert_allclose(network.embeddings.grad.numpy(), given["gradient"], rtol=0, atol=1e-6 * scale)
