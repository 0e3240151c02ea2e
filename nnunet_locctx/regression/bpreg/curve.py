"""A scan's curve from scores of bpreg."""

import numpy as np

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import BodyPartCurve
from nnunet_locctx.regression.body_part.curve import make_curve
from nnunet_locctx.regression.bpreg.files import BpregScores
from nnunet_locctx.regression.bpreg.stack import stack_order

SPACING_TOLERANCE = 0.02
"""Largest difference between the voxel size along the body in the JSON file and in the scan, as a share of it."""


def curve_from_bpreg(
    scores: BpregScores, frame: Frame, *, cross_section: tuple[Array, Array] | None = None
) -> BodyPartCurve:
    """The curve of a scan from its scores.

    A scan whose header and scores contradict each other has an unusable curve, which says why.

    Args:
        scores: Those of the scan.
        frame: That of the file's own array in nnU-Net's order (z, y, x), see :func:`file_frame`.
        cross_section: Levels (J,) in mm along S, increasing, and the body's edges (J, 4) in mm at them, as
            :func:`~nnunet_locctx.regression.body_part.cross_section.cross_section` finds them; None: not known.

    Raises:
        ValueError: The scores are those of another scan: the number of slices or the voxel size along the body is
            another one.
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
        direction,
        positions[slices],
        scores.scores,
        expected_slope=scores.expected_slope,
        cross_section=edges,
    )


def _slices(frame: Frame, axis: int) -> tuple[Array, Array, Array]:
    """The slices' normal towards superior (LPS), and for each slice its position along that and the level of its
    centre along S, in mm."""
    one, other = (frame.affine_lps[:3, a] for a in range(3) if a != axis)
    normal = np.cross(one, other)
    normal = normal / np.linalg.norm(normal) * (1 if normal[2] > 0 else -1)
    index = np.tile((np.array(frame.shape, dtype=np.float64) - 1) / 2, (frame.shape[axis], 1))
    index[:, axis] = np.arange(frame.shape[axis])
    centres = frame.millimetres(index)
    return normal, centres @ normal, centres[:, 2]
