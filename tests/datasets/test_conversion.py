"""`nnunet_locctx.datasets.conversion` and the releases, on tiny volumes in the true layouts."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from nnunet_locctx.datasets import btcv as btcv_module
from nnunet_locctx.datasets import conversion
from nnunet_locctx.datasets.acdc import Acdc
from nnunet_locctx.datasets.amos22 import Amos22
from nnunet_locctx.datasets.brats import Brats
from nnunet_locctx.datasets.btcv import ORGANS, Btcv, Synapse
from nnunet_locctx.datasets.conversion import convert
from nnunet_locctx.datasets.job import Converted
from nnunet_locctx.datasets.kits23 import Kits23
from nnunet_locctx.datasets.release import Release
from nnunet_locctx.image_files import check_whole
from tests.broken_files import full_disk
from tests.datasets import fake_releases as fake


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders, empty."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.fixture(scope="module")
def abdomen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.btcv(tmp_path_factory.mktemp("btcv"))


def run(release: Release, source: Path, dataset_id: int = 7, **options: Any) -> Converted:
    return convert(release, source, dataset_id, progress=False, **options)


def refused(release: Release, source: Path, home: Path, **options: Any) -> list[str]:
    """The problems of a conversion that must stop before anything is written."""
    with pytest.raises(ValueError, match="nothing was written") as stopped:
        run(release, source, **options)
    assert list((home / "nnUNet_raw").iterdir()) == []
    assert list((home / "nnUNet_preprocessed").iterdir()) == []
    first, *problems = str(stopped.value).splitlines()
    assert first.startswith(f"{len(problems)} problem")
    return [problem.strip() for problem in problems]


def load(file: Path) -> Any:
    return nibabel.load(file)


def same_voxels(one: Path, two: Path) -> None:
    assert np.array_equal(np.asanyarray(load(one).dataobj), np.asanyarray(load(two).dataobj))
    assert np.allclose(load(one).affine, load(two).affine, atol=1e-4)


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def whole(result: Converted) -> dict[str, Any]:
    """The dataset has what its dataset.json says, and its split names its training cases; returns dataset.json."""
    content = read(result.folder / "dataset.json")
    assert content["numTraining"] == len(result.training) == len(list((result.folder / "labelsTr").iterdir()))
    channels = len(content["channel_names"])
    for part, names in (("imagesTr", result.training), ("imagesTs", result.testing)):
        expected = {f"{name}_{channel:04d}.nii.gz" for name in names for channel in range(channels)}
        assert {file.name for file in (result.folder / part).glob("*")} == expected
    splits = read(result.splits)
    assert splits == read(result.folder / "splits_final.json")
    for fold in splits:
        assert sorted(fold["train"] + fold["val"]) == result.training
    assert sorted(path.name for path in result.folder.iterdir() if path.is_file()) == [
        "conversion.json",
        "dataset.json",
        "splits_final.json",
    ]
    return dict(content)


def test_btcv(home: Path, abdomen: Path) -> None:
    result = run(Btcv(), abdomen)
    assert result.folder == home / "nnUNet_raw" / "Dataset007_BTCV"
    content = whole(result)
    assert (len(result.training), len(result.testing)) == (30, 20)
    labels = content["labels"]
    assert list(labels) == ["background", *ORGANS]
    assert (labels["spleen"], labels["right kidney"], labels["pancreas"], labels["left adrenal gland"]) == (
        1,
        2,
        11,
        13,
    )
    source = abdomen / "Abdomen/RawData/Training"
    for number in (1, 40):
        image = result.folder / f"imagesTr/img{number:04d}_0000.nii.gz"
        assert image.read_bytes() == (source / f"img/img{number:04d}.nii.gz").read_bytes()
        label = result.folder / f"labelsTr/img{number:04d}.nii.gz"
        assert label.read_bytes() == (source / f"label/label{number:04d}.nii.gz").read_bytes()
    splits = read(result.splits)
    assert [(len(fold["train"]), len(fold["val"])) for fold in splits] == [(24, 6)] * 5
    assert sorted(name for fold in splits for name in fold["val"]) == result.training


def test_synapse_keeps_eight_organs_and_the_split(home: Path, abdomen: Path) -> None:
    result = run(Synapse(), abdomen / "Abdomen" / "RawData")
    content = whole(result)
    assert result.testing == []
    kept = ["spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas"]
    assert content["labels"] == {"background": 0, **{name: value for value, name in enumerate(kept, start=1)}}
    (fold,) = read(result.splits)
    assert (len(fold["train"]), len(fold["val"])) == (18, 12)
    assert "img0005" in fold["train"]
    assert fold["val"] == [f"img{number:04d}" for number in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)]
    before = load(abdomen / "Abdomen/RawData/Training/label/label0003.nii.gz")
    after = load(result.folder / "labelsTr/img0003.nii.gz")
    table = np.zeros(14, dtype=int)
    for value, name in enumerate(kept, start=1):
        table[ORGANS.index(name) + 1] = value
    assert np.array_equal(np.asanyarray(after.dataobj), table[np.asanyarray(before.dataobj)])
    assert np.array_equal(after.affine, before.affine)
    assert after.header["sform_code"] == before.header["sform_code"]
    assert after.get_data_dtype() == np.uint8


def test_synapse_with_all_labels(home: Path, abdomen: Path) -> None:
    result = run(Synapse(all_labels=True), abdomen)
    assert len(whole(result)["labels"]) == 14
    assert len(read(result.splits)) == 1


def test_amos22_ct(home: Path, tmp_path: Path) -> None:
    source = fake.amos22(tmp_path / "amos22")
    result = run(Amos22(), tmp_path)
    content = whole(result)
    assert result.training == [f"amos_{number:04d}" for number in (1, 2, 4, 5, 409, 410)]
    assert result.testing == ["amos_0003"]
    assert content["channel_names"] == {"0": "CT"}
    assert content["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    assert (content["labels"]["aorta"], content["labels"]["prostate/uterus"]) == (8, 15)
    same_voxels(source / "imagesVa/amos_0409.nii.gz", result.folder / "imagesTr/amos_0409_0000.nii.gz")
    same_voxels(source / "labelsVa/amos_0409.nii.gz", result.folder / "labelsTr/amos_0409.nii.gz")


def test_amos22_with_mr_and_official_split(home: Path, tmp_path: Path) -> None:
    result = run(Amos22(with_mr=True, split="official"), fake.amos22(tmp_path / "amos22"))
    assert whole(result)["channel_names"] == {"0": "either_CT_or_MR"}
    (fold,) = read(result.splits)
    assert fold["val"] == ["amos_0002", "amos_0409", "amos_0540"]
    assert len(fold["train"]) == 5


def test_kits23_leaves_out_the_papers_cases(home: Path, tmp_path: Path) -> None:
    source = fake.kits23(tmp_path / "kits23")
    turned = source / "dataset/case_00088"
    for name, values in (("imaging", None), ("segmentation", range(4))):
        where = fake.affine((3.0, 0.8, 0.8), "RPI")
        fake.volume(turned / f"{name}.nii.gz", values, shape=(6, 9, 9), where=where)
    result = run(Kits23(partial=True), source)
    content = whole(result)
    assert content["labels"] == {"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}
    assert "regions_class_order" not in content
    assert list(result.left_out) == ["case_00051", "case_00088"]
    assert "481 cases: 3-50, 52-87, 89-298, 401-587" in result.notes[0]
    # 8 cases, so that one of them is not enough to speak of "nearly all the others"
    assert result.unusual == {}


def test_excluded_cases_are_compared_with_the_others(home: Path, tmp_path: Path) -> None:
    source = fake.kits23(tmp_path / "kits23", (*range(12), 51, 88))
    where = fake.affine((0.8, 0.8, 3.0), "RPI")
    for name, values in (("imaging", None), ("segmentation", range(4))):
        fake.volume(source / f"dataset/case_00088/{name}.nii.gz", values, shape=(6, 9, 9), where=where)
    result = run(Kits23(partial=True), source)
    assert list(result.unusual) == ["case_00088"]
    assert any(
        "axes run RPI, those of 13 of 14 cases in the order of IPL" in text
        for text in result.unusual["case_00088"]
    )
    assert any("Are the sizes in the right order?" in text for text in result.unusual["case_00088"])


def test_kits23_regions_and_all_cases(home: Path, tmp_path: Path) -> None:
    result = run(Kits23(partial=True, keep_excluded=True, regions=True), fake.kits23(tmp_path / "kits23"))
    content = whole(result)
    assert len(result.training) == len(fake.KITS)
    assert content["labels"]["masses"] == [2, 3]
    assert content["regions_class_order"] == [1, 3, 2]


def test_acdc_folds_keep_patients_together(home: Path, tmp_path: Path) -> None:
    source = fake.acdc(tmp_path / "acdc")
    result = run(Acdc(partial=True), source)
    content = whole(result)
    assert content["labels"] == {"background": 0, "RV": 1, "MLV": 2, "LVC": 3}
    assert "patient090_frame04" in result.training
    assert result.testing == ["patient101_frame01", "patient101_frame14"]
    home_of = source / "database/testing/patient101"
    same_voxels(
        home_of / "patient101_frame14_gt.nii.gz", result.folder / "labelsTs/patient101_frame14.nii.gz"
    )
    same_voxels(
        home_of / "patient101_frame14.nii.gz", result.folder / "imagesTs/patient101_frame14_0000.nii.gz"
    )
    splits = read(result.splits)
    assert len(splits) == 5
    for fold in splits:
        assert not {name[:10] for name in fold["train"]} & {name[:10] for name in fold["val"]}


def test_acdc_nnformer_split(home: Path, tmp_path: Path) -> None:
    result = run(Acdc(partial=True, split="nnformer"), fake.acdc(tmp_path / "acdc", tests_labelled=False))
    whole(result)
    assert result.testing == ["patient002_frame01", "patient002_frame09"]
    assert (result.folder / "labelsTs/patient002_frame09.nii.gz").is_file()
    (fold,) = read(result.splits)
    assert {name[:10] for name in fold["val"]} == {"patient089", "patient090", "patient100"}
    assert {name[:10] for name in fold["train"]} == {"patient001", "patient005"}


@pytest.mark.parametrize("link", [False, True])
def test_acdc_clipped_and_scaled_as_lightmedseg(home: Path, tmp_path: Path, link: bool) -> None:
    source = fake.acdc(tmp_path / "acdc")
    release = source / "database/training/patient001/patient001_frame01.nii.gz"
    before = release.read_bytes()
    result = run(Acdc(partial=True, window=True), source, link=link)
    scheme = get_normalization_scheme(whole(result)["channel_names"]["0"])
    written = result.folder / "imagesTr/patient001_frame01_0000.nii.gz"
    assert not written.is_symlink()
    assert release.read_bytes() == before
    assert np.allclose(load(written).affine, load(release).affine, atol=1e-4)
    voxels = load(release).get_fdata()
    low, high = np.percentile(voxels, [0.5, 99.5])
    assert voxels.min() < low < high < voxels.max()
    scaled = scheme(intensityproperties={}).run(load(written).get_fdata(dtype=np.float32)[None])[0]
    assert np.allclose(scaled, (voxels.clip(low, high) - low) / (high - low), atol=1e-5)
    with pytest.raises(ValueError, match="other settings"):
        run(Acdc(partial=True), source, link=link)


def test_acdc_converted_before_there_was_a_window_is_still_whole(home: Path, tmp_path: Path) -> None:
    source = fake.acdc(tmp_path / "acdc")
    result = run(Acdc(partial=True), source)
    assert "window" not in read(result.folder / "conversion.json")["options"]
    assert run(Acdc(partial=True), source).existed


def test_brats_2021(home: Path, tmp_path: Path) -> None:
    source = fake.brats2021(tmp_path / "brats")
    result = run(Brats(partial=True), source)
    content = whole(result)
    assert content["channel_names"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}
    assert content["labels"]["tumor core"] == [2, 3]
    name = "BraTS2021_00002"
    for channel, ending in enumerate(("t1", "t1ce", "t2", "flair")):
        image = result.folder / f"imagesTr/{name}_{channel:04d}.nii.gz"
        assert image.read_bytes() == (source / name / f"{name}_{ending}.nii.gz").read_bytes()
    before, after = (
        load(source / name / f"{name}_seg.nii.gz"),
        load(result.folder / f"labelsTr/{name}.nii.gz"),
    )
    table = np.array([0, 2, 1, 9, 3])
    assert np.array_equal(np.asanyarray(after.dataobj), table[np.asanyarray(before.dataobj)])
    assert np.allclose(after.affine, before.affine, atol=1e-4)


def test_brats_decathlon(home: Path, tmp_path: Path) -> None:
    source = fake.brain_tumour(tmp_path)
    result = run(Brats(partial=True, split="nnformer"), source)
    assert whole(result)["channel_names"]["2"] == "t1gd"
    before = load(source / "Task01_BrainTumour/imagesTr/BRATS_011.nii.gz")
    for channel in range(4):
        after = load(result.folder / f"imagesTr/BRATS_011_{channel:04d}.nii.gz")
        assert np.array_equal(np.asanyarray(after.dataobj), np.asanyarray(before.dataobj)[..., channel])
        assert np.allclose(after.affine, before.affine, atol=1e-4)
    (fold,) = read(result.splits)
    assert fold == {"train": ["BRATS_001", "BRATS_002"], "val": [f"BRATS_{n:03d}" for n in (11, 12, 18, 20)]}
    assert result.testing == ["BRATS_485"]


def test_everything_wrong_is_listed_at_once(home: Path, tmp_path: Path) -> None:
    source = fake.btcv(tmp_path / "btcv")
    images, labels = (source / "Abdomen/RawData/Training" / name for name in ("img", "label"))
    (labels / "label0001.nii.gz").unlink()
    (images / "img0002.nii.gz").unlink()
    (labels / "label0002.nii.gz").unlink()
    shutil.copy(images / "img0003.nii.gz", images / "img0011.nii.gz")
    problems = refused(Btcv(), source, home)
    assert problems == [
        "missing: image and label of the training scans 2",
        f"not part of the release: {images / 'img0011.nii.gz'}",
        f"img0001: missing: {labels / 'label0001.nii.gz'}",
    ]


def test_corrupt_files_are_listed_at_once(home: Path, tmp_path: Path) -> None:
    source = fake.btcv(tmp_path / "btcv", tests=20)
    images, labels = (source / "Abdomen/RawData/Training" / name for name in ("img", "label"))
    torn = images / "img0001.nii.gz"
    torn.write_bytes(torn.read_bytes()[:-200])
    (labels / "label0002.nii.gz").write_bytes(b"")
    fake.volume(
        labels / "label0003.nii.gz", range(14), shape=(8, 9, 5), where=load(images / "img0003.nii.gz").affine
    )
    fake.volume(labels / "label0004.nii.gz", range(14), where=fake.affine(tilt=20))
    where = load(images / "img0005.nii.gz").affine
    fake.volume(labels / "label0005.nii.gz", (0, 1, 14, 200), where=where)
    singular = fake.affine()
    singular[:3, 0] = singular[:3, 1]
    broken = load(images / "img0006.nii.gz")
    broken.header.set_qform(None, code=0)
    broken.header.set_sform(singular, code=1)
    nibabel.save(
        nibabel.Nifti1Image(np.asanyarray(broken.dataobj), None, broken.header), images / "img0006.nii.gz"
    )
    fake.volume(images / "img0007.nii.gz", shape=(8, 9, 6, 2))
    (images / "img0008.nii.gz").write_text("<!DOCTYPE html><html>Please log in</html>")
    (images / "img0009.nii.gz").write_bytes(gzip.decompress((images / "img0009.nii.gz").read_bytes()))
    problems = refused(Btcv(), source, home, processes=1)
    for number, words in {
        1: "img0001.nii.gz: is cut off: it ",
        2: "label0002.nii.gz: is empty (0 bytes)",
        3: "(8, 9, 5) voxels, the first image has (8, 9, 6)",
        4: "another affine than the first image",
        5: "label values 14, 200 where 0, 1, 2",
        6: "header without a usable affine",
        7: "shape (8, 9, 6, 2) where (x, y, z) is expected",
        8: "img0008.nii.gz: is not compressed although its name ends in .gz: it begins with b'<!DOCTYPE html>",
        9: "img0009.nii.gz: is not compressed although its name ends in .gz: it is a plain NIfTI file",
    }.items():
        assert any(problem.startswith(f"img{number:04d}: ") and words in problem for problem in problems)
    assert len(problems) == 9
    # missing files do not hide corrupt ones, nor the other files of their own case
    (labels / "label0001.nii.gz").unlink()
    (images / "img0010.nii.gz").unlink()
    missing = [
        f"img0001: missing: {labels / 'label0001.nii.gz'}",
        f"img0010: missing: {images / 'img0010.nii.gz'}",
    ]
    assert refused(Btcv(), source, home, processes=1) == missing + problems
    bad = tuple(f"img{number:04d}" for number in range(1, 11))
    # what was asked to be left out is not complained about
    assert set(run(Btcv(exclude=bad), source).left_out) == set(bad)


@pytest.mark.parametrize(
    ("release", "make", "spoil", "words"),
    [
        (
            Kits23(partial=True),
            fake.kits23,
            lambda at: (at / "dataset/case_00300").mkdir(),
            "not part of the release",
        ),
        (Kits23(), fake.kits23, lambda at: None, "missing: 481 cases"),
        (
            Kits23(partial=True, exclude=("case_7",)),
            fake.kits23,
            lambda at: None,
            "case_7: named by --exclude, but the release has no such case",
        ),
        (
            Acdc(partial=True),
            fake.acdc,
            lambda at: (at / "database/training/patient001/Info.cfg").write_text("ED: 1\n"),
            "gives no frames",
        ),
        (
            Acdc(partial=True),
            fake.acdc,
            lambda at: fake.volume(at / "database/training/patient001/patient001_frame07.nii.gz"),
            "not part of the release",
        ),
        (Acdc(), fake.acdc, lambda at: None, "missing: 94 patients of training: 3-4, 6-88, 91-99"),
        (Brats(), fake.brats2021, lambda at: None, "the folder holds 5 of the release's 1251 cases"),
        (
            Brats(partial=True, split="nnformer"),
            fake.brats2021,
            lambda at: None,
            "is a split of the Decathlon",
        ),
        (
            Brats(partial=True),
            fake.brats2021,
            lambda at: fake.volume(at / "BraTS2021_00000/BraTS2021_00000_seg.nii.gz", (0, 3)),
            "label values 3 where 0, 1, 2, 4",
        ),
        (
            Brats(partial=True),
            fake.brain_tumour,
            lambda at: fake.volume(at / "Task01_BrainTumour/imagesTr/BRATS_001.nii.gz", shape=(8, 9, 6, 3)),
            "shape (8, 9, 6, 3) where (x, y, z, 4) is expected",
        ),
        (
            Amos22(),
            fake.amos22,
            lambda at: fake.volume(at / "labelsVa/amos_0099.nii.gz", range(4)),
            "not part of the release",
        ),
        (Amos22(), fake.amos22, lambda at: (at / "labelsVa/amos_0002.nii.gz").unlink(), "amos_0002: missing"),
    ],
)
def test_problems_of_each_release(
    home: Path, tmp_path: Path, release: Release, make: Any, spoil: Any, words: str
) -> None:
    source = make(tmp_path / "release")
    spoil(source)
    assert words in refused(release, source, home)[0]


@pytest.mark.parametrize(
    "release", [Btcv(), Amos22(), Kits23(), Acdc(), Brats()], ids=lambda release: release.key
)
def test_other_folders_are_no_release(home: Path, tmp_path: Path, release: Release) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="has not the layout of"):
        run(release, tmp_path / "other")
    with pytest.raises(ValueError, match="is not a folder"):
        run(release, tmp_path / "nowhere")


def test_twice_does_nothing_the_second_time(home: Path, abdomen: Path) -> None:
    first = run(Synapse(), abdomen)
    times = {file: file.stat().st_mtime_ns for file in first.folder.rglob("*")}
    first.splits.unlink()
    second = run(Synapse(), abdomen)
    assert second.existed
    assert (second.training, second.splits) == (first.training, first.splits)
    assert {file: file.stat().st_mtime_ns for file in first.folder.rglob("*")} == times
    assert read(first.splits) == read(first.folder / "splits_final.json")  # was gone, is back
    first.splits.write_text("[]")
    assert "another split" in run(Synapse(), abdomen).notes[-1]
    assert first.splits.read_text() == "[]"
    with pytest.raises(ValueError, match="other settings: options"):
        run(Synapse(all_labels=True), abdomen)
    (first.folder / "labelsTr/img0001.nii.gz").unlink()
    (first.folder / "labelsTr/img0002.nii.gz").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"missing: labelsTr/img0001\.nii\.gz\n  changed: labelsTr/img0002"):
        run(Synapse(), abdomen)


def spoil(file: Path) -> None:
    """Another voxel, in a file of the same size."""
    size, image = file.stat().st_size, load(file)
    voxels = np.asanyarray(image.dataobj).copy()
    for place in np.ndindex(voxels.shape):
        voxels[place] = 1 - min(voxels[place], 1)
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine, image.header), file)
        if file.stat().st_size == size:
            return
        voxels[place] = np.asanyarray(image.dataobj)[place]
    pytest.fail("every change changes the size")


@pytest.mark.parametrize("make", [fake.brats2021, fake.brain_tumour])
def test_an_earlier_versions_dataset_is_compared_with_the_release(
    home: Path, tmp_path: Path, make: Any
) -> None:
    """Its record has sizes, which a file with other voxels may have too."""
    source = make(tmp_path / "source")
    first = run(Brats(partial=True), source)
    record = first.folder / "conversion.json"
    digests = read(record)["files"]
    label = first.folder / next(name for name in digests if name.startswith("labelsTr"))
    sizes = {name: (first.folder / name).stat().st_size for name in digests}
    record.write_text(json.dumps({**read(record), "version": 1, "files": sizes}))
    assert run(Brats(partial=True), source).existed
    assert (read(record)["version"], read(record)["files"]) == (2, digests)

    whole_label = label.read_bytes()
    spoil(label)
    changed = f"  changed: labelsTr/{label.name}$"
    with pytest.raises(ValueError, match=changed):
        run(Brats(partial=True), source)
    record.write_text(json.dumps({**read(record), "version": 1, "files": sizes}))
    with pytest.raises(ValueError, match=changed):
        run(Brats(partial=True), source)
    assert read(record)["version"] == 1
    label.write_bytes(gzip.compress(gzip.decompress(whole_label), 1))  # as another library may compress it
    shutil.rmtree(next(source.rglob("BraTS2021_00006"), tmp_path / "none"), ignore_errors=True)
    if make is fake.brats2021:
        with pytest.raises(ValueError, match=r"sizes of its files only.* lacks BraTS2021_00006"):
            run(Brats(partial=True), source)
    else:
        assert run(Brats(partial=True), source).existed
    assert [path.name for path in (home / "nnUNet_raw").iterdir()] == ["Dataset007_BraTS"]


def test_resumes_after_a_stop(home: Path, abdomen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, seen = btcv_module.relabel, []

    def third_fails(source: Path, target: Path, mapping: dict[int, int]) -> None:
        seen.append(source.name)
        if len(seen) == 3:
            target.write_bytes(b"half a file")
            raise KeyboardInterrupt
        original(source, target, mapping)

    monkeypatch.setattr(btcv_module, "relabel", third_fails)
    with pytest.raises(KeyboardInterrupt):
        run(Synapse(), abdomen)
    raw = home / "nnUNet_raw"
    assert [path.name for path in raw.iterdir()] == [".Dataset007_Synapse.converting"]
    assert len(list((raw / ".Dataset007_Synapse.converting/labelsTr").iterdir())) == 2
    with pytest.raises(ValueError, match="unfinished conversion of other files or with other options"):
        run(Synapse(exclude=("img0001",)), abdomen)

    seen.extend(["", ""])
    monkeypatch.setattr(conversion, "check_case", lambda *_: pytest.fail("was checked before the stop"))
    result = run(Synapse(), abdomen)
    assert result.resumed == 2
    assert len(seen) == 3 + 2 + 28  # each case once, the third again
    whole(result)
    assert [path.name for path in raw.iterdir()] == ["Dataset007_Synapse"]
    assert run(Synapse(), abdomen).existed


def large_label(source: Path) -> str:
    """Makes the label of a case of BraTS 2021 the only file that does not fit; returns its name in the dataset."""
    fake.brats2021(source)
    name = "BraTS2021_00003"
    for image in (source / name).glob("*"):
        nibabel.save(nibabel.Nifti1Image(np.zeros((30, 20, 20), dtype=np.int16), fake.affine()), image)
    fake.volume(source / name / f"{name}_seg.nii.gz", (0, 1, 2, 4), shape=(30, 20, 20))
    return f"labelsTr/{name}.nii.gz"


def large_image(source: Path) -> str:
    """The same of an image of the Decathlon."""
    task = fake.brain_tumour(source) / "Task01_BrainTumour"
    fake.volume(task / "imagesTr" / "BRATS_012.nii.gz", shape=(16, 15, 14, 4))
    fake.volume(task / "labelsTr" / "BRATS_012.nii.gz", range(4), shape=(16, 15, 14))
    return "imagesTr/BRATS_012_0000.nii.gz"


@pytest.mark.parametrize("make", [large_label, large_image])
def test_a_full_disk(home: Path, tmp_path: Path, make: Callable[[Path], str]) -> None:
    """SimpleITK, by which nnU-Net's functions write these files, does not say so."""
    file = make(tmp_path / "source")
    with full_disk(2500), pytest.raises(OSError, match=f"{file} was not written whole .* is cut off"):
        run(Brats(partial=True), tmp_path / "source")
    (staging,) = (home / "nnUNet_raw").iterdir()
    assert staging.name == ".Dataset007_BraTS.converting"
    assert not (staging / file).exists()
    result = run(Brats(partial=True), tmp_path / "source")
    assert result.resumed > 0
    whole(result)
    assert (result.folder / file).stat().st_size > 2500
    check_whole(result.folder / file)


def test_a_changed_release_is_not_resumed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fake.kits23(tmp_path / "kits23")
    monkeypatch.setattr(conversion, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(Kits23(partial=True), source)
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_raw", str(home / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(home / "nnUNet_preprocessed"))
    fake.volume(source / "dataset/case_00001/segmentation.nii.gz", (0, 1), shape=(6, 9, 9))
    with pytest.raises(ValueError, match="unfinished conversion of other files"):
        run(Kits23(partial=True), source)


def test_links(home: Path, tmp_path: Path) -> None:
    source = fake.kits23(tmp_path / "kits23")
    result = run(Kits23(partial=True), source, link=True)
    image = result.folder / "imagesTr/case_00299_0000.nii.gz"
    assert image.is_symlink()
    assert image.resolve() == (source / "dataset/case_00299/imaging.nii.gz").resolve()
    whole(result)
    assert run(Kits23(partial=True), source, link=True).existed


@pytest.mark.slow
def test_workers_give_the_same(home: Path, tmp_path: Path, workers_at_once: None) -> None:
    source = fake.acdc(tmp_path / "acdc")
    one = run(Acdc(partial=True), source, 7)
    two = run(Acdc(partial=True), source, 8, processes=2)
    assert read(one.folder / "conversion.json") == read(two.folder / "conversion.json")


def test_partial_leaves_out_incomplete_cases(home: Path, tmp_path: Path) -> None:
    source = fake.amos22(tmp_path / "amos22")
    (source / "labelsVa/amos_0002.nii.gz").unlink()
    result = run(Amos22(partial=True), source)
    assert "amos_0002" not in result.training
    assert any(note.startswith("amos_0002: missing: ") for note in result.notes)


def test_what_is_left_out_may_be_incomplete(home: Path, tmp_path: Path) -> None:
    source = fake.amos22(tmp_path / "amos22")
    (source / "labelsVa/amos_0002.nii.gz").unlink()
    result = run(Amos22(exclude=("amos_0002",)), source)
    assert result.left_out == {"amos_0002": "named by --exclude"}
    assert result.notes == []


def test_taken_and_unusable_names(home: Path, abdomen: Path) -> None:
    (home / "nnUNet_raw/Dataset007_Other").mkdir()
    with pytest.raises(ValueError, match=r"the number 7 is taken in .*: Dataset007_Other"):
        run(Btcv(), abdomen)
    with pytest.raises(ValueError, match=r"letters, digits, - and _ only, got 'a/b'"):
        run(Btcv(), abdomen, 8, name="a/b")
    with pytest.raises(ValueError, match="1 to 999, got 1000"):
        run(Btcv(), abdomen, 1000)
    (home / "nnUNet_raw/Dataset009_BTCV").mkdir()
    with pytest.raises(ValueError, match="was not made by `locctx convert`"):
        run(Btcv(), abdomen, 9)
    stale = home / "nnUNet_preprocessed/Dataset010_BTCV/splits_final.json"
    stale.parent.mkdir()
    stale.write_text("[]")
    with pytest.raises(ValueError, match="holds another split"):
        run(Btcv(), abdomen, 10)
