"""Gauge and continuation of the anatomical coordinates."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from nnunet_locctx.regression.anatomical.continuation import continue_outside, linear_fit
from nnunet_locctx.regression.anatomical.gauge import Gauge, fit_gauge


def bodies(seed: int = 0) -> list[np.ndarray]:
    """Positions of three scans in mm along (R, A, S), at different places of the scanner."""
    generator = np.random.default_rng(seed)
    return [
        generator.uniform(-1, 1, size=(400, 3)) * [200, 120, 50 * (n + 4)]
        + generator.normal(0, 500, size=(1, 3))
        for n in range(3)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_gauge_undoes_any_rotation_and_reflection(seed: int) -> None:
    """Embeddings that are turned positions of one common frame get coordinates that rise along the patient's axes."""
    turn = ortho_group.rvs(3, random_state=seed)
    scans = []
    for n, position in enumerate(bodies()):
        common = (
            position - position.mean(0) + [0, 0, 40 * n]
        )  # the place in the body, known to the embedding alone
        scans.append((common @ turn.T / 100 + [3, -5, 1], position))
    gauge = fit_gauge(scans)
    pooled = []
    for embedding, position in scans:
        found = gauge.apply(embedding)
        pooled.append(found)
        for axis in range(3):
            assert np.corrcoef(found[:, axis], position[:, axis])[0, 1] > 0.999
    lower, upper = np.percentile(np.concatenate(pooled), (1, 99), axis=0)
    np.testing.assert_allclose(lower, -0.5, atol=1e-9)
    np.testing.assert_allclose(upper, 0.5, atol=1e-9)


def test_gauge_keeps_its_state() -> None:
    gauge = Gauge(np.random.default_rng(0).normal(size=(3, 3)), np.array([1.0, 2.0, 3.0]))
    again = Gauge.from_state(gauge.state())
    points = np.random.default_rng(1).normal(size=(5, 3))
    np.testing.assert_array_equal(again.apply(points), gauge.apply(points))


def test_gauge_of_nothing_or_of_a_constant_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one scan"):
        fit_gauge([])
    with pytest.raises(ValueError, match="every axis needs"):
        fit_gauge([(np.ones((9, 3)), bodies()[0][:9])])


def test_linear_fit_of_a_linear_map() -> None:
    generator = np.random.default_rng(0)
    slopes, offset = generator.normal(size=(3, 3)) / 300, generator.normal(size=3)
    positions = bodies()[0]
    found, shift = linear_fit(positions @ slopes.T + offset, positions, np.eye(3))
    # the typical slopes, 300 times steeper, keep a small weight along the narrowest axis
    np.testing.assert_allclose(found, slopes, atol=0.05)
    far = bodies()[0] * [3, 3, 3]
    exact, shift = linear_fit(far @ slopes.T + offset, far, slopes)
    np.testing.assert_allclose(exact, slopes, atol=1e-12)
    np.testing.assert_allclose(shift, offset, atol=1e-9)


def test_a_thin_slab_takes_the_slope_across_it_from_the_training_scans() -> None:
    generator = np.random.default_rng(0)
    typical = np.diag([0.002, 0.003, 0.001])
    positions = bodies()[0] * [1, 1, 0] + [[0, 0, 7]] + generator.choice([-4, 4], size=(400, 1)) * [0, 0, 1]
    noisy = positions @ (typical * [1, 1, 1.5]).T
    slopes, _ = linear_fit(noisy, positions, typical)
    assert slopes[2, 2] == pytest.approx(0.001, rel=0.05)
    free = np.polyfit(positions[:, 2], noisy[:, 2], 1)[0]
    assert abs(free - 0.001) > 2e-4  # what the cells alone say
    flat, _ = linear_fit(noisy * [1, 1, 0], positions * [1, 1, 0], typical)
    assert flat[2, 2] == pytest.approx(0.001)


def test_outside_the_body_the_map_continues_without_noise() -> None:
    shape = (20, 16, 12)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")).astype(float)
    linear = index / 20
    body = np.zeros(shape, dtype=bool)
    body[5:15, 4:12] = True
    bent = linear + 0.02 * np.sin(index[:1] / 3)
    noise = np.random.default_rng(0).normal(0, 1, (3, *shape)) * ~body
    found = continue_outside(bent + noise, linear, body)
    np.testing.assert_array_equal(found[:, body], bent[:, body])
    assert np.abs(found - linear).max() < 0.021
    jumps = np.abs(np.diff(found - linear, axis=1)).max()
    assert jumps < 0.015  # the bend itself changes by up to 0.007 a cell
