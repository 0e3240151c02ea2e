"""Location in MONAI's pipelines of dictionaries."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.grid_dataset import PatchIterd
from monai.transforms.transform import MapTransform

from nnunet_locctx.geometry import Frame
from nnunet_locctx.pipelines.scan_location import Source, locate
from nnunet_locctx.scan import Scan

PREFIX = "__scan_location_of_"
"""Between the two transforms the scan's location lies under this and the image's key. In front of the key: MONAI's
Spacingd takes what begins with the key for meta data."""


class LocateScand(MapTransform):
    """Takes images as the whole scans whose location :class:`AddLocationd` adds, and measures them where the source
    does. It belongs behind LoadImaged and EnsureChannelFirstd, in front of all that crops, turns, resamples or
    rescales. It draws nothing at random, so CacheDataset runs it once for each scan.

    Args:
        keys: Images (channels, x, y, z), MetaTensors.
        source: What a coordinate means (:data:`~nnunet_locctx.pipelines.scan_location.Source`).
        allow_missing_keys: As in other transforms of MONAI.
    """

    def __init__(
        self, keys: KeysCollection, source: Source = "voxel", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.source = source

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the scans' locations.

        Raises:
            TypeError: An image is no MetaTensor.
            ValueError: It is no volume with channels, or the source does not fit.
        """
        located = dict(data)
        for key in self.key_iterator(located):
            image = located[key]
            frame = Frame.from_metatensor(image)
            scan = Scan(image.as_tensor().cpu().numpy(), frame)
            located[f"{PREFIX}{key}"] = locate(scan, self.source)
        return located


class AddLocationd(MapTransform):
    """Adds three channels behind those of an image: the location (R, A, S) of its voxels in the scan that
    :class:`LocateScand` saw, NaN along unknown axes.

    It computes each voxel's place from the image's affine, which MONAI's crops, pads, flips, turns, zooms and
    resampling keep true; in what was padded the location goes on. So it belongs behind them, and behind what changes
    intensities. Of elastic deformations and grid distortions MONAI keeps no record: the location of deformed voxels is
    off by their displacement. Patches of a grid (``PatchIterd``, ``GridPatchDataset``) and transposed images have a
    wrong affine and are refused: there it belongs in front of them.

    Args:
        keys: Images as in :class:`LocateScand`.
        allow_missing_keys: As in other transforms of MONAI.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the images (channels + 3, x, y, z) and without the scans' locations.

        Raises:
            ValueError: LocateScand did not see an image, or the image's affine does not say where it was taken.
        """
        added = dict(data)
        if PatchIterd.start_pos_key in added:
            raise ValueError(
                "PatchIterd leaves a patch the whole image's affine: put AddLocationd in front of it"
            )
        for key in self.key_iterator(added):
            scan = added.pop(f"{PREFIX}{key}", None)
            if scan is None:
                raise ValueError(
                    f"the scan of {key!r} is not known: put LocateScand({key!r}) behind its loading"
                )
            image = added[key]
            if any(entry.get("class") == "Transposed" for entry in getattr(image, "applied_operations", ())):
                raise ValueError(
                    f"Transposed leaves the affine of {key!r} as it was: put AddLocationd in front of it"
                )
            location = torch.from_numpy(scan.on(Frame.from_metatensor(image)))
            added[key] = torch.cat([image, location.to(image.device)])  # keeps the meta data of the first
        return added
