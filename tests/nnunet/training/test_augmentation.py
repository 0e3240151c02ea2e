"""After nnU-Net's augmentation a voxel's coordinate is the place its intensity came from.

The image is made of its own coordinates (a ramp that goes on outside the volume), so that interpolation is
exact and any error of the location shows as a difference of image and location. It goes through the list that nnU-Net's
trainer really makes: these tests are the contract with batchgeneratorsv2, whose spatial transform is subclassed.
"""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_locctx.location import AXES, AffineField, LocationField, hide_axes
from nnunet_locctx.nnunet.training.augmentation import (
    JitterLocation,
    JoinLocation,
    LocatedSpatialTransform,
    SplitLocation,
    locate_transforms,
    write_key,
)
from nnunet_locctx.nnunet.training.dataset import LocatedArray

VOLUME = (40, 44, 48)
INDEX = AffineField(np.eye(3, 4), VOLUME)
FULL_TURN = (-np.pi, np.pi)


def nnunet_transforms(
    patch: tuple[int, ...],
    dummy_2d: bool = False,
    spatial_only: bool = True,
    cascade: bool = False,
    always: bool = True,
) -> ComposeTransforms:
    """nnU-Net's own list; with rotation and scaling always on, and intensity transforms off if asked."""
    rotation = FULL_TURN if dummy_2d or len(patch) == 2 else (-np.pi / 6, np.pi / 6)
    transforms = nnUNetTrainer.get_training_transforms(
        np.array(patch),
        rotation,
        None,
        tuple(range(len(patch))),
        dummy_2d,
        use_mask_for_norm=[False],
        is_cascaded=cascade,
        foreground_labels=[1, 2],
    )
    if spatial_only:
        transforms.transforms = [t for t in transforms.transforms if not isinstance(t, RandomTransform)]
    for t in transforms.transforms:
        if isinstance(t, SpatialTransform) and always:
            t.p_rotation = t.p_scaling = 0.8
    return transforms


def load(
    patch: tuple[int, ...], lower: list[int], dummy_2d: bool, field: LocationField | None = None
) -> dict[str, torch.Tensor]:
    """What nnU-Net's loader hands to the transforms: a larger crop, cut to 2D for 2D patches.

    The image is the index of each voxel; the location is `field`, by default the index as well.
    """
    turns = [FULL_TURN if dummy_2d or len(patch) == 2 else (-np.pi / 6, np.pi / 6)] * 3
    initial = [int(n) for n in get_patch_size(np.array(patch), *turns, (0.85, 1.25))]
    if dummy_2d:
        initial[0] = patch[0]
    size = [1, *initial] if len(patch) == 2 else initial
    # nnU-Net's patches always reach into the volume
    lower = [min(max(at, 1 - n), v - 1) for at, n, v in zip(lower, size, VOLUME, strict=True)]
    box = [[at, at + n] for at, n in zip(lower, size, strict=True)]
    ramp = INDEX.box(lower, size)
    located = crop_and_pad_nd(
        LocatedArray(np.zeros((1, *VOLUME), np.float32), field or INDEX, keyed=True), box, 0
    )
    image = torch.from_numpy(np.concatenate([ramp, located[-3:]]))
    seg = torch.ones((2, *size), dtype=torch.int16)
    if len(patch) == 2:
        image, seg = image[:, 0], seg[:, 0]
    return {"image": image, "segmentation": seg}


@pytest.mark.parametrize(
    ("patch", "dummy_2d"),
    [((12, 16, 14), False), ((5, 20, 18), True), ((16, 20), False)],
    ids=["3d", "dummy2d", "2d"],
)
@given(seed=st.integers(0, 10_000), lower=st.tuples(*[st.integers(-30, 45)] * 3))
def test_location_is_where_the_intensity_came_from(
    patch: tuple[int, ...], dummy_2d: bool, seed: int, lower: tuple[int, int, int]
) -> None:
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    sample = load(patch, list(lower), dummy_2d)
    # padding with ones tells which voxels were interpolated from outside the loaded crop, where the ramp is
    # unknown to the image
    sample["image"] = torch.cat([torch.ones_like(sample["image"][:1]), sample["image"]])
    result = locate_transforms(nnunet_transforms(patch, dummy_2d))(**sample)["image"]
    assert result.shape == (7, *patch)
    inside, ramp, location = result[0] > 1 - 1e-6, result[1:4], result[4:]
    assert inside.float().mean() > 0.2
    torch.testing.assert_close(location[:, inside], ramp[:, inside], atol=1e-3, rtol=0)
    assert_continues(location, inside, patch)


@pytest.mark.parametrize(
    ("patch", "dummy_2d"),
    [((12, 16, 14), False), ((5, 20, 18), True), ((16, 20), False)],
    ids=["3d", "dummy2d", "2d"],
)
@given(seed=st.integers(0, 10_000), lower=st.tuples(*[st.integers(-30, 45)] * 3))
def test_bent_location_is_where_the_intensity_came_from(
    patch: tuple[int, ...], dummy_2d: bool, seed: int, lower: tuple[int, int, int]
) -> None:
    """A field that is not affine is asked where each voxel of the final patch was sampled."""
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    sample = load(patch, list(lower), dummy_2d, Bent(VOLUME))
    sample["image"] = torch.cat([torch.ones_like(sample["image"][:1]), sample["image"]])
    result = locate_transforms(nnunet_transforms(patch, dummy_2d))(**sample)["image"]
    assert result.shape == (7, *patch)
    inside, index, location = result[0] > 1 - 1e-6, result[1:4], result[4:]
    assert inside.float().mean() > 0.2
    expected = torch.from_numpy(Bent(VOLUME).at(index.movedim(0, -1).numpy())).movedim(-1, 0)
    torch.testing.assert_close(location[:, inside].double(), expected[:, inside], atol=2e-3, rtol=0)
    assert torch.isfinite(location).all()


@pytest.mark.parametrize(
    ("patch", "dummy_2d"), [((12, 16, 14), False), ((5, 20, 18), True), ((16, 20), False)]
)
@pytest.mark.parametrize("unknown", ["S", "RA", "RAS"])
def test_an_unknown_axis_stays_unknown_and_changes_no_other(
    patch: tuple[int, ...], dummy_2d: bool, unknown: str
) -> None:
    """Through the whole list, padding included; a cascade's channels follow untouched."""
    fields = (Bent(VOLUME), hide_axes(Bent(VOLUME), dict.fromkeys(unknown, "for a test")))
    results = []
    for field in fields:
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        sample = load(patch, [-5, 4, 30], dummy_2d, field)
        transforms = nnunet_transforms(patch, dummy_2d, spatial_only=False, cascade=True)
        results.append(locate_transforms(transforms)(**sample)["image"])
    expected, result = results
    channels = [3 + AXES.index(axis) for axis in unknown]
    assert torch.isnan(result[channels]).all()
    expected[channels] = torch.nan
    torch.testing.assert_close(result, expected, atol=0, rtol=0, equal_nan=True)


def test_jitter_reaches_a_bent_location() -> None:
    results = []
    for jitter in (0.0, 0.3):
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        transforms = locate_transforms(nnunet_transforms((12, 16, 14), False), JitterLocation(jitter))
        results.append(transforms(**load((12, 16, 14), [3, 4, 5], False, Bent(VOLUME)))["image"][-3:])
    plain, jittered = results
    for before, after in zip(plain, jittered, strict=True):
        scale, shift = np.polyfit(before.flatten().double(), after.flatten().double(), 1)
        torch.testing.assert_close(after, before * scale + shift, atol=1e-3, rtol=0)
        assert abs(scale - 1) > 1e-3
        assert abs(shift) > 1e-3


class Bent(LocationField):
    """A smooth location that is not affine in the index."""

    def at(self, index: npt.ArrayLike) -> npt.NDArray[np.float64]:
        index = np.asarray(index, dtype=np.float64)
        return np.stack(
            [
                np.sin(index[..., 0] / 9) + 0.02 * index[..., 1],
                np.cos(index[..., 1] / 11),
                index[..., 2] / 20 + 1e-4 * index[..., 0] ** 2,
            ],
            axis=-1,
        )

    def sample(
        self, origin: npt.NDArray[np.float64], steps: npt.NDArray[np.float64], out: npt.NDArray[np.float32]
    ) -> None:
        index = np.stack(np.meshgrid(*[np.arange(n) for n in out.shape[1:]], indexing="ij"), axis=-1)
        out[:] = np.moveaxis(self.at(index @ steps.T + origin), -1, 0)


def assert_continues(location: torch.Tensor, inside: torch.Tensor, patch: tuple[int, ...]) -> None:
    """Outside the loaded crop the location is the affine continuation of the location inside."""
    index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in patch], indexing="ij"))
    design = torch.cat([index.flatten(1), torch.ones(1, index[0].numel())]).T.double()
    flat, mask = location.flatten(1).T.double(), inside.flatten()
    fitted = torch.linalg.lstsq(design[mask], flat[mask]).solution
    torch.testing.assert_close(design @ fitted, flat, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("patch", "dummy_2d"), [((12, 16, 14), False), ((5, 20, 18), True), ((16, 20), False)]
)
def test_intensity_augmentation_leaves_location_alone(patch: tuple[int, ...], dummy_2d: bool) -> None:
    """Noise, blur, contrast, gamma and low-resolution simulation change the image only."""
    changed = 0
    for seed in range(8):
        results = []
        for intensity in (False, True):
            transforms = nnunet_transforms(patch, dummy_2d, spatial_only=False)
            for t in transforms.transforms:
                if isinstance(t, RandomTransform):
                    t.apply_probability = float(intensity)
            # mirroring draws from torch, as some intensity transforms do: fix it to one axis
            transforms.transforms[:] = [
                t for t in transforms.transforms if type(t).__name__ != "MirrorTransform"
            ]
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            results.append(locate_transforms(transforms)(**load(patch, [3, 4, 5], dummy_2d))["image"])
        plain, noisy = results
        torch.testing.assert_close(plain[-3:], noisy[-3:], atol=0, rtol=0)
        changed += not torch.equal(plain[:3], noisy[:3])
    assert changed == 8


def test_low_resolution_simulation_moves_nothing() -> None:
    """The simulated scan shows the same places: its ramp stays on the location to within half a coarse
    voxel."""
    transforms = nnunet_transforms((16, 16, 16), spatial_only=False)
    kept = []
    for t in transforms.transforms:
        if isinstance(t, RandomTransform) and "LowRes" in type(t.transform).__name__:
            t.apply_probability, t.transform.p_per_channel = 1.0, 1.0
            kept.append(t)
        elif isinstance(t, SpatialTransform):
            t.p_rotation = t.p_scaling = 0
            kept.append(t)
    transforms.transforms = kept
    assert len(kept) == 2
    difference = []
    for seed in range(30):
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        image = locate_transforms(transforms)(**load((16, 16, 16), [8, 9, 10], False))["image"]
        centre = (slice(None), *[slice(4, 12)] * 3)
        difference.append((image[:3] - image[3:])[centre].mean(dim=(1, 2, 3)))
    assert 0 < torch.stack(difference).abs().max() < 0.5001


def test_without_rotation_the_crop_is_nnunets_own() -> None:
    transforms = nnunet_transforms((12, 16, 14))
    for t in transforms.transforms:
        if isinstance(t, SpatialTransform):
            t.p_rotation = t.p_scaling = 0
    image = locate_transforms(transforms)(**load((12, 16, 14), [-7, 20, 3], False))["image"]
    torch.testing.assert_close(image[:3], image[3:], atol=1e-5, rtol=0)


def test_a_patch_larger_than_what_was_loaded() -> None:
    """The crop pads the image with zeros; the location goes on."""
    spatial = LocatedSpatialTransform((10, 10, 10), 0, False)
    image = torch.ones(4, 6, 10, 7)
    write_key(INDEX, [2, 3, 4], image[1:].numpy())
    result = ComposeTransforms([SplitLocation(), spatial, JoinLocation()])(image=image)["image"]
    lower = [at + c - 5 for at, c in zip([2, 3, 4], [6 // 2, 10 // 2, 7 // 2], strict=True)]
    torch.testing.assert_close(result[1:], torch.from_numpy(INDEX.box(lower, [10, 10, 10])))
    assert not result[0, 0].any()


def test_elastic_deformation_is_refused() -> None:
    transforms = nnunet_transforms((8, 8, 8))
    for t in transforms.transforms:
        if isinstance(t, SpatialTransform):
            t.p_elastic_deform = 0.2
    with pytest.raises(ValueError, match=r"cannot follow elastic deformation: .* got 0\.2"):
        locate_transforms(transforms)


def test_aligned_corners_are_refused() -> None:
    transforms = nnunet_transforms((8, 8, 8))
    for t in transforms.transforms:
        if isinstance(t, SpatialTransform):
            t.align_corners = True
    with pytest.raises(ValueError, match="align_corners=False, as in nnU-Net, got True"):
        locate_transforms(transforms)


@pytest.mark.parametrize("size", [(4, 5, 6), (1, 5, 6), (4, 1, 1), (5, 6), (5, 1)])
def test_split_and_join_give_the_location_of_the_patch(size: tuple[int, ...]) -> None:
    """Also for axes of one voxel, and with nothing but the key written."""
    weights = np.array([[1.0, 0.3, -2.0, 7.0], [0.0, 0.5, 0.0, 7.0], [4.0, 0.0, 0.1, 7.0]])
    field = AffineField(weights, VOLUME)
    image = torch.cat([torch.rand(2, *size), torch.full((3, *size), torch.nan)])
    lower = [3, -4, 5]
    box = (1,) * (3 - len(size)) + size
    write_key(field, lower, image[2:].reshape(3, *box).numpy())
    sample = SplitLocation()(image=image.clone())
    assert sample["image"].shape[0] == 2
    joined = JoinLocation()(**sample)["image"]
    torch.testing.assert_close(joined[:2], image[:2])
    torch.testing.assert_close(joined[2:], torch.from_numpy(field.box(lower, box)).reshape(3, *size))


def test_the_cascade_comes_last() -> None:
    sample = load((12, 16, 14), [8, 8, 8], False)
    sample["segmentation"][1] = 2
    transforms = nnunet_transforms((12, 16, 14), cascade=True)
    for t in transforms.transforms:
        if isinstance(t, SpatialTransform):
            t.p_rotation = t.p_scaling = 0
    image = locate_transforms(transforms)(**sample)["image"]
    assert image.shape[0] == 3 + 3 + 2
    torch.testing.assert_close(image[:3], image[3:6], atol=1e-3, rtol=0)
    assert set(image[6:].unique().tolist()) <= {0.0, 1.0}


def test_only_the_location_differs_from_a_plain_run() -> None:
    """Same seed: the same image and target as nnU-Net without location, with jitter or without."""
    for seed in range(4):
        outputs = []
        for perturb in (None, JitterLocation(0.1), "plain"):
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            sample = load((12, 16, 14), [8, 8, 8], False)
            transforms = nnunet_transforms((12, 16, 14), spatial_only=False, always=False)
            if perturb == "plain":
                sample["image"] = sample["image"][:3]
                result = transforms(**sample)
            else:
                result = locate_transforms(transforms, perturb)(**sample)  # type: ignore[arg-type]
                result["image"] = result["image"][:3]
            outputs.append((result["image"], result["segmentation"], np.random.random()))  # noqa: NPY002
        for image, segmentation, following in outputs[1:]:
            torch.testing.assert_close(image, outputs[0][0], atol=0, rtol=0)
            torch.testing.assert_close(segmentation, outputs[0][1], atol=0, rtol=0)
            assert following == outputs[0][2]


def test_jitter_has_the_size_asked_for() -> None:
    location = torch.from_numpy(INDEX.box([1, 1, 1], [2, 2, 2]))
    transform = JitterLocation(0.1)
    samples = []
    for _ in range(2000):
        np.random.random()  # noqa: NPY002 - the loader draws between patches
        samples.append(
            transform(regression_target=location.clone(), image=torch.zeros(1, 2, 2, 2))["regression_target"]
        )
    first = torch.stack(samples)[:, 0]
    scale = first[:, 1, 0, 0] - first[:, 0, 0, 0]
    shift = first[:, 0, 0, 0] - scale
    for value, mean in ((scale, 1.0), (shift, 0.0)):
        assert abs(value.mean() - mean) < 0.02
        assert 0.08 < value.std() < 0.12
