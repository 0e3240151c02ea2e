"""JSON files of bpreg: each score comes to lie where its slice is in the patient, however the file is stored."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from nnunet_locctx.geometry import Frame
from nnunet_locctx.nnunet.data.reading import read_quietly
from nnunet_locctx.regression.bpreg import curve_from_bpreg, file_frame, find_files, read_scores
from tests.geometry_cases import PERMUTATIONS, rotation

SLOPE = 0.118
SHAPE_RAS = (4, 5, 60)
SPACING_RAS = (1.5, 2.0, 5.0)
FLIPS = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]
every_storage = [(permutation, flips) for permutation in PERMUTATIONS for flips in FLIPS]


def nifti_affine(
    permutation: tuple[int, ...], flips: tuple[bool, ...], turn: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine (RAS) and shape of a file whose axis k runs along patient axis permutation[k], reversed where flips[k];
    the volume's centre is at (-20, 30, 150) mm."""
    shape = tuple(SHAPE_RAS[p] for p in permutation)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for k, p in enumerate(permutation):
        affine[p, k] = SPACING_RAS[p] * (-1 if flips[k] else 1)
    if turn is not None:
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = np.array([-20, 30, 150]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine, shape


def heights(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Mm along S of every voxel of the file."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    return np.asarray((index @ affine[:3, :3].T + affine[:3, 3])[..., 2])


def as_bpreg_stacks(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The volume as the tool reorders it: literally, on the voxels."""
    target = [max(range(3), key=lambda row: abs(affine[row, column])) for column in range(3)]
    volume = np.moveaxis(volume, range(3), target)
    row = target.index(2)  # the tool looks into the third column whatever the order of the axes
    return volume[::-1, ::-1, ::-1] if affine[row, 2] < 0 else volume


def true_score(height: np.ndarray | float) -> np.ndarray:
    return np.asarray(20 + SLOPE * np.asarray(height))


def write_json(file: Path, scores: np.ndarray, **changes: Any) -> Path:
    """What bpreg writes, as far as it matters here; a change of None leaves the key out."""
    known = np.flatnonzero(np.isfinite(scores))
    slope = np.polyfit(known * SPACING_RAS[2], scores[known], 1)[0]
    content = {
        "cleaned slice scores": scores.tolist(),
        "z": (SPACING_RAS[2] * np.arange(len(scores))).tolist(),
        "reverse z-ordering": float(slope < 0),
        "valid z-spacing": float(abs(abs(slope) / SLOPE - 1) <= 0.28),
        "expected slope": SLOPE,
        "observed slope": slope,
        "z-spacing": SPACING_RAS[2],
        **changes,
    }
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return file


def frame_of(affine: np.ndarray, shape: tuple[int, ...]) -> Frame:
    """That of nnU-Net's nibabel reader, which transposes to z, y, x."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1].tolist()
    return Frame.from_properties(
        {"spacing": spacing, "nibabel_stuff": {"original_affine": affine}}, shape[::-1]
    )


def stack_scores(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(as_bpreg_stacks(true_score(heights(affine, shape)), affine).mean(axis=(0, 1)))


@pytest.mark.parametrize(("permutation", "flips"), every_storage)
def test_every_storage_gives_the_scores_of_the_same_places(
    permutation: tuple[int, ...], flips: tuple[bool, ...], tmp_path: Path
) -> None:
    affine, shape = nifti_affine(permutation, flips)
    scores = stack_scores(affine, shape)
    scores[[0, 1, 30, -1]] = np.nan
    curve = curve_from_bpreg(read_scores(write_json(tmp_path / "a.json", scores)), frame_of(affine, shape))
    assert curve.problem == ""
    np.testing.assert_allclose(curve.direction, [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(curve.positions, 150 + 5.0 * (np.arange(60) - 29.5))
    within = np.linspace(-100, 400, 50)  # beyond both ends too
    np.testing.assert_allclose(curve.score_at(within), true_score(within), atol=1e-6)


@pytest.mark.parametrize(("permutation", "flips"), every_storage[::5])
def test_a_header_against_the_scores_is_reported(
    permutation: tuple[int, ...], flips: tuple[bool, ...], tmp_path: Path
) -> None:
    affine, shape = nifti_affine(permutation, flips)
    scores = stack_scores(affine, shape)[::-1]
    curve = curve_from_bpreg(read_scores(write_json(tmp_path / "a.json", scores)), frame_of(affine, shape))
    assert "scores fall towards the patient's head" in curve.problem


@pytest.mark.parametrize(("permutation", "flips"), every_storage[::5])
def test_oblique_scans(permutation: tuple[int, ...], flips: tuple[bool, ...], tmp_path: Path) -> None:
    turn = rotation((0.2, -0.15, 0.1))
    affine, shape = nifti_affine(permutation, flips, turn)
    # scores follow the slices' normal, along which the volume's centre keeps its place
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    scores = as_bpreg_stacks(true_score(places @ turn[:, 2]), affine).mean(axis=(0, 1))
    curve = curve_from_bpreg(read_scores(write_json(tmp_path / "a.json", scores)), frame_of(affine, shape))
    assert curve.problem == ""
    np.testing.assert_allclose(curve.direction, np.diag([-1, -1, 1]) @ turn[:, 2], atol=1e-9)
    lps = np.diag([-1.0, -1.0, 1.0]) @ places.reshape(-1, 3).T
    np.testing.assert_allclose(
        curve.score_at(curve.direction @ lps), true_score(places @ turn[:, 2]).ravel(), atol=1e-6
    )


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_entry_that_is_round_off_does_not_decide(sign: int, tmp_path: Path) -> None:
    # sagittal: the body runs along the file's second axis, and the tool looks at the third axis' A component
    affine, shape = nifti_affine((1, 2, 0), (False, False, False))
    other = affine.copy()
    affine[1, 2], other[1, 2] = 1e-7 * sign, -1e-7 * sign
    for stacked_by in (affine, other):
        scores = as_bpreg_stacks(true_score(heights(affine, shape)), stacked_by).mean(axis=(0, 1))
        read = read_scores(write_json(tmp_path / "a.json", scores))
        curve = curve_from_bpreg(read, frame_of(affine, shape))
        assert curve.problem == ""
        np.testing.assert_allclose(curve.score_at(curve.positions), true_score(curve.positions), atol=1e-4)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize(
    ("permutation", "flips"),
    [((0, 1, 2), (True, True, True)), ((1, 2, 0), (False, True, False)), ((2, 1, 0), (True, False, True))],
)
def test_every_reader_of_nnunet_gives_the_same_curve(
    reader: str, permutation: tuple[int, ...], flips: tuple[bool, ...], tmp_path: Path
) -> None:
    affine, shape = nifti_affine(permutation, flips, rotation((0.1, 0.05, -0.1)))
    file = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(heights(affine, shape).astype(np.float32), affine), file)
    stored = nibabel.load(file).affine
    scores = as_bpreg_stacks(true_score(heights(affine, shape)), stored).mean(axis=(0, 1))
    data, properties = read_quietly([file], reader)
    frame = file_frame(properties, data.shape[1:])
    assert frame.shape == shape[::-1]
    np.testing.assert_allclose(
        frame.affine_lps[:3, ::-1][:, 1:], np.diag([-1, -1, 1]) @ stored[:3, :3], rtol=1e-5, atol=1e-5
    )
    curve = curve_from_bpreg(read_scores(write_json(tmp_path / "a.json", scores)), frame)
    along = np.linspace(-120, 120, 9)  # from the volume's centre, along the slices' normal
    middle = np.array([20.0, -30.0, 150.0]) @ curve.direction
    expected = true_score(150 + along * curve.direction[2])
    np.testing.assert_allclose(curve.score_at(middle + along), expected, atol=1e-3)


def test_the_cross_section_is_read_at_the_height_of_each_slice(tmp_path: Path) -> None:
    affine, shape = nifti_affine((0, 1, 2), (False, False, True))
    levels = np.linspace(0.0, 300.0, 31)
    edges = np.stack([-100 - levels, 100 + levels, -50 + 0 * levels, levels], axis=1)
    read = read_scores(write_json(tmp_path / "a.json", stack_scores(affine, shape)))
    curve = curve_from_bpreg(read, frame_of(affine, shape), cross_section=(levels, edges))
    assert curve.cross_section is not None
    np.testing.assert_allclose(curve.cross_section[:, 0], -100 - curve.positions)
    np.testing.assert_allclose(curve.cross_section[:, 3], curve.positions)


class TestOtherScansAndUnusableOnes:
    affine, shape = nifti_affine((0, 1, 2), (False, False, False))

    def curve(self, folder: Path, scores: np.ndarray | None = None, **changes: Any) -> Any:
        scores = stack_scores(self.affine, self.shape) if scores is None else scores
        read = read_scores(write_json(folder / "case.json", scores, **changes))
        return curve_from_bpreg(read, frame_of(self.affine, self.shape))

    def test_another_number_of_slices(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"case\.json has 61 scores, but the scan has 60 slices"):
            self.curve(tmp_path, true_score(np.arange(61) * 5.0))

    def test_another_voxel_size(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"'z-spacing' of 2\.5 mm, .* 5 mm apart"):
            self.curve(tmp_path, **{"z-spacing": 2.5})
        assert self.curve(tmp_path, **{"z-spacing": 5.01}).problem == ""

    def test_implausible_voxel_size(self, tmp_path: Path) -> None:
        assert "'valid z-spacing' is 0" in self.curve(tmp_path, **{"valid z-spacing": 0.0}).problem

    def test_no_geometry(self, tmp_path: Path) -> None:
        read = read_scores(write_json(tmp_path / "a.json", stack_scores(self.affine, self.shape)))
        frame = Frame(self.shape, affine_lps=np.eye(4), has_geometry=False)
        assert "how the patient lies" in curve_from_bpreg(read, frame).problem

    def test_two_axes_for_one(self, tmp_path: Path) -> None:
        # a sheared header: the first and the second axis of the file are both closest to R
        affine = np.diag([2.0, 2.0, 5.0, 1.0])
        affine[:3, 1] = [1.6, 1.2, 0]
        read = read_scores(write_json(tmp_path / "a.json", stack_scores(self.affine, self.shape)))
        assert "same patient axis" in curve_from_bpreg(read, frame_of(affine, self.shape)).problem

    def test_keys_that_may_be_missing(self, tmp_path: Path) -> None:
        missing = dict.fromkeys(["reverse z-ordering", "valid z-spacing", "z-spacing", "expected slope", "z"])
        curve = self.curve(tmp_path, **missing)
        np.testing.assert_allclose(curve.scores, true_score(curve.positions))
        fallen = self.curve(tmp_path, stack_scores(self.affine, self.shape)[::-1], **missing)
        assert "scores fall" in fallen.problem


class TestReading:
    def reads(self, folder: Path, text: str) -> Any:
        file = folder / "case.json"
        file.write_text(text)
        return read_scores(file)

    def test_both_spellings_and_nan(self, tmp_path: Path) -> None:
        for name in ("cleaned slice scores", "cleaned slice-scores"):
            read = self.reads(tmp_path, f'{{"{name}": [NaN, 1, 2.5, null], "z-spacing": 3}}')
            np.testing.assert_array_equal(read.scores, [np.nan, 1, 2.5, np.nan])
            assert (read.spacing, read.falling, read.plausible) == (3, False, True)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("not json", "not valid JSON"),
            ("[1, 2]", "must hold an object, got list"),
            ("{}", "has no 'cleaned slice scores'.*no keys"),
            ('{"z": [1]}', "has no 'cleaned slice scores'.*it has 'z'"),
            ('{"cleaned slice scores": []}', r"must be a list of numbers, got \[\]"),
            ('{"cleaned slice scores": 3}', "must be a list of numbers, got 3"),
            ('{"cleaned slice scores": [1, "2"]}', "must hold numbers or NaN, got '2'"),
            ('{"cleaned slice scores": [1, true]}', "must hold numbers or NaN, got True"),
            ('{"cleaned slice scores": [1, Infinity]}', "must hold numbers or NaN, got inf"),
            ('{"cleaned slice scores": [NaN, NaN]}', "none of the 2 slices has a score"),
            ('{"cleaned slice scores": [1, 2], "z-spacing": "5"}', "'z-spacing' must be a number, got '5'"),
            ('{"cleaned slice scores": [1, 2], "z-spacing": 0}', "'z-spacing' must be above 0"),
        ],
    )
    def test_unusable_files(self, text: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=message):
            self.reads(tmp_path, text)

    def test_files_of_cases(self, tmp_path: Path) -> None:
        for name in ("a.json", "b_0000.json", "c_0001.json", "d.json", "d_0000.json"):
            (tmp_path / name).touch()
        files, missing = find_files(tmp_path, ["a", "b", "c", "d", "e"])
        assert {case: file.name for case, file in files.items()} == {
            "a": "a.json",
            "b": "b_0000.json",
            "d": "d.json",
        }
        assert missing == ["c", "e"]
        assert find_files(tmp_path, ["c"], channel=1)[0]["c"].name == "c_0001.json"
        with pytest.raises(ValueError, match="is not a folder"):
            find_files(tmp_path / "x", [])
