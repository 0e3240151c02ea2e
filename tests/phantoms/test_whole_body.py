"""The whole-body phantom: one patient is the same in every field of view, and its true atlas places are right."""

import functools
import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_locctx.phantoms import storage, whole_body
from nnunet_locctx.phantoms.storage import ORIENTATIONS
from nnunet_locctx.phantoms.whole_body import ATLAS_HEIGHT, ORGANS, make_whole_body
from nnunet_locctx.phantoms.whole_body_anatomy import JITTER, LOOK_ALIKES
from nnunet_locctx.phantoms.whole_body_patient import SCALE, SEGMENTS, STRETCH, draw_patient
from tests.integration.workspace import ThreadsForProcesses

whole_body_case = functools.cache(whole_body.whole_body_case)  # tests look at the cases and change nothing
COARSE = 10.0
PLACES = np.array(list(ORGANS.values()))


def indices(case):
    """Every voxel's index, (n, 3), and the same as a tuple of three arrays."""
    index = np.argwhere(np.ones(case.labels.shape, dtype=bool))
    return index.astype(float), tuple(index.T)


def centres(case):
    """Label -> mean atlas place of its voxels, for the labels of the case."""
    return {
        int(label): case.canonical(np.argwhere(case.labels == label).astype(float)).mean(0)
        for label in np.unique(case.labels)
        if label
    }


@pytest.mark.parametrize("code", [*ORIENTATIONS, "IPL"])
@pytest.mark.parametrize("number", [0, 2])  # 2 is stored obliquely
def test_anatomy_does_not_depend_on_the_storage_orientation(code, number):
    straight = whole_body_case(number, spacing=(12, 10, 15), orientation="LPS", crop=(0.3, 0.7))
    stored = whole_body_case(number, spacing=(12, 10, 15), orientation=code, crop=(0.3, 0.7))
    index, here = indices(straight)
    other = stored.frame.index_from_millimetres(straight.frame.millimetres(index))
    assert np.abs(other - np.rint(other)).max() < 1e-6
    index_there = tuple(np.rint(other).astype(int).T)
    assert np.array_equal(straight.labels[here], stored.labels[index_there])
    assert np.array_equal(straight.images[0][here], stored.images[0][index_there])
    assert np.allclose(straight.canonical(index), stored.canonical(other), atol=1e-6)
    assert straight.orientation == "LPS"
    assert stored.orientation == code


@pytest.mark.parametrize("number", [1, 2])
def test_one_place_has_one_atlas_place_in_every_scan(number):
    """Other crop, spacing, orientation and rotation of the same patient: same place in mm, same place in the atlas."""
    first = whole_body_case(number, spacing=COARSE, crop=(0.0, 1.0), orientation="LPS")
    second = whole_body_case(number, spacing=(7, 7, 20), crop=(0.35, 0.8), orientation="SRP", oblique=0.0)
    index, _ = indices(second)
    index_there = first.frame.index_from_millimetres(second.frame.millimetres(index))
    assert np.abs(second.canonical(index) - first.canonical(index_there)).max() < 1e-6


def test_crops_show_the_same_anatomy():
    """Two overlapping fields of view of 5 mm: the same tissue at the same place, up to the voxel grid and noise."""
    whole = whole_body_case(3, spacing=5.0, crop=(0.0, 1.0))
    part = whole_body_case(3, spacing=5.0, crop=(0.4, 0.8), orientation="RPI")
    index, here = indices(part)
    index_there = whole.frame.index_from_millimetres(part.frame.millimetres(index))
    nearest = tuple(np.clip(np.rint(index_there), 0, np.array(whole.labels.shape) - 1).astype(int).T)
    assert np.corrcoef(part.images[0][here], whole.images[0][nearest])[0, 1] > 0.95
    both = (part.labels[here] > 0) & (whole.labels[nearest] > 0)
    assert both.sum() > 0.5 * (part.labels > 0).sum()
    assert np.array_equal(part.labels[here][both], whole.labels[nearest][both])
    ours, theirs = centres(part), centres(whole)
    for label in ours:
        organ = PLACES[label - 1]
        height = part.body.level(organ[2]) / part.body.level(ATLAS_HEIGHT)
        if 0.45 < height < 0.75:  # not cut by the crop
            assert np.abs(ours[label] - theirs[label]).max() < 2.0


def test_the_map_is_monotone_invertible_and_nonlinear():
    bends = []
    for number in range(8):
        body = draw_patient((0, number)).body
        heights = np.linspace(-100, ATLAS_HEIGHT + 100, 2000)
        steps = np.diff(body.level(heights)) / np.diff(heights)
        assert steps.min() > 0.5 * SCALE[0] * STRETCH[0]
        assert np.allclose(body.height(body.level(heights)), heights, atol=1e-6)
        random = np.random.default_rng(number)
        atlas = random.uniform((-200, -150, -100), (200, 150, ATLAS_HEIGHT + 100), (500, 3))
        assert np.allclose(body.to_atlas(body.to_patient(atlas)), atlas, atol=1e-6)
        level = body.level(np.array(SEGMENTS))
        line = np.polynomial.Polynomial.fit(SEGMENTS, level, 1)
        bends.append(np.abs(level - line(np.array(SEGMENTS))).max())
        lengths = np.diff(level) / np.diff(SEGMENTS)
        assert SCALE[0] * STRETCH[0] - 1e-9 <= lengths.min()
        assert lengths.max() <= SCALE[1] * STRETCH[1] + 1e-9
    assert max(bends) > 20.0  # mm; no straight line fits the body


def test_atlas_axes_are_right_anterior_superior():
    body = draw_patient((0, 0)).body
    origin = body.to_patient([0.0, 0.0, 400.0])
    right, front, up = (
        body.to_patient(np.array([0.0, 0.0, 400.0]) + step) - origin for step in 50 * np.eye(3)
    )
    assert right[0] < -40  # LPS: x grows to the left
    assert front[1] < -40
    assert up[2] > 30


@pytest.mark.parametrize("number", [0, 3])
def test_labels_lie_at_their_atlas_places(number):
    case = whole_body_case(number, spacing=5.0, crop=(0.0, 1.0))
    centroids = centres(case)
    assert sorted(centroids) == list(range(1, len(ORGANS) + 1))
    for label, centre in centroids.items():
        assert np.abs(centre - PLACES[label - 1]).max() < JITTER + 2.0  # half a voxel


def test_organs_and_look_alikes_are_apart():
    everything = np.array([*ORGANS.values(), *LOOK_ALIKES])
    distance = np.linalg.norm(everything[:, None] - everything[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 2 * (18.0 + JITTER)


def test_organs_lie_in_the_body_and_look_alike():
    means, volumes = {}, {}
    for number in range(6):
        case = whole_body_case(number, spacing=6.0, crop=(0.0, 1.0))
        scale = np.prod(case.spacing) * ATLAS_HEIGHT / case.body.level(ATLAS_HEIGHT)
        for label in range(1, len(ORGANS) + 1):
            values = case.images[0][case.labels == label]
            assert values.min() > -150  # neither air nor lung: it did not leave the body
            means.setdefault(label, []).append(np.median(values))
            volumes.setdefault(label, []).append(scale * len(values))
    for look in (means, volumes):
        overall = np.concatenate(list(look.values()))
        for sample in look.values():
            assert abs(np.mean(sample) - overall.mean()) < 4 * overall.std() / np.sqrt(len(sample))


def test_sides_differ():
    """The liver is on the right and the left lung's base is lower: mirrored slices do not agree."""
    case = whole_body_case(0, spacing=5.0, crop=(0.45, 0.55), orientation="RAS", oblique=0.0)
    places = case.canonical(indices(case)[0]).reshape(*case.labels.shape, 3)
    image = case.images[0]
    level = (places[..., 2] > 430) & (places[..., 2] < 465) & (np.abs(places[..., 1]) < 30)
    right = image[level & (np.abs(places[..., 0] - 70) < 30)]
    left = image[level & (np.abs(places[..., 0] + 70) < 30)]
    assert np.median(right) > np.median(left) + 20


def test_fields_of_view_orientations_and_spacings_differ():
    cases = [whole_body_case(number, in_plane=(9, 14), slices=(9, 16)) for number in range(30)]
    shares = np.array([case.fraction for case in cases])
    assert shares.min() >= 0.3
    assert shares.max() <= 1.0
    assert shares.min() < 0.4
    assert shares.max() > 0.9
    assert abs(shares.mean() - 0.65) < 4 * 0.7 / np.sqrt(12 * len(shares))
    for case in cases:
        length = np.asarray(case.spacing) * case.labels.shape
        superior = int(np.argmax(np.abs(case.direction[2])))
        expected = case.fraction * case.body.level(ATLAS_HEIGHT)
        assert abs(length[superior] - expected) <= 0.5 * case.spacing[superior] + 1e-6
        assert np.allclose(case.direction.T @ case.direction, np.eye(3))
        lower, upper = case.crop
        assert 0.0 <= lower < upper <= 1.0
    assert {case.orientation for case in cases} == set(ORIENTATIONS)
    oblique = [not np.isin(np.abs(case.direction), (0.0, 1.0)).all() for case in cases]
    assert sum(oblique) == 6
    spacings = np.array([np.sort(case.spacing) for case in cases])
    assert np.ptp(spacings[:, 2]) > 3
    present = np.array([np.bincount(case.labels.ravel(), minlength=len(ORGANS) + 1) > 0 for case in cases])
    assert present.any(0).all()  # every class occurs
    assert not present[:, 1:].all(1).all()  # and is absent where its place is not seen
    for case, here in zip(cases, present, strict=True):
        if case.fraction < 0.35:
            assert not here[1:].all()


def test_the_seed_decides():
    first, again = (
        whole_body.whole_body_case(3, slices=(10, 16), in_plane=(8, 10), seed=7) for _ in range(2)
    )
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    assert first.origin == again.origin
    other = whole_body_case(3, slices=(10, 16), in_plane=(8, 10), seed=8)
    assert not np.allclose(first.body.levels, other.body.levels)
    assert first.crop != other.crop


def test_intensities_look_like_ct():
    case = whole_body_case(0, spacing=6.0, crop=(0.0, 1.0), orientation="LPS")
    image = case.images[0].astype(float)
    assert case.images.dtype == np.int16
    assert np.median(image[0, 0]) == pytest.approx(-1000, abs=5)  # a corner column: air
    assert image.max() > 400  # bone
    places = case.canonical(indices(case)[0]).reshape(*image.shape, 3)
    lung = image[np.linalg.norm(places - (76, -6, 570), axis=-1) < 25]
    assert -950 < np.median(lung) < -650
    thigh = image[np.linalg.norm(places - (88, 30, 20), axis=-1) < 15]
    assert 10 < np.median(thigh) < 90


def test_writes_nnunet_raw_format(tmp_path, monkeypatch):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    folder = make_whole_body(
        tmp_path / "raw", 7, cases=2, test_cases=1, in_plane=(10, 12), slices=(10, 16), seed=1
    )
    assert folder == tmp_path / "raw" / "Dataset007_WholeBody"
    names = {
        part.name: sorted(path.name for path in part.iterdir()) for part in folder.iterdir() if part.is_dir()
    }
    assert names == {
        "imagesTr": ["whole_body_000_0000.nii.gz", "whole_body_001_0000.nii.gz"],
        "labelsTr": ["whole_body_000.nii.gz", "whole_body_001.nii.gz"],
        "imagesTs": ["whole_body_002_0000.nii.gz"],
        "labelsTs": ["whole_body_002.nii.gz"],
    }
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 2
    assert description["channel_names"] == {"0": "CT"}
    assert description["labels"] == {"background": 0, **{name: k for k, name in enumerate(ORGANS, start=1)}}
    for number, part in enumerate(("Tr", "Tr", "Ts")):
        case = whole_body_case(number, in_plane=(10, 12), slices=(10, 16), seed=1)
        for path, array in (
            (folder / f"images{part}" / f"whole_body_00{number}_0000.nii.gz", case.images[0]),
            (folder / f"labels{part}" / f"whole_body_00{number}.nii.gz", case.labels),
        ):
            image = sitk.ReadImage(str(path))
            assert np.array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), array)
            index = (3, 2, 1)
            place = image.TransformIndexToPhysicalPoint(index)
            assert place == pytest.approx(case.frame.millimetres(index), abs=1e-2)
    monkeypatch.setattr("multiprocessing.get_context", lambda method: ThreadsForProcesses)
    verify_dataset_integrity(str(folder), num_processes=1)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def interrupt(*arguments):
        written.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_case", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_whole_body(tmp_path, 1, cases=1, test_cases=0, in_plane=(20, 20), slices=(20, 20))
    assert written
    assert list(tmp_path.iterdir()) == []


def test_an_existing_data_set_is_left_alone(tmp_path):
    coarse = {"in_plane": (20, 20), "slices": (20, 20), "test_cases": 0}
    folder = make_whole_body(tmp_path, 1, cases=2, **coarse)
    with pytest.raises(FileExistsError, match=r"Dataset001_WholeBody exists already.*overwrite=True"):
        make_whole_body(tmp_path, 1, cases=1, **coarse)
    assert len(list((folder / "labelsTr").iterdir())) == 2
    make_whole_body(tmp_path, 1, cases=1, overwrite=True, **coarse)
    assert [path.name for path in (folder / "labelsTr").iterdir()] == ["whole_body_000.nii.gz"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset_id": 0}, ValueError, "dataset_id must be 1 to 999, got 0"),
        ({"cases": 0}, ValueError, "cases must be at least 1, got 0"),
        ({"test_cases": 1.0}, TypeError, "test_cases must be a whole number, got 1.0"),
        ({"in_plane": (0.1, 5)}, ValueError, r"in_plane must be two numbers, smaller first, from 0.5 to 30"),
        ({"slices": (8, 4)}, ValueError, r"slices must be two numbers, smaller first, .* got \(8, 4\)"),
        ({"slices": (4, float("nan"))}, ValueError, "slices must be two numbers"),
        (
            {"fraction": (0.3, 1.1)},
            ValueError,
            r"fraction must be two numbers, smaller first, from 0.05 to 1",
        ),
        ({"fraction": (0.3,)}, ValueError, "fraction must be two numbers"),
        ({"orientations": []}, ValueError, "orientations must be a non-empty list"),
        ({"orientations": ["LRS"]}, ValueError, "one letter each of L/R, P/A and S/I.*'LRS'"),
        ({"oblique": 31}, ValueError, "oblique must be 0 to 30 degrees, got 31"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    arguments = {"dataset_id": 1, "cases": 1, "test_cases": 0, **arguments}
    with pytest.raises(error, match=message):
        make_whole_body(tmp_path / "raw", **arguments)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": (0.5, 0.4)}, r"crop must be two numbers, smaller first, from 0 to 1"),
        ({"crop": (0.5, 0.52)}, r"crop must span at least 0.05 of the height, got \(0.5, 0.52\)"),
        ({"spacing": 0.1}, r"spacing must be one or three numbers from 0.5 to 30 \(mm\), got 0.1"),
        ({"spacing": (5, 5)}, "spacing must be one or three numbers"),
        ({"orientation": "XYZ"}, "an orientation has one letter each"),
        ({"number": -1}, "number must be at least 0, got -1"),
    ],
)
def test_bad_wishes(arguments, message):
    with pytest.raises(ValueError, match=message):
        whole_body_case(**arguments)
