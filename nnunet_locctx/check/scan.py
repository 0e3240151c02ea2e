"""Checks one file of a dataset: its header, and whether its voxels are usable."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.check.report import Finding
from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame, corner_distance
from nnunet_locctx.nnunet.data.reading import (
    BrokenFileError,
    explain,
    file_ending,
    read_quietly,
    share_not_finite,
)

LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))
"""Per patient axis (R, A, S): the letter of an array axis that grows along it and of one that grows against it."""

ORTHONORMAL_TOLERANCE = 1e-3
"""Largest shear that rounded direction cosines explain (about 0.06 degrees)."""

SAME_PLACE_VOXELS = 0.1
"""Voxels. Two grids are the same if their corners lie at most this far apart."""


@dataclass
class CheckedFile:
    """The result of reading one file.

    Attributes:
        file: Where it is.
        frame: Position of the stored array (axis order z, y, x), None if the file or its geometry is unusable.
        spacing: nnU-Net's voxel size in mm, z, y, x, with which it resamples; () if the file is unusable.
        problems: The findings, without the case.
        readable: Whether nnU-Net's reader can read the file and understands its axes as they are.
        labels: Label values with their mean index (z, y, x), for segmentations.
        voxels: Label values with their number of voxels.
        cut: Label values that reach an outer face of the volume.
        stored: Orientation code of the file before a reader turns the scan; "" if not known.
        constant: The one value that every voxel has, None if there are several.
        channels: Image channels in this file.
    """

    file: Path
    frame: Frame | None = None
    spacing: tuple[float, ...] = ()
    problems: list[Finding] = field(default_factory=list)
    readable: bool = True
    labels: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)
    voxels: dict[int, int] = field(default_factory=dict)
    cut: frozenset[int] = frozenset()
    stored: str = ""
    constant: float | None = None
    channels: int = 0

    def report(self, severity: str, kind: str, message: str, detail: str = "") -> None:
        """Adds a problem."""
        self.problems.append(Finding(severity, kind, None, message, detail))

    def has(self, kind: str) -> bool:
        """Whether a problem of that kind was found."""
        return any(problem.kind == kind for problem in self.problems)


def check_file(file: Path, reader: str, *, segmentation: bool) -> CheckedFile:
    """Reads one file with one of nnU-Net's readers and checks header and voxels.

    Args:
        reader: Class name of the reader, such as ``"SimpleITKIO"``.
        segmentation: Collect label values and their positions as well.
    """
    scan = CheckedFile(file)
    what = "label" if segmentation else "image"
    nifti = file.name.endswith((".nii", ".nii.gz"))
    with libraries_silenced():
        header_problem = _nifti_header(scan, what) if nifti else None
        try:
            if reader == "Tiff3DIO":
                _spacing_file(scan, what)
            data, properties = read_quietly([file], reader, segmentation=segmentation)
        except Exception as error:  # readers raise anything from AssertionError to ITK's RuntimeError
            scan.readable = False
            if isinstance(error, BrokenFileError):
                reason = str(error).replace(str(file), file.name)
            else:
                reason = header_problem or f"{reader} says: {explain(error)}"
            scan.report("error", "unreadable", f"the {what} cannot be read: {reason}")
            return scan
        scan.channels = data.shape[0]
        if not _layout(scan, properties, data.shape, what, reader):
            return scan
        _geometry(scan, properties, data.shape[1:], what)
        _voxels(scan, data, what)
        if nifti and not scan.has("not finite"):
            # the reader reports a broken voxel type
            with contextlib.suppress(Exception):
                if share := share_not_finite(file):
                    message = f"the {what} has NaN or infinite voxels ({100 * share:.2g}% of them)"
                    scan.report("warning", "not finite", f"{message}, which {reader} reads as 0")
    if segmentation:
        _labels(scan, data[0])
    return scan


def orientation(frame: Frame) -> tuple[str, float]:
    """Patient directions of the file's x, y and z axes, such as ``"LPS"``, and their largest obliquity in degrees."""
    along = PATIENT_FROM_LPS @ frame.affine_lps[:3, :3]
    letters = [""] * 3
    for patient, axis in enumerate(frame.array_axes):
        # the stored array has its axes in the order z, y, x
        letters[2 - axis] = LETTERS[patient][0 if along[patient, axis] > 0 else 1]
    return "".join(letters), frame.obliquity


@contextlib.contextmanager
def libraries_silenced() -> Iterator[None]:
    """Silences nibabel and ITK, which print what they repair in a header; the findings report it with the case."""
    import nibabel
    import SimpleITK

    log = nibabel.imageglobals.logger
    before = log.disabled, SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    log.disabled = True
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before[0]
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(before[1])


def _layout(
    scan: CheckedFile, properties: dict[str, Any], shape: tuple[int, ...], what: str, reader: str
) -> bool:
    """Whether nnU-Net interprets the array's axes correctly; reports files that hold several channels."""
    axes = len(properties.get("sitk_stuff", {}).get("spacing", (0, 0, 0)))
    if len(properties["spacing"]) != 3:  # the array has four axes, the header three
        scan.report(
            "error",
            "channels",
            f"the {what} is a vector image: {shape[-1]} components in each voxel. {reader} takes the components for an "
            f"axis of the volume, and the slices ({shape[0]}) for channels; write one file per channel",
        )
        scan.readable = False
        return False
    if axes > 3:
        scan.report(
            "error",
            "channels",
            f"one file holds {shape[0]} channels along its fourth axis. The location is right, but nnU-Net's integrity "
            "check and its export of predictions stop at such files; write one file per channel (_0000, _0001, ...)",
        )
    if what == "label" and shape[0] > 1:
        scan.report("error", "channels", f"the label has {shape[0]} channels, nnU-Net takes one")
    return True


def _spacing_file(scan: CheckedFile, what: str) -> None:
    """Reports a TIFF without a file for its voxel size; raises ValueError if nnU-Net cannot use that file."""
    file = tiff_spacing_file(scan.file, segmentation=what == "label")
    if file.is_file():
        _check_tiff_spacing(file)
    else:
        message = "no .json file gives the TIFF's voxel size: nnU-Net takes 1 x 1 x 1 mm"
        scan.report("note", "no spacing", message, f"{file.parent.name}/{file.name}")


def tiff_spacing_file(file: Path, *, segmentation: bool) -> Path:
    """The file from which nnU-Net reads the voxel size of a TIFF; its name lacks the channel's number."""
    name = file.name.removesuffix(file_ending(file))
    return file.with_name(f"{name if segmentation else name[:-5]}.json")


def _check_tiff_spacing(file: Path) -> None:
    """Raises ValueError if a file does not hold the voxel size of a TIFF."""
    form = 'it must hold {"spacing": [z, y, x]}, three numbers above 0 mm'
    name = f"{file.parent.name}/{file.name}"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is not valid JSON: {error}; {form}") from error
    if not isinstance(content, dict) or "spacing" not in content:
        raise ValueError(f"{name} has no spacing; {form}")
    spacing = content["spacing"]
    numbers = isinstance(spacing, list) and all(type(size) in (int, float) for size in spacing)
    if not numbers or len(spacing) != 3 or not all(0 < size < np.inf for size in spacing):
        raise ValueError(f"{name} has the spacing {spacing}; {form}")


def _geometry(scan: CheckedFile, properties: dict[str, Any], shape: tuple[int, ...], what: str) -> None:
    if any(n < 1 for n in shape):
        scan.report("error", "empty", f"the {what} has no voxels: shape {tuple(shape)}")
        return
    try:
        frame = Frame.as_read(properties, shape)
    except ValueError as error:
        scan.report("error", "header", f"the {what}'s header is unusable: {error}")
        return
    scan.frame = frame
    scan.spacing = tuple(float(size) for size in properties["spacing"])
    if not frame.has_geometry:
        return
    cosines = frame.affine_lps[:3, :3] / frame.spacing
    shear = np.abs(cosines.T @ cosines - np.eye(3)).max()
    if shear > ORTHONORMAL_TOLERANCE:
        angle = np.degrees(np.arcsin(min(1.0, float(shear))))
        scan.report(
            "warning",
            "header",
            f"the {what}'s direction matrix is not orthonormal (axes {90 - angle:.1f} degrees apart)",
        )
    # labels are compared with their image elsewhere
    if what == "image" and _is_default(frame):
        scan.report(
            "warning",
            "default header",
            "identity direction, origin 0 and 1 mm voxels, as written by tools that lost the real header",
        )


def _is_default(frame: Frame) -> bool:
    # a NIfTI affine of np.eye(4) is -1, -1, 1 in LPS; other formats store LPS
    axes = np.abs(frame.affine_lps[:3, 2::-1])
    return bool(
        np.allclose(axes, np.eye(3), atol=1e-6) and np.allclose(frame.affine_lps[:3, 3], 0, atol=1e-6)
    )


def _nifti_header(scan: CheckedFile, what: str) -> str | None:
    """Reports faults that only the NIfTI header shows; returns the reason if a reader will certainly refuse the
    file."""
    import nibabel

    try:
        image: Any = nibabel.load(scan.file)
    except Exception:  # nnU-Net's reader will say what is wrong
        return None
    if not isinstance(image, nibabel.nifti1.Nifti1Pair):  # CIFTI has the ending too
        return None
    with contextlib.suppress(Exception):  # a broken affine is reported below
        scan.stored = "".join(nibabel.aff2axcodes(image.affine))
    sform, sform_code = image.get_sform(coded=True)
    try:
        qform, qform_code = image.get_qform(coded=True)
    except ValueError as error:
        qform, qform_code = None, int(image.header["qform_code"])
        scan.report(
            "warning", "header", f"the {what}'s qform is no rotation ({error}); readers may choose it"
        )
    axes = min(image.ndim, 3)
    sizes = _pixdim(scan.file, type(image.header))[:axes]
    usable = np.isfinite(sizes) & (sizes != 0)
    if not usable.all():
        wrong = ", ".join(f"pixdim[{axis + 1}] is {sizes[axis]:g}" for axis in np.flatnonzero(~usable))
        message = f"the {what} has no voxel size: {wrong}; readers take 1 mm, or what the sform says"
        scan.report("error", "header", message)
    if sform_code == 0 and qform_code == 0:
        if what == "image":
            message = (
                "the NIfTI header gives no orientation (sform_code and qform_code are 0); readers assume one"
            )
            scan.report("warning", "no orientation", message)
        return None
    if sform_code == 0:
        return None
    sform = np.asarray(sform, dtype=np.float64)
    if not np.isfinite(sform).all():
        return f"its sform matrix is not finite: {sform.tolist()}"
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    if (lengths <= 0).any() or abs(np.linalg.det(sform[:3, :3] / lengths)) < 1e-4:
        return f"its direction matrix (sform) is singular: {sform[:3, :3].tolist()}"
    lengths, sizes = lengths[:axes], np.abs(sizes)
    if usable.all() and (np.abs(lengths / sizes - 1) * image.shape[:axes]).max() > SAME_PLACE_VOXELS:
        scan.report(
            "warning",
            "header",
            f"the {what}'s sform has voxels of {millimetres(lengths)} (x, y, z), its pixdim says {millimetres(sizes)}; "
            "readers choose either",
        )
    elif (
        usable.all() and qform_code > 0 and qform is not None and np.isfinite(qform).all() and image.ndim >= 3
    ):
        with contextlib.suppress(ValueError):
            distance = corner_distance(
                *(Frame.from_affine(image.shape[:3], affine, "RAS") for affine in (sform, qform))
            )
            if distance > SAME_PLACE_VOXELS:
                message = f"the {what}'s sform and qform place it differently (by {distance:.1f} voxels)"
                scan.report("warning", "header", f"{message}; readers choose either")
    cosines = sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > ORTHONORMAL_TOLERANCE:
        return f"its direction matrix (sform) is not orthonormal: {np.round(cosines, 4).tolist()}"
    return None


def _pixdim(file: Path, header: Any) -> npt.NDArray[np.float64]:
    """(3,) pixdim[1] to pixdim[3] as stored; nibabel repairs them when it loads an image."""
    import nibabel

    with nibabel.openers.ImageOpener(str(file)) as stream:
        return np.asarray(header.from_fileobj(stream, check=False)["pixdim"][1:4], dtype=np.float64)


def millimetres(sizes: npt.ArrayLike) -> str:
    """Voxel sizes as text, with as many digits as a header has."""
    return " x ".join(f"{size:.7g}" for size in np.asarray(sizes)) + " mm"


def _voxels(scan: CheckedFile, data: npt.NDArray[np.float32], what: str) -> None:
    if data.size == 0:
        return
    broken = int(data.size - np.count_nonzero(np.isfinite(data)))
    if broken:
        scan.report(
            "error",
            "not finite",
            f"the {what} has NaN or infinite voxels ({100 * broken / data.size:.2g}% of them)",
        )
        return
    low, high = float(data.min()), float(data.max())
    if low == high:
        scan.constant = low
        if what == "image":
            scan.report("error", "empty", f"every voxel of the image has the same value ({low:g})")


def _labels(scan: CheckedFile, data: npt.NDArray[np.float32]) -> None:
    """Fills ``labels``, ``voxels`` and ``cut`` of the scan; one pass along each axis keeps memory small."""
    if data.size == 0 or not np.isfinite(data).all():
        return
    odd = data[(data < 0) | (data > np.iinfo(np.uint16).max) | (data != np.floor(data))]
    if odd.size:
        message = f"the label has values that are no label numbers, such as {float(odd.flat[0]):g}"
        scan.report("error", "label value", message)
        return
    values = data.astype(np.uint16)
    number = int(values.max()) + 1
    sums = np.zeros((number, 3))
    counts = np.zeros(number)
    cut = np.zeros(number, dtype=bool)
    for axis in range(3):
        for index, plane in enumerate(np.moveaxis(values, axis, 0)):
            in_plane = np.bincount(plane.ravel(), minlength=number)
            sums[:, axis] += index * in_plane
            counts += in_plane if axis == 0 else 0
            if index in (0, values.shape[axis] - 1):
                cut |= in_plane > 0
    present = [int(value) for value in np.flatnonzero(counts)]
    scan.labels = {value: sums[value] / counts[value] for value in present}
    scan.voxels = {value: int(counts[value]) for value in present}
    scan.cut = frozenset(value for value in present if cut[value])
