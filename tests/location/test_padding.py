"""The location of a volume that nnU-Net padded with zeros to the patch size."""

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from hypothesis import given
from hypothesis import strategies as st

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import make_source
from nnunet_locctx.location.padding import extrapolate_padding
from tests.geometry_cases import flips, permutations, rotation, small_angles, stored


@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    permutations,
    flips,
    small_angles,
    st.booleans(),
)
def test_padding_as_nnunet_does_it(shape, patch, permutation, flip, angles, oblique) -> None:  # type: ignore[no-untyped-def]
    turn = rotation(angles if oblique else (0, 0, 0))
    properties, shape = stored(permutation, flip, shape, (1.0, 2.0, 3.0), np.array([5.0, 6.0, 7.0]), turn)
    frame = Frame.from_properties(properties, shape)
    field = make_source("voxel").field(frame)
    volume = torch.from_numpy(field.box((0, 0, 0), shape))
    padded, _ = pad_nd_image(volume, patch, "constant", {"value": 0}, True, None)
    below = [(new - old) // 2 for new, old in zip(padded.shape[1:], shape, strict=True)]
    restored = extrapolate_padding(padded[None])[0].numpy()
    truth = field.box([-b for b in below], padded.shape[1:])
    for axis, n in enumerate(shape):
        if n == 1:  # one voxel has no direction: its location is repeated
            middle = [slice(None)] * 4
            middle[axis + 1] = slice(below[axis], below[axis] + 1)
            truth[...] = truth[tuple(middle)]
    np.testing.assert_allclose(restored, truth, atol=2e-5)


def test_a_patch_inside_the_volume_is_returned_bit_by_bit() -> None:
    location = torch.rand(2, 3, 5, 6, 7) + 0.1
    assert torch.equal(extrapolate_padding(location), location)


def test_rank_two() -> None:
    row = torch.tensor([-0.25, 0.25])
    location = torch.zeros(1, 3, 2, 6)
    location[0, 0, :, 2:4] = row
    location[0, 1, :, 2:4] = row[:, None]
    location[0, 2, :, 2:4] = 0.3
    restored = extrapolate_padding(location)[0]
    torch.testing.assert_close(
        restored[0], torch.tensor([-1.25, -0.75, -0.25, 0.25, 0.75, 1.25]).expand(2, 6)
    )
    torch.testing.assert_close(restored[1], row[:, None].expand(2, 6))
    torch.testing.assert_close(restored[2], torch.full((2, 6), 0.3))


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3), flips)
def test_mirroring_and_restoring_commute(shape, patch, flip) -> None:  # type: ignore[no-untyped-def]
    """nnU-Net pads the odd voxel behind, so that test-time mirroring moves the volume inside the patch."""
    field = make_source("voxel").field(
        Frame.from_properties(
            *stored((2, 0, 1), flip, shape, (1.0, 2.0, 3.0), np.zeros(3), rotation((0.1, 0.2, 0.3)))
        )
    )
    volume = torch.from_numpy(field.box((0, 0, 0), field.shape))
    padded, _ = pad_nd_image(volume, patch, "constant", {"value": 0}, True, None)
    for axes in ([2], [3, 4], [2, 3, 4]):
        mirrored = extrapolate_padding(padded[None].flip(axes)).flip(axes)
        torch.testing.assert_close(mirrored, extrapolate_padding(padded[None]), atol=1e-5, rtol=0)


def test_a_location_of_zeros_stays_zero() -> None:
    location = torch.zeros(1, 3, 4, 4, 4)
    assert torch.equal(extrapolate_padding(location), location)


@pytest.mark.parametrize("rank", [2, 3])
def test_compiles_without_graph_break(rank: int) -> None:
    compiled = torch.compile(extrapolate_padding, fullgraph=True, backend="eager")
    location = torch.zeros(1, 3, *[6] * rank)
    location[(..., *[slice(1, 5)] * rank)] = torch.rand(1, 3, *[4] * rank)
    torch.testing.assert_close(compiled(location), extrapolate_padding(location))


def test_a_location_that_is_not_affine_continues_from_its_faces() -> None:
    inner = torch.rand(1, 3, 4, 5, 3, dtype=torch.float64) + 0.1
    location = torch.zeros(1, 3, 8, 10, 6, dtype=torch.float64)
    lower = (2, 3, 1)
    location[:, :, 2:6, 3:8, 1:4] = inner
    restored = extrapolate_padding(location)[0]
    torch.testing.assert_close(restored[:, 2:6, 3:8, 1:4], inner[0], atol=0, rtol=0)
    # outside the box along one axis: the face, and the slope along the box's edge from its first corner
    for axis, n in enumerate((4, 5, 3)):
        end = [n - 1 if a == axis else 0 for a in range(3)]
        slope = (inner[(0, slice(None), *end)] - inner[0, :, 0, 0, 0]) / (n - 1)
        face = inner[0].select(axis + 1, n - 1)
        at = [slice(lo, lo + m) for lo, m in zip(lower, (4, 5, 3), strict=True)]
        at[axis] = slice(lower[axis] + n + 1, lower[axis] + n + 2)  # two voxels beyond
        beyond = restored[(slice(None), *at)].squeeze(axis + 1)
        torch.testing.assert_close(beyond, face + 2 * slope[:, None, None])


@pytest.mark.parametrize("unknown", [[0], [2], [0, 1], [0, 1, 2]])
def test_unknown_axes_stay_unknown_and_the_others_continue(unknown: list[int]) -> None:
    known = torch.zeros(1, 3, 8, 10, 6)
    known[:, :, 2:6, 3:8, 1:4] = torch.rand(1, 3, 4, 5, 3) + 0.1
    partly = known.clone()
    partly[:, unknown, 2:6, 3:8, 1:4] = torch.nan
    expected = extrapolate_padding(known)
    expected[:, unknown] = torch.nan
    torch.testing.assert_close(extrapolate_padding(partly), expected, atol=0, rtol=0, equal_nan=True)
