"""Which slice of a scan a score of bpreg belongs to.

bpreg reorders a scan before it scores the slices, so score i does not belong to slice i of the file in general: the
file's axes are permuted so that each comes to lie where its column of the affine is largest (x, y, z in RAS), and the
whole array is reversed along all axes if one entry of the affine is negative. For files whose third axis runs along
the body that entry is the direction of that axis. For others it is another entry, and the reordered stack may run
downwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame

ROUND_OFF = 1e-4
"""Direction cosines below this may have another sign in another reader."""


@dataclass(frozen=True)
class StackOrder:
    """How bpreg's reordered stack lies in the patient.

    Attributes:
        axis: Array axis (z, y, x of the file) that becomes the stack.
        file_upwards: Whether the slice number of the file grows towards superior.
        upwards: Whether that of the stack does.
        certain: False if that hangs on an entry of the affine that is 0 but for round-off.
    """

    axis: int
    file_upwards: bool
    upwards: bool
    certain: bool


def stack_order(frame: Frame) -> StackOrder | None:
    """The order in which bpreg stacks a scan's slices; None where its rule gives no permutation of the axes.

    Args:
        frame: That of the file's own array in nnU-Net's order (z, y, x).
    """
    # as nibabel reads it: columns are the file's axes x, y, z, rows are right, anterior, superior
    affine = (PATIENT_FROM_LPS @ frame.affine_lps[:3, :3])[:, ::-1]
    closest = np.argmax(np.abs(affine), axis=0)
    if sorted(closest) != [0, 1, 2]:
        return None
    along = int(np.flatnonzero(closest == 2)[0])
    # the tool looks here for the direction of the body's axis; it is there only if `along` is 2
    entry = affine[along, 2]
    file_upwards = bool(affine[2, along] > 0)
    reverses = bool(entry < 0)
    certain = entry == 0 or abs(entry) > ROUND_OFF * np.linalg.norm(affine[:, 2])
    return StackOrder(2 - along, file_upwards, file_upwards != reverses, bool(certain))


def file_frame(properties: Mapping[str, Any], shape: Sequence[int]) -> Frame:
    """The frame of the file's own array, in nnU-Net's order (z, y, x).

    Differs from that of the array as read where nnU-Net's reader turned the scan to RAS (``NibabelIOWithReorient``).

    Args:
        properties: nnU-Net's, of a scan as read.
        shape: Spatial shape of the array as read.
    """
    frame = Frame.as_read(properties, shape)
    stuff = properties.get("nibabel_stuff", {})
    if "sitk_stuff" in properties or "reoriented_affine" not in stuff:
        return frame
    affine = np.array(stuff["original_affine"], dtype=np.float64)
    affine[:3, :3] = affine[:3, 2::-1]
    # which axis of the file each axis of the array is
    steps = np.linalg.inv(affine[:3, :3]) @ PATIENT_FROM_LPS @ frame.affine_lps[:3, :3]
    moved = np.rint(np.abs(steps)).astype(int)
    first, second, third = (int(n) for n in moved @ np.array(frame.shape))
    return Frame.from_affine((first, second, third), affine, "RAS")
