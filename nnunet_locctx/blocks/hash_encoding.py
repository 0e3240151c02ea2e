"""A location as learned numbers instead of waves: hash tables at several resolutions."""

import functools
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_locctx.blocks.hash_grid import HashGrid, hash_lookup
from nnunet_locctx.blocks.resolution import fade_out, in_full_precision, token_step
from nnunet_locctx.blocks.unknown import hide_unknown
from nnunet_locctx.types import Features, Known, Location
from nnunet_locctx.values import (
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_positive,
)

BACKENDS = ("torch", "tcnn")
FEATURES = (1, 2, 4, 8)

FINEST = 2**23
"""Most vertices per axis; float32 does not resolve the positions of more."""


class HashEncoding(nn.Module):
    """Learned features at the vertices of ever finer grids, interpolated linearly (Müller et al., Instant Neural
    Graphics Primitives, SIGGRAPH 2022).

    The grids span a cube around the origin of the coordinates; a location outside is moved to its surface. Source
    ``voxel``: `extent` 1 is the scan. Source ``scanner`` (mm / 500): `extent` 1 is 50 cm, 25 cm to each side of the
    volume's centre; longer scans need more, and so do absolute coordinates, which lie anywhere: a scan outside the
    cube has one and the same feature along that axis.

    Grid `l` has ``s = base_resolution * scale**l - 1`` cells along the cube. A stage whose neighbouring tokens are
    ``step`` apart (:func:`~nnunet_locctx.blocks.resolution.token_step`, the largest of the three coordinates) crosses
    ``step * s / extent`` cells per token. As a band of :class:`~nnunet_locctx.blocks.encoding.FrequencyEncoding`, the
    level has full weight up to one half and exactly none from 1 on, where cells are finer than tokens and each token
    would read numbers that no neighbour shares. The coarsest level is never faded, or a coarse stage would have no
    encoding at all. Levels without a weight are not computed, and the fading is measured for each sample.

    The parameter `table` has the order of tiny-cuda-nn's parameters for its ``HashGrid``, so that weights can be
    exchanged. Taken from its source (NVlabs/tiny-cuda-nn, include/tiny-cuda-nn/encodings/grid.h and common_device.h, as
    of 2022 and 2023) and written anew: levels one after another, features innermost, entries of a level rounded up to
    a multiple of 8; a level that fits into ``2**log2_entries`` is dense (first coordinate fastest; the vertex beyond a
    row's last is the next row's first), another hashed (exclusive or of the vertex's indices times 1, 2654435761 and
    805459861, in 32 bits, modulo the size); ``ceil(s) + 1`` vertices per axis; a point lies at ``s * position + 0.5``,
    ``s`` in float32 and the point rounded once; initial values uniform within 1e-4. Its functions, compiled for a CPU,
    give the same numbers within 1.2e-7 of the largest entry (tests/fixtures/README.md). On a GPU its exp2 may be off
    in the last bit of ``s``, which was not measured.

    The gradient of the table is deterministic on a CPU, and on CUDA with ``torch.use_deterministic_algorithms(True)``
    (otherwise sums are rounded in varying order). The location gets no gradient. Features are float32 whatever the
    autocast mode.

    Args:
        levels: Number of grids, 1 to 32.
        features: Numbers per vertex: 1, 2, 4 or 8.
        log2_entries: Binary logarithm of the most entries per level, 4 to 24.
        base_resolution: Vertices per axis of the coarsest grid.
        scale: Growth of the resolution from grid to grid, at least 1.
        band_limit: Fade out levels as described; False gives every level full weight.
        backend: ``"torch"``, or ``"tcnn"``: tiny-cuda-nn, which is faster but needs CUDA and is not on the package
            index. With it torch.compile breaks the graph.
        extent: Side of the cube, in units of the location.
        gain: Features are the numbers of the table times this. The published 1 is for Adam at a rate of 0.01; an entry
            is seen by few voxels of few patches, and at nnU-Net's rates (SGD 0.01, loss averaged over the patch) hardly
            moves. A gain k acts as a rate k**2 times as high under SGD, k times under Adam. Tables of tiny-cuda-nn are
            exchanged at gain 1.

    Raises:
        ValueError: If an option is not allowed.
    """

    def __init__(
        self,
        levels: int = 16,
        features: int = 2,
        log2_entries: int = 15,
        base_resolution: int = 16,
        scale: float = 1.5,
        band_limit: bool = True,
        backend: str = "torch",
        extent: float = 1.0,
        gain: float = 30.0,
    ) -> None:
        super().__init__()
        check_integer("levels", levels, 1, 32)
        check_integer("log2_entries", log2_entries, 4, 24)
        check_integer("base_resolution", base_resolution, 2, FINEST)
        if features not in FEATURES or isinstance(features, bool):
            raise ValueError(f"features must be one of {FEATURES}, got {features!r}")
        check_number("scale", scale, 1)
        check_positive("extent", extent)
        check_positive("gain", gain)
        check_flag("band_limit", band_limit)
        check_choice("backend", backend, BACKENDS)
        finest = base_resolution * float(scale) ** (levels - 1)
        if finest > FINEST:
            raise ValueError(
                f"the finest level, base_resolution * scale**(levels - 1), must have at most {FINEST} vertices per "
                f"axis; got {finest:.0f} from base_resolution {base_resolution}, scale {scale} and levels {levels}"
            )
        self.grid = HashGrid(levels, features, log2_entries, base_resolution, float(scale))
        self.band_limit, self.backend = band_limit, backend
        self.extent, self.gain = float(extent), float(gain)
        self.channels = levels * features
        self.table = nn.Parameter(torch.empty(self.grid.parameters).uniform_(-1e-4, 1e-4))
        # not persistent: follows from the options, and a checkpoint must not overrule them
        self.register_buffer("scales", torch.tensor(self.grid.scales), persistent=False)
        self.scales: Tensor

    def forward(self, location: Location, known: Known | None = None) -> Features:
        """(B, 3, *spatial), (B, 3) -> (B, levels * features, *spatial), rank 1 to 3, level by level.

        A vertex has one feature for its place, not one for each axis: along axes that are not known the middle of the
        cube is looked up, and blocks add a flag (:class:`~nnunet_locctx.blocks.unknown.UnknownFlags`).

        Raises:
            ImportError: The backend is tiny-cuda-nn, and it cannot be loaded.
            ValueError: The backend is tiny-cuda-nn, and the location not on a CUDA device.
        """
        location = hide_unknown(in_full_precision(location.detach()), known)
        if self.band_limit:
            weights = self.level_weights(location)
        else:
            weights = location.new_ones((location.shape[0], self.grid.levels))
        weights, points = self.gain * weights, location.flatten(2)
        if self.backend == "tcnn":
            features = self._by_tiny_cuda_nn(points, weights)
        else:
            table = self.table.to(points.dtype)
            features = hash_lookup(table, points, weights, self.grid.integers, self.grid.scale, self.extent)
        return features.view(*features.shape[:2], *location.shape[2:])

    def level_weights(self, location: Location) -> Tensor:
        """Weight 0..1 of every level: (B, 3, *spatial) -> (B, levels)."""
        step = token_step(location).amax(dim=1, keepdim=True) / self.extent
        return torch.cat([torch.ones_like(step), fade_out(step * self.scales[1:].to(step.dtype))], dim=1)

    @torch.compiler.disable  # type: ignore[untyped-decorator] # torch's, without types
    def _by_tiny_cuda_nn(self, points: Tensor, weights: Tensor) -> Tensor:
        """As ``hash_lookup``."""
        native = tiny_cuda_nn_encoding(self.grid)
        if not points.is_cuda:
            raise ValueError(
                f"the hash encoding's backend 'tcnn' needs CUDA, got a location on {points.device}; the backend "
                "'torch' computes the same on every device"
            )
        if native.params.numel() != self.table.numel():
            raise RuntimeError(
                f"this version of tiny-cuda-nn keeps {native.params.numel()} parameters for {self.grid}, "
                f"{self.table.numel()} were expected; use the backend 'torch'"
            )
        rows = (points / self.extent + 0.5).clamp(0, 1).transpose(1, 2)  # (B, points, 3)
        features = torch.func.functional_call(native, {"params": self.table}, (rows.reshape(-1, 3).float(),))
        features = features.to(points.dtype).view(*rows.shape[:2], self.channels).transpose(1, 2)
        return features * weights.repeat_interleave(self.grid.features, dim=1)[..., None]

    def extra_repr(self) -> str:
        """The options, for ``print(network)``."""
        options = [f"{name}={getattr(self.grid, name):g}" for name in self.grid.__dataclass_fields__]
        options += [f"band_limit={self.band_limit}, backend={self.backend}"]
        return ", ".join([*options, f"extent={self.extent:g}, gain={self.gain:g}"])


def hash_arithmetic(options: Mapping[str, Any]) -> dict[str, str]:
    """What the signature of a checkpoint says besides the options of a block or network.

    Until ``s`` was computed in float32 and positions rounded once, the finest levels gave other features, off by up to
    the size of the entries. Tables trained so must not be read otherwise, unless fine levels are faded out: where cells
    are no finer than tokens, the difference is that of rounding.
    """
    differs = options.get("encoding") == "hash" and not options.get("band_limit", True)
    return {"hash_positions": "float32"} if differs else {}


@functools.cache
def tiny_cuda_nn_encoding(grid: HashGrid) -> Any:
    """tiny-cuda-nn's own module for a grid, one per process; its parameters are replaced at each call.

    Raises:
        ImportError: It cannot be loaded.
    """
    try:
        native = import_module("tinycudann")
    except (ImportError, OSError) as error:  # it raises EnvironmentError where it finds no suitable GPU
        raise ImportError(
            f"the hash encoding's backend 'tcnn' needs tiny-cuda-nn, which cannot be loaded here ({error}). "
            "It is not on the package index; with a CUDA compiler and a GPU at hand install it by "
            "'pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch', "
            "or use the backend 'torch', which computes the same"
        ) from error
    options = {
        "otype": "HashGrid",
        "n_levels": grid.levels,
        "n_features_per_level": grid.features,
        "log2_hashmap_size": grid.log2_entries,
        "base_resolution": grid.base_resolution,
        "per_level_scale": grid.scale,
        "interpolation": "Linear",
    }
    return native.Encoding(3, options, dtype=torch.float32)
