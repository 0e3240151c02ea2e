"""Image files are whole, or refused; written whole, or not at all."""

import gzip
import io
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import skimage.io
import tifffile

from nnunet_locctx.image_files import GIPL_BYTES, BrokenFileError, check_whole, write_image, write_sitk
from nnunet_locctx.nnunet.data.reading import read_scan
from tests.broken_files import BROKEN, PAGE, full_disk

VOXELS = np.random.default_rng(0).integers(0, 1000, (6, 15, 20)).astype(np.int16)


def save(file: Path, *, compress: bool = False) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(file), compress)


FORMATS: dict[str, Callable[[Path], None]] = {
    "compressed.nii.gz": save,
    "plain.nii": save,
    "plain.nrrd": save,
    "compressed.nrrd": lambda file: save(file, compress=True),
    "plain.mha": save,
    "compressed.mha": lambda file: save(file, compress=True),
    "plain.gipl": save,
    "plain.tif": lambda file: tifffile.imwrite(file, VOXELS),
    "pages.tif": lambda file: tifffile.imwrite(file, VOXELS, metadata=None),
    "compressed.tif": lambda file: tifffile.imwrite(file, VOXELS, compression="zlib"),
    "compressed_pages.tif": lambda file: tifffile.imwrite(
        file, VOXELS, compression="zlib", metadata=None, bigtiff=True, byteorder=">"
    ),
    "flat.tif": lambda file: skimage.io.imsave(file, VOXELS[0], check_contrast=False),
    "flat.png": lambda file: skimage.io.imsave(file, VOXELS[0].astype(np.uint8), check_contrast=False),
    "flat.bmp": lambda file: skimage.io.imsave(file, VOXELS[0].astype(np.uint8), check_contrast=False),
}


class TestReading:
    @pytest.mark.filterwarnings("ignore:scans without direction and origin")
    @pytest.mark.parametrize("name", FORMATS)
    def test_a_file_that_is_cut_off_is_refused(self, tmp_path: Path, name: str) -> None:
        """Wherever it is cut: what is read is all of it, or nothing."""
        file = tmp_path / name
        FORMATS[name](file)
        check_whole(file)
        before = read_scan([file]).voxels
        whole = file.read_bytes()
        refused = []
        cuts = {int(len(whole) * share) for share in (0.02, 0.1, 0.5, 0.9, 0.98)}
        for stop in sorted(cuts | {len(whole) - n for n in (1, 2, 5, 13, 40)}):
            file.write_bytes(whole[:stop])
            try:
                after = read_scan([file]).voxels
            except ValueError as error:
                refused.append(str(error))
            else:
                # such as what follows the last voxel of a PNG
                np.testing.assert_array_equal(after, before)
        assert len(refused) >= 5
        assert all(str(file) in text and len(text.splitlines()) == 1 for text in refused)

    def test_itk_itself_fills_the_rest_with_zeros(self, tmp_path: Path) -> None:
        """Why the files are checked; if this fails, a newer ITK does it."""
        file = tmp_path / "cut.nii.gz"
        save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        assert array.shape == VOXELS.shape
        assert 0.4 < (array == 0).mean() < 0.6
        with pytest.raises(BrokenFileError, match="is cut off"):
            check_whole(file)

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        """ITK would end the process without naming the file."""
        file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.nii.gz"))
        with pytest.raises(BrokenFileError, match="the name is not UTF-8; rename it"):
            check_whole(file)

    @pytest.mark.parametrize("name", ["compressed.nii.gz", "compressed.mha", "compressed.nrrd"])
    def test_a_byte_that_changed(self, tmp_path: Path, name: str) -> None:
        file = tmp_path / name
        FORMATS[name](file)
        whole = file.read_bytes()
        for at in np.random.default_rng(0).integers(len(whole) // 2, len(whole), 20):
            changed = bytearray(whole)
            changed[at] ^= 8
            file.write_bytes(changed)
            with pytest.raises(BrokenFileError, match=r"is damaged|is cut off"):
                check_whole(file)

    @pytest.mark.parametrize("kind", BROKEN)
    def test_what_is_no_compressed_nifti(self, tmp_path: Path, kind: str) -> None:
        file = tmp_path / "scan.nii.gz"
        save(file)
        make, words = BROKEN[kind]
        file.write_bytes(make(file.read_bytes()))
        with pytest.raises(BrokenFileError, match=re.escape(f"{file} {words}")):
            read_scan([file])

    def test_other_files_that_are_none(self, tmp_path: Path) -> None:
        for name, content, words in [
            ("page.nii", PAGE, "is no NIfTI file: it begins with b'<!DOCTYPE html>"),
            ("page.nii.gz", gzip.compress(PAGE), "is no NIfTI file: it begins with b'<!DOCTYPE html>"),
            ("header.nii", struct.pack("<i", 348) + bytes(100), "has 104 bytes, by its header 348"),
            ("empty.mha", b"", "is empty"),
        ]:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(BrokenFileError, match=re.escape(words)):
                check_whole(tmp_path / name)
        with pytest.raises(BrokenFileError, match="no file"):
            check_whole(tmp_path / "nowhere.nii")
        for name in ("page.nrrd", "page.mha", "page.gipl", "page.png", "page.tif"):
            (tmp_path / name).write_bytes(10 * PAGE)
            with pytest.raises(ValueError, match=f"nnU-Net cannot read .*{name}"):
                read_scan([tmp_path / name])

    def test_whole_files_of_many_makers(self, tmp_path: Path) -> None:
        """Nothing that is whole is refused."""
        made: list[tuple[str, Any]] = [
            ("second.nii", nibabel.Nifti2Image(VOXELS, np.eye(4))),
            ("second.nii.gz", nibabel.Nifti2Image(VOXELS.astype(np.float64), np.eye(4))),
            ("swapped.nii", nibabel.Nifti1Image(VOXELS, np.eye(4), nibabel.Nifti1Header(endianness=">"))),
            ("four.nii.gz", nibabel.Nifti1Image(np.stack([VOXELS] * 3, -1), np.eye(4))),
        ]
        extended = nibabel.Nifti1Image(VOXELS, np.eye(4))
        extended.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 5000))
        for name, image in [*made, ("extended.nii.gz", extended)]:
            nibabel.save(image, tmp_path / name)
            check_whole(tmp_path / name)
        save(tmp_path / "scan.nii")
        raw = (tmp_path / "scan.nii").read_bytes()
        # as bgzip and pigz write: many members, one of them empty
        members = [gzip.compress(raw[at : at + 700]) for at in range(0, len(raw), 700)]
        (tmp_path / "members.nii.gz").write_bytes(b"".join([*members, gzip.compress(b"")]))
        (tmp_path / "padded.nii.gz").write_bytes(gzip.compress(raw) + bytes(1000))
        (tmp_path / "longer.nii").write_bytes(raw + bytes(10))
        for name in ("members.nii.gz", "padded.nii.gz", "longer.nii"):
            check_whole(tmp_path / name)
        (tmp_path / "members.nii.gz").write_bytes(b"".join(members[:-1]))
        with pytest.raises(BrokenFileError, match="uncompressed bytes, by its header"):
            check_whole(tmp_path / "members.nii.gz")

    @pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.float32, np.float64])
    def test_voxels_of_gipl(self, tmp_path: Path, kind: type[np.generic]) -> None:
        file = tmp_path / "scan.gipl"
        sitk.WriteImage(sitk.GetImageFromArray(VOXELS.astype(kind)), str(file))
        (number,) = struct.unpack(">H", file.read_bytes()[8:10])
        assert GIPL_BYTES[number] == np.dtype(kind).itemsize
        check_whole(file)
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(BrokenFileError, match="by its header"):
            check_whole(file)


class TestWriting:
    @pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.gipl"])
    def test_a_full_disk(self, tmp_path: Path, name: str) -> None:
        image = sitk.GetImageFromArray(VOXELS)
        with full_disk(1500):
            sitk.WriteImage(image, str(tmp_path / name))  # not a word: this is why
        assert (tmp_path / name).stat().st_size == 1500
        (tmp_path / name).write_bytes(b"old")
        with (
            full_disk(1500),
            pytest.raises(OSError, match=r"was not written whole \(.* MB are free.*is cut off"),
        ):
            write_sitk(image, tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [tmp_path / name]
        write_sitk(image, tmp_path / name)
        check_whole(tmp_path / name)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))), VOXELS)

    @pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd"])
    def test_formats_that_say_so_themselves(self, tmp_path: Path, name: str) -> None:
        with full_disk(1500), pytest.raises(OSError, match="was not written whole"):
            write_sitk(sitk.GetImageFromArray(VOXELS), tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_voxels_that_are_lost_on_the_way(self, tmp_path: Path) -> None:
        """A hole amid a file of the right length, as after blocks that could not be written."""

        def write(draft: Path) -> None:
            save(draft)
            with draft.open("r+b") as stream:
                stream.seek(1000)
                stream.write(bytes(512))

        def read(draft: Path) -> Any:
            return sitk.GetArrayFromImage(sitk.ReadImage(str(draft)))

        with pytest.raises(OSError, match=r"scan.nii holds other voxels than were written"):
            write_image(tmp_path / "scan.nii", VOXELS, write, read)
        assert list(tmp_path.iterdir()) == []

    def test_values_that_are_nowhere_equal(self, tmp_path: Path) -> None:
        """NaN; MetaImage keeps it."""
        voxels = VOXELS.astype(np.float32)
        voxels[0] = np.nan
        write_sitk(sitk.GetImageFromArray(voxels), tmp_path / "new" / "scan.mha")
        read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "new" / "scan.mha")))
        np.testing.assert_array_equal(read, voxels)

    def test_a_second_file_of_the_writer_comes_along(self, tmp_path: Path) -> None:
        def write(draft: Path) -> None:
            tifffile.imwrite(draft, VOXELS)
            draft.with_suffix(".json").write_text('{"spacing": [1, 2, 3]}')

        write_image(
            tmp_path / "scan.tif",
            VOXELS,
            write,
            lambda draft: tifffile.imread(io.BytesIO(draft.read_bytes())),
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.json", "scan.tif"]
