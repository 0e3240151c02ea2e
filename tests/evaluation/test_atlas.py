"""Atlases: grid, cells, dilation, tuning, masking."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from hypothesis import strategies as st
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_locctx.cli import main
from nnunet_locctx.evaluation.atlas import Atlas, AtlasMask, Grid, occupied_cells, read_atlas, write_atlas
from nnunet_locctx.evaluation.atlas_fit import fit_atlas
from nnunet_locctx.evaluation.postprocessing import apply_atlas
from nnunet_locctx.evaluation.robustness import file_dice
from nnunet_locctx.geometry import Frame
from tests.evaluation.label_scans import STORAGES, box, describe, store, write
from tests.geometry_cases import flips, permutations

LPS = (10, 12, 14)


def frame(properties: dict[str, Any], array: np.ndarray) -> Frame:
    return Frame.from_properties(properties, array.shape)


def mean(atlas: Atlas) -> np.ndarray:
    """(R, A, S) share of the scans in which a cell holds label 1."""
    share = np.zeros(atlas.grid.shape)
    cells, counts = atlas.cells[1]
    share.flat[cells] = counts / len(atlas.cases)
    return share


def ramp(shape: tuple[int, int, int] = LPS) -> np.ndarray:
    """Every voxel of the inner box has a label of its own."""
    labels = np.zeros(shape, dtype=np.int32)
    inner = labels[2:-2, 3:-1, 1:-4]
    inner[:] = np.arange(1, inner.size + 1).reshape(inner.shape)
    return labels


class TestGrid:
    def test_its_cells_are_the_scans_voxels_if_the_sizes_agree(self) -> None:
        labels = ramp()
        array, properties = store(labels, (2.0, 1.0, 3.0))
        grid = Grid.median([frame(properties, array)])
        assert grid.shape == LPS
        assert grid.spacing == pytest.approx((2, 1, 3))
        values = range(1, int(labels.max()) + 1)
        occupied = occupied_cells(array, frame(properties, array), grid, values)
        # L and P run against R and A
        expected = np.flip(labels, (0, 1)).ravel()
        for label, cells in occupied.items():
            assert cells.tolist() == np.flatnonzero(expected == label).tolist()

    @pytest.mark.parametrize(
        ("size", "lower", "upper", "edge", "expected"),
        [
            # half as many cells, which hold two voxels each
            (8, (2, 2, 2), (4, 4, 6), 4, [(2, 2, 1), (2, 2, 2)]),
            # twice as many
            (4, (1, 1, 1), (2, 2, 3), 8, list(itertools.product((4, 5), (4, 5), (2, 3, 4, 5)))),
        ],
    )
    def test_other_sizes(
        self, size: int, lower: Any, upper: Any, edge: int, expected: list[tuple[int, ...]]
    ) -> None:
        array, properties = store(box((size,) * 3, lower, upper))
        grid = Grid((edge,) * 3, (size / edge,) * 3)
        occupied = occupied_cells(array, frame(properties, array), grid, [1])[1]
        assert list(zip(*np.unravel_index(occupied, grid.shape), strict=True)) == expected

    @hypothesis.given(permutations, flips, st.sampled_from([(5, 6, 7), (10, 12, 14), (13, 7, 20)]))
    def test_storage_changes_nothing(
        self, permutation: tuple[int, int, int], flipped: tuple[bool, bool, bool], shape: tuple[int, int, int]
    ) -> None:
        labels = ramp() % 50
        plain, plain_properties = store(labels, (2.0, 1.0, 3.0))
        array, properties = store(labels, (2.0, 1.0, 3.0), permutation, flipped)
        grid = Grid(shape, (1.0, 1.0, 1.0))
        assert Grid.median([frame(properties, array)]) == Grid.median([frame(plain_properties, plain)])
        one = occupied_cells(plain, frame(plain_properties, plain), grid, range(1, 50))
        other = occupied_cells(array, frame(properties, array), grid, range(1, 50))
        for label, cells in one.items():
            assert other[label].tolist() == cells.tolist()

    @hypothesis.given(
        permutations,
        flips,
        st.tuples(*[st.floats(-0.4, 0.4)] * 3),
        st.tuples(*[st.integers(1, 20)] * 3),
        st.integers(0, 1000),
    )
    def test_no_training_voxel_is_masked(
        self,
        permutation: tuple[int, int, int],
        flipped: tuple[bool, bool, bool],
        angles: tuple[float, float, float],
        shape: tuple[int, int, int],
        seed: int,
    ) -> None:
        labels = np.random.default_rng(seed).integers(0, 4, (6, 7, 8)).astype(np.int32)
        array, properties = store(labels, (1.0, 2.0, 1.5), permutation, flipped, angles)
        grid = Grid(shape, (1.0, 1.0, 1.0))
        cells = occupied_cells(array, frame(properties, array), grid, [1, 2, 3])
        atlas = Atlas(grid, ("a",), {label: (at, np.ones_like(at)) for label, at in cells.items()}, {})
        assert np.array_equal(AtlasMask(atlas).apply(array, frame(properties, array)), array)

    def test_oblique_storage_keeps_the_place(self) -> None:
        """The same box of the body, cut out along other axes: cells are fractions of the scan's bounding box."""
        atlases = []
        for angles in ((0, 0, 0), (0.15, -0.1, 0.2)):
            properties = store(np.zeros((40, 40, 40), np.uint8), angles=angles)[1]
            scan = Frame.from_properties(properties, (40, 40, 40))
            index = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), axis=-1)
            place = scan.millimetres(index) - scan.centre
            array = ((place > (-8, 2, -12)) & (place < (4, 10, 5))).all(axis=-1).astype(np.int32)
            cells = occupied_cells(array, scan, Grid((40, 40, 40), (1.0, 1.0, 1.0)), [1])[1]
            steps = np.stack(np.unravel_index(cells, (40, 40, 40)), axis=-1) - 19.5
            atlases.append(steps * scan.extent / 40)  # mm from the centre
        cell = scan.extent / 40  # mm, of the oblique scan
        for ends in (np.min, np.max):
            assert (np.abs(ends(atlases[0], axis=0) - ends(atlases[1], axis=0)) <= cell).all()
        np.testing.assert_allclose(atlases[0].mean(axis=0), atlases[1].mean(axis=0), atol=0.2)


class TestMask:
    @staticmethod
    def atlas(**more: Any) -> Atlas:
        grid = Grid((21, 21, 21), (1.0, 2.0, 3.0))
        middle = np.array([np.ravel_multi_index((10, 10, 10), grid.shape)])
        empty = np.empty(0, dtype=np.int64)
        return Atlas(
            grid, ("a", "b"), {1: (middle, np.array([1])), 2: (empty, empty)}, {"x": 1, "y": 2}, **more
        )

    def test_radius_in_mm(self) -> None:
        array, properties = store(np.ones((21, 21, 21), dtype=np.uint8))
        kept = AtlasMask(self.atlas(radius_mm=6.0)).apply(array.astype(np.int32), frame(properties, array))
        z, y, x = np.indices(kept.shape) - 10
        assert np.array_equal(kept > 0, (x * 1.0) ** 2 + (y * 2.0) ** 2 + (z * 3.0) ** 2 <= 36)

    def test_distances(self) -> None:
        mask = AtlasMask(self.atlas(), reach_mm=6)
        labels = np.zeros((21, 21, 21), dtype=np.int32)  # L, P, S
        places = [(10, 10, 10), (11, 10, 10), (10, 11, 10), (10, 10, 12), (0, 0, 0)]
        labels[tuple(np.array(places).T)] = 1
        labels[5, 5, 5] = 2  # occurs nowhere
        array, properties = store(labels, (1.0, 2.0, 3.0))
        (one, voxels, distances), (other, _, nowhere) = mask.distances(array, frame(properties, array))
        assert (one, other) == (1, 2)
        flipped = {(20 - x, 20 - y, z) for x, y, z in places}
        assert {tuple(voxel) for voxel in voxels.tolist()} == flipped
        assert sorted(distances.tolist()) == [0, 1, 2, 6, np.inf]
        assert nowhere.tolist() == [np.inf]

    def test_mean_and_threshold(self) -> None:
        atlas = self.atlas()
        assert mean(atlas)[10, 10, 10] == mean(atlas).sum() == 0.5
        assert len(atlas.support(1)) == 1
        assert len(self.atlas(threshold=0.5).support(1)) == 0

    def test_file(self, tmp_path: Path) -> None:
        atlas = self.atlas(radius_mm=2.0, threshold=0.1, history={"radii_mm": [1.0]})
        write_atlas(atlas, tmp_path / "deep" / "atlas.npz")
        again = read_atlas(tmp_path / "deep" / "atlas.npz")
        assert (again.grid, again.cases, again.labels) == (atlas.grid, atlas.cases, atlas.labels)
        assert (again.radius_mm, again.threshold, again.history) == (2.0, 0.1, {"radii_mm": [1.0]})
        assert np.array_equal(mean(again), mean(atlas))
        (tmp_path / "other.npz").write_bytes(b"no atlas")
        with pytest.raises(ValueError, match="is no atlas"):
            read_atlas(tmp_path / "other.npz")


SHAPE = (24, 20, 30)
CASES = ("a", "b", "c", "d")
LABELS = {"moving": 1, "still": 2}


def truth(number: int) -> np.ndarray:
    """An organ that lies 2 mm farther along the body in each next case, and one that stays."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[4:8, 4:8, 4 + number : 8 + number] = 1
    labels[14:18, 4:8, 4:8] = 2
    return labels


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Labels in four orientations, and predictions of two folds with false positives far away."""
    for number, case in enumerate(CASES):
        write(tmp_path / "labels" / f"{case}.nii.gz", truth(number), (2.0, 2.0, 2.0), *STORAGES[number])
        predicted = truth(number)
        predicted[4:8, 4:8, 24:28] = 1
        predicted[14:18, 15:17, 4:8] = 2
        fold = f"fold_{number // 2}"
        write(
            tmp_path / fold / "validation" / f"{case}.nii.gz", predicted, (2.0, 2.0, 2.0), *STORAGES[number]
        )
    describe(tmp_path, LABELS)
    return tmp_path


def fit(study: Path, **options: Any) -> Atlas:
    options = {"validation": [study / "fold_0" / "validation", study / "fold_1" / "validation"], **options}
    return fit_atlas(study / "labels", study / "atlas.npz", progress=False, **options)


class TestFit:
    def test_mean_of_mixed_orientations(self, study: Path) -> None:
        atlas = fit(study, validation=(), radius_mm=0.0)
        assert atlas.grid.shape == SHAPE
        assert atlas.grid.spacing == pytest.approx((2, 2, 2))
        expected = np.mean([truth(number) == 1 for number in range(4)], axis=0)
        np.testing.assert_allclose(mean(atlas), np.flip(expected, (0, 1)))

    def test_tuning_is_what_masking_and_evaluating_gives(self, study: Path) -> None:
        radii = (0.0, 2.0, 4.0, 10.0, 20.0, 80.0)
        tuning = fit(study, radii=radii, fold_atlases=True).history["tuning"]
        assert tuning["cases"] == 4
        per_radius = tuning["foreground_dice"]
        for radius in [*radii, None]:
            rows = []
            for fold, training in (("fold_0", ("c", "d")), ("fold_1", ("a", "b"))):
                own = read_atlas(study / f"atlas_{fold}.npz")
                assert own.cases == training  # none of those that are masked
                folder = study / fold / "validation"
                if radius is not None:
                    write_atlas(replace(own, radius_mm=radius), study / "one.npz")
                    folder = study / f"masked_{fold}_{radius}"
                    apply_atlas(study / "one.npz", study / fold / "validation", folder, progress=False)
                for file in folder.glob("*.nii.gz"):
                    rows.append(file_dice(study / "labels" / file.name, file, LABELS, SimpleITKIO()))
            expected = pd.DataFrame(rows).mean().mean()
            value = tuning["foreground_dice_without_mask"] if radius is None else per_radius[f"{radius:g}"]
            assert value == pytest.approx(expected)
        # 4 mm reach every true voxel from the other cases; 10 mm take no false one in yet
        assert tuning["radius_mm"] == read_atlas(study / "atlas.npz").radius_mm == 10
        assert per_radius["10"] == 1
        assert per_radius["0"] < 1

    def test_the_command_and_new_scans(self, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folders = [str(study / f"fold_{n}" / "validation") for n in (0, 1)]
        given = f"postprocess fit-atlas --labels {study / 'labels'} -o {study / 'atlas.npz'}".split()
        assert main([*given, "--validation", *folders, "--quiet", "-np", "1"]) == 0
        text = capsys.readouterr().out
        assert "4 cases on a grid of 24 x 20 x 30 cells of 2.00 x 2.00 x 2.00 mm (R, A, S)" in text
        assert "15 mm  1.0000 *" in text
        # another size, voxel size and orientation: the same fractions of the volume
        scan = np.kron(truth(1), np.ones((1, 2, 1), np.uint8))
        dirty = scan.copy()
        dirty[4:8, 30:34, 4:8] = 1
        storage = ((2, 0, 1), (False, True, True), (0.0, 0.0, 0.0))
        write(study / "new" / "x.nii.gz", dirty, (2.2, 1.1, 2.0), *storage)
        clean, _ = store(scan, (2.2, 1.1, 2.0), *storage)
        atlas = [str(study / "atlas.npz"), str(study / "new"), "-o", str(study / "masked")]
        assert main(["postprocess", "apply-atlas", *atlas, "--quiet", "-np", "1"]) == 0
        before, after = (sitk.ReadImage(str(study / folder / "x.nii.gz")) for folder in ("new", "masked"))
        assert np.array_equal(sitk.GetArrayFromImage(after), clean)
        for get in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(before, get)(), getattr(after, get)(), atol=1e-5)

    def test_is_not_done_again(self, study: Path) -> None:
        fit(study)
        file = study / "atlas.npz"
        before = file.stat().st_mtime_ns
        fit(study)
        assert file.stat().st_mtime_ns == before
        fit(study, fold_atlases=True)
        assert (study / "atlas_fold_1.npz").is_file()
        write(study / "labels" / "d.nii.gz", truth(0), (2.0, 2.0, 2.0))
        write(study / "fold_1" / "validation" / "d.nii.gz", truth(0), (2.0, 2.0, 2.0))
        assert mean(fit(study)).max() == 1
        assert not [path for path in study.iterdir() if path.name.startswith(".")]

    def test_goes_on(self, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from nnunet_locctx.evaluation import atlas_fit

        done = []
        real = occupied_cells

        def noted(*args: Any) -> Any:
            done.append(1)
            if len(done) == 3:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(atlas_fit, "occupied_cells", noted)
        with pytest.raises(KeyboardInterrupt):
            fit(study)
        assert not (study / "atlas.npz").exists()
        fit(study)
        assert len(done) == 3 + 2

    def test_regions_and_ignore(self, study: Path) -> None:
        description = json.loads((study / "dataset.json").read_text())
        description["labels"] = {"background": 0, "both": [1, 2], "still": [2], "ignore": 3}
        ignored = truth(0)
        ignored[20:] = 3
        write(study / "labels" / "a.nii.gz", ignored, (2.0, 2.0, 2.0), *STORAGES[0])
        atlas = fit(study, dataset_json=description)
        assert sorted(atlas.cells) == [1, 2]
        assert atlas.history["tuning"]["foreground_dice"]["10"] == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"validation": ()}, "needs either"),
            ({"radius_mm": 3.0}, "needs either"),
            *(({"radii": radii}, "ascending") for radii in ((), (5.0, 1.0), (1.0, 1.0), (-1.0,))),
            ({"threshold": 1.0}, "threshold"),
            ({"grid": (0, 2, 2)}, "three numbers"),
            ({"cases": ["z"]}, "case z is not in"),
            ({"cases": ["a", "b"]}, "no training cases for those in the validation folder"),
            ({"processes": 0}, "at least 1"),
        ],
    )
    def test_options_that_are_refused(self, study: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            fit(study, **options)
        assert not (study / "atlas.npz").exists()

    def test_files_that_are_refused(self, study: Path) -> None:
        write(study / "fold_0" / "validation" / "a.nii.gz", truth(0)[1:], (2.0, 2.0, 2.0))
        with pytest.raises(ValueError, match="differ in shape"):
            fit(study)
        (study / "labels" / "b.nii.gz").unlink()
        with pytest.raises(ValueError, match=r"case b of .* has no label"):
            fit(study)

    def test_an_atlas_of_other_labels(self, study: Path) -> None:
        fit(study, validation=(), radius_mm=5.0)
        other = describe(study / "other", {"moving": 1, "still": 2, "third": 3})
        with pytest.raises(ValueError, match=r"is of the labels \[1, 2\]"):
            apply_atlas(
                study / "atlas.npz", study / "fold_0" / "validation", study / "out", dataset_json=other
            )
        assert not (study / "out").exists()
