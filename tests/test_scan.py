"""`nnunet_locctx.scan`: SimpleITK alone and nnU-Net's readers give the same voxels at the same places."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.image_files import BrokenFileError
from nnunet_locctx.nnunet.data.reading import read_scan, read_segmentation
from nnunet_locctx.scan import Scan


def stored(file: Path, voxels: np.ndarray, *, vector: bool = False) -> Path:
    image = sitk.GetImageFromArray(voxels, isVector=vector)
    image.SetSpacing((1.0, 2.0, 3.0)[: image.GetDimension()])
    image.SetOrigin((-20.0, 10.0, 5.0)[: image.GetDimension()])
    if image.GetDimension() == 3:
        image = sitk.DICOMOrient(image, "PIR")
    sitk.WriteImage(image, str(file))
    return file


def test_same_as_nnunets_reader(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (4, 5, 6)).astype(np.uint8)
    file = stored(tmp_path / "a.nii.gz", labels)
    scan, by_nnunet = Scan.read(file), read_scan([file], segmentation=True)
    np.testing.assert_array_equal(scan.voxels, by_nnunet.voxels)
    np.testing.assert_array_equal(scan.labels, by_nnunet.labels)
    assert scan.labels.dtype == np.int32
    assert scan.frame.shape == scan.labels.shape == by_nnunet.frame.shape
    np.testing.assert_allclose(scan.frame.affine_lps, by_nnunet.frame.affine_lps, atol=1e-5)
    assert by_nnunet.properties["spacing"] == pytest.approx(scan.frame.spacing)
    assert scan.properties == {}


@pytest.mark.parametrize(("wrong", "words"), [(1.5, "such as 1.5"), (np.nan, "NaN or infinite")])
def test_fractions_are_no_labels(wrong: float, words: str, tmp_path: Path) -> None:
    labels = np.ones((4, 5, 6), np.float32) + 1e-5  # as some tools store whole numbers
    file = stored(tmp_path / "a.nii.gz", labels)
    assert (read_segmentation(file).labels == 1).all()
    labels[1, 2, 3] = wrong
    file = stored(tmp_path / "b.nii.gz", labels)
    with pytest.raises(ValueError, match=rf"b\.nii\.gz: .*{words}"):
        read_segmentation(file)
    with pytest.raises(ValueError, match="whole numbers, 1 of its 120 voxels do not"):
        _ = Scan(labels[None], Scan.read(file).frame).labels


def test_components_of_voxels_are_channels(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 3)).astype(np.uint8)
    image = sitk.GetImageFromArray(colours, isVector=True)
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    scan = Scan.read(tmp_path / "a.mha")
    np.testing.assert_array_equal(scan.voxels, np.moveaxis(colours, -1, 0))
    assert scan.frame.shape == (2, 3, 4)


def test_what_is_no_scan(tmp_path: Path) -> None:
    with pytest.raises(BrokenFileError, match="no file"):
        Scan.read(tmp_path / "a.nii.gz")
    flat = stored(tmp_path / "a.png", np.zeros((4, 5), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"a\.png: a volume with three axes is needed, the size is \(5, 4\)"):
        Scan.read(flat)
    (tmp_path / "a.nrrd").write_text("nothing")
    with pytest.raises(ValueError, match=r"a\.nrrd: .*"):
        Scan.read(tmp_path / "a.nrrd")
    whole = stored(tmp_path / "b.nii.gz", np.zeros((3, 3, 3), dtype=np.uint8))
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(BrokenFileError, match="is cut off"):
        Scan.read(whole)
