"""Measures of hand-made volumes with known answers."""

import math
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.measures import (
    Settings,
    definitions,
    measure_case,
    off_region_voxels,
    surface_measures,
    voxel_distance,
)
from tests.evaluation.label_scans import box, write

SHAPE = (12, 14, 16)
ONE = Classes({"organ": 1})


def rows(
    true: np.ndarray,
    predicted: np.ndarray,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    classes: Classes = ONE,
    pairs: list[tuple[str, str]] | None = None,
    **settings: Any,
) -> dict[str, dict[str, Any]]:
    """Class -> row."""
    measured = measure_case(
        true.astype(np.int32), predicted.astype(np.int32), spacing, classes, pairs or [], Settings(**settings)
    )
    for row in measured:
        assert set(row) - {"class"} == set(definitions(Settings(**settings)))
    return {row["class"]: row for row in measured}


def one(true: np.ndarray, predicted: np.ndarray, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return rows(true, predicted, *args, **kwargs)["organ"]


def surface(mask: np.ndarray) -> np.ndarray:
    """(N, 3) voxels with a face on the outside, looked up one by one."""
    padded = np.pad(mask, 1)
    return np.array(
        [
            at
            for at in np.argwhere(mask)
            if not all(
                padded[tuple(at + 1 + step * np.eye(3, dtype=int)[axis])]
                for axis in range(3)
                for step in (-1, 1)
            )
        ]
    )


blobs = st.tuples(*[st.integers(1, 6)] * 3).flatmap(
    lambda shape: st.tuples(*[arrays(bool, shape, elements=st.booleans())] * 2)
)
spacings = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 3.0])] * 3)


class TestVolumes:
    def test_dice_and_volumes(self) -> None:
        true = box(SHAPE, (2, 2, 2), (7, 7, 7))  # 125 voxels
        predicted = box(SHAPE, (3, 2, 2), (9, 7, 7))  # 150, 100 of them right
        row = one(true, predicted, (2.0, 1.5, 1.0))
        assert row["dice"] == pytest.approx(200 / 275)
        assert row["reference_ml"] == pytest.approx(0.375)
        assert row["prediction_ml"] == pytest.approx(0.45)
        assert row["volume_error_ml"] == pytest.approx(0.075)
        assert row["volume_error_percent"] == pytest.approx(20)
        assert row["presence"] == "both"

    def test_empty_rules(self) -> None:
        nothing, something = np.zeros(SHAPE), box(SHAPE, (2, 2, 2), (4, 4, 4))
        absent, missing, spurious = (
            one(*pair) for pair in ((nothing, nothing), (something, nothing), (nothing, something))
        )
        assert [row["presence"] for row in (absent, missing, spurious)] == ["absent", "missing", "spurious"]
        for name, expected in {
            "dice": (None, 0, 0),
            "hd95_mm": (None, None, None),
            "nsd": (None, 0, 0),
            "volume_error_ml": (0, -0.008, 0.008),
            "volume_error_percent": (None, -100, None),
            "swap_rate": (None, None, None),
            "off_region_ml": (0, 0, 0.008),
        }.items():
            assert tuple(row[name] for row in (absent, missing, spurious)) == expected, name

    def test_ignored_voxels_count_nowhere(self) -> None:
        classes = Classes({"organ": 1}, ignore=9)
        true = box(SHAPE, (2, 2, 2), (4, 4, 4))
        predicted = true.copy()
        predicted[8:10] = 1
        true[8:10] = 9
        row = one(true, predicted, classes=classes)
        assert (row["dice"], row["hd95_mm"], row["nsd"], row["off_region_ml"]) == (1, 0, 1, 0)
        assert row["prediction_ml"] == pytest.approx(0.008)

    def test_regions(self) -> None:
        classes = Classes({"whole": (1, 2), "core": (2,)})
        true, predicted = box(SHAPE, (0, 0, 0), (4, 4, 4)), box(SHAPE, (0, 0, 0), (4, 4, 4))
        true[:2, :4, :4] = 2
        predicted[:1, :4, :4] = 2
        measured = rows(true, predicted, classes=classes)
        assert measured["whole"]["dice"] == 1
        assert measured["core"]["dice"] == pytest.approx(2 * 16 / 48)
        assert measured["core"]["hd95_mm"] == 1

    @pytest.mark.parametrize("ignore", [None, 3])
    def test_dice_equals_nnunets(self, ignore: int | None, tmp_path: Path) -> None:
        from nnunetv2.evaluation.evaluate_predictions import compute_metrics
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        random = np.random.default_rng(1)
        true = random.integers(0, 3 if ignore is None else 4, SHAPE).astype(np.uint8)
        predicted = np.where(random.random(SHAPE) < 0.6, true % 3, random.integers(0, 3, SHAPE)).astype(
            np.uint8
        )
        labels: dict[str, int | tuple[int, ...]] = {"a": 1, "b": 2, "both": (1, 2), "none": 7}
        files = [write(tmp_path / f"{n}.nii.gz", array) for n, array in enumerate((true, predicted))]
        theirs = compute_metrics(str(files[0]), str(files[1]), SimpleITKIO(), list(labels.values()), ignore)[
            "metrics"
        ]
        ours = rows(true, predicted, classes=Classes(labels, ignore))
        for name, label in labels.items():
            dice = float(theirs[label]["Dice"])
            assert ours[name]["dice"] == (None if math.isnan(dice) else pytest.approx(dice, abs=1e-12))


class TestSurfaces:
    def test_two_voxels(self) -> None:
        true, predicted = box(SHAPE, (3, 3, 3), (4, 4, 4)), box(SHAPE, (4, 5, 6), (5, 6, 7))
        assert one(true, predicted, (3.0, 2.0, 1.0))["hd95_mm"] == pytest.approx(math.sqrt(34))
        assert one(true, predicted, (3.0, 2.0, 1.0), tolerance_mm=5.9)["nsd"] == pytest.approx(1)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_shifted_cube(self, axis: int) -> None:
        spacing = (2.0, 1.5, 0.5)
        true = box((20, 20, 20), (6, 6, 6), (12, 12, 12))
        predicted = np.roll(true, 2, axis)
        row = one(true, predicted, spacing, tolerance_mm=2 * spacing[axis])
        # more than 5 % of a cube's surface are the face that lies farthest
        assert row["hd95_mm"] == pytest.approx(2 * spacing[axis])
        assert row["nsd"] == 1
        near = one(true, predicted, spacing, tolerance_mm=spacing[axis] / 2)
        assert 0.3 < near["nsd"] < 0.8

    def test_share_of_the_area(self) -> None:
        shape = (42, 42, 42)
        true, predicted = box(shape, (5, 1, 1), (25, 41, 41)), box(shape, (5, 1, 1), (37, 41, 41))
        # of 6400 and 8320 mm2, the bottom (1600) and the lower 20 mm of the sides (3200) coincide; bevelled edges make
        # the difference
        assert one(true, predicted, tolerance_mm=0.4)["nsd"] == pytest.approx(9600 / 14720, abs=0.02)

    @hypothesis.given(blobs, spacings)
    def test_against_all_distances(
        self, masks: tuple[np.ndarray, np.ndarray], spacing: tuple[float, ...]
    ) -> None:
        true, predicted = (np.pad(mask, 2) for mask in masks)
        hypothesis.assume(true.any() and predicted.any())
        apart = cdist(surface(true) * spacing, surface(predicted) * spacing)
        directed = apart.min(axis=0), apart.min(axis=1)
        expected = max(np.percentile(one, 95) for one in directed)
        assert surface_measures(true, predicted, spacing, 2)[0] == pytest.approx(expected, rel=1e-5)
        apart = cdist(surface(true), surface(predicted))
        directed = apart.min(axis=0), apart.min(axis=1)
        pooled = voxel_distance(true, predicted, pooled=True)
        assert pooled == pytest.approx(np.percentile(np.concatenate(directed), 95), rel=1e-5)
        separate = voxel_distance(true, predicted, pooled=False)
        assert separate == pytest.approx(max(np.percentile(one, 95) for one in directed), rel=1e-5)

    @hypothesis.given(blobs, spacings, st.tuples(*[st.integers(0, 3)] * 6), st.sampled_from([0.4, 1.1, 3.2]))
    def test_cropping_changes_nothing(
        self,
        masks: tuple[np.ndarray, np.ndarray],
        spacing: tuple[float, ...],
        around: tuple[int, ...],
        tolerance: float,
    ) -> None:
        # without room on a side, the masks touch the volume's border there
        true, predicted = (np.pad(mask, list(zip(around[:3], around[3:], strict=True))) for mask in masks)
        hypothesis.assume(true.any() and predicted.any() and min(true.shape) > 1)
        whole = surface_measures(true, predicted, spacing, tolerance)
        row = one(true, predicted, spacing, tolerance_mm=tolerance)
        assert (row["hd95_mm"], row["nsd"]) == pytest.approx(whole, rel=1e-6)

    @pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # by MONAI itself
    def test_both_are_plain_monais(self) -> None:
        import torch
        from monai.metrics.hausdorff_distance import compute_hausdorff_distance
        from monai.metrics.surface_dice import compute_surface_dice

        true, predicted = box(SHAPE, (0, 3, 3), (6, 9, 16)), box(SHAPE, (2, 2, 2), (9, 9, 9))
        y, y_pred = (torch.tensor(mask)[None, None].float() for mask in (true, predicted))
        spacing = [2.0, 0.7, 1.1]
        theirs = (
            compute_hausdorff_distance(
                y_pred, y, include_background=True, percentile=95, spacing=spacing
            ).item(),
            compute_surface_dice(
                y_pred, y, [2.0], include_background=True, spacing=spacing, use_subvoxels=True
            ).item(),
        )
        assert surface_measures(true > 0, predicted > 0, spacing, 2.0) == pytest.approx(theirs, rel=1e-6)

    def test_an_image_of_one_slice_is_measured_in_its_plane(self) -> None:
        true, predicted = box((1, 30, 30), (0, 5, 5), (1, 20, 20)), box((1, 30, 30), (0, 7, 5), (1, 22, 20))
        row = one(true, predicted, (999.0, 1.0, 1.0), tolerance_mm=2)
        assert (row["hd95_mm"], row["nsd"]) == (2, 1)
        # of a volume's slice every voxel is surface, and the sides above and below coincide
        slices = [np.pad(mask, ((3, 3), (0, 0), (0, 0))) for mask in (true, predicted)]
        volume = one(*slices, tolerance_mm=0.4)
        assert volume["hd95_mm"] == 2
        assert surface_measures(true > 0, predicted > 0, (999.0, 1.0, 1.0), 0.4)[1] < volume["nsd"]


class TestSides:
    classes = Classes({"L kidney": 1, "R kidney": 2, "spleen": 3})

    def test_swap_rate(self) -> None:
        true, predicted = np.zeros((10, 10, 10)), np.zeros((10, 10, 10))
        true[:5], true[5:, :5] = 1, 2  # 500 and 250 voxels
        predicted[:] = true
        predicted[0] = 2  # 100 of the left as right
        predicted[1] = 3  # another organ is no swap
        predicted[5, 0] = 1  # 10 of the right as left
        predicted[9] = 1  # 50 more, and 50 of background
        measured = rows(true, predicted, classes=self.classes, pairs=[("L kidney", "R kidney")])
        assert measured["L kidney"]["swap_rate"] == pytest.approx(100 / 500)
        assert measured["R kidney"]["swap_rate"] == pytest.approx(60 / 250)
        assert measured["spleen"]["swap_rate"] is None


class TestOffRegion:
    def test_farther_than_the_distance(self) -> None:
        true, predicted = box((60, 8, 8), (5, 2, 2), (10, 6, 6)), np.zeros((60, 8, 8))
        predicted[[19, 20, 49], 4, 4] = 1  # 10, 11 and 40 slices above
        row = one(true, predicted, (2.0, 1.0, 0.5))
        assert row["off_region_ml"] == pytest.approx(2 * 0.001)  # exactly 20 mm is within
        assert one(true, predicted, (2.0, 1.0, 0.5), off_region_mm=22)["off_region_ml"] == pytest.approx(
            0.001
        )
        assert one(true, predicted, (2.0, 1.0, 0.5), off_region_mm=0)["off_region_ml"] == pytest.approx(0.003)

    @hypothesis.given(blobs, spacings, st.floats(0, 8))
    def test_against_all_distances(
        self, masks: tuple[np.ndarray, np.ndarray], spacing: tuple[float, ...], distance: float
    ) -> None:
        true, predicted = masks
        hypothesis.assume(true.any() and predicted.any())
        nearest = cdist(np.argwhere(predicted) * spacing, np.argwhere(true) * spacing).min(axis=1)
        hypothesis.assume(np.abs(nearest - distance).min() > 1e-5 or distance == 0)
        assert off_region_voxels(true, predicted, spacing, distance) == (nearest > distance + 1e-6).sum()


class TestPapers:
    def test_background_counts_for_locbam(self) -> None:
        true, predicted = box(SHAPE, (2, 2, 2), (6, 6, 6)), box(SHAPE, (2, 2, 2), (6, 6, 8))
        measured = rows(true, predicted, (3.0, 2.0, 1.0), paper="locbam")
        background = measured["background"]
        size = math.prod(SHAPE)
        assert background["paper_dice"] == pytest.approx(2 * (size - 96) / (2 * size - 64 - 96))
        assert [value for name, value in background.items() if name not in ("class", "paper_dice")] == [
            None
        ] * 11
        assert measured["organ"]["paper_dice"] == measured["organ"]["dice"]
        assert measured["organ"]["hd95_mm"] == measured["organ"]["paper_hd95_voxels"] == 2

    def test_voxels_are_not_millimetres(self) -> None:
        true, predicted = box(SHAPE, (3, 3, 3), (4, 4, 4)), box(SHAPE, (4, 5, 6), (5, 6, 7))
        for paper in ("locbam", "gpe"):
            row = one(true, predicted, (3.0, 2.0, 1.0), paper=paper)
            assert row["paper_hd95_voxels"] == pytest.approx(math.sqrt(14))

    def test_empty_rules(self) -> None:
        nothing, something = np.zeros(SHAPE), box(SHAPE, (2, 2, 2), (4, 4, 4))
        pairs = ((nothing, nothing), (something, nothing), (nothing, something))
        for paper, expected in (("locbam", [None, 0, None]), ("gpe", [1, 0, 0])):
            predicted = [one(*pair, paper=paper) for pair in pairs]
            assert [row["paper_dice"] for row in predicted] == expected
            assert [row["paper_hd95_voxels"] for row in predicted] == [0, 0, 0]
        assert "background" not in rows(something, something, paper="gpe")

    def test_locbams_dice_is_monais(self) -> None:
        import torch
        from monai.metrics.meandice import DiceMetric

        random = np.random.default_rng(2)
        classes = Classes({"a": 1, "b": 2, "c": 3})
        true, predicted = random.integers(0, 3, SHAPE), random.integers(0, 4, SHAPE)
        metric = DiceMetric(include_background=True, reduction="none")
        hot = [
            torch.tensor(np.stack([array == n for n in range(4)])[None]).float()
            for array in (predicted, true)
        ]
        theirs = metric(*hot)[0].tolist()
        ours = [row["paper_dice"] for row in rows(true, predicted, classes=classes, paper="locbam").values()]
        assert ours == [None if math.isnan(value) else pytest.approx(value, rel=1e-6) for value in theirs]
        assert ours[-1] is None


def test_wrong_arguments() -> None:
    for settings in ({"tolerance_mm": -1.0}, {"off_region_mm": math.nan}, {"paper": "other"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            Settings(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one shape"):
        measure_case(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), (1, 1, 1), ONE, [], Settings())
