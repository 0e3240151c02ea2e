"""Where a voxel of nnU-Net's preprocessed array lies in the scan.

Two frames are used throughout the package; every function names the one it takes and returns.

* **index**: continuous position in the preprocessed array, in array axis order, voxel centres at whole
  numbers. Index 0 is the centre of the first voxel, -0.5 its outer face.
* **patient**: the axes (R, A, S). The first coordinate grows from the patient's left to right, the second
  from posterior to anterior, the third from inferior to superior. Millimetres are also given in LPS, the
  convention of DICOM and SimpleITK (first and second axis reversed).

Four voxels of 2 mm along an axis that runs to the patient's right, as fractions and in millimetres relative to the
centre:

>>> frame = Frame.from_affine((4, 1, 1), np.diag([2, 1, 1, 1]), "RAS")
>>> index = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
>>> print(frame.fraction(index)[:, 0])
[-0.375 -0.125  0.125  0.375]
>>> print(index @ frame.centred_affine[0, :3] + frame.centred_affine[0, 3])
[-3. -1.  1.  3.]
"""

import functools
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PATIENT_FROM_LPS = np.diag([-1.0, -1.0, 1.0])
"""Turns LPS vectors into patient (R, A, S) vectors and back."""

OBLIQUE = 20.0
"""Degrees between an array axis and the closest patient axis above which a scan is called oblique: a fraction of the
volume then means another place than in a scan that is stored along the patient's axes."""

SMALLEST_DETERMINANT = 1e-4
"""A direction matrix whose columns span less than this volume has lost an axis (1 for orthonormal
columns)."""


@dataclass(frozen=True)
class Frame:
    """The position of an array in the patient. Made from what is at hand by :meth:`from_properties` (nnU-Net),
    :meth:`as_read` (nnU-Net, before its preprocessing), :meth:`from_sitk`, :meth:`from_nibabel`,
    :meth:`from_metatensor` (MONAI) or :meth:`from_affine`.

    Attributes:
        shape: Voxels of the array, array axis order.
        affine_lps: (4, 4) float64, homogeneous index -> mm in LPS.
        has_geometry: False if the scan carried no direction, so that "patient axes" are array axes: the
            first coordinate then follows the stored array's last axis, the second its middle axis, the third
            its first, each growing with the index.
    """

    shape: tuple[int, int, int]
    affine_lps: Array = field(kw_only=True)  # by name: an affine of nibabel is RAS and would swap the sides
    has_geometry: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        shape: tuple[int, ...] = tuple(self.shape)  # callers are not type checked
        if len(shape) != 3 or any(int(n) < 1 for n in shape):
            raise ValueError(f"a volume needs three axes of at least one voxel, got shape {shape}")
        affine = np.asarray(self.affine_lps, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"the affine must be a finite (4, 4) matrix, got {affine.tolist()}")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if (lengths <= 0).any():
            raise ValueError(f"voxel sizes must be above 0 mm, got {lengths.tolist()} along the array axes")
        determinant = abs(np.linalg.det(affine[:3, :3] / lengths))
        if determinant < SMALLEST_DETERMINANT:
            raise ValueError(
                f"the direction matrix is singular (|determinant| {determinant:.1e}, at least "
                f"{SMALLEST_DETERMINANT:g} is needed): {(affine[:3, :3] / lengths).tolist()}. Repair the scan's header."
            )
        affine.flags.writeable = False
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))
        object.__setattr__(self, "affine_lps", affine)

    @classmethod
    def from_properties(
        cls, properties: Mapping[str, Any], shape: Sequence[int], transpose_forward: Sequence[int] = (0, 1, 2)
    ) -> "Frame":
        """The frame of an array that nnU-Net's preprocessor made from a scan.

        The preprocessor transposes, then crops, then resamples; resampling keeps the outer faces of the
        volume (voxel ``i`` of ``n`` lies at ``(i + 0.5) / n`` of the extent before and after).

        Args:
            properties: nnU-Net's properties: ``spacing`` (mm, stored array order) and, where the reader
                knows them, ``sitk_stuff`` (origin, direction) or ``nibabel_stuff`` (affine); from preprocessing
                ``bbox_used_for_cropping`` and ``shape_after_cropping_and_before_resampling``. Without these two
                the array is taken as not cropped and not resampled; for a scan as it was read, whose properties
                may have been used before, see :meth:`as_read`.
            shape: Spatial shape of the preprocessed array, array axis order.
            transpose_forward: The plans' permutation: preprocessed axis ``j`` is stored axis
                ``transpose_forward[j]``.

        Raises:
            ValueError: Spacing or direction are not finite, zero or singular, or the shapes do not fit
                together.
        """
        shape = tuple(int(n) for n in shape)
        if sorted(transpose_forward) != [0, 1, 2]:
            raise ValueError(
                f"transpose_forward must be a permutation of 0, 1, 2, got {list(transpose_forward)}"
            )
        stored, has_geometry = _affine_as_read(properties)
        affine = stored.copy()
        affine[:3, :3] = stored[:3, list(transpose_forward)]
        box = properties.get("bbox_used_for_cropping")
        before = tuple(properties.get("shape_after_cropping_and_before_resampling", shape))
        if len(before) != 3 or any(int(n) < 1 for n in before):
            raise ValueError(f"the cropped volume needs three axes of at least one voxel, got shape {before}")
        if box is not None:
            lower = np.array([float(edges[0]) for edges in box])
            affine[:3, 3] += affine[:3, :3] @ lower
        step = np.array(before, dtype=np.float64) / np.array(shape, dtype=np.float64)
        affine[:3, 3] += affine[:3, :3] @ (0.5 * step - 0.5)
        affine[:3, :3] = affine[:3, :3] * step
        return cls(shape, affine_lps=affine, has_geometry=has_geometry)  # type: ignore[arg-type]

    @classmethod
    def as_read(cls, properties: Mapping[str, Any], shape: Sequence[int]) -> "Frame":
        """The frame of a scan as one of nnU-Net's readers gave it: neither transposed nor cropped nor resampled.

        What an earlier preprocessing left in the properties is not looked at: properties may be used several times.

        Args:
            properties: See :meth:`from_properties`.
            shape: Spatial shape of the array as read.

        Raises:
            ValueError: Spacing or direction are not finite, zero or singular, or the shape is not one of a volume.
        """
        affine, has_geometry = _affine_as_read(properties)
        return cls(tuple(shape), affine_lps=affine, has_geometry=has_geometry)  # type: ignore[arg-type]

    @classmethod
    def from_affine(
        cls, shape: Sequence[int], affine: npt.ArrayLike, space: Literal["RAS", "LPS"]
    ) -> "Frame":
        """The frame of an array with a known affine.

        Args:
            shape: Voxels of the array, array axis order.
            affine: (4, 4), homogeneous index, array axis order -> mm.
            space: What the millimetres count along: ``RAS`` (NIfTI, nibabel, MONAI, TorchIO) or ``LPS`` (DICOM,
                SimpleITK).

        Raises:
            ValueError: Another space, an affine that is not finite or singular, or a shape not of a volume.
        """
        if space not in ("RAS", "LPS"):
            raise ValueError(f"space must be 'RAS' or 'LPS', got {space!r}")
        matrix = np.array(affine, dtype=np.float64)
        if matrix.shape != (4, 4):
            raise ValueError(f"the affine must be a finite (4, 4) matrix, got the shape {matrix.shape}")
        if space == "RAS":
            matrix[:3] = PATIENT_FROM_LPS @ matrix[:3]
        return cls(tuple(shape), affine_lps=matrix)  # type: ignore[arg-type]

    @classmethod
    def from_nibabel(cls, image: Any) -> "Frame":
        """The frame of a nibabel image's array (``image.dataobj``, axis order x, y, z); further axes are left out.

        Args:
            image: Anything with a ``shape`` and an ``affine`` (4, 4) in RAS.

        Raises:
            ValueError: The affine is not finite or singular, or the image has fewer than three axes.
        """
        return cls.from_affine(image.shape[:3], image.affine, "RAS")

    @classmethod
    def from_sitk(cls, image: Any) -> "Frame":
        """The frame of a SimpleITK image's array as ``GetArrayFromImage`` gives it (axis order z, y, x); a fourth axis
        is left out.

        Args:
            image: A ``SimpleITK.Image`` of three or more dimensions.

        Raises:
            ValueError: The direction is not finite or singular, or the image has fewer than three dimensions.
        """
        size = tuple(image.GetSize())
        if len(size) < 3:
            raise ValueError(f"an image of three or more dimensions is needed, got the size {size}")
        affine = _affine_from_sitk(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
        return cls(size[2::-1], affine_lps=affine)

    @classmethod
    def from_metatensor(cls, image: Any) -> "Frame":
        """The frame of one image of a MONAI pipeline (channels, x, y, z): axis order x, y, z, as in nibabel's arrays.

        Args:
            image: A ``monai.data.MetaTensor``, channels first.

        Raises:
            TypeError: `image` has no affine, as a plain tensor has none.
            ValueError: The image is no volume with channels, or its affine is not finite or singular.
        """
        if not hasattr(image, "affine") or not hasattr(image, "meta"):
            raise TypeError(
                f"a MetaTensor is needed, got {type(image).__name__}, which does not say where its voxels lie; "
                "LoadImaged makes MetaTensors"
            )
        shape = tuple(image.shape)
        if len(shape) != 4:
            raise ValueError(
                f"an image must be (channels, x, y, z), got shape {shape}; see EnsureChannelFirstd"
            )
        return cls.from_affine(shape[1:], image.affine.tolist(), image.meta.get("space") or "RAS")

    @property
    def spacing(self) -> Array:
        """(3,) voxel size in mm, array axis order."""
        return np.asarray(np.linalg.norm(self.affine_lps[:3, :3], axis=0))

    @property
    def centre(self) -> Array:
        """(3,) centre of the volume in mm LPS."""
        middle = (np.array(self.shape, dtype=np.float64) - 1) / 2
        return np.asarray(self.affine_lps[:3, :3] @ middle + self.affine_lps[:3, 3])

    @property
    def array_axes(self) -> tuple[int, int, int]:
        """The array axis that runs closest to each patient axis (R, A, S): a permutation of 0, 1, 2."""
        alignment = np.abs(self.affine_lps[:3, :3] / self.spacing)
        best = max(
            itertools.permutations(range(3)), key=lambda axes: sum(alignment[a, axes[a]] for a in range(3))
        )
        return best[0], best[1], best[2]

    @property
    def obliquity(self) -> float:
        """Largest angle in degrees between an array axis and the patient axis that :attr:`array_axes` gives it to."""
        cosines = np.abs(self.affine_lps[:3, :3] / self.spacing)
        matched = [cosines[patient, axis] for patient, axis in enumerate(self.array_axes)]
        return float(np.degrees(np.arccos(np.clip(matched, 0, 1))).max())

    @property
    def extent(self) -> Array:
        """(3,) mm: length of the volume's bounding box along each patient axis (R, A, S), outer faces included. It
        changes smoothly with the volume's orientation."""
        return np.asarray(np.abs(self.affine_lps[:3, :3]) @ np.array(self.shape, dtype=np.float64))

    @property
    def absolute_affine(self) -> Array:
        """(3, 4): homogeneous index -> scanner mm in patient axes (R, A, S)."""
        return np.asarray(PATIENT_FROM_LPS @ self.affine_lps[:3])

    @property
    def centred_affine(self) -> Array:
        """(3, 4): homogeneous index -> mm relative to the volume's centre in patient axes (R, A, S)."""
        matrix = self.absolute_affine.copy()
        matrix[:, 3] -= PATIENT_FROM_LPS @ self.centre
        return matrix

    @property
    def fraction_affine(self) -> Array:
        """(3, 4): homogeneous index -> fraction of the volume in patient axes (R, A, S).

        The distance from the volume's centre along the patient axis, divided by :attr:`extent`: within the volume
        -0.5..0.5, reached at its outer faces, or at its outer corners where the volume is oblique.
        """
        return np.asarray(self.centred_affine / self.extent[:, None])

    def millimetres(self, index: npt.ArrayLike) -> Array:
        """Index (..., 3) -> mm in LPS (..., 3)."""
        return _apply(self.affine_lps[:3], index)

    def index_from_millimetres(self, millimetres: npt.ArrayLike) -> Array:
        """Mm in LPS (..., 3) -> index (..., 3)."""
        return _invert(self.affine_lps[:3], millimetres)

    def fraction(self, index: npt.ArrayLike) -> Array:
        """Index (..., 3) -> fraction of the volume (..., 3) in patient axes (R, A, S), see
        :attr:`fraction_affine`."""
        return _apply(self.fraction_affine, index)

    def index_from_fraction(self, fraction: npt.ArrayLike) -> Array:
        """Fraction of the volume (..., 3) in patient axes (R, A, S) -> index (..., 3)."""
        return _invert(self.fraction_affine, fraction)


def corner_distance(first: Frame, second: Frame) -> float:
    """Largest distance between the same corner voxel of two grids, in smallest voxel sizes of the first; both have
    the same shape."""
    last = np.array(first.shape, dtype=np.float64) - 1
    corners = np.stack(np.meshgrid(*[(0.0, end) for end in last], indexing="ij"), axis=-1).reshape(-1, 3)
    distance = np.linalg.norm(first.millimetres(corners) - second.millimetres(corners), axis=-1)
    return float(distance.max() / first.spacing.min())


def _apply(matrix: Array, points: npt.ArrayLike) -> Array:
    points = np.asarray(points, dtype=np.float64)
    return np.asarray(points @ matrix[:, :3].T + matrix[:, 3])


def _invert(matrix: Array, points: npt.ArrayLike) -> Array:
    points = np.asarray(points, dtype=np.float64)
    return np.asarray((points - matrix[:, 3]) @ np.linalg.inv(matrix[:, :3]).T)


def _affine_as_read(properties: Mapping[str, Any]) -> tuple[Array, bool]:
    """(4, 4) affine from the index of the array as read (the reader's axis order) to mm LPS, and whether the scan
    gave it."""
    spacing = np.asarray(properties["spacing"], dtype=np.float64)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise ValueError(f"spacing must be three numbers above 0 mm, got {spacing.tolist()}")
    affine = _sitk_affine(properties) if "sitk_stuff" in properties else _nibabel_affine(properties)
    if affine is not None:
        if not np.isfinite(affine).all():
            raise ValueError(f"origin and direction must be finite, got the affine {affine.tolist()}")
        return affine, True
    _warn_no_geometry()
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    # stored arrays are ordered z, y, x; array axes stand in for (R, A, S), and LPS reverses the first two
    affine[0, 2], affine[1, 1], affine[2, 0] = -spacing[2], -spacing[1], spacing[0]
    return affine, False


def _sitk_affine(properties: Mapping[str, Any]) -> Array | None:
    """2D images have no place in the patient."""
    stuff = properties["sitk_stuff"]
    if len(stuff["direction"]) == 4:
        return None
    return _affine_from_sitk(stuff["spacing"], stuff["origin"], stuff["direction"])


def _affine_from_sitk(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> Array:
    """SimpleITK orders axes x, y, z (and then channels or time, which have no place); its arrays z, y, x."""
    axes = math.isqrt(len(direction))
    if axes < 3 or axes**2 != len(direction) or min(len(spacing), len(origin)) < 3:
        raise ValueError(
            f"the direction must be a square matrix of three or more axes with a spacing and an origin for each, got "
            f"{len(direction)} cosines, {len(spacing)} spacings and {len(origin)} origins"
        )
    spatial = np.asarray(direction, dtype=np.float64).reshape(axes, axes)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = (spatial * np.abs(np.asarray(spacing, dtype=np.float64)[:3]))[:, ::-1]
    affine[:3, 3] = np.asarray(origin, dtype=np.float64)[:3]
    return affine


def _nibabel_affine(properties: Mapping[str, Any]) -> Array | None:
    """nnU-Net's nibabel readers transpose to z, y, x too; nibabel's affines are RAS."""
    stuff = properties.get("nibabel_stuff")
    if stuff is None:
        return None
    stored = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=np.float64)
    affine = np.eye(4)
    affine[:3] = PATIENT_FROM_LPS @ stored[:3]
    affine[:3, :3] = affine[:3, 2::-1]
    return affine


@functools.cache
def _warn_no_geometry() -> None:
    warnings.warn(
        "scans without direction and origin (npy, png, tif or 2D input): location follows the array axes, "
        "not the patient's",
        stacklevel=2,
    )
