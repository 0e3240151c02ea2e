"""Errors of the location: as large as asked for, in the right channel, once."""

import numpy as np
import pytest

from nnunet_locctx.commands.robustness import AMOUNTS as AMOUNTS_OF_THE_COMMAND
from nnunet_locctx.evaluation.wrong_location import (
    AMOUNTS,
    UNCHANGED,
    Change,
    Design,
    axis_lengths,
    wrong_location,
)
from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import AffineField, make_source
from nnunet_locctx.location.padding import extrapolate_padding

each_axis = pytest.mark.parametrize(
    ("axes", "channels"), [("R", [0]), ("A", [1]), ("axial", [2]), ("all", [0, 1, 2])]
)


@pytest.fixture
def frame() -> Frame:
    """5 x 6 x 40 voxels stored along (A, S, R) of the patient; 3, 4 and 2 mm."""
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, -2], [-3, 0, 0], [0, 4, 0]]
    return Frame.from_affine((5, 6, 40), affine, "LPS")


def true_location(frame: Frame, source: str = "voxel") -> np.ndarray:
    return make_source(source).field(frame).box((0, 0, 0), frame.shape)


@each_axis
@pytest.mark.parametrize("percent", [10.0, -25.0])
def test_a_shift_is_added_once_and_to_its_channels(
    frame: Frame, axes: str, channels: list[int], percent: float
) -> None:
    true = true_location(frame)
    before = true.copy()
    wrong = wrong_location(true, frame, (1, 1, 1), Change("shift", axes, percent))
    np.testing.assert_array_equal(true, before)
    assert wrong.dtype == np.float32
    expected = true.astype(float)
    expected[channels] += percent / 100
    np.testing.assert_allclose(wrong, expected, atol=1e-6)


def test_no_change_is_no_change(frame: Frame) -> None:
    true = true_location(frame)
    np.testing.assert_array_equal(wrong_location(true, frame, (1, 1, 1), UNCHANGED), true)


def test_percent_of_millimetres(frame: Frame) -> None:
    source = make_source("scanner")
    lengths = axis_lengths(source, frame)
    np.testing.assert_allclose(lengths, [80 / 500, 15 / 500, 24 / 500])
    true = true_location(frame, "scanner")
    wrong = wrong_location(true, frame, lengths, Change("shift", "all", 50.0))
    np.testing.assert_allclose((wrong - true).mean(axis=(1, 2, 3)) * 500, [40, 7.5, 12], rtol=1e-4)
    for name in ("voxel", "body_part", "anatomical"):
        np.testing.assert_array_equal(axis_lengths(make_source(name), frame), 1)


@each_axis
def test_noise_is_one_number_per_slice(frame: Frame, axes: str, channels: list[int]) -> None:
    true = true_location(frame)
    wrong = wrong_location(true, frame, (1, 1, 1), Change("noise", axes, 10.0), case="a")
    error = wrong.astype(float) - true
    for channel in range(3):
        if channel not in channels:
            assert not error[channel].any()
            continue
        axis = {0: 2, 1: 0, 2: 1}[channel]  # where the frame stores R, A and S
        within = tuple(a for a in range(3) if a != axis)
        assert np.ptp(error[channel], axis=within).max() < 1e-6
        per_slice = error[channel].mean(axis=within)
        assert np.unique(per_slice.round(5)).size == frame.shape[axis]


def test_noise_has_the_standard_deviation_asked_for() -> None:
    frame = Frame.from_affine((4000, 1, 1), np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]], "LPS")
    true = true_location(frame)
    error = wrong_location(true, frame, (1, 1, 0.5), Change("noise", "axial", 10.0)) - true
    assert error[2].std() == pytest.approx(0.05, rel=0.05)
    assert abs(error[2].mean()) < 0.005
    neighbours = np.corrcoef(error[2, :-1, 0, 0], error[2, 1:, 0, 0])[0, 1]
    assert abs(neighbours) < 0.05


def test_noise_belongs_to_case_seed_and_axis(frame: Frame) -> None:
    true = true_location(frame)

    def error(percent: float = 10.0, axes: str = "axial", case: str = "a", seed: int = 0) -> np.ndarray:
        change = Change("noise", axes, percent)
        return wrong_location(true, frame, (1, 1, 1), change, case=case, seed=seed) - true

    np.testing.assert_array_equal(error(), error())
    np.testing.assert_array_equal(error()[2], error(axes="all")[2])
    np.testing.assert_allclose(error(20.0), 2 * error(10.0), atol=1e-6)
    assert np.abs(error() - error(case="b")).max() > 0.01
    assert np.abs(error() - error(seed=1)).max() > 0.01


@each_axis
def test_unknown_takes_its_channels_away(frame: Frame, axes: str, channels: list[int]) -> None:
    (change,) = Design(kinds=("unknown",), axes=(axes,), amounts=(5.0, 25.0)).changes()
    location = true_location(frame)
    wrong = wrong_location(location, frame, np.ones(3), change)
    assert [channel for channel in range(3) if np.isnan(wrong[channel]).all()] == channels
    others = [channel for channel in range(3) if channel not in channels]
    np.testing.assert_array_equal(wrong[others], location[others])


def test_no_voxel_becomes_padding() -> None:
    """A shift that moves the location of a voxel to 0, which marks nnU-Net's padding."""
    matrix = np.zeros((3, 4))
    matrix[:, 3] = -0.25
    frame = Frame.from_affine((2, 2, 2), np.eye(4), "LPS")
    true = AffineField(matrix, frame.shape).box((0, 0, 0), frame.shape)
    assert ((true + np.float32(0.25)) == 0).all()
    wrong = wrong_location(true, frame, (1, 1, 1), Change("shift", "all", 25.0))
    assert (wrong != 0).any(axis=0).all()
    assert np.abs(wrong).max() < 1e-6


def test_padding_continues_the_shifted_location() -> None:
    """nnU-Net pads after the change; what the network makes of the padding is shifted with the rest, by as much."""
    import torch

    frame = Frame.from_affine((4, 4, 4), np.eye(4), "LPS")
    true = true_location(frame)
    wrong = wrong_location(true, frame, (1, 1, 1), Change("shift", "all", 10.0))
    continued = [
        extrapolate_padding(torch.from_numpy(np.pad(one, ((0, 0), (2, 2), (2, 2), (2, 2))))[None])[0]
        for one in (true, wrong)
    ]
    np.testing.assert_allclose(continued[1] - continued[0], 0.1, atol=1e-5)


def test_design() -> None:
    design = Design(amounts=(5, 0, 5.0), axes=("axial",), kinds=("noise", "shift"))
    assert design.amounts == (0.0, 5.0)
    assert design.curves() == [("noise", "axial"), ("shift", "axial")]
    # the unchanged location is predicted once for all curves
    assert design.changes() == [
        UNCHANGED,
        Change("noise", "axial", 5.0),
        Change("shift", "axial", 5.0),
        Change("shift", "axial", -5.0),
    ]
    assert Design(sign="plus").point("shift", "all", 5.0) == [Change("shift", "all", 5.0)]
    assert Design(sign="minus").point("shift", "all", 5.0) == [Change("shift", "all", -5.0)]
    assert Design(sign="minus").point("noise", "all", 5.0) == [Change("noise", "all", 5.0)]
    assert len(Design().changes()) == 1 + 6 * 2 * 3
    assert AMOUNTS_OF_THE_COMMAND == AMOUNTS


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"amounts": ()}, "percentages of 0 or more, got"),
        ({"amounts": (1, -5)}, "percentages of 0 or more, got"),
        ({"amounts": (float("nan"),)}, "percentages of 0 or more, got"),
        ({"axes": ("coronal",)}, "axes must be of R, A, axial, all; got coronal"),
        ({"kinds": ()}, "kinds must be of shift, noise, unknown; got none"),
        ({"sign": "up"}, "sign must be of both, plus, minus; got up"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_designs_that_are_none(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Design(**wrong)  # type: ignore[arg-type]
