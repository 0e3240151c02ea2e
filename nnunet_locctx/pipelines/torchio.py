"""Location in TorchIO's pipelines."""

from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.pipelines.scan_location import ScanLocation, Source, locate
from nnunet_locctx.scan import Scan

try:
    import torchio as tio
    from torchio.transforms.augmentation.spatial.random_affine import Affine
    from torchio.transforms.augmentation.spatial.random_affine_elastic_deformation import (
        AffineElasticDeformation,
    )
    from torchio.transforms.augmentation.spatial.random_elastic_deformation import ElasticDeformation
    from torchio.transforms.augmentation.spatial.random_flip import Flip
    from torchio.transforms.intensity_transform import IntensityTransform
    from torchio.transforms.spatial_transform import SpatialTransform
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "TorchIO is not installed: pip install 'nnunet-locctx[torchio]'", name=error.name
    ) from error

POSTFIX = "scan_location"
"""Between the two transforms the scan's location lies in the subject under ``IMAGE_scan_location``."""

SAME_PLACE = 1e-3
"""mm by which a voxel may lie elsewhere than the recorded transforms say: round-off."""


class LocateScan(IntensityTransform):
    """Takes the scalar images of a subject as the whole scans whose location :class:`AddLocation` adds, and measures
    them where the source does. It belongs in front of all other transforms that change them.

    Args:
        source: What a coordinate means (:data:`~nnunet_locctx.pipelines.scan_location.Source`).
        **kwargs: Of every transform of TorchIO; ``include`` and ``exclude`` choose images.
    """

    def __init__(self, source: Source = "voxel", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.args_names = ["source"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        for name, image in self.get_images_dict(subject).items():
            scan = Scan(image.data.numpy(), _frame(image))
            located = locate(scan, self.source)
            subject[f"{name}_{POSTFIX}"] = (located, len(subject.applied_transforms))
        subject.update_attributes()
        return subject


class AddLocation(IntensityTransform):
    """Adds three channels behind those of scalar images: the location (R, A, S) of their voxels in the scans that
    :class:`LocateScan` saw, NaN along unknown axes.

    TorchIO's flips, turns and deformations move the patient and leave the affine as it was. So each voxel is followed
    back through the subject's history to its place in the scan, by TorchIO's own transforms and without interpolation;
    where something was padded the location goes on. It belongs behind all transforms, of a whole subject or of a
    sampler's patch.

    Args:
        **kwargs: As in :class:`LocateScan`.
    """

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Adds the channels and removes what LocateScan left.

        Raises:
            ValueError: LocateScan did not see an image, its history cannot be repeated, or its voxels lie elsewhere
                than that says.
        """
        history = subject.get_applied_transforms()
        entries: Any = subject  # TorchIO types what lies in a subject as object
        for name, image in self.get_images_dict(subject).items():
            key = f"{name}_{POSTFIX}"
            if key not in subject:
                raise ValueError(f"the scan of {name!r} is not known: put LocateScan() behind its loading")
            located, first = entries[key]
            moved = _follow(name, image, located.frame, history[first:])
            location = torch.from_numpy(_moved_location(located, image, moved))
            image.set_data(torch.cat([image.data, location]))
            subject.remove_image(key)  # whatever lies there; as an attribute too
        return subject


def _frame(image: tio.Image) -> Frame:
    """Axis order x, y, z."""
    return Frame.from_affine(image.spatial_shape, image.affine, "RAS")


def _follow(
    name: str, image: tio.ScalarImage, scan: Frame, history: list[tio.Transform]
) -> sitk.CompositeTransform:
    """From places (mm LPS) of the image as it is to those of the scan.

    Args:
        name: Of the image in its subject.
        image: As it is now.
        scan: Frame that the image had.
        history: What it went through since.

    Raises:
        ValueError: The history cannot be repeated, or does not lead to the image's grid.
    """
    moves: list[sitk.Transform] = []
    blank = torch.zeros(1, dtype=torch.uint8).expand(1, *scan.shape)
    grid: Any = tio.ScalarImage(tensor=blank, affine=np.vstack([scan.absolute_affine, [0, 0, 0, 1]]))
    subject = tio.Subject({name: grid})
    for transform in history:
        if not isinstance(transform, SpatialTransform) or not transform.get_images(subject):
            continue
        grid = subject[name]
        if isinstance(transform, Flip):
            moves.append(_flip(grid, transform.axes))
        elif isinstance(transform, Affine):
            moves.append(transform.get_affine_transform(grid))
        elif isinstance(transform, ElasticDeformation):
            moves.append(transform.get_bspline_transform(grid.as_sitk(force_3d=True)))
        elif isinstance(transform, AffineElasticDeformation):
            both = [
                transform._affine.get_affine_transform(grid),
                transform._elastic.get_bspline_transform(grid.as_sitk(force_3d=True)),
            ]
            moves += both if transform.affine_first else both[::-1]
        else:  # changes the grid, and the affine with it
            try:
                subject = transform(subject)
            except Exception as error:  # whatever it needs of the whole subject, which is not here
                raise ValueError(
                    f"{transform.name} of {name!r} cannot be repeated ({error}): put LocateScan() behind it"
                ) from error
    grid = subject[name]
    if grid.spatial_shape != image.spatial_shape or not np.allclose(
        grid.affine, image.affine, rtol=0, atol=SAME_PLACE
    ):
        raise ValueError(
            f"{name!r} was changed by something that its history does not tell: by it the image has "
            f"{grid.spatial_shape} voxels and the affine {grid.affine.tolist()}, in truth {image.spatial_shape} and "
            f"{image.affine.tolist()}. Put LocateScan() behind it."
        )
    return sitk.CompositeTransform(moves) if moves else sitk.CompositeTransform(3)


def _flip(grid: tio.Image, axes: tuple[int | str, ...]) -> sitk.AffineTransform:
    """Mirrors places (mm LPS) at the middle of the grid."""
    affine = _frame(grid).affine_lps
    mirror = np.eye(4)
    for axis in axes:
        index = 3 + grid.axis_name_to_index(axis) if isinstance(axis, str) else axis
        mirror[index, index] = -1
        mirror[index, 3] = grid.spatial_shape[index] - 1
    matrix = affine @ mirror @ np.linalg.inv(affine)
    return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def _moved_location(located: ScanLocation, image: tio.ScalarImage, moved: sitk.CompositeTransform) -> Any:
    """Location (3, x, y, z) of the image's voxels."""
    grid = _frame(image)
    if moved.IsLinear():
        origin = np.array(moved.TransformPoint((0.0, 0.0, 0.0)))
        columns = [np.array(moved.TransformPoint(tuple(unit))) - origin for unit in np.eye(3)]
        matrix: Array = np.eye(4)
        matrix[:3] = np.column_stack([*columns, origin])
        return located.on(Frame(grid.shape, affine_lps=matrix @ grid.affine_lps))
    place = image.as_sitk(force_3d=True)
    location = np.empty((3, *grid.shape), dtype=np.float32)
    index = np.stack(np.meshgrid(*map(np.arange, (*grid.shape[:2], 1)), indexing="ij"), axis=-1)
    for level in range(grid.shape[2]):  # a displacement of the whole scan would be large
        displacement = sitk.TransformToDisplacementField(
            moved,
            sitk.sitkVectorFloat64,
            (*grid.shape[:2], 1),
            place.TransformIndexToPhysicalPoint((0, 0, level)),
            place.GetSpacing(),
            place.GetDirection(),
        )
        moves = np.swapaxes(sitk.GetArrayFromImage(displacement), 0, 2)
        places = grid.millimetres(index + np.array([0, 0, level])) + moves
        location[..., level] = np.moveaxis(located.at(places)[:, :, 0], -1, 0)
    return location
