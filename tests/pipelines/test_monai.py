"""`LocateScand` and `AddLocationd`: an image of its own coordinates through MONAI's transforms.

The image's channels are the millimetres (R, A, S) of its voxels and a 1 that tells what was padded. Ramps survive
linear interpolation, so what the transforms make of them is the truth, to a thousandth of a voxel.
"""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai import transforms as mt
from monai.data import DataLoader, MetaTensor, PatchIterd

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import MILLIMETRES_PER_UNIT, make_source
from nnunet_locctx.pipelines.monai import AddLocationd, LocateScand
from nnunet_locctx.pipelines.scan_location import locate
from nnunet_locctx.regression.body import BodyFinder
from nnunet_locctx.scan import Scan
from tests.geometry_cases import flips, permutations, rotation, small_angles, spacings
from tests.pipelines.scans import ball

SCANNER = make_source("scanner", absolute=True)


def affine_of(
    permutation: tuple[int, int, int], flip: tuple[bool, bool, bool], spacing: Any, angles: Any
) -> np.ndarray:
    """(4, 4) in RAS of a scan stored with its axes permuted, flipped and turned."""
    affine = np.eye(4)
    signs = np.where(flip, -1, 1)
    affine[:3, :3] = rotation(angles)[:, list(permutation)] * signs * np.asarray(spacing)
    affine[:3, 3] = (-31.5, 12.25, 70.0)
    return affine


OBLIQUE = affine_of((2, 0, 1), (True, False, True), (1.5, 2.0, 3.0), (0.2, -0.1, 0.3))


def coordinate_image(shape: tuple[int, int, int], affine: np.ndarray) -> MetaTensor:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    millimetres = np.einsum("ij,jabc->iabc", affine[:3, :3], index) + affine[:3, 3, None, None, None]
    voxels = np.concatenate([millimetres, np.ones((1, *shape))])
    return MetaTensor(torch.from_numpy(voxels), affine=torch.from_numpy(affine))


def check(image: MetaTensor) -> int:
    """Compares the last three channels with the first three; returns how many voxels were not padded."""
    voxels = image.as_tensor().double()
    assert len(voxels) == 7
    inside = voxels[3] > 1 - 1e-5
    error = (voxels[4:] * MILLIMETRES_PER_UNIT - voxels[:3]).abs()[:, inside]
    assert error.max() < 2e-3, f"off by {error.max():.3f} mm"
    assert voxels[4:].isfinite().all()
    return int(inside.sum())


TRANSFORMS: dict[str, Any] = {
    "crop": mt.SpatialCropd("image", roi_start=(2, 3, 1), roi_end=(8, 9, 9)),
    "centre crop": mt.CenterSpatialCropd("image", (5, 6, 7)),
    "random crop": mt.RandSpatialCropd("image", (5, 4, 6), random_size=False),
    "pad": mt.SpatialPadd("image", (15, 14, 13)),
    "border": mt.BorderPadd("image", (1, 2, 3, 4, 5, 6)),
    "pad or crop": mt.ResizeWithPadOrCropd("image", (6, 20, 9)),
    "flip": mt.Flipd("image", spatial_axis=(0, 2)),
    "rotate 90": mt.Rotate90d("image", k=3, spatial_axes=(0, 2)),
    "orientation": mt.Orientationd("image", "LPS", labels=None),
    "spacing": mt.Spacingd("image", (2.2, 1.1, 1.7), padding_mode="zeros"),
    "spacing, extent": mt.Spacingd(
        "image", (2.2, 1.1, 1.7), padding_mode="zeros", scale_extent=True, align_corners=True
    ),
    # within half a voxel of the border it repeats voxels instead of interpolating: cropped
    "resize": mt.Compose(
        [mt.Resized("image", (20, 22, 33), mode="trilinear"), mt.CenterSpatialCropd("image", (14, 16, 27))]
    ),
    "zoom": mt.Zoomd("image", (1.3, 1.2, 1.4), mode="trilinear", padding_mode="constant"),
    "rotate": mt.Rotated("image", (0.3, 0.2, -0.4), padding_mode="zeros"),
    "affine": mt.RandAffined(
        "image",
        prob=1,
        rotate_range=0.3,
        shear_range=0.1,
        translate_range=2,
        scale_range=0.2,
        padding_mode="zeros",
    ),
    "affine, size": mt.RandAffined(
        "image", prob=1, rotate_range=0.3, spatial_size=(8, 9, 7), padding_mode="zeros"
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_location_stays_true_through(name: str) -> None:
    image = coordinate_image((10, 11, 12), OBLIQUE)
    pipeline = mt.Compose([LocateScand("image", SCANNER), TRANSFORMS[name], AddLocationd("image")])
    pipeline.set_random_state(3)
    assert check(pipeline({"image": image})["image"]) > 50


@given(permutations, flips, spacings, small_angles, st.data())
def test_grids_that_need_no_interpolation(permutation, flip, spacing, angles, data) -> None:  # type: ignore[no-untyped-def]
    """However the scan is stored, in any order of steps; in what was padded the location goes on as it is inside."""
    image = coordinate_image((5, 6, 7), affine_of(permutation, flip, spacing, angles))
    steps = [
        mt.BorderPadd("image", data.draw(st.lists(st.integers(0, 3), min_size=6, max_size=6), "pad")),
        mt.Flipd("image", spatial_axis=data.draw(st.sampled_from([0, 1, 2, (0, 1), (0, 1, 2)]), "flip")),
        mt.Rotate90d(
            "image", data.draw(st.integers(1, 3)), data.draw(st.sampled_from([(0, 1), (1, 2), (0, 2)]))
        ),
        mt.SpatialCropd(
            "image", roi_center=(3, 3, 3), roi_size=data.draw(st.tuples(*[st.integers(3, 9)] * 3), "crop")
        ),
    ]
    order = data.draw(st.permutations(steps), "order")
    pipeline = mt.Compose([LocateScand("image", SCANNER), *order, AddLocationd("image")])
    moved = pipeline({"image": image})["image"]
    check(moved)
    location = moved.as_tensor()[4:].double() * MILLIMETRES_PER_UNIT
    for axis in (1, 2, 3):
        assert torch.diff(location, n=2, dim=axis).abs().sum() < 1e-2


def test_half_a_voxel() -> None:
    """Fractions of the scan that LocateScand saw, whatever was cropped since."""
    image = MetaTensor(
        torch.zeros(1, 4, 4, 8, dtype=torch.int16), affine=torch.diag(torch.tensor([2.0, 2, 3, 1]))
    )
    pipeline = mt.Compose(
        [LocateScand("image"), mt.SpatialCropd("image", roi_slices=[slice(1, 3)] * 3), AddLocationd("image")]
    )
    patch = pipeline({"image": image})["image"]
    assert patch.dtype == torch.float32
    assert patch.shape == (4, 2, 2, 2)
    np.testing.assert_allclose(patch[1, :, 0, 0].numpy(), [-1 / 8, 1 / 8], atol=1e-7)
    np.testing.assert_allclose(patch[3, 0, 0].numpy(), [1.5 / 8 - 1 / 2, 2.5 / 8 - 1 / 2], atol=1e-7)


def test_batches_of_patches() -> None:
    """Several patches of a scan, resampled lazily, in a batch that holds the images alone."""
    scan = {
        "image": coordinate_image((10, 11, 12), OBLIQUE),
        "label": coordinate_image((10, 11, 12), OBLIQUE)[:1],
    }
    pipeline = mt.Compose(
        [
            LocateScand("image", SCANNER),
            mt.Flipd(["image", "label"], spatial_axis=1),
            mt.RandSpatialCropSamplesd(["image", "label"], (4, 5, 6), num_samples=2, random_size=False),
            AddLocationd("image"),
        ],
        lazy=True,
    )
    patches = [patch for _ in range(2) for patch in pipeline(dict(scan))]
    batch = next(iter(DataLoader(patches, batch_size=4)))
    assert set(batch) == {"image", "label"}
    assert batch["image"].shape == (4, 7, 4, 5, 6)
    assert sum(check(MetaTensor(image)) for image in batch["image"].as_tensor()) == 4 * 120


def test_a_measured_source_sees_the_whole_scan() -> None:
    voxels, affine = ball(18)
    image = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(affine))
    crop = mt.SpatialCropd("image", roi_slices=[slice(4, 9)] * 3)
    patch = mt.Compose([LocateScand("image", BodyFinder("ct")), crop, AddLocationd("image")])(
        {"image": image}
    )["image"]
    frame = Frame.from_affine(voxels.shape, affine, "RAS")
    expected = locate(Scan(voxels[None], frame), BodyFinder("ct")).field.box((4, 4, 4), (5, 5, 5))
    np.testing.assert_allclose(patch[1:].numpy(), expected, atol=1e-6)
    assert np.abs(expected).max() < 0.6


def test_millimetres_in_lps() -> None:
    """Some of MONAI's readers can be told to leave LPS as it is; the image then says so."""
    image = coordinate_image((5, 6, 7), OBLIQUE)
    flipped = MetaTensor(
        image.as_tensor(), affine=torch.diag(torch.tensor([-1.0, -1, 1, 1])).double() @ image.affine
    )
    flipped.meta["space"] = "LPS"
    np.testing.assert_allclose(
        Frame.from_metatensor(flipped).affine_lps, Frame.from_metatensor(image).affine_lps, atol=1e-12
    )


def test_errors() -> None:
    image = coordinate_image((5, 6, 7), OBLIQUE)
    with pytest.raises(ValueError, match=r"the scan of 'image' is not known: put LocateScand\('image'\)"):
        AddLocationd("image")({"image": image})
    with pytest.raises(TypeError, match="a MetaTensor is needed, got Tensor"):
        LocateScand("image")({"image": image.as_tensor()})
    with pytest.raises(ValueError, match=r"must be \(channels, x, y, z\), got shape \(5, 6, 7\)"):
        LocateScand("image")({"image": image[0]})
    with pytest.raises(KeyError):
        LocateScand("other")({"image": image})
    assert set(LocateScand("other", allow_missing_keys=True)({"image": image})) == {"image"}


def test_a_wrong_affine_is_refused() -> None:
    """Neither MONAI's patches of a grid nor its transposition change the affine."""
    located = LocateScand("image")({"image": coordinate_image((5, 6, 7), OBLIQUE)})
    with pytest.raises(ValueError, match="Transposed leaves the affine of 'image' as it was"):
        AddLocationd("image")(mt.Transposed("image", (0, 3, 2, 1))(located))
    patch, _ = list(PatchIterd(keys=["image"], patch_size=(2, 3, 4))(located))[1]
    with pytest.raises(ValueError, match="PatchIterd leaves a patch the whole image's affine"):
        AddLocationd("image")(patch)


def test_files(tmp_path: Path) -> None:
    """Of images read from files MONAI updates what it takes for meta data: the scan's location is not."""
    file = tmp_path / "ct.nii.gz"
    voxels, affine = ball(8)
    nib.save(nib.Nifti1Image(voxels, affine), file)
    loading = [mt.LoadImaged("image"), mt.EnsureChannelFirstd("image"), LocateScand("image", SCANNER)]
    turned = mt.Compose(
        [*loading, mt.Spacingd("image", (3, 3, 3)), mt.Orientationd("image", "LPS", labels=None)]
    )
    image = mt.Compose([turned, AddLocationd("image")])({"image": file})["image"]
    corner = image.affine.numpy() @ [0, 0, 0, 1]
    np.testing.assert_allclose(image[1:, 0, 0, 0].numpy() * MILLIMETRES_PER_UNIT, corner[:3], atol=1e-4)
