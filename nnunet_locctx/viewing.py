"""Slices the way radiologists see them: as if looking from the feet or from the front, the patient's right at the left.

Sagittal slices have the anterior side at the left. A scan whose file says nothing of the patient is drawn as it is
stored. Grey levels and the colours of classes are the same in all pictures.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame

ENDS = (("L", "R"), ("P", "A"), ("I", "S"))
"""Per patient axis (R, A, S): where it begins and where it ends."""

SOFT_TISSUE = (-160.0, 240.0)
"""Window of CT in HU: level 40, width 400."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours for lines, which people with a common colour blindness can distinguish."""

VISIONS = np.array(
    [
        np.eye(3),
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    ]
)
"""(3, 3, 3): what becomes of linear RGB in normal vision, in deuteranopia and in protanopia (Machado, Oliveira and
Fernandes 2009, severity 1)."""

Colour: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class View:
    """A direction in which a volume is cut.

    Attributes:
        name: The radiologists' name of it.
        fixed: Patient axis (0 R, 1 A, 2 S) that the slice is perpendicular to.
        row: Patient axis that runs upwards in the picture.
        column: Patient axis that runs to the left in the picture.
    """

    name: str
    fixed: int
    row: int
    column: int


AXIAL, CORONAL, SAGITTAL = View("axial", 2, 1, 0), View("coronal", 1, 2, 0), View("sagittal", 0, 2, 1)
VIEWS = (AXIAL, CORONAL, SAGITTAL)


class Slice:
    """A plane of a scan's array, turned for drawing.

    Args:
        frame: The scan's.
        view: Which plane.
        index: A voxel (array axis order) that it passes through, or the plane's index along its fixed axis.

    Attributes:
        fixed: Array axis that the plane is perpendicular to.
        row, column: Array axes that run along the picture's rows and columns.
        index: Of the plane along ``fixed``.
        spacing: mm of a row and of a column.
        height, width: mm of the whole plane.
        letters: What lies left, right, above and below; empty if the scan does not say.
    """

    def __init__(self, frame: Frame, view: View, index: int | Sequence[int]) -> None:
        self.frame, self.view = frame, view
        axes = frame.array_axes
        self.fixed, self.row, self.column = axes[view.fixed], axes[view.row], axes[view.column]
        self.index = int(index if isinstance(index, int | np.integer) else index[self.fixed])
        along = PATIENT_FROM_LPS @ frame.affine_lps[:3, :3]
        # pictures run down and to the right, against the patient's axes
        self._flip_rows = frame.has_geometry and bool(along[view.row, self.row] > 0)
        self._flip_columns = frame.has_geometry and bool(along[view.column, self.column] > 0)
        self.spacing = float(frame.spacing[self.row]), float(frame.spacing[self.column])
        self.height = self.spacing[0] * frame.shape[self.row]
        self.width = self.spacing[1] * frame.shape[self.column]
        self.letters = (*ENDS[view.column][::-1], *ENDS[view.row][::-1]) if frame.has_geometry else ()

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top in mm, for ``imshow``."""
        return 0.0, self.width, self.height, 0.0

    def of(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., rows, columns) of a volume (..., i, j, k) with the scan's shape, first row on top."""
        return self.turn(np.take(volume, self.index, axis=self.fixed - 3))

    def turn(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(..., rows, columns) of the plane (..., a, b) cut out of an array."""
        if self.row > self.column:
            plane = plane.swapaxes(-1, -2)
        return plane[..., :: -1 if self._flip_rows else 1, :: -1 if self._flip_columns else 1]

    def rectangle(self, lower: npt.ArrayLike, size: npt.ArrayLike) -> tuple[float, float, float, float]:
        """Left, top, width and height in mm of a box of voxels (array axis order)."""
        begin, length = np.asarray(lower, dtype=np.float64), np.asarray(size, dtype=np.float64)
        mirrored = np.array(self.frame.shape) - begin - length
        left = (mirrored if self._flip_columns else begin)[self.column] * self.spacing[1]
        top = (mirrored if self._flip_rows else begin)[self.row] * self.spacing[0]
        return (
            float(left),
            float(top),
            float(length[self.column] * self.spacing[1]),
            float(length[self.row] * self.spacing[0]),
        )

    def paint(self, panel: Any, plane: npt.NDArray[Any], **style: Any) -> None:
        """Draws a turned plane (rows, columns[, RGBA]) onto a matplotlib panel, in mm."""
        panel.imshow(plane, **{"extent": self.extent, "interpolation": "nearest"} | style)

    def outline(
        self, panel: Any, plane: npt.NDArray[np.bool_], colour: Any, *, hatch: str | None = None
    ) -> None:
        """Draws the outline of a turned mask (rows, columns) onto a panel, and faintly, or hatched, what is in it."""
        inside = np.pad(plane, 1).astype(np.float32)  # so that outlines close at the border
        down, right = (
            (np.arange(n) - 0.5) * size for n, size in zip(inside.shape, self.spacing, strict=True)
        )
        if not plane.any():
            return
        if hatch:
            area = panel.contourf(right, down, inside, [0.5, 1.5], colors="none", hatches=[hatch])
            area.set(edgecolor=colour, linewidth=0)
            return
        panel.contourf(right, down, inside, [0.5, 1.5], colors=[colour], alpha=0.2)
        panel.contour(right, down, inside, [0.5], colors=[colour], linewidths=1.1)

    def frame_panel(self, panel: Any) -> None:
        """Limits a panel to the plane, in mm and true to scale, with the letters of the patient's sides around it."""
        panel.set(xlim=(0, self.width), ylim=(self.height, 0), aspect="equal")
        clear(panel, spines=False)
        places = ((0, 0.5, -3, 0), (1, 0.5, 3, 0), (0.5, 1, 0, 2), (0.5, 0, 0, -2))
        sides = (("right", "center"), ("left", "center"), ("center", "bottom"), ("center", "top"))
        for letter, (x, y, *away), (across, along) in zip(self.letters, places, sides, strict=False):
            style = {"ha": across, "va": along, "textcoords": "offset points", "annotation_clip": False}
            panel.annotate(letter, (x, y), away, "axes fraction", weight="bold", fontsize=9, **style)


def widest_view(frame: Frame) -> View:
    """Across the body; of an image of one slice the view that shows it."""
    if 1 not in frame.shape:
        return AXIAL
    thin = frame.array_axes.index(frame.shape.index(1))
    return next(view for view in VIEWS if view.fixed == thin)


def per_plane(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.integer]]:
    """The number of a mask's voxels (i, j, k) in each plane, along each axis."""
    return [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]


def grey_levels(values: npt.NDArray[Any], channel: str = "") -> tuple[float, float]:
    """The values drawn black and white.

    Args:
        values: Those of the whole scan, so that all its planes look alike.
        channel: The channel's name in dataset.json. ``CT``, the name that nnU-Net knows, is drawn in the window of soft
            tissue; other channels between percentiles of their finite values.
    """
    if channel.casefold() == "ct":
        return SOFT_TISSUE
    low, high = (float(end) for end in np.percentile(values[np.isfinite(values)], (0.5, 99.5)))
    return low, max(high, low + 1e-6)


def class_colours(names: Sequence[str], pairs: Sequence[tuple[str, str]] = ()) -> dict[str, Colour]:
    """A colour (RGB, 0 to 1) for each class; the two sides of an organ are light and dark of one hue.

    Each class in turn takes the colour that is farthest from those taken and from grey, as people with normal vision,
    with deuteranopia and with protanopia see it (distance: CIEDE2000, Sharma et al. 2005). The same names get the same
    colours everywhere.

    Args:
        names: Of all classes of a dataset, so that its pictures agree.
        pairs: (left, right) classes; left is light.
    """
    twins = {left: right for left, right in pairs if left in names and right in names}
    colours: dict[str, Colour] = {}
    order = sorted((name for name in names if name not in twins.values()), key=lambda name: name not in twins)
    for name, (light, dark) in zip(order, _distinct(tuple(name in twins for name in order)), strict=True):
        colours[name] = light
        if name in twins:
            colours[twins[name]] = dark
    return {name: colours[name] for name in names}


@functools.lru_cache
def _distinct(paired: tuple[bool, ...]) -> list[tuple[Colour, Colour]]:
    """Light and dark of one hue; twice the same colour for a class without a twin."""
    from skimage.color import deltaE_ciede2000

    candidates, twins = _candidates()
    seen = _as_seen(candidates)
    # what the colour-blind hardly tell apart is worth as much as what others tell apart well
    shares = np.array([[0.6], [1.0], [1.0]])
    # to be seen on a scan, whose greys are mostly dark; from white half as far as from other colours is enough
    greys = {lightness: 0.8 if lightness < 50 else 2.0 for lightness in range(0, 101, 20)}
    distance = np.min(
        [
            share * deltaE_ciede2000(seen, np.full((3, 1, 3), [lightness, 0.0, 0.0]))
            for lightness, share in greys.items()
        ],
        axis=(0, 1),
    )
    chosen: list[tuple[Colour, Colour]] = []
    for pair in paired:
        places = twins[distance[twins].min(axis=1).argmax()] if pair else [distance.argmax()]
        for place in places:
            near = deltaE_ciede2000(seen, seen[:, place, None]) * shares
            distance = np.minimum(distance, near.min(axis=0))
        light, dark = (tuple(candidates[place].tolist()) for place in (places[0], places[-1]))
        chosen.append((light, dark))
    return chosen


def _candidates() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(n, 3) RGB, spread over what screens show, and (m, 2) which of them are light and dark of one hue and chroma."""
    from skimage.color import lab2rgb, rgb2lab

    step, apart = 2, 11
    hue, chroma, lightness = np.meshgrid(
        np.radians(np.arange(0, 360, 7.5)), [20, 35, 50, 65, 80, 100], np.arange(38, 93, step), indexing="ij"
    )
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # colours that no screen shows are clipped
        rgb = lab2rgb(lab)
    shown = np.abs(rgb2lab(rgb) - lab).max(axis=-1) < 1
    number = np.where(shown, np.cumsum(shown).reshape(shown.shape) - 1, -1)
    twins = np.stack([number[..., apart:], number[..., :-apart]], axis=-1).reshape(-1, 2)
    return rgb[shown], twins[(twins >= 0).all(axis=1)]


def _as_seen(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(..., 3) RGB -> (vision, ..., 3) CIELAB."""
    from skimage.color import rgb2lab

    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)  # IEC 61966-2-1 (sRGB)
    seen = np.clip(np.einsum("vij,...j->v...i", VISIONS, linear), 0, 1)
    return rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))


def clear(panel: Any, *, spines: bool = True) -> None:
    """Takes ticks, and the frame unless `spines`, from a matplotlib panel."""
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(spines)
