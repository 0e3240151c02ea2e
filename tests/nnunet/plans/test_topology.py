import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_locctx.nnunet.plans.topology import Topology, allowed_sizes, fit_architecture, plan_topology
from tests.nnunet.small_plans import architecture

spacings = st.lists(st.sampled_from([0.7, 1.0, 1.5, 3.0, 5.0]), min_size=3, max_size=3)
sizes = st.lists(st.integers(8, 100), min_size=3, max_size=3)


@pytest.mark.parametrize(
    ("spacing", "patch", "stride"),
    [
        ([1, 1, 1], [32, 32, 32], (8, 8, 8)),
        ([1, 1], [128, 32], (16, 8)),
        ([5, 1, 1], [16, 64, 64], (4, 16, 16)),  # slices are pooled once the voxels are about cubes
        ([1, 1, 1], [7, 7, 7], (1, 1, 1)),
    ],
)
def test_total_stride(spacing: list[float], patch: list[int], stride: tuple[int, ...]) -> None:
    assert plan_topology(spacing, patch).total_stride == stride


def test_first_axis_of_thick_slices_keeps_flat_kernels() -> None:
    topology = plan_topology([5, 1, 1], [16, 64, 64])
    assert topology.strides[1] == (1, 2, 2)
    assert topology.kernels[0] == (1, 3, 3)


@given(spacings, sizes)
def test_allowed_sizes_are_what_nnunet_would_accept(spacing: list[float], patch: list[int]) -> None:
    for size in allowed_sizes(spacing, patch):
        assert tuple(get_pool_and_conv_props(spacing, size, 4, 999999)[3]) == tuple(size)


@given(spacings, sizes)
def test_a_size_that_fits_is_its_own_nearest(spacing: list[float], patch: list[int]) -> None:
    topology = plan_topology(spacing, patch)
    if topology.fits(patch) and topology.trainable:
        assert allowed_sizes(spacing, patch) == [patch]


def test_nearest_comes_first() -> None:
    # 30 pools to 15, 8, 4 and needs a multiple of 8; 28 stops at 7 and needs a multiple of 4
    assert allowed_sizes([1, 1, 1], [31, 31, 31]) == [[32, 32, 32], [28, 28, 28]]
    assert allowed_sizes([1, 1, 1], [29, 28, 28]) == [[28, 28, 28], [32, 28, 28]]


def test_allowed_sizes_with_a_fixed_topology() -> None:
    fixed = Topology(((1, 1), (2, 2), (2, 1)), ((3, 3),) * 3)
    assert allowed_sizes([1, 1], [9, 8], fixed) == [[8, 8], [12, 8]]
    assert allowed_sizes([1, 1], [3, 8], fixed) == [[4, 8]]  # nothing is left below


@pytest.mark.parametrize("size", [5, 13])
def test_too_small_to_train_is_no_allowed_size(size: int) -> None:
    assert [size - 1] * 3 not in allowed_sizes([1, 1, 1], [size] * 3)


def _topology(stages: int, rank: int = 3) -> Topology:
    return Topology(((1,) * rank, *((2,) * rank,) * (stages - 1)), ((3,) * rank,) * stages)


def test_architecture_is_cut() -> None:
    base = architecture(3, features=(32, 64, 128, 256))
    kwargs = fit_architecture(base, _topology(2))["arch_kwargs"]
    assert kwargs["n_stages"] == 2
    assert kwargs["features_per_stage"] == [32, 64]
    assert kwargs["n_conv_per_stage"] == [1, 1]
    assert kwargs["n_conv_per_stage_decoder"] == [1]
    assert len(kwargs["strides"]) == len(kwargs["kernel_sizes"]) == 2
    assert len(base["arch_kwargs"]["strides"]) == 4  # the base stays as it was


@pytest.mark.parametrize(("rank", "cap"), [(2, 512), (3, 320)])
def test_architecture_is_continued(rank: int, cap: int) -> None:
    kwargs = fit_architecture(architecture(rank, features=(32, 64)), _topology(7, rank))["arch_kwargs"]
    assert kwargs["features_per_stage"] == [32, 64, 128, 256, cap, cap, cap]
    assert kwargs["n_conv_per_stage"] == [1] * 7
    assert kwargs["n_conv_per_stage_decoder"] == [1] * 6


def test_residual_blocks_continue_as_planned_by_nnunet() -> None:
    base = architecture(3, residual=True)
    base["arch_kwargs"]["n_blocks_per_stage"] = [1, 3, 4]
    kwargs = fit_architecture(base, _topology(6))["arch_kwargs"]
    assert kwargs["n_blocks_per_stage"] == [1, 3, 4, 6, 6, 6]


def test_one_number_for_all_stages_stays() -> None:
    base = architecture(3)
    base["arch_kwargs"]["n_conv_per_stage"] = 2
    assert fit_architecture(base, _topology(5))["arch_kwargs"]["n_conv_per_stage"] == 2
