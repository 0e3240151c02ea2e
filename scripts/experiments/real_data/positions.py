"""Where labelled structures lie, and whether files that should lie on one grid do; used by run.py."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame

Centre = dict[str, list[float]]
"""``fraction`` (R, A, S) of the volume and ``mm`` (R, A, S) relative to its centre."""

SPINE = tuple(f"vertebrae_{name}" for name in ("S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9"))
"""From below upwards. (Ribs are no such ladder: they hang down, and the field of view cuts the upper ones.)"""


class StepError(RuntimeError):
    """A step that did not do what it should; the message says what was seen."""


class Scan:
    """A labelled NIfTI file as nnU-Net's reader gives it, and where its voxels lie.

    Attributes:
        array: (z, y, x) labels.
        frame: Their position in the patient.
        orientation: The directions in which x, y and z grow, such as ``"RAS"``.
        spacing_xyz: Voxel size in mm.
    """

    def __init__(self, file: Path) -> None:
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        data, properties = SimpleITKIO().read_seg(str(file))
        self.file = file
        self.array: npt.NDArray[Any] = data[0]
        self.frame = Frame.as_read(properties, self.array.shape)
        stuff = properties["sitk_stuff"]
        self.orientation = str(
            sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(stuff["direction"])
        )
        self.spacing_xyz = [round(float(size), 6) for size in stuff["spacing"]]

    def centroid(self, label: int) -> npt.NDArray[np.float64]:
        """(3,) mean index (z, y, x) of a label's voxels.

        Raises:
            StepError: There is none.
        """
        found = np.argwhere(self.array == label)
        if not len(found):
            raise StepError(f"{self.file.name} has no voxel of label {label}")
        return np.asarray(found.mean(0))


def read_labels(file: Path) -> npt.NDArray[np.int64]:
    """(z, y, x) labels of a file."""
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), dtype=np.int64)


def require_same_geometry(first: Path, second: Path) -> None:
    """Raises StepError unless two files have one size, spacing, origin and direction (1e-5)."""
    one, two = sitk.ReadImage(str(first)), sitk.ReadImage(str(second))
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        values = getattr(one, what)(), getattr(two, what)()
        if len(values[0]) != len(values[1]) or not np.allclose(*values, rtol=0, atol=1e-5):
            raise StepError(f"{what[3:]} differs: {values[0]} in {first.name}, {values[1]} in {second.name}")


def side_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """(left, right) names of the structures that are there on both sides."""
    names = list(names)
    pairs = []
    for name in names:
        other = re.sub(r"(^|_)left(_|$)", r"\1right\2", name)
        if other != name and other in names:
            pairs.append((name, other))
    return pairs


def positions(scan: Scan, labels: Mapping[str, int]) -> dict[str, Centre]:
    """Centroid of every structure that has voxels.

    Raises:
        StepError: The millimetres are not those that SimpleITK gives.
    """
    image = sitk.ReadImage(str(scan.file))
    present = {int(value) for value in np.unique(scan.array)}
    found: dict[str, Centre] = {}
    for name, label in labels.items():
        if label == 0 or label not in present:
            continue
        index = scan.centroid(label)
        lps = scan.frame.millimetres(index)
        reference = image.TransformContinuousIndexToPhysicalPoint([float(at) for at in index[::-1]])
        if not np.allclose(lps, reference, rtol=0, atol=1e-3):
            raise StepError(f"{name} lies at {lps.tolist()} mm LPS, SimpleITK says {list(reference)}")
        found[name] = {
            "fraction": np.round(scan.frame.fraction(index), 4).tolist(),
            "mm": np.round(PATIENT_FROM_LPS @ (lps - scan.frame.centre), 2).tolist(),
        }
    return found


def check_sides(centres: Mapping[str, Centre]) -> list[tuple[str, str]]:
    """The (left, right) pairs, once each left member has been found left of its right one.

    Raises:
        StepError: One is not.
    """
    pairs = side_pairs(centres)
    for left, right in pairs:
        at = centres[left]["fraction"][0], centres[right]["fraction"][0]
        if not at[0] < at[1]:
            raise StepError(f"{left} has R = {at[0]}, {right} has R = {at[1]}; left must be the smaller one")
    return pairs


def check_spine(centres: Mapping[str, Centre]) -> list[str]:
    """The vertebrae that are there, once each has been found above the one before.

    Raises:
        StepError: One is not.
    """
    spine = [name for name in SPINE if name in centres]
    heights = [centres[name]["fraction"][2] for name in spine]
    if heights != sorted(heights):
        raise StepError(f"{', '.join(spine)} must lie ever higher, but have S = {heights}")
    return spine


class Atlas:
    """How often each label is found at each place of the volume: what location alone tells.

    Args:
        scans: Label files to count.
        classes: Number of labels, background included.
        edge: Cells per patient axis.
    """

    def __init__(self, scans: Iterable[Scan], classes: int, edge: int = 48) -> None:
        self.edge = edge
        centres = (np.arange(edge) + 0.5) / edge - 0.5
        cells = np.stack(np.meshgrid(centres, centres, centres, indexing="ij"), axis=-1)
        self.counts = np.zeros((edge, edge, edge, classes), dtype=np.int64)
        for scan in scans:
            index = np.rint(scan.frame.index_from_fraction(cells)).astype(int)
            index = np.clip(index, 0, np.array(scan.array.shape) - 1)
            found = scan.array[tuple(np.moveaxis(index, -1, 0))]
            for label in range(classes):
                self.counts[..., label] += found == label

    def segment(self, scan: Scan) -> npt.NDArray[np.int64]:
        """The most frequent label at the place of each voxel, (z, y, x); the scan's content is not looked at."""
        index = np.stack(np.meshgrid(*map(np.arange, scan.array.shape), indexing="ij"), axis=-1)
        cell = np.floor((scan.frame.fraction(index) + 0.5) * self.edge).astype(int)
        cell = np.clip(cell, 0, self.edge - 1)
        return np.asarray(self.counts[tuple(np.moveaxis(cell, -1, 0))].argmax(-1))
