"""Measuring a scan with an anatomical regressor: gauge, continuation, map."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ortho_group
from torch import Tensor, nn

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame
from nnunet_locctx.location import AnatomicalMap, Measurement
from nnunet_locctx.regression.anatomical import AnatomicalOptions, AnatomicalRegressor
from nnunet_locctx.regression.anatomical.network import (
    EmbeddingNetwork,
    body_nodes,
    cell_affine,
    embed,
    node_affine,
    zoomed,
)
from nnunet_locctx.regression.anatomical.regressor import Gauge, continue_outside, fit_gauge, linear_fit
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.registry import load_regressor
from tests.geometry_cases import rotation, stored

GRADIENT = np.array([1.0, 0.7, 0.5])
"""HU per mm along (R, A, S)."""


class Average(nn.Module):
    """Gives each cell its mean intensity, three times, and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, volume: Tensor) -> Tensor:
        self.seen.append(tuple(volume.shape[2:]))
        return F.avg_pool3d(volume[:, :1], 4, ceil_mode=True).expand(-1, 3, -1, -1, -1)


class Ramp(nn.Module):
    """Gives each cell the intensity at its centre, three times; takes the image for a ramp."""

    def forward(self, volume: Tensor) -> Tensor:
        size = volume.shape[2:]
        index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"), dim=-1)
        design = torch.cat([index, torch.ones(*size, 1)], dim=-1).double()
        # away from the edges of oblique scans, where zooming mixes in what is unknown
        inner = tuple(slice(n // 3, -(n // 3)) if n > 8 else slice(None) for n in size)
        known = volume[0, 1][inner] > 0.5
        fitted = torch.linalg.lstsq(
            design[inner][known], volume[0, 0].double()[inner][known][:, None]
        ).solution
        cells = [torch.arange(n // 4).double() * 4 + 1.5 for n in size]
        centres = torch.stack(torch.meshgrid(*cells, indexing="ij"), dim=-1)
        estimated = centres @ fitted[:3, 0] + fitted[3, 0]
        return estimated.float().expand(1, 3, -1, -1, -1)


def ramp_regressor(sign: float = 1.0) -> AnatomicalRegressor:
    """Its coordinates are HU / 1000."""
    options = AnatomicalOptions(spacing=4.0, widths=(4, 4), depths=(1, 1))
    # intensity -1..1 is HU -1000..300
    gauge = Gauge(np.eye(3) * 0.65, np.full(3, -0.35))
    typical = sign * np.broadcast_to(GRADIENT / 1000, (3, 3))
    network = EmbeddingNetwork(options.widths, options.depths)
    regressor = AnatomicalRegressor(options, network, gauge, typical)
    regressor.network = Ramp()  # type: ignore[assignment]
    return regressor


def ramp(frame: Frame) -> np.ndarray:
    """HU that rises linearly in the patient, all of it body."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in frame.shape], indexing="ij"), axis=-1)
    return hu(frame.millimetres(index), frame).astype(np.float32)


def hu(millimetres: np.ndarray, frame: Frame) -> np.ndarray:
    return np.asarray((millimetres - frame.centre) @ PATIENT_FROM_LPS @ GRADIENT - 100)


@pytest.mark.parametrize(
    ("permutation", "flips", "angles"),
    [
        ((0, 1, 2), (False, False, False), (0, 0, 0)),
        ((2, 0, 1), (True, False, True), (0, 0, 0)),
        ((1, 2, 0), (False, True, False), (0.1, -0.05, 0.15)),
    ],
)
@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (2.0, 3.0, 5.0)])
def test_the_map_lies_where_the_scan_lies(permutation, flips, angles, spacing) -> None:  # type: ignore[no-untyped-def]
    """Half a voxel or half a cell off would be 2 to 8 mm, 0.002 to 0.014 in the coordinate."""
    shape = tuple(round(160 / s) for s in spacing)
    properties, array_shape = stored(
        permutation, flips, shape, spacing, np.array([30.0, -80.0, 500.0]), rotation(angles)
    )
    frame = Frame.from_properties(properties, array_shape)
    measured = ramp_regressor().measure(ramp(frame), frame)
    assert measured.problem == ""
    places = frame.centre + np.random.default_rng(0).uniform(-45, 45, size=(200, 3))
    expected = hu(places, frame) / 1000
    np.testing.assert_allclose(measured.at(places), np.repeat(expected[:, None], 3, axis=1), atol=3e-4)


def test_outside_the_scan_the_map_goes_on_with_the_scans_slopes() -> None:
    properties, shape = stored((0, 1, 2), (False,) * 3, (40, 40, 40), (4.0,) * 3, np.zeros(3), np.eye(3))
    frame = Frame.from_properties(properties, shape)
    measured = ramp_regressor().measure(ramp(frame), frame)
    np.testing.assert_allclose(
        measured.slopes, np.repeat([GRADIENT / 1000], 3, axis=0) @ PATIENT_FROM_LPS, rtol=1e-3
    )
    places = np.random.default_rng(0).uniform(-300, 300, size=(50, 3))
    np.testing.assert_allclose(measured.at(places)[:, 2], hu(places, frame) / 1000, atol=2e-3)


def test_the_measurement_survives_its_bytes() -> None:
    properties, shape = stored((0, 1, 2), (False,) * 3, (40, 40, 40), (4.0,) * 3, np.zeros(3), np.eye(3))
    frame = Frame.from_properties(properties, shape)
    measured = ramp_regressor().measure(ramp(frame), frame)
    again = Measurement.from_bytes(measured.to_bytes())
    assert isinstance(again, AnatomicalMap)
    np.testing.assert_array_equal(again.values, measured.values)


def frame_of(shape: tuple[int, int, int], spacing: float = 4.0) -> Frame:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    return Frame.from_affine(shape, affine, "LPS")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((30, 30, 30), -1000.0), "nodes of body"),
        (np.full((30, 30, 30), 40.0), "nodes of body"),  # constant: no body can be told
        (np.full((1, 30, 30), 40.0), "single slice"),
        (np.full((30, 30, 30), np.nan), "NaN"),
        (np.pad(np.full((3, 3, 3), 40.0), 12, constant_values=-1000.0), "nodes of body"),
    ],
    ids=["air", "constant", "slice", "nan", "small"],
)
def test_scans_that_cannot_be_measured_say_why(image: np.ndarray, reason: str) -> None:
    measured = ramp_regressor().measure(image, frame_of(image.shape))  # type: ignore[arg-type]
    assert reason in measured.problem


def test_a_map_that_falls_along_the_patients_axes_is_not_used() -> None:
    properties, shape = stored((0, 1, 2), (False,) * 3, (40, 40, 40), (4.0,) * 3, np.zeros(3), np.eye(3))
    frame = Frame.from_properties(properties, shape)
    assert "rise -0.9" in ramp_regressor(-1.0).measure(ramp(frame), frame).problem
    steep = ramp_regressor()
    steep.typical = steep.typical * 3
    assert "rise 0.3" in steep.measure(ramp(frame), frame).problem


def test_a_few_slices_give_a_map() -> None:
    properties, shape = stored((0, 1, 2), (False,) * 3, (60, 60, 3), (4.0,) * 3, np.zeros(3), np.eye(3))
    measured = ramp_regressor().measure(
        ramp(Frame.from_properties(properties, shape)), Frame.from_properties(properties, shape)
    )
    assert measured.problem == ""
    assert measured.values.shape == (3, 30, 30, 2)


def test_tiles_give_what_one_pass_gives() -> None:
    volume = np.random.default_rng(0).normal(size=(2, 300, 70, 131)).astype(np.float32)
    whole, tiled = Average(), Average()
    expected = embed(whole, volume)
    embeddings = embed(tiled, volume, largest=64**3)
    assert expected.shape == (3, 75, 18, 33)
    assert whole.seen == [(300, 72, 132)]
    assert len(tiled.seen) > 4
    assert max(np.prod(size) for size in tiled.seen) < 0.8 * 300 * 72 * 132
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)


def test_tiles_of_the_real_network_start_on_whole_cells_of_every_level() -> None:
    torch.manual_seed(0)
    network = EmbeddingNetwork((4, 4, 4, 4), (1, 1, 1, 1)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.1)
    volume = np.random.default_rng(0).normal(size=(2, 256, 32, 32)).astype(np.float32)
    expected, embeddings = embed(network, volume), embed(network, volume, largest=64 * 32 * 32)
    error = np.abs(embeddings - expected).mean()
    assert error < 0.05 * expected.std()  # what lies beyond the margin counts for little, but it counts


def test_cells() -> None:
    affine = np.array([[-4.0, 0, 0, 10], [0, -4, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
    assert (cell_affine(affine) @ [0, 0, 0, 1]).tolist() == [4, 14, 36, 1]
    assert (cell_affine(affine) @ [1, 0, 0, 1]).tolist() == [-12, 14, 36, 1]


def test_nodes() -> None:
    np.testing.assert_array_equal(node_affine() @ [0, 0, 0, 1], [0.5, 0.5, 0.5, 1])
    np.testing.assert_array_equal(node_affine() @ [3, 0, 0, 1], [6.5, 0.5, 0.5, 1])
    body = np.zeros((5, 3, 4), dtype=bool)
    body[3:] = True
    nodes = body_nodes(body)
    assert nodes.shape == (3, 2, 2)
    assert nodes[:, 0, 0].tolist() == [False, True, True]
    assert nodes[:, 1, 0].tolist() == [False, False, False]  # half beyond the scan


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_a_zoomed_scan_lies_where_the_scan_lies(factor: float) -> None:
    affine = np.array([[-4.0, 0, 0, 10], [0, -4, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (20, 17, 24)], indexing="ij"), axis=-1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    scan = CanonicalScan(
        (places @ [1.0, 2.0, 3.0]).astype(np.float32), np.ones((20, 17, 24), dtype=bool), affine
    )
    view = zoomed(scan, factor)
    np.testing.assert_allclose(view.spacing, 4 * factor)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in view.image.shape], indexing="ij"), axis=-1)
    expected = (index @ view.affine[:3, :3].T + view.affine[:3, 3]) @ [1.0, 2.0, 3.0]
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(view.image[inner], expected[inner], atol=1e-2)
    assert view.inside[inner].all()


def test_state_and_bytes() -> None:
    options = AnatomicalOptions(widths=(4, 4), depths=(1, 1), channel=1, seed=3)
    regressor = AnatomicalRegressor(
        options,
        EmbeddingNetwork(options.widths, options.depths),
        Gauge(np.eye(3), np.zeros(3)),
        np.eye(3),
        {"step": [1.0], "train": [2.0], "validation": [3.0]},
    )
    data = regressor.to_bytes()
    again = load_regressor(data)
    assert isinstance(again, AnatomicalRegressor)
    assert again.options == options
    assert again.channel == 1
    assert again.history == regressor.history
    assert again.to_bytes() == data
    with pytest.raises(ValueError, match="damaged"):
        load_regressor(data[:-100])


def test_options_are_checked() -> None:
    for name, value in {
        "modality": "pet",
        "crop": (30, 32, 32),
        "zoom": (1.5, 0.75),
        "loss": "l1",
        "normalise": "none",
        "steps": 0,
        "seed": -1,
        "length": 0.0,
        "widths": (4,),
        "window": (300, -1000),
        "learning_rate": float("nan"),
        "validation": 1.0,
        "paired_points": 4000,
    }.items():
        with pytest.raises(ValueError, match="must be"):
            dataclasses.replace(AnatomicalOptions(), **{name: value})  # type: ignore[arg-type]


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
        # the place in the body, known to the embedding alone
        common = position - position.mean(0) + [0, 0, 40 * n]
        scans.append((common @ turn.T / 100 + [3, -5, 1], position))
    gauge = fit_gauge(scans)
    pooled = []
    for embedding, position in scans:
        coordinates = gauge.apply(embedding)
        pooled.append(coordinates)
        for axis in range(3):
            assert np.corrcoef(coordinates[:, axis], position[:, axis])[0, 1] > 0.999
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
    estimated, shift = linear_fit(positions @ slopes.T + offset, positions, np.eye(3))
    # the typical slopes, 300 times steeper, keep a small weight along the narrowest axis
    np.testing.assert_allclose(estimated, slopes, atol=0.05)
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
    continued = continue_outside(bent + noise, linear, body)
    np.testing.assert_array_equal(continued[:, body], bent[:, body])
    assert np.abs(continued - linear).max() < 0.021
    jumps = np.abs(np.diff(continued - linear, axis=1)).max()
    assert jumps < 0.015  # the bend itself changes by up to 0.007 a cell
