"""`LocateScan` and `AddLocation`: an image of its own coordinates through TorchIO's transforms and samplers.

The image's channels are the index of its voxels and a 1 that tells what was padded. Ramps survive linear interpolation,
so what the transforms make of them is the truth, to a hundredth of a voxel.
"""

from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio

from nnunet_locctx.geometry import Frame
from nnunet_locctx.pipelines.scan_location import locate
from nnunet_locctx.pipelines.torchio import AddLocation, LocateScan
from nnunet_locctx.regression.body import BodyFinder
from nnunet_locctx.scan import Scan
from tests.pipelines.scans import ball
from tests.pipelines.test_monai import OBLIQUE

SHAPE = (16, 17, 18)
FRAME = Frame.from_affine(SHAPE, OBLIQUE, "RAS")


def coordinate_subject() -> tio.Subject:
    index = np.stack([*np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), np.ones(SHAPE)]).astype(np.float32)
    labels = torch.ones(1, *SHAPE, dtype=torch.uint8)
    return tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(index), affine=OBLIQUE),
        labels=tio.LabelMap(tensor=labels, affine=OBLIQUE),
    )


def check(voxels: torch.Tensor) -> int:
    """Compares the location with the indices; returns how many voxels could be compared."""
    values = voxels.double().numpy()
    assert len(values) == 7
    last = np.array(SHAPE)[:, None, None, None] - 1
    # within half a voxel of the border, and beyond it, ITK repeats voxels instead of interpolating; then once more
    compared = (values[3] > 1 - 1e-5) & (values[:3] > 1).all(axis=0) & (values[:3] < last - 1).all(axis=0)
    index = FRAME.index_from_fraction(np.moveaxis(values[4:], 0, -1))
    error = np.abs(np.moveaxis(index, -1, 0) - values[:3])[:, compared]
    assert error.max() < 1e-2, f"off by {error.max():.3f} voxels"
    return int(compared.sum())


TRANSFORMS: dict[str, Any] = {
    "crop": tio.Crop((1, 2, 3, 4, 5, 0)),
    "pad": tio.Pad((1, 2, 3, 4, 5, 0)),
    "crop or pad": tio.CropOrPad((20, 10, 18)),
    "canonical": tio.ToCanonical(),
    "orientation": tio.ToOrientation("LPI"),
    "transpose": tio.Transpose(),
    "resample": tio.Resample((2.2, 1.1, 1.7)),
    "resize": tio.Resize((32, 17, 9)),
    "flip": tio.RandomFlip(axes=(0, 2), flip_probability=1),
    "flip, by name": tio.RandomFlip(axes=("Left",), flip_probability=1),
    "affine": tio.RandomAffine(scales=0.2, degrees=20, translation=4, default_pad_value=0),
    "affine, origin": tio.RandomAffine(degrees=5, center="origin", default_pad_value=0),
    "elastic": tio.RandomElasticDeformation(num_control_points=7, max_displacement=3.0, locked_borders=2),
    "both": tio.RandomAffineElasticDeformation(
        affine_kwargs={"degrees": 10, "scales": 0, "default_pad_value": 0},
        elastic_kwargs={"num_control_points": 7, "max_displacement": 3.0},
    ),
    "both, elastic first": tio.RandomAffineElasticDeformation(
        affine_first=False,
        affine_kwargs={"degrees": 10, "scales": 0, "default_pad_value": 0},
        elastic_kwargs={"num_control_points": 7, "max_displacement": 3.0},
    ),
    "a chain": tio.Compose(
        [
            tio.ToCanonical(),
            tio.RandomFlip(axes=0, flip_probability=1),
            tio.Pad((4, 5, 6, 5, 4, 4)),
            tio.RandomAffine(degrees=5, translation=3, default_pad_value=0),
            tio.Lambda(lambda voxels: voxels + 0.0),
            tio.Flip(axes=(1, 2)),
            tio.RandomElasticDeformation(max_displacement=2.0, num_control_points=7),
        ]
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_location_stays_true_through(name: str) -> None:
    moved = tio.Compose([LocateScan(), TRANSFORMS[name], AddLocation()])(coordinate_subject())
    assert check(moved.image.data) > 500
    assert moved.image.data[4:].isfinite().all()
    assert moved.labels.data.shape == (1, *moved.image.spatial_shape)
    assert set(moved) == {"image", "labels"}


def test_where_something_was_padded_the_location_goes_on() -> None:
    subject = tio.Compose([LocateScan(), tio.Pad(3), tio.Flip(axes=1), AddLocation()])(coordinate_subject())
    location = np.moveaxis(subject.image.data[4:].numpy(), 0, -1)
    index = np.stack(np.meshgrid(*[np.arange(-3, n + 3) for n in SHAPE], indexing="ij"), axis=-1)
    np.testing.assert_allclose(location[:, ::-1], FRAME.fraction(index), atol=1e-6)


def patches_of(subject: tio.Subject) -> list[tio.Subject]:
    torch.manual_seed(0)
    uniform = list(tio.UniformSampler((6, 5, 4))(subject, num_patches=3))
    return uniform + list(tio.GridSampler(subject, (8, 8, 8), 2)(subject))[:4]


def test_patches_of_samplers_have_the_location_of_the_subject() -> None:
    """Added to the subject before, or to each patch: the same."""
    moves = [
        LocateScan(),
        tio.RandomAffine(degrees=20, default_pad_value=0),
        tio.RandomFlip(axes=0, flip_probability=1),
    ]
    torch.manual_seed(1)
    before = patches_of(tio.Compose([*moves, AddLocation()])(coordinate_subject()))
    torch.manual_seed(1)
    after = [AddLocation()(patch) for patch in patches_of(tio.Compose(moves)(coordinate_subject()))]
    assert len(before) == len(after) == 7
    for one, other in zip(before, after, strict=True):
        check(one.image.data)
        np.testing.assert_allclose(one.image.data.numpy(), other.image.data.numpy(), atol=1e-5)


def test_batches_of_a_queue() -> None:
    subjects = tio.SubjectsDataset(
        [coordinate_subject()] * 2, transform=tio.Compose([LocateScan(), AddLocation()])
    )
    queue = tio.Queue(subjects, 4, 2, tio.UniformSampler((6, 5, 4)), num_workers=0, shuffle_subjects=False)
    batch = next(iter(tio.SubjectsLoader(queue, batch_size=4, num_workers=0)))
    assert batch["image"][tio.DATA].shape == (4, 7, 6, 5, 4)
    for voxels in batch["image"][tio.DATA]:
        check(voxels)


def test_a_measured_source_sees_the_whole_scan() -> None:
    voxels, affine = ball(18)
    subject = tio.Subject(ct=tio.ScalarImage(tensor=torch.from_numpy(voxels)[None], affine=affine))
    patch = tio.Compose([LocateScan(BodyFinder("ct")), tio.Crop(4), AddLocation()])(subject)
    scan = Scan(voxels[None], Frame.from_affine(voxels.shape, affine, "RAS"))
    expected = locate(scan, BodyFinder("ct")).field.box((4, 4, 4), (10, 10, 10))
    np.testing.assert_allclose(patch.ct.data[1:].numpy(), expected, atol=1e-6)


def test_images_are_chosen() -> None:
    subject = coordinate_subject()
    subject.add_image(tio.ScalarImage(tensor=torch.zeros(1, *SHAPE), affine=OBLIQUE), "other")
    chosen = tio.Compose(
        [LocateScan(include=["image"]), tio.Flip(0, include=["other"]), AddLocation(exclude=["other"])]
    )
    moved = chosen(subject)
    assert moved.other.shape[0] == 1
    assert check(moved.image.data) > 500


def test_errors() -> None:
    subject = coordinate_subject()
    with pytest.raises(ValueError, match=r"the scan of 'image' is not known: put LocateScan\(\)"):
        AddLocation()(subject)
    subject.add_image(tio.ScalarImage(tensor=torch.zeros(1, 8, 8, 8), affine=np.eye(4)), "other")
    resampled = tio.Compose(
        [LocateScan(include=["image"]), tio.Resample("other"), AddLocation(include=["image"])]
    )
    with pytest.raises(
        ValueError, match=r"Resample of 'image' cannot be repeated .* put LocateScan\(\) behind it"
    ):
        resampled(subject)
    located = LocateScan()(subject)
    located.image.affine = np.eye(4)
    with pytest.raises(ValueError, match="'image' was changed by something that its history does not tell"):
        AddLocation()(located)
