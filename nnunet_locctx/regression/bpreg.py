"""Reads body part scores from the JSON files of the tool bpreg, one per scan.

Source: Schuhegger, "Body part regression for CT images", 2021 (arXiv:2110.09148), and the package bpreg 1.1.0.

bpreg reorders a scan before it scores the slices, so score i need not belong to slice i of the file. It permutes the
file's axes by the largest entry of each column of the affine (x, y, z in RAS), and reverses the whole array along all
axes if one entry of the affine is negative. For files whose third axis runs along the body this entry is the direction
of that axis. For others it is another entry, and the reordered stack may run downwards.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Array, Frame
from nnunet_locctx.location import BodyPartCurve
from nnunet_locctx.regression.body_part.curve import make_curve

EXPECTED_SLOPE = 0.118
"""Points per mm of bpreg's public model."""

SCORES = ("cleaned slice scores", "cleaned slice-scores")
"""Names of the list of scores: as the tool writes it, and as its documentation names it."""


@dataclass(frozen=True)
class BpregScores:
    """The content of a JSON file of bpreg for one scan.

    Attributes:
        file: Path of the file.
        scores: (K,) one per slice of the reordered stack, 0 to 100 between pelvis and eyes; NaN for slices that bpreg
            removed.
        spacing: Voxel size along the body in mm; None if not in the file.
        falling: Whether the scores fall with the slice number.
        plausible: Whether bpreg accepts the voxel size along the body.
        expected_slope: Points per mm of a usual scan.
    """

    file: Path
    scores: Array
    spacing: float | None
    falling: bool
    plausible: bool
    expected_slope: float = EXPECTED_SLOPE


def read_scores(file: Path | str) -> BpregScores:
    """Reads a JSON file of bpreg.

    Raises:
        ValueError: The file is no JSON file of bpreg, or holds no score.
    """
    file = Path(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold an object, got {type(content).__name__}")
    name = next((name for name in SCORES if name in content), None)
    if name is None:
        raise ValueError(f"{file} has no {SCORES[0]!r}, so bpreg did not write it; it has {_listed(content)}")
    values = content[name]
    if not isinstance(values, list) or not values:
        raise ValueError(f"{file}: {name!r} must be a list of numbers, got {_shortened(values)}")
    scores = np.array([_score(file, name, value) for value in values], dtype=np.float64)
    if np.isnan(scores).all():
        raise ValueError(f"{file}: none of the {len(scores)} slices has a score, all are NaN")
    spacing = _number(file, content, "z-spacing")
    if spacing is not None and spacing <= 0:
        raise ValueError(f"{file}: 'z-spacing' must be above 0 mm, got {spacing:g}")
    falling = _number(file, content, "reverse z-ordering")
    plausible = _number(file, content, "valid z-spacing")
    slope = _number(file, content, "expected slope")
    return BpregScores(
        file=file,
        scores=scores,
        spacing=spacing,
        falling=_falls(scores) if falling is None else falling != 0,
        plausible=plausible is None or plausible != 0,
        expected_slope=EXPECTED_SLOPE if slope is None or slope <= 0 else slope,
    )


def find_files(
    folder: Path | str, cases: Iterable[str], channel: int = 0
) -> tuple[dict[str, Path], list[str]]:
    """The JSON file of each case: ``CASE.json`` or, as bpreg names it after an image, ``CASE_0000.json``.

    Returns:
        Case -> file, and the cases without one.

    Raises:
        ValueError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    files: dict[str, Path] = {}
    missing = []
    for case in cases:
        candidates = [folder / f"{case}.json", folder / f"{case}_{channel:04d}.json"]
        existing = [file for file in candidates if file.is_file()]
        if existing:
            files[case] = existing[0]
        else:
            missing.append(case)
    return files, missing


def _falls(scores: Array) -> bool:
    known = np.flatnonzero(np.isfinite(scores))
    return len(known) > 1 and bool(np.polyfit(known, scores[known], 1)[0] < 0)


def _score(file: Path, name: str, value: Any) -> float:
    if value is None:  # strict JSON writers write NaN as null
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
        raise ValueError(f"{file}: {name!r} must hold numbers or NaN, got {_shortened(value)}")
    return float(value)


def _number(file: Path, content: Mapping[str, Any], name: str) -> float | None:
    """A number of the file; None if it is missing or NaN."""
    value = content.get(name)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or math.isinf(value):
        raise ValueError(f"{file}: {name!r} must be a number, got {_shortened(value)}")
    return None if math.isnan(value) else float(value)


def _listed(content: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(content)[:8])) or "no keys"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


ROUND_OFF = 1e-4
"""Direction cosines below this may have different signs in different readers."""


@dataclass(frozen=True)
class StackOrder:
    """Orientation of bpreg's reordered stack in the patient.

    Attributes:
        axis: Array axis (z, y, x of the file) that becomes the stack.
        file_upwards: Whether the slice number of the file grows towards superior.
        upwards: Whether the slice number of the stack grows towards superior.
        certain: False if this depends on an entry of the affine that is 0 up to round-off.
    """

    axis: int
    file_upwards: bool
    upwards: bool
    certain: bool


def stack_order(frame: Frame) -> StackOrder | None:
    """The order in which bpreg stacks a scan's slices; None if its rule gives no permutation of the axes.

    Args:
        frame: Frame of the file's own array in nnU-Net's order (z, y, x).
    """
    # the affine as nibabel reads it: columns are the file's axes x, y, z, rows are right, anterior, superior
    affine = (PATIENT_FROM_LPS @ frame.affine_lps[:3, :3])[:, ::-1]
    closest = np.argmax(np.abs(affine), axis=0)
    if sorted(closest) != [0, 1, 2]:
        return None
    along = int(np.flatnonzero(closest == 2)[0])
    # bpreg takes this entry for the direction of the body's axis, which is true only if `along` is 2
    entry = affine[along, 2]
    file_upwards = bool(affine[2, along] > 0)
    reverses = bool(entry < 0)
    certain = entry == 0 or abs(entry) > ROUND_OFF * np.linalg.norm(affine[:, 2])
    return StackOrder(2 - along, file_upwards, file_upwards != reverses, bool(certain))


def file_frame(properties: Mapping[str, Any], shape: Sequence[int]) -> Frame:
    """The frame of the file's own array, in nnU-Net's order (z, y, x).

    It differs from the frame of the array as read if nnU-Net's reader turned the scan to RAS
    (``NibabelIOWithReorient``).

    Args:
        properties: nnU-Net's properties of a scan as read.
        shape: Spatial shape of the array as read.
    """
    frame = Frame.as_read(properties, shape)
    stuff = properties.get("nibabel_stuff", {})
    if "sitk_stuff" in properties or "reoriented_affine" not in stuff:
        return frame
    affine = np.array(stuff["original_affine"], dtype=np.float64)
    affine[:3, :3] = affine[:3, 2::-1]
    # axis of the file for each axis of the array
    steps = np.linalg.inv(affine[:3, :3]) @ PATIENT_FROM_LPS @ frame.affine_lps[:3, :3]
    moved = np.rint(np.abs(steps)).astype(int)
    first, second, third = (int(n) for n in moved @ np.array(frame.shape))
    return Frame.from_affine((first, second, third), affine, "RAS")


SPACING_TOLERANCE = 0.02
"""Largest difference between the voxel size along the body in the JSON file and in the scan, as a share of it."""


def curve_from_bpreg(
    scores: BpregScores, frame: Frame, *, cross_section: tuple[Array, Array] | None = None
) -> BodyPartCurve:
    """The curve of a scan from its scores.

    If header and scores contradict each other, the curve is unusable and states the reason.

    Args:
        scores: Scores of the scan.
        frame: Frame of the file's own array in nnU-Net's order (z, y, x), see :func:`file_frame`.
        cross_section: Levels (J,) in mm along S, increasing, and the body's edges (J, 4) in mm at them, from
            :func:`~nnunet_locctx.regression.body_part.slices.cross_section`; None if not known.

    Raises:
        ValueError: The scores belong to another scan: the number of slices or the voxel size along the body differs.
    """
    if not frame.has_geometry:
        return BodyPartCurve.unusable("the scan's file does not say how the patient lies in it")
    order = stack_order(frame)
    if order is None:
        return BodyPartCurve.unusable(
            "two axes of the scan are closest to the same patient axis (it lies too obliquely)"
        )
    count, size = frame.shape[order.axis], float(frame.spacing[order.axis])
    if len(scores.scores) != count:
        raise ValueError(
            f"{scores.file} has {len(scores.scores)} scores, but the scan has {count} slices along the body: it "
            "belongs to another scan"
        )
    if scores.spacing is not None and abs(scores.spacing - size) > SPACING_TOLERANCE * size:
        raise ValueError(
            f"{scores.file} says a 'z-spacing' of {scores.spacing:g} mm, but the scan's slices along the body are "
            f"{size:g} mm apart: it belongs to another scan"
        )
    if not scores.plausible:
        return BodyPartCurve.unusable(
            "bpreg found the voxel size along the body implausible ('valid z-spacing' is 0)"
        )
    upwards = order.upwards
    if scores.falling == upwards:
        if order.certain:
            return BodyPartCurve.unusable(
                "the scores fall towards the patient's head, as if the header were reversed"
            )
        upwards = not upwards
    # slices of the file in the order of the scores
    slices = np.arange(count) if upwards == order.file_upwards else np.arange(count)[::-1]
    direction, positions, levels = _slices(frame, order.axis)
    edges = None
    if cross_section is not None:
        edges = np.stack(
            [np.interp(levels[slices], cross_section[0], edge) for edge in cross_section[1].T], axis=1
        )
    return make_curve(
        direction, positions[slices], scores.scores, expected_slope=scores.expected_slope, cross_section=edges
    )


def _slices(frame: Frame, axis: int) -> tuple[Array, Array, Array]:
    """The slices' normal towards superior (LPS), each slice's position along it, and the level of each slice's centre
    along S, in mm."""
    first, second = (frame.affine_lps[:3, a] for a in range(3) if a != axis)
    normal = np.cross(first, second)
    normal = normal / np.linalg.norm(normal) * (1 if normal[2] > 0 else -1)
    index = np.tile((np.array(frame.shape, dtype=np.float64) - 1) / 2, (frame.shape[axis], 1))
    index[:, axis] = np.arange(frame.shape[axis])
    centres = frame.millimetres(index)
    return normal, centres @ normal, centres[:, 2]
