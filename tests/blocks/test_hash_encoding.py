"""Hash encoding: the lookup against itself written out, its order against tiny-cuda-nn's, its memory."""

import math
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_locctx.blocks import GlobalEncoding, HashEncoding, hash_encoding, hash_grid, resize_location
from nnunet_locctx.blocks.hash_grid import HashGrid, look_up, scatter
from tests.blocks.harness import ramp

SMALL = {"levels": 4, "log2_entries": 9, "base_resolution": 5}


def filled(gain: float = 1.0, **options: Any) -> HashEncoding:
    """An encoding in the middle of training."""
    encoding = HashEncoding(gain=gain, **options)
    nn.init.normal_(encoding.table)
    return encoding


def written_out(encoding: HashEncoding, location: Tensor) -> Tensor:
    """The encoding of a location (3, points), point by point, in Python's integers."""
    grid = encoding.grid
    table = encoding.table.detach().view(-1, grid.features)
    most = 2**grid.log2_entries
    values = torch.zeros(grid.levels, grid.features, location.shape[1], dtype=table.dtype)
    for point, place in enumerate(location.T.tolist()):
        first = 0
        for level in range(grid.levels):
            cells = grid.scales[level]
            resolution = math.ceil(cells) + 1
            size = min(8 * math.ceil(resolution**3 / 8), most)
            at = [min(max(c / encoding.extent + 0.5, 0.0), 1.0) * cells + 0.5 for c in place]
            for corner in product((0, 1), repeat=3):
                weight = math.prod(
                    a - math.floor(a) if up else 1 - (a - math.floor(a))
                    for a, up in zip(at, corner, strict=True)
                )
                x, y, z = (math.floor(a) + up for a, up in zip(at, corner, strict=True))
                if resolution**3 <= size:
                    entry = x + y * resolution + z * resolution**2
                else:
                    entry = x ^ (y * 2654435761) % 2**32 ^ (z * 805459861) % 2**32
                values[level, :, point] += weight * table[first + entry % size]
            first += size
    return values.flatten(0, 1)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 953_344), ({"levels": 32}, 2_001_920), ({"levels": 1, "base_resolution": 3}, 64)],
)
def test_number_of_parameters(options: dict[str, Any], parameters: int) -> None:
    encoding = HashEncoding(**options)
    assert {name: p.numel() for name, p in encoding.named_parameters()} == {"table": parameters}
    assert encoding.state_dict().keys() == {"table"}
    assert 0.9e-4 < encoding.table.abs().max() <= 1e-4 or parameters < 100


def test_order_of_the_levels() -> None:
    grid = HashEncoding().grid
    assert grid.resolutions[:4] == (16, 24, 36, 54)
    assert grid.resolutions[-1] == 7007
    assert grid.sizes[:3] == (4096, 13824, 32768)
    assert grid.offsets[:4] == (0, 4096, 17920, 50688)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"log2_entries": 18},
        {"levels": 5, "features": 4, "log2_entries": 6, "base_resolution": 3, "scale": 1.7},
        {"levels": 3, "features": 1, "log2_entries": 24, "base_resolution": 9, "extent": 2.5},
        {"levels": 2, "features": 8, "log2_entries": 16, "base_resolution": 2**16, "scale": 100},
    ],
)
def test_equals_the_sum_over_corners_written_out(options: dict[str, Any]) -> None:
    encoding = filled(band_limit=False, **options).double()
    location = (torch.rand(1, 3, 20, dtype=torch.float64) - 0.5) * 1.3
    location[0, :, :2] = torch.tensor([[-0.5, 0.5]] * 3)
    torch.testing.assert_close(encoding(location)[0], written_out(encoding, location[0]))


@given(
    cells=st.lists(st.integers(0, 2**23), min_size=3, max_size=3),
    level=st.integers(0, 15),
    log2_entries=st.sampled_from([4, 11, 15, 16, 19, 24]),
)
def test_indices_are_those_of_32_bit_arithmetic(cells: list[int], level: int, log2_entries: int) -> None:
    grid = HashGrid(16, 2, log2_entries, 16, 1.5)
    position = (torch.tensor(cells, dtype=torch.float64) / 2**23)[:, None]
    entries, between = grid.vertices(position, level)
    assert ((entries >= 0) & (entries < grid.sizes[level])).all()
    assert ((between >= 0) & (between < 1)).all()
    scaled = (position * grid.scales[level] + 0.5).floor().long().flatten().tolist()
    for corner in product((0, 1), repeat=3):
        z, y, x = (scaled[2 - k] + up for k, up in enumerate(corner))
        n = grid.resolutions[level]
        hashed = x ^ (y * 2654435761) % 2**32 ^ (z * 805459861) % 2**32
        expected = (x + n * y + n * n * z if n**3 <= grid.sizes[level] else hashed) % grid.sizes[level]
        assert entries[corner].item() == expected


REFERENCE = np.load(Path(__file__).parents[1] / "fixtures" / "hash_grid.npz")


@pytest.mark.parametrize("name", REFERENCE["names"].tolist())
def test_equals_the_authors_functions(name: str) -> None:
    """tiny-cuda-nn's own functions, compiled; see tests/fixtures/README.md."""
    *integers, scale = REFERENCE[f"{name}_options"].tolist()
    grid = HashGrid.of([int(one) for one in integers], scale)
    assert np.float32(grid.scales).tolist() == REFERENCE[f"{name}_scales"].tolist()
    entries = REFERENCE[f"{name}_offsets"].tolist()
    assert [*grid.offsets, grid.parameters // grid.features] == entries
    index = np.arange(1, grid.parameters + 1, dtype=np.uint64)
    table = torch.from_numpy((index * 2654435761 % 2**32 // 256) / 2.0**23 - 1).float()
    location = torch.from_numpy(REFERENCE[f"{name}_position"].T)[None] - 0.5
    features = look_up(grid, table, location, torch.ones(1, grid.levels), 1.0)[0].T
    np.testing.assert_allclose(features.numpy(), REFERENCE[f"{name}_features"], rtol=0, atol=2.5e-7)


@pytest.mark.parametrize("size", [(7,), (5, 6), (3, 4, 5), (1, 1, 1)])
def test_every_rank(size: tuple[int, ...]) -> None:
    encoding = filled(**SMALL)
    location = torch.rand(2, 3, *size) - 0.5
    encoded = encoding(location)
    assert encoded.shape == (2, 8, *size)
    constant = encoding.level_weights(location).repeat_interleave(2, dim=1)
    for sample in range(2):
        expected = written_out(encoding, location[sample].flatten(1)) * constant[sample][:, None]
        torch.testing.assert_close(encoded[sample].flatten(1), expected)


def test_outside_the_cube_is_its_surface() -> None:
    encoding = filled(band_limit=False, **SMALL)
    inside, outside = torch.tensor([0.5, -0.5, 0.1]), torch.tensor([0.9, -3.0, 0.1])
    assert torch.equal(encoding(inside.view(1, 3, 1)), encoding(outside.view(1, 3, 1)))
    wide = filled(band_limit=False, extent=8.0, **SMALL)
    assert not torch.equal(wide(inside.view(1, 3, 1)), wide(outside.view(1, 3, 1)))


def test_gain_scales_features_and_gradient() -> None:
    one, ten = filled(**SMALL), filled(gain=10, **SMALL)
    ten.load_state_dict(one.state_dict())
    location = ramp(2, (5, 6, 7))
    torch.testing.assert_close(ten(location), 10 * one(location))
    for encoding in (one, ten):
        encoding(location).sum().backward()
    torch.testing.assert_close(ten.table.grad, 10 * one.table.grad)


def test_extent_is_a_change_of_unit() -> None:
    near, far = filled(**SMALL), filled(extent=4.0, **SMALL)
    far.load_state_dict(near.state_dict())
    location = ramp(2, (5, 6, 7))
    torch.testing.assert_close(far(4 * location), near(location))


@pytest.mark.parametrize("n", [4, 16, 50, 200])
def test_levels_fade_out_before_cells_get_finer_than_tokens(n: int) -> None:
    encoding = HashEncoding()
    axis = (torch.arange(n) + 0.5) / n - 0.5
    location = torch.stack([axis, torch.zeros(n), torch.zeros(n)])[None]
    weights = encoding.level_weights(location)[0].tolist()
    assert weights[0] == 1  # a coarse stage keeps something
    for cells, weight in list(zip(encoding.grid.scales, weights, strict=True))[1:]:
        if cells / n <= 0.5 - 1e-5:
            assert weight == pytest.approx(1)
        elif cells / n >= 1 + 1e-5:
            assert weight == 0
        elif 0.5 + 1e-3 < cells / n < 1 - 1e-3:
            assert 0 < weight < 1
    encoded = filled()(location)
    assert [bool(encoded[0, 2 * level].any()) for level in range(16)] == [weight > 0 for weight in weights]


def test_each_sample_has_its_own_limit() -> None:
    encoding = filled()
    near, far = ramp(1, (6, 6, 6)) * 0.1, ramp(1, (6, 6, 6))
    torch.testing.assert_close(
        encoding(torch.cat([near, far])), torch.cat([encoding(near), encoding(far)]), atol=0, rtol=0
    )
    assert encoding.level_weights(near).sum() > encoding.level_weights(far).sum()
    assert (HashEncoding(band_limit=False)(far) != 0).all()


@pytest.mark.parametrize("samples_per_chunk", [0.1, 1, 2.5])
@pytest.mark.parametrize("location", [ramp(5, (4, 5, 6)), 0.2 * torch.randn(3, 3, 120)])
def test_chunks_make_no_difference(
    location: Tensor, samples_per_chunk: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = filled(band_limit=False, **SMALL).double()
    location = location.double()
    results = []
    for most in (10**6, int(120 * samples_per_chunk)):
        monkeypatch.setitem(hash_grid.CHUNK_OF_POINTS, "cpu", most)
        encoding.zero_grad()
        encoded = encoding(location)
        (encoded**2).sum().backward()
        assert encoding.table.grad is not None
        results.append((encoded.detach(), encoding.table.grad.clone()))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("band_limit", [True, False])
def test_gradient(band_limit: bool) -> None:
    encoding = filled(band_limit=band_limit, **SMALL).double()
    location = ramp(2, (2, 3, 2)).double()

    def call(table: Tensor) -> Tensor:
        return torch.func.functional_call(encoding, {"table": table}, (location,))

    assert torch.autograd.gradcheck(call, (encoding.table,), fast_mode=True)


def test_every_entry_in_reach_gets_a_gradient() -> None:
    encoding = HashEncoding(levels=2, log2_entries=6, base_resolution=3, band_limit=False)
    encoding(torch.rand(1, 3, 4000) - 0.5).sum().backward()
    assert encoding.table.grad is not None
    assert (encoding.table.grad != 0).all()


def test_the_gradient_is_reproducible() -> None:
    encoding, location = filled(), ramp(1, (20, 20, 20))
    gradients = []
    for _ in range(2):
        encoding.zero_grad()
        (encoding(location) ** 2).sum().backward()
        assert encoding.table.grad is not None
        gradients.append(encoding.table.grad.clone())
    assert torch.equal(*gradients)


def test_keeps_nothing_but_the_location_for_the_gradient() -> None:
    encoding, location = HashEncoding(), ramp(2, (9, 10, 11))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        encoding(location)
    numbers = sum(t.numel() for t in kept if t.data_ptr() != encoding.table.data_ptr())
    assert numbers == location.numel() + 2 * 16
    assert location.untyped_storage().data_ptr() in {t.untyped_storage().data_ptr() for t in kept}


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation makes, views of the results aside."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        views = not isinstance(made, Tensor) or func.is_view
        if not views and func._schema.name != "aten::copy_":
            self.sizes.append(made.numel())
        return made


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the result and the table: no tensor of eight corners for more points than a chunk has."""
    chunk, points = 64, 4096
    monkeypatch.setitem(hash_grid.CHUNK_OF_POINTS, "cpu", chunk)
    grid = HashGrid(3, 2, 9, 5, 1.5)
    location, weights = torch.rand(1, 3, points) - 0.5, torch.ones(1, 3)
    table = torch.randn(grid.parameters)
    for call in (
        lambda: look_up(grid, table, location, weights, 1.0),
        lambda: scatter(grid, torch.randn(1, 6, points), location, weights, 1.0),
    ):
        with Largest() as largest:
            call()
        results = (6 * points, grid.parameters, 3 * points)
        assert max(size for size in largest.sizes if size not in results) <= max(
            8 * chunk, grid.features * max(grid.sizes)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_float32_whatever_the_precision(dtype: torch.dtype) -> None:
    encoding, location = filled(), ramp(1, (4, 5, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = encoding(location)
    assert under.dtype == torch.float32
    assert torch.equal(under, encoding(location))
    assert encoding(location.to(dtype)).dtype == torch.float32


def test_compiles_without_a_graph_break_and_trains_compiled() -> None:
    encoding, location = filled(**SMALL), ramp(2, (4, 5, 6))
    torch._dynamo.reset()
    compiled = torch.compile(encoding, fullgraph=True, backend="aot_eager")
    (compiled(location) ** 2).sum().backward()
    assert encoding.table.grad is not None
    gradient = encoding.table.grad.clone()
    encoding.zero_grad()
    (encoding(location) ** 2).sum().backward()
    torch.testing.assert_close(gradient, encoding.table.grad)


@pytest.mark.parametrize("flipped", [(2,), (3, 4), (2, 3, 4)])
def test_follows_flips_crops_and_stages(flipped: tuple[int, ...]) -> None:
    encoding, location = filled().double(), ramp(1, (8, 10, 12)).double()
    torch.testing.assert_close(encoding(location.flip(flipped)), encoding(location).flip(flipped))
    crop = (..., slice(2, 8), slice(3, 9), slice(1, 5))
    torch.testing.assert_close(encoding(location[crop]), encoding(location)[crop])
    stage = resize_location(location, (4, 5, 6))
    torch.testing.assert_close(encoding(stage.flip(flipped)), encoding(stage).flip(flipped))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "levels must be an integer from 1 to 32, got 0"),
        ({"features": 3}, r"features must be one of \(1, 2, 4, 8\), got 3"),
        ({"features": True}, r"features must be one of \(1, 2, 4, 8\), got True"),
        ({"log2_entries": 30}, "log2_entries must be an integer from 4 to 24, got 30"),
        ({"base_resolution": 1}, "base_resolution must be an integer from 2 to 8388608, got 1"),
        ({"scale": 0.5}, "scale must be a number >= 1, got 0.5"),
        ({"scale": "1.5"}, "scale must be a number >= 1, got '1.5'"),
        ({"extent": 0}, "extent must be a positive number, got 0"),
        ({"gain": True}, "gain must be a positive number, got True"),
        ({"backend": "cuda"}, "backend must be one of torch, tcnn; got 'cuda'"),
        ({"levels": 32, "scale": 2}, "finest level.* at most 8388608 vertices.*got 34359738368"),
    ],
)
def test_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlobalEncoding("hash", hash=options).make()


def test_shows_its_options() -> None:
    shown = repr(HashEncoding(levels=3))
    assert "levels=3, features=2, log2_entries=15, base_resolution=16, scale=1.5" in shown
    assert "backend=torch" in shown


@pytest.mark.parametrize("error", [ImportError("No module named 'tinycudann'"), OSError("Unknown compute")])
def test_says_how_to_install_tiny_cuda_nn(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise error

    monkeypatch.setattr(hash_encoding, "import_module", absent)
    hash_encoding.tiny_cuda_nn_encoding.cache_clear()
    encoding = HashEncoding(backend="tcnn", **SMALL)  # made without it: plans are checked on any machine
    with pytest.raises(ImportError, match=f"{error}.*not on the package index.*pip install git"):
        encoding(ramp(1, (3, 4, 5)))


class StandIn(nn.Module):
    """What is used of tiny-cuda-nn's module, computed by this package."""

    def __init__(self, inputs: int, options: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        assert (inputs, dtype, options["otype"]) == (3, torch.float32, "HashGrid")
        self.grid = HashGrid(
            options["n_levels"],
            options["n_features_per_level"],
            options["log2_hashmap_size"],
            options["base_resolution"],
            options["per_level_scale"],
        )
        self.params = nn.Parameter(torch.zeros(self.grid.parameters))

    def forward(self, rows: Tensor) -> Tensor:
        features = hash_grid.hash_lookup(
            self.params,
            rows.T[None] - 0.5,
            rows.new_ones(1, self.grid.levels),
            self.grid.integers,
            self.grid.scale,
            1.0,
        )
        return features[0].T


def test_tiny_cuda_nn_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_encoding, "import_module", lambda name: SimpleNamespace(Encoding=StandIn))
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda tensor: True))
    hash_encoding.tiny_cuda_nn_encoding.cache_clear()
    encoding, ours = filled(backend="tcnn", **SMALL), filled(**SMALL)
    ours.load_state_dict(encoding.state_dict())
    location = ramp(2, (4, 5, 6))
    torch.testing.assert_close(encoding(location), ours(location), atol=1e-5, rtol=1e-4)
    assert [name for name, _ in encoding.named_parameters()] == ["table"]
    for one in (encoding, ours):
        (one(location) ** 2).sum().backward()
    torch.testing.assert_close(encoding.table.grad, ours.table.grad, atol=1e-4, rtol=1e-3)
    hash_encoding.tiny_cuda_nn_encoding.cache_clear()


def test_tiny_cuda_nn_itself() -> None:
    """Runs where it is installed and a GPU is at hand."""
    hash_encoding.tiny_cuda_nn_encoding.cache_clear()
    encoding = filled(backend="tcnn", levels=10)
    try:
        hash_encoding.tiny_cuda_nn_encoding(encoding.grid)
    except ImportError as error:
        pytest.skip(str(error)[:80])
    ours = filled(levels=10)
    ours.load_state_dict(encoding.state_dict())
    location = ramp(2, (20, 21, 22)).cuda()
    torch.testing.assert_close(encoding.cuda()(location), ours.cuda()(location), atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_same_on_cuda() -> None:
    encoding, location = filled(), ramp(2, (20, 21, 22))
    expected = encoding(location)
    (expected**2).sum().backward()
    assert encoding.table.grad is not None
    gradient = encoding.table.grad.clone()
    encoding.zero_grad()
    features = encoding.cuda()(location.cuda())
    (features**2).sum().backward()
    torch.testing.assert_close(features.cpu(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoding.table.grad.cpu(), gradient, atol=1e-3, rtol=1e-3)
    grid = encoding.grid
    position = torch.rand(3, 1000)
    for level in range(grid.levels):
        assert torch.equal(grid.vertices(position.cuda(), level)[0].cpu(), grid.vertices(position, level)[0])
