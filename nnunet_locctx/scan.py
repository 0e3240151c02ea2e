"""A scan: its voxels and where they lie.

:meth:`Scan.read` needs SimpleITK only. Within nnU-Net's pipeline :func:`nnunet_locctx.nnunet.data.reading.read_scan`
gives the same with nnU-Net's own readers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Frame
from nnunet_locctx.image_files import check_whole, explain


@dataclass(frozen=True)
class Scan:
    """An image or a segmentation.

    Attributes:
        voxels: (channels, i, j, k) as stored: for readers of SimpleITK the spatial axes are z, y, x of the file.
        frame: Where the voxels lie in the patient.
        properties: What nnU-Net's reader keeps of the file, so that its writer can write another like it; empty if
            another reader was used.
    """

    voxels: npt.NDArray[Any]
    frame: Frame
    properties: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "Scan":
        """Reads a file with SimpleITK; components of a voxel are channels.

        Raises:
            BrokenFileError: The file is missing, not whole, or not what its name says.
            ValueError: SimpleITK cannot read it, it is no volume, or its geometry is unusable; names the file.
        """
        import SimpleITK

        check_whole(file)
        try:
            image = SimpleITK.ReadImage(str(file))
            if image.GetDimension() != 3:
                raise ValueError(f"a volume with three axes is needed, the size is {image.GetSize()}")
            frame = Frame.from_sitk(image)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{file}: {explain(error)}") from error
        voxels = SimpleITK.GetArrayFromImage(image)
        return cls(np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else voxels[None], frame)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """(i, j, k) whole numbers of a segmentation: those of the first channel.

        Raises:
            ValueError: It holds other numbers.
        """
        values = self.voxels[0]
        if values.dtype.kind not in "iub":
            whole = np.rint(values)
            wrong = values[~(np.abs(values - whole) < 1e-3)]
            if len(wrong):
                raise ValueError(
                    f"a segmentation must hold whole numbers, {len(wrong)} of its {values.size} voxels do not "
                    f"(such as {wrong[0]:g})"
                )
            values = whole
        return values.astype(np.int32)
