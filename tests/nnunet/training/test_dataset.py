"""Cases come with their location, whatever nnU-Net's loader cuts out of them."""

import itertools
import pickle
from collections import OrderedDict
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import AffineField, make_source
from nnunet_locctx.nnunet.predicting.location_file import RECORD
from nnunet_locctx.nnunet.predicting.preprocessing import locate
from nnunet_locctx.nnunet.training import augmentation
from nnunet_locctx.nnunet.training.augmentation import read_key
from nnunet_locctx.nnunet.training.dataset import LocatedArray, LocatedDataset
from tests.geometry_cases import sitk_properties
from tests.nnunet.small_plans import configuration

SHAPE = (6, 7, 8)
# location = index, so that every value names the voxel it came from
INDEX = AffineField(np.eye(3, 4), SHAPE)


def located(channels: int = 2) -> LocatedArray:
    image = np.arange(channels * np.prod(SHAPE), dtype=np.float32).reshape(channels, *SHAPE)
    return LocatedArray(image, INDEX)


def truth(array: LocatedArray, lower: list[int], size: list[int]) -> np.ndarray:
    """(C + 3, *size): the image padded with zeros, the location continued."""
    index = np.stack(
        np.meshgrid(*[np.arange(n) + at for n, at in zip(size, lower, strict=True)], indexing="ij")
    )
    inside = np.all([(i >= 0) & (i < n) for i, n in zip(index, SHAPE, strict=True)], axis=0)
    clipped = [np.clip(i, 0, n - 1) for i, n in zip(index, SHAPE, strict=True)]
    image = np.where(inside, array.stored[(slice(None), *clipped)], 0)
    return np.concatenate([image, index])


@given(st.lists(st.tuples(st.integers(-9, 5), st.integers(1, 20)), min_size=3, max_size=3))
def test_crop_and_pad_of_the_loader(boxes: list[tuple[int, int]]) -> None:
    array = located()
    lower, size = [b[0] for b in boxes], [b[1] for b in boxes]
    # nnU-Net's patches always reach into the volume
    size = [max(s, 1 - at) for s, at in zip(size, lower, strict=True)]
    crop = crop_and_pad_nd(array, [[at, at + n] for at, n in zip(lower, size, strict=True)], 0)
    tensor = torch.from_numpy(crop).float()
    np.testing.assert_allclose(tensor.numpy(), truth(array, lower, size), atol=1e-5)


@given(st.lists(st.tuples(st.integers(-9, 5), st.integers(1, 20)), min_size=3, max_size=3))
def test_the_loader_gets_the_key_to_the_location(boxes: list[tuple[int, int]]) -> None:
    """The loader's crops: the image as ever, and what it takes to ask for the location of its corners."""
    array = LocatedArray(located().stored, INDEX, keyed=True)
    lower, size = [b[0] for b in boxes], [max(b[1], 1 - b[0]) for b in boxes]
    if max(size) == 1:
        size[0] = 2
    crop = np.asarray(crop_and_pad_nd(array, [[at, at + n] for at, n in zip(lower, size, strict=True)], 0))
    expected = truth(array, lower, size)
    np.testing.assert_array_equal(crop[:2], expected[:2])
    field, corners = read_key(torch.from_numpy(crop)[-3:])
    assert field is INDEX
    ends = (slice(2, None), *[slice(None, None, max(n - 1, 1)) for n in size])
    np.testing.assert_allclose(
        field.at(corners.movedim(0, -1)), np.moveaxis(expected[ends], 0, -1), atol=1e-5
    )


def test_what_is_no_crop_holds_the_location() -> None:
    field = AffineField(np.eye(3, 4), SHAPE)
    array = LocatedArray(located().stored, field, keyed=True)
    np.testing.assert_allclose(array[-1, 2], field.box((2, 0, 0), (1, *SHAPE[1:]))[-1, 0])
    whole = LocatedArray(located().stored, field)[:]
    np.testing.assert_allclose(whole[-3:], field.box((0, 0, 0), SHAPE))


@pytest.mark.parametrize("loads_before", [2**24 - 5, 2**24 - 1, 2**25 - 3, 10**12])
def test_the_key_of_a_long_training_does_not_overflow(
    loads_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float32 holds whole numbers up to 2^24; a worker of a small-patch training loads more cases than that."""
    monkeypatch.setattr(augmentation, "_loads", itertools.count(loads_before))
    monkeypatch.setattr(augmentation, "_fields", OrderedDict())
    for load in range(3 * augmentation.REMEMBERED):
        field = AffineField(np.eye(3, 4) * (load + 1), SHAPE)
        crop = LocatedArray(located().stored, field, keyed=True)[:, 1:4, 2:5, 3:7]
        assert read_key(torch.from_numpy(np.asarray(crop))[-3:])[0] is field
    assert len(augmentation._fields) == augmentation.REMEMBERED


def test_a_patch_of_one_voxel_cannot_carry_index_and_field() -> None:
    array = LocatedArray(located().stored, AffineField(np.eye(3, 4), SHAPE), keyed=True)
    crop = array[:, 1:2, 2:3, 3:4]
    with pytest.raises(ValueError, match="a patch of a single voxel cannot carry"):
        read_key(torch.from_numpy(np.asarray(crop))[-3:])
    padded = np.pad(crop, ((0, 0), (2, 0), (0, 3), (1, 1)))
    _, corners = read_key(torch.from_numpy(np.asarray(padded))[-3:])
    np.testing.assert_array_equal(corners[:, 0, 0, 0], [-1, 2, 2])


def test_fields_of_other_processes_are_not_found() -> None:
    with pytest.raises(KeyError, match="must be augmented by the process that loaded it"):
        read_key(torch.full((3, 4, 4, 4), 123456.0))


def test_the_whole_case_and_the_cascade() -> None:
    """Final validation takes data[:] and stacks the previous stage behind it."""
    array = located()
    whole = array[:]
    np.testing.assert_allclose(whole, truth(array, [0, 0, 0], list(SHAPE)), atol=1e-6)
    stacked = torch.from_numpy(np.vstack((whole, np.ones((4, *SHAPE), dtype=np.float32))))
    assert stacked.shape == (9, *SHAPE)
    np.testing.assert_array_equal(np.asarray(array), whole)
    assert (array.shape, array.ndim, len(array), array.dtype) == ((5, *SHAPE), 4, 5, np.float32)


@pytest.mark.parametrize(
    "key",
    [
        (slice(None), slice(2, 4)),
        (slice(0, 1), slice(None), slice(3, 9)),
        (4, slice(1, 3), slice(1, 3), 7),
        (slice(None), -1),
        (..., slice(2, 5)),
        (slice(None), slice(5, 2)),
        2,
    ],
)
def test_slicing_is_numpy_slicing(key: object) -> None:
    array = located()
    np.testing.assert_allclose(array[key], truth(array, [0, 0, 0], list(SHAPE))[key], atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ((slice(None), slice(None, None, 2)), "slices of step 1 and integers"),
        ((slice(None), [1, 2]), "slices of step 1 and integers"),
        ((slice(None), 99), "index 99 is out of range for an axis of 6"),
        ((0,) * 5, "4 axes, got 5 indices"),
    ],
)
def test_slices_that_are_not_supported(key: object, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        located()[key]


@pytest.mark.parametrize(("mode", "value"), [("constant", 7.0), ("edge", None)])
def test_the_image_is_padded_as_numpy_does(mode: str, value: float | None) -> None:
    crop = located()[:, 1:3, 2:6, 3:4]
    widths = [(0, 0), (2, 1), (0, 3), (1, 0)]
    options = {} if value is None else {"constant_values": value}
    padded = np.pad(crop, widths, mode, **options)  # type: ignore[call-overload]
    np.testing.assert_array_equal(padded[:2], np.pad(np.asarray(crop)[:2], widths, mode, **options))  # type: ignore[call-overload]
    np.testing.assert_allclose(padded[2:], truth(located(), [-1, 2, 2], [5, 7, 2])[2:], atol=1e-5)


def test_results_of_arithmetic_are_not_located() -> None:
    """Only a crop straight from the case knows its place; padding anything else is numpy's padding."""
    crop = located()[:, 1:3, 1:3, 1:3]
    for derived in (crop * 2, crop[:, :1], crop.copy()):
        padded = np.pad(derived, [(0, 0), (1, 1), (0, 0), (0, 0)])
        assert not np.asarray(padded)[:, 0].any()
    with pytest.raises(ValueError, match="channels of a located crop cannot be padded"):
        np.pad(crop, 1)


def test_a_field_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"image has \(6, 7, 9\) voxels, its location field \(6, 7, 8\)"):
        LocatedArray(np.zeros((1, 6, 7, 9)), INDEX)


@pytest.mark.parametrize("base", [nnUNetDatasetBlosc2, nnUNetDatasetNumpy])
def test_datasets_on_disk(tmp_path: Path, base: type) -> None:
    data = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    seg = np.zeros((1, *SHAPE), dtype=np.int8)
    properties = sitk_properties((8, 6, 7), (2.0, 1.0, 3.0), direction=np.diag([-1.0, -1.0, 1.0])) | {
        "bbox_used_for_cropping": [[0, 6], [0, 7], [0, 8]],
        "shape_after_cropping_and_before_resampling": SHAPE,
    }
    more = {"blocks": (1, *SHAPE), "chunks": (1, *SHAPE)} if base is nnUNetDatasetBlosc2 else {}
    base.save_case(data, seg, properties, str(tmp_path / "case"), **more)  # type: ignore[attr-defined]
    located = locate(ConfigurationManager(configuration(location={"axes": ["S", "R"]})))
    made = LocatedDataset(base, located, (1, 2, 0))
    made = pickle.loads(pickle.dumps(made))
    assert made.get_identifiers(str(tmp_path)) == ["case"]
    dataset = made(str(tmp_path), ["case"])
    image, stored_seg, previous, kept = dataset.load_case("case")
    assert isinstance(image, LocatedArray)
    assert isinstance(image.stored, blosc2.NDArray if base is nnUNetDatasetBlosc2 else np.ndarray)
    frame = Frame.from_properties(properties, SHAPE, (1, 2, 0))
    truth = make_source("voxel").field(frame).box((0, 0, 0), SHAPE)
    truth[1] = np.nan  # A, which the plans leave out
    np.testing.assert_allclose(image[:][1:], truth)
    assert kept[RECORD] == {
        "source": "voxel",
        "known": ["R", "S"],
        "unknown": {"A": "the plans leave it out"},
    }
    np.testing.assert_array_equal(image[:][:1], data)
    assert previous is None
    assert stored_seg.shape == (1, *SHAPE)


def test_a_broken_case_is_named(tmp_path: Path) -> None:
    properties = sitk_properties(SHAPE, direction=np.zeros((3, 3)))
    nnUNetDatasetNumpy.save_case(
        np.zeros((1, *SHAPE)), np.zeros((1, *SHAPE)), properties, str(tmp_path / "scan7")
    )
    dataset = LocatedDataset(nnUNetDatasetNumpy, locate(ConfigurationManager(configuration())), (0, 1, 2))(
        str(tmp_path)
    )
    with pytest.raises(ValueError, match="case scan7: voxel sizes must be above 0 mm"):
        dataset.load_case("scan7")
