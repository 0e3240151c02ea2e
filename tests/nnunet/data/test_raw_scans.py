"""Training scans of a raw dataset, listed as nnU-Net lists them and kept on the canonical grid until they change."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from nnunet_locctx.nnunet.data.digests import file_digests
from nnunet_locctx.nnunet.data.raw_scans import CanonicalScans, keep_scans, training_cases
from tests.tiny_dataset import enter, write, write_dataset


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_dataset(enter(tmp_path, monkeypatch))


def test_scans_are_kept_as_they_are_and_read_again_when_they_change(raw: Path, tmp_path: Path) -> None:
    cases = training_cases(raw)
    assert [case.identifier for case in cases] == ["tiny_0", "tiny_1", "tiny_2"]

    def keep() -> CanonicalScans:
        digests = file_digests(
            [file for case in cases for file in case.images], tmp_path / "d", progress=False
        )
        stamps = {case.identifier: case.stamp(digests) for case in cases}
        return keep_scans(cases, stamps, tmp_path / "kept", 0, 8.0, progress=False)

    kept = keep()
    assert isinstance(kept, CanonicalScans)
    stored = cases[0].read()
    data, frame = stored.voxels, stored.frame
    scan = kept["tiny_0"]
    assert scan.image.shape == (8, 9, 10)
    # (R, A, S) against the reader's (z, y, x) of a scan that runs L, P, S
    np.testing.assert_allclose(scan.image[::-1, ::-1].transpose(2, 1, 0), data[0], atol=0.05)
    assert scan.inside.all()
    corner = scan.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(corner[:3], frame.millimetres([0, 8, 7]))
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    keep()
    assert before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    write(raw / "imagesTr" / "tiny_1_0000.nii.gz", np.ones((10, 9, 8), np.float32))
    (tmp_path / "kept" / "tiny_2.npz").write_bytes(b"damaged")
    again = keep()
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    assert [name for name in sorted(after) if after[name] != before[name]] == ["tiny_1.npz", "tiny_2.npz"]
    np.testing.assert_allclose(again["tiny_1"].image, 1)
    with pytest.raises(KeyError):
        kept["other"]


@pytest.mark.slow
def test_worker_processes_give_the_same_scans(raw: Path, tmp_path: Path, workers_at_once: None) -> None:
    cases = training_cases(raw)
    stamps = {case.identifier: "" for case in cases}
    alone = keep_scans(cases, stamps, tmp_path / "alone", 0, 8.0, progress=False)
    together = keep_scans(cases, stamps, tmp_path / "together", 0, 8.0, processes=2, progress=False)
    for identifier in alone:
        np.testing.assert_array_equal(alone[identifier].image, together[identifier].image)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["ghost.nii.gz"], "1 files without a channel number, of which nnU-Net makes cases without an image"),
        (["tiny_0_00001.nii.gz"], "name them CASE_0000.nii.gz"),
        (["more_0001.nii.gz"], "channels are missing in .*more_0000.nii.gz"),
        (["more_0000.nii.gz", "more_0001.nii.gz"], r"names 1 channel\(s\), .*more has 2"),
    ],
)
def test_images_that_nnunet_takes_for_something_else(raw: Path, names: list[str], words: str) -> None:
    for name in names:
        shutil.copy(raw / "imagesTr" / "tiny_0_0000.nii.gz", raw / "imagesTr" / name)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        training_cases(raw)
