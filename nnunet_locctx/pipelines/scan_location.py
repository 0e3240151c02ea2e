"""The location of one scan, for any grid of voxels in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import SOURCES, LocationField, LocationSource, make_source
from nnunet_locctx.regression.registry import load_regressor
from nnunet_locctx.regression.regressor import Regressor
from nnunet_locctx.scan import Scan
from nnunet_locctx.types import LocationArray

Source: TypeAlias = str | Path | LocationSource | Regressor
"""A location source: its name (``"voxel"`` or ``"scanner"``), a source with its options (``make_source``), or the
regressor that measures the scan, itself or its file (``regressor.pt``, made by ``locctx fit``)."""


@dataclass(frozen=True)
class ScanLocation:
    """The location of every place of a scan, also on other grids: cropped, turned, resampled. Made by :func:`locate`.

    Attributes:
        frame: The scan's frame.
        field: Its location, by the index of its voxels.
    """

    frame: Frame
    field: LocationField

    def on(self, grid: Frame) -> LocationArray:
        """Location (3, *shape) of the voxels of another grid, in patient axes (R, A, S); NaN along unknown axes.

        Args:
            grid: Its millimetres are those of the scan; it may reach beyond the scan.
        """
        step: Array = np.asarray(np.linalg.solve(self.frame.affine_lps, grid.affine_lps), dtype=np.float64)
        location = np.empty((3, *grid.shape), dtype=np.float32)
        self.field.sample(step[:3, 3], step[:3, :3], location)
        return location

    def at(self, millimetres: npt.ArrayLike) -> Array:
        """Location (..., 3) at places (..., 3) in mm LPS; NaN along unknown axes."""
        return self.field.at(self.frame.index_from_millimetres(millimetres))


def locate(scan: str | Path | Scan | Frame, source: Source = "voxel") -> ScanLocation:
    """The location of a scan.

    Args:
        scan: A file that SimpleITK reads, a scan, or its frame where the source measures nothing.
        source: See :data:`Source`.

    Raises:
        BrokenFileError: The scan's file is missing or not whole.
        ValueError: The scan cannot be read, the source is unknown, or it needs voxels and there is but a frame.
    """
    chosen = _open(source)
    if isinstance(scan, str | Path):
        scan = Scan.read(Path(scan))
    frame = scan if isinstance(scan, Frame) else scan.frame
    if isinstance(chosen, LocationSource):
        return ScanLocation(frame, chosen.field(frame))
    if isinstance(scan, Frame):
        raise ValueError(f"the source {chosen.kind!r} is measured in the scan: give the scan, not its frame")
    if chosen.channel >= len(scan.voxels):
        raise ValueError(f"the source looks at channel {chosen.channel}, the scan has {len(scan.voxels)}")
    measured = chosen.measure(scan.voxels[chosen.channel], frame)
    return ScanLocation(frame, make_source(chosen.kind).field(frame, measured))


def coordinates(
    scan: str | Path | Scan | Frame, box: Sequence[Sequence[int]] | None = None, source: Source = "voxel"
) -> LocationArray:
    """Location of a box of voxels (3, *box) in patient axes (R, A, S); NaN along axes where it is unknown.

    Args:
        scan: A file that SimpleITK reads (array axis order z, y, x), a scan, or a frame, which has the axis order that
            it was made with.
        box: First voxel and the one after the last, for each array axis: ``[(0, 16), (30, 46), (30, 46)]``. It may
            reach beyond the scan. None: the whole scan.
        source: See :data:`Source`.

    Raises:
        ValueError: The box has no voxels; and as :func:`locate`.
    """
    if box is not None and (
        len(box) != 3 or any(len(edges) != 2 or int(edges[1]) <= int(edges[0]) for edges in box)
    ):
        raise ValueError(
            f"a box is three pairs (first voxel, the one after the last), one or more voxels each, got {list(box)}"
        )
    located = locate(scan, source)
    edges = [(0, n) for n in located.frame.shape] if box is None else [(int(a), int(b)) for a, b in box]
    return located.field.box([first for first, _ in edges], [stop - first for first, stop in edges])


def _open(source: Source) -> LocationSource | Regressor:
    """The source, or what measures it.

    Raises:
        ValueError: There is no such source or file, or the source needs a regressor.
    """
    if isinstance(source, LocationSource | Regressor):
        chosen = source
    elif source in SOURCES:
        chosen = make_source(str(source))
    elif Path(source).is_file():
        try:
            return load_regressor(Path(source).read_bytes())
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    else:
        raise ValueError(
            f"the location source {str(source)!r} is neither the file of a regressor nor one of "
            f"{', '.join(sorted(SOURCES))}"
        )
    if isinstance(chosen, LocationSource) and chosen.fitted:
        needed = (
            "BodyFinder('ct') or BodyFinder('mr')"
            if chosen.name == "body"
            else "a regressor's file (`locctx fit`)"
        )
        raise ValueError(f"the location source {chosen.name!r} is measured in each scan: give {needed}")
    return chosen
