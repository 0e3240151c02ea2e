"""Predictions judged without a truth: injected mistakes are found, right cases left alone, however they are stored."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_locctx.cli import main
from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.doubt import Finding, judge
from nnunet_locctx.evaluation.label_summary import LabelSummary, summarise_labels, twins
from nnunet_locctx.evaluation.training_ranges import Ranges, learn_ranges
from nnunet_locctx.geometry import Frame
from tests.evaluation.label_scans import STORAGES, describe, store, write

SHAPE = (40, 24, 28)
SPACING = (3.0, 2.0, 2.5)
CLASSES = {
    "kidney_left": 1,
    "kidney_right": 2,
    "lung_left": 3,
    "lung_right": 4,
    "liver": 5,
    "spine": 6,
    "capsule_left": 7,
    "capsule_right": 8,
}
KNOWN = Classes.from_labels({"background": 0, **CLASSES})
EXCHANGED = np.array([0, 2, 1, 4, 3, 5, 6, 7, 8], dtype=np.uint8)
BOXES = {1: ((27, 14, 5), (7, 5, 6)), 2: ((6, 14, 5), (7, 5, 6)), 3: ((25, 6, 17), (10, 10, 9))}
BOXES |= {4: ((5, 6, 17), (10, 10, 9)), 5: ((5, 3, 5), (11, 9, 8)), 6: ((18, 19, 1), (4, 4, 26))}
"""Label -> first voxel and size, (L, P, S); left is where L grows. The left capsule lies on both sides."""


def patient(seed: int) -> np.ndarray:
    """(L, P, S) labels; every patient lies and is built a little differently."""
    random = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    away = random.integers(-1, 2, 3)
    for value, (lower, size) in BOXES.items():
        begin = np.array(lower) + away + random.integers(0, 2, 3)
        end = begin + np.array(size) + random.integers(-1, 1, 3)
        labels[tuple(slice(max(0, a), b) for a, b in zip(begin, end, strict=True))] = value
    labels[8 + away[0] : 32 + away[0], 1, 1] = 7
    return labels


def summary(
    labels: np.ndarray, spacing: tuple[float, float, float] = SPACING, *storage: object
) -> LabelSummary:
    array, properties = store(labels, spacing, *storage)  # type: ignore[arg-type]
    return summarise_labels(array.astype(np.int32), Frame.as_read(properties, array.shape), KNOWN)


@pytest.fixture(scope="module")
def ranges() -> Ranges:
    return learn(SPACING)


@functools.cache
def learn(spacing: tuple[float, float, float]) -> Ranges:
    cases = {f"train_{seed}": summary(patient(seed), spacing) for seed in range(12)}
    return learn_ranges(cases, twins(KNOWN))


def findings(labels: np.ndarray, ranges: Ranges) -> list[Finding]:
    return judge("new", summary(labels), ranges, KNOWN)[0]


def shifted(labels: np.ndarray, value: int, steps: int, axis: int) -> np.ndarray:
    moved = np.roll(labels == value, steps, axis)
    return np.where(moved, value, np.where(labels == value, 0, labels)).astype(np.uint8)


def with_second_piece(labels: np.ndarray) -> np.ndarray:
    changed = labels.copy()
    changed[34:38, 20:23, 22:26] = 5
    return changed


MISTAKES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, tuple[str, ...]]] = {
    "pair": (
        lambda labels: np.where(labels < 3, EXCHANGED[labels], labels),
        "sides",
        ("kidney_left", "kidney_right"),
    ),
    "mirrored": (lambda labels: labels[::-1], "mirrored", ()),
    "upside down": (lambda labels: labels[:, :, ::-1], "mirrored", ()),
    "shift": (lambda labels: shifted(labels, 2, 10, 2), "position", ("kidney_right",)),
    "piece": (with_second_piece, "pieces", ("liver",)),
    "missing": (lambda labels: np.where(labels == 3, 0, labels), "missing", ("lung_left",)),
    "unseen": (lambda labels: np.where(labels == 6, 8, labels), "unseen", ("capsule_right",)),
    "large": (lambda labels: np.where(labels == 0, 5, labels), "volume", ("liver",)),
    "empty": (np.zeros_like, "empty", ()),
}


def test_right_cases_raise_no_doubt(ranges: Ranges) -> None:
    for seed in range(100, 120):
        reported, doubt = judge("new", summary(patient(seed)), ranges, KNOWN)
        assert not reported, (seed, [one.sentence for one in reported])
        assert 0 <= doubt <= 1


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_and_named(mistake: str, ranges: Ranges) -> None:
    make, kind, classes = MISTAKES[mistake]
    reported, doubt = judge("new", summary(make(patient(100)).astype(np.uint8)), ranges, KNOWN)
    assert (kind, classes) in {(one.kind, one.classes) for one in reported}, [
        one.sentence for one in reported
    ]
    assert doubt > 1


def test_one_mistake_is_told_once(ranges: Ranges) -> None:
    for mistake in ("pair", "mirrored", "shift", "missing"):
        make, kind, _ = MISTAKES[mistake]
        reported = findings(make(patient(100)), ranges)
        assert [one.kind for one in reported] == [kind], (mistake, [one.sentence for one in reported])
    (found_shift,) = findings(shifted(patient(100), 2, 10, 2), ranges)
    assert "kidney_right lies" in found_shift.sentence
    assert "mm too far superior among the other classes (training: up to" in found_shift.sentence
    assert found_shift.value == pytest.approx(25, abs=6)  # ten voxels of 2.5 mm


def test_pieces_count_by_how_far_they_lie() -> None:
    """Where training has crumbs beside an organ, as many voxels are no mistake there, and one elsewhere."""

    def crumbed(seed: int) -> np.ndarray:
        labels = patient(seed)
        liver = np.argwhere(labels == 5)
        labels[liver[:, 0].max() + 2, 5:9, 5 : 12 + seed % 3] = 5
        return labels

    def speck(labels: np.ndarray, where: int) -> np.ndarray:
        changed = labels.copy()
        changed[where : where + 3, 20:23, 24:27] = 5
        return changed

    ranges = learn_ranges({str(seed): summary(crumbed(seed)) for seed in range(12)}, twins(KNOWN))
    case = crumbed(100)
    assert not findings(case, ranges)
    liver = np.argwhere(patient(100) == 5)
    values = {}
    for where in (30, 36):
        (far,) = findings(speck(case, where), ranges)
        assert (far.kind, far.classes) == ("far", ("liver",)), far.sentence
        others = np.argwhere((speck(case, where) == 5) & (patient(100) != 5))
        beyond = np.maximum(0, others - liver.max(axis=0)) * SPACING
        distances = np.linalg.norm(beyond, axis=1)
        assert far.value == pytest.approx(distances.sum() / (len(liver) + len(others)))
        assert f"of it lies {distances.mean():.3g} mm from the largest piece" in far.sentence
        values[where] = far
    assert values[36].times > values[30].times > 1
    everywhere = {
        judge("new", summary(speck(case, 36), SPACING, *storage), ranges, KNOWN)[0][0].sentence
        for storage in STORAGES
    }
    assert everywhere == {values[36].sentence}


def test_a_pair_that_training_shows_on_both_sides_is_not_judged(ranges: Ranges) -> None:
    """As the external capsule of Dataset208, whose one label is called left."""
    # left lies before right along R, and training has no right capsule
    assert ranges.usual.side_sign.tolist() == [1, 1, 0]
    random, cases = np.random.default_rng(0), {}
    for seed in range(12):  # now it has, anywhere
        labels = patient(seed)
        swapped = (labels == 7) & (random.random(SHAPE) < 0.5)
        cases[str(seed)] = summary(np.where(swapped, 8, labels).astype(np.uint8))
    assert learn_ranges(cases, twins(KNOWN)).usual.side_sign.tolist() == [1, 1, 0]


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(STORAGES), st.sampled_from(["pair", "mirrored", "shift", "piece", "missing"]))
def test_storage_does_not_matter(storage: tuple[object, ...], mistake: str) -> None:
    ranges = learn(SPACING)
    labels = MISTAKES[mistake][0](patient(100)).astype(np.uint8)
    plain, turned = (
        judge("new", one, ranges, KNOWN) for one in (summary(labels), summary(labels, SPACING, *storage))
    )
    assert [one.sentence for one in turned[0]] == [one.sentence for one in plain[0]]
    assert turned[1] == pytest.approx(plain[1], rel=1e-6)


def test_millimetres_are_millimetres(ranges: Ranges) -> None:
    twice = (6.0, 4.0, 5.0)
    labels = shifted(patient(100), 2, 10, 2)
    (small,), (large,) = (
        findings(labels, ranges),
        judge("new", summary(labels, twice), learn(twice), KNOWN)[0],
    )
    assert (small.value, small.high) == (pytest.approx(large.value / 2), pytest.approx(large.high / 2))  # type: ignore[operator]
    assert small.times == pytest.approx(large.times)


def test_what_the_field_of_view_cuts_off_is_not_missed(ranges: Ranges) -> None:
    whole = patient(100)
    below = summary(whole[:, :, :13])  # no lungs
    assert "lung" not in " ".join(one.sentence for one in judge("new", below, ranges, KNOWN)[0])
    half = summary(whole[:, :, :21])  # half of the lungs
    assert not judge("new", half, ranges, KNOWN)[0]


@pytest.mark.parametrize("flat", [False, True])
def test_a_single_class_is_judged_by_the_scan_it_lies_in(flat: bool) -> None:
    """Without pairs and neighbours, in volumes and in images of one slice."""
    organ = Classes.from_labels({"background": 0, "organ": 1})

    def one(seed: int, shift: int = 0) -> LabelSummary:
        labels = (patient(seed)[:, :, [8] if flat else slice(None)] == 5).astype(np.uint8)
        array, properties = store(np.roll(labels, shift, 0), SPACING)
        return summarise_labels(array.astype(np.int32), Frame.as_read(properties, array.shape), organ)

    ranges = learn_ranges({str(seed): one(seed) for seed in range(12)}, [])
    assert not judge("new", one(100), ranges, organ)[0]
    assert [finding.kind for finding in judge("new", one(100, shift=20), ranges, organ)[0]] == ["position"]


def test_a_training_case_is_judged_by_the_others() -> None:
    labels = {f"case_{seed}": patient(seed) for seed in range(12)}
    labels["case_3"] = labels["case_3"][::-1]
    cases = {name: summary(one) for name, one in labels.items()}
    ranges = learn_ranges(cases, twins(KNOWN))
    assert "mirrored" in {one.kind for one in judge("case_3", cases["case_3"], ranges, KNOWN)[0]}
    assert not judge("case_4", cases["case_4"], ranges, KNOWN)[0]


def unlink(files: Iterable[Path]) -> None:
    for file in list(files):
        file.unlink()


class TestCommand:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> tuple[Path, Path]:
        """Training labels, and predictions with one mistake each in b and c; each file is stored in another way."""
        true, predicted = tmp_path / "labelsTr", tmp_path / "predicted"
        for seed in range(12):
            write(true / f"train_{seed:02d}.nii.gz", patient(seed), SPACING, *STORAGES[seed % 4])
        for number, (case, mistake) in enumerate({"a": None, "b": "missing", "c": "mirrored"}.items()):
            labels = patient(100 + number)
            labels = labels if mistake is None else MISTAKES[mistake][0](labels)
            write(predicted / f"{case}.nii.gz", labels.astype(np.uint8), SPACING, *STORAGES[number])
        describe(true.parent, CLASSES)
        return true, predicted

    def run(self, folders: tuple[Path, Path], *more: str) -> int:
        return main(["inspect", str(folders[1]), "--labels", str(folders[0]), "-np", "1", "--quiet", *more])

    def test_cases_are_ranked_and_shown(
        self, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
        write(tmp_path / "scans" / "c_0000.nii.gz", image, SPACING, *STORAGES[2])
        write(tmp_path / "scans" / "b_0000.nii.gz", image[1:], SPACING)
        reasons = {"a": "longer than any in training", "b": "the plans leave it out"}
        known = {"source": "voxel", "known": ["R", "A"]}
        records = {case: {**known, "unknown": {"S": reason}} for case, reason in reasons.items()}
        (folders[1] / "location.json").write_text(json.dumps(records))
        assert self.run(folders, "--images", str(tmp_path / "scans")) == 1
        printed = capsys.readouterr().out
        lines = printed.splitlines()
        assert lines[0] == "case  doubt  finding"
        assert lines[1].startswith("c ")
        assert "the whole prediction is mirrored left-right" in lines[1]
        assert "lung_left is missing; all 12 training cases have it" in lines[2]
        assert "location of a (voxel): R, A known; S unknown: longer than any in training" in lines[3]
        assert f"locctx postprocess sides {folders[1]} --labels {folders[0]} -o REPAIRED" in printed
        output = folders[1] / "inspection"
        content = json.loads((output / "inspection.json").read_text())
        assert [case["case"] for case in content["cases"]] == ["c", "b", "a"]
        assert (output / "findings.csv").read_text().splitlines()[1].startswith("1,c,")
        page = (output / "index.html").read_text()
        assert page.count("<img ") == 2
        assert "http" not in page.replace("http://www.w3.org", "").replace("https://www.w3.org", "")
        assert "has the shape" in page  # of another scan than the prediction
        assert self.run(folders, "--images", str(tmp_path / "scans")) == 1  # its own folder is replaced

    def test_each_case_has_its_scan_from_where_it_lies(
        self, tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw = tmp_path / "raw" / "Dataset003_Patients"
        for folder, case in (("imagesTr", "b"), ("imagesTs", "c")):
            image = np.zeros((*SHAPE[:2], 3 if case == "b" else 4), np.float32)
            write(raw / folder / f"{case}_0000.nii.gz", image, SPACING)
        (raw / "labelsTr").symlink_to(folders[0])
        describe(raw, CLASSES)
        monkeypatch.setenv("nnUNet_raw", str(raw.parent))
        call = ["inspect", str(folders[1]), "-d", "3", "-np", "1", "--quiet", "-o", str(tmp_path / "page")]
        assert main(call) == 1
        page = (tmp_path / "page" / "index.html").read_text()
        # scans of wrong shapes, so that the page tells which of them was read
        assert "imagesTr/b_0000.nii.gz has the shape" in page
        assert "imagesTs/c_0000.nii.gz has the shape" in page
        (raw / "imagesTr" / "b_0000.nii.gz").unlink()
        assert main(call) == 1
        page = (tmp_path / "page" / "index.html").read_text()
        assert "Drawn without the scan: b_0000.nii.gz is not in" in page

    def test_nothing_found(self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
        for case in "bc":
            (folders[1] / f"{case}.nii.gz").unlink()
        assert self.run(folders) == 0
        assert "nothing found in 1 of 1 cases: a" in capsys.readouterr().out

    def test_what_cannot_be_judged_is_a_finding(
        self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folders[1] / "b.nii.gz").write_bytes(b"no scan")
        foreign = patient(3)
        foreign[0, 0, 0] = 77
        write(folders[1] / "d.nii.gz", foreign, SPACING)
        write(folders[1] / "e.nii.gz", np.zeros(SHAPE, np.uint8), SPACING)
        write(folders[1] / "f.nii.gz", np.full(SHAPE, 0.5, np.float32), SPACING)
        assert self.run(folders) == 1
        printed = capsys.readouterr().out
        for sentence in (
            "has labels that dataset.json does not list there: 77",
            "voxels that are no whole numbers: 0.5",
            "nothing is labelled; training cases have 7 classes",
            "b.nii.gz",
            "nothing found in 1 of 6 cases: a",
        ):
            assert sentence in printed, printed

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda true, predicted: unlink(predicted.iterdir()), "has no files that end in .nii.gz"),
            (lambda true, predicted: unlink(sorted(true.iterdir())[3:]), "3 of 3 training labels"),
            (
                lambda true, _: (true / "train_05.nii.gz").write_bytes(b""),
                "the training labels cannot be used",
            ),
            (lambda _, predicted: (predicted / "inspection" / "mine").mkdir(parents=True), "mine"),
        ],
    )
    def test_unusable_input(
        self,
        change: Callable[[Path, Path], object],
        message: str,
        folders: tuple[Path, Path],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        change(*folders)
        assert self.run(folders) == 2
        assert message in capsys.readouterr().err
        assert not list(folders[1].glob("inspection/index.html"))
        assert main(["inspect", str(folders[1])]) == 2
        assert "which training labels?" in capsys.readouterr().err
