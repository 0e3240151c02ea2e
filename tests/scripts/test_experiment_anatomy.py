"""The experiment on whole-body phantoms: errors and invariance of known locations, steps that resume, documents."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_locctx.location import BodyPartCurve
from nnunet_locctx.phantoms.whole_body import whole_body_case
from nnunet_locctx.regression.body_part import BodyPartOptions, BodyPartRegressor
from nnunet_locctx.regression.body_part.network import SliceRegressor
from scripts.benchmarks.harness import describe_machine
from scripts.experiments.anatomy import location as anatomy_location
from scripts.experiments.anatomy import run as experiment_anatomy
from scripts.experiments.anatomy.location import (
    OVERLAP,
    PhantomScans,
    compare,
    fit_line,
    invariance,
    location_errors,
    locator,
    monotonicity,
    on_line,
    overlapping_crops,
    summary,
)

coarse = functools.partial(whole_body_case, in_plane=(12, 12), slices=(12, 12))


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The body is looked for on a coarse grid."""
    monkeypatch.setattr(anatomy_location, "GRID", 12.0)


class TrueField:
    """The true place in the atlas, scaled and shifted; what a location field is asked for here."""

    def __init__(self, case: Any, shift: float = 0.0) -> None:
        self.case, self.shift = case, shift

    def at(self, index: Any) -> Any:
        return self.case.canonical(index) / np.array([400.0, 300.0, 1000.0]) + self.shift


def true_locator(case: Any) -> Any:
    return TrueField(case), ""


class TestErrors:
    def test_summary_by_hand(self) -> None:
        measured = summary(np.array([[3.0, 4.0, 0.0], [-3.0, 0.0, 4.0], [1.0, 0.0, 0.0]]))
        assert [measured[axis]["median"] for axis in ("R", "A", "S", "3D")] == [3.0, 0.0, 0.0, 5.0]
        assert measured["S"]["p90"] == pytest.approx(3.2)
        assert (measured["3D"]["quantiles"][0], measured["3D"]["quantiles"][-1]) == (1.0, 5.0)

    def test_calibration_undoes_a_line_per_axis(self) -> None:
        truth = np.random.default_rng(0).uniform(-100, 900, (50, 3))
        coordinates = truth * (0.01, -0.002, 0.001) + (1.0, 2.0, 3.0)
        line = fit_line(coordinates, truth)
        assert np.allclose(on_line(line, coordinates), truth)
        assert np.allclose(line[0], (100, -500, 1000))

    def test_the_truth_has_no_error_and_voxel_fractions_have_some(self) -> None:
        locators = {"true": true_locator, "voxel": locator("voxel"), "scanner": locator("scanner")}
        measured = location_errors(locators, range(4), range(4, 7), 0, draw=coarse)
        true, voxel = (measured["sources"][name] for name in ("true", "voxel"))
        assert true["slopes_mm"] == pytest.approx([400.0, 300.0, 1000.0])
        assert true["errors"]["3D"]["quantiles"][-1] == 0.0
        assert voxel["errors"]["S"]["median"] > 20.0
        assert measured["line"]["errors"]["S"]["median"] < voxel["errors"]["S"]["median"]
        assert [scan["case"] for scan in measured["scans"]] == [4, 5, 6]
        assert [coarse(number).fraction <= 0.6 for number in (4, 5, 6)] == [False, True, False]
        small = location_errors({"voxel": locators["voxel"]}, range(4), [5], 0, draw=coarse)["sources"][
            "voxel"
        ]
        assert voxel["errors_small"] == small["errors"]  # the one small field of view
        assert all(len(one["heights"]) == 3 for one in (true, voxel))
        heights = np.array(true["heights"])
        assert np.allclose(heights[:, 0], heights[:, 1], atol=0.11)  # both rounded to 0.1 mm

    def test_a_constant_error_is_found(self) -> None:
        """Held-out scans shifted by 0.02 along every axis: 8, 6 and 20 mm."""

        def locate(case: Any) -> Any:
            return TrueField(
                case, 0.02 if np.allclose(case.body.position, held_out.body.position) else 0.0
            ), ""

        held_out = coarse(3)
        measured = location_errors({"shifted": locate}, range(3), [3], 0, draw=coarse)["sources"]["shifted"]
        assert [measured["errors"][axis]["median"] for axis in "RAS"] == pytest.approx([8.0, 6.0, 20.0])

    def test_scans_that_were_not_measured(self) -> None:
        """They do not spoil the calibration; held out, they count."""
        lost = [coarse(number).body.position for number in (0, 3)]

        def locate(case: Any) -> Any:
            if any(np.allclose(case.body.position, position) for position in lost):
                return TrueField(case, 5.0), "nothing seen"
            return true_locator(case)

        measured = location_errors({"one": locate}, range(3), [3, 4], 0, draw=coarse)["sources"]["one"]
        assert measured["not_measured"] == {"training": {0: "nothing seen"}, "held_out": {3: "nothing seen"}}
        assert measured["slopes_mm"] == pytest.approx([400.0, 300.0, 1000.0])
        assert measured["errors"]["S"]["quantiles"][0] == 0.0
        assert measured["errors"]["S"]["quantiles"][-1] == pytest.approx(5000.0)
        with pytest.raises(ValueError, match="none of the 1 training scans"):
            location_errors({"one": locate}, [0], [1], 0, draw=coarse)


class TestInvariance:
    @staticmethod
    def pairs(number: int, seed: int) -> Any:
        one = coarse(number, seed=seed, crop=(0.1, 0.6))
        return {
            "crops": (one, coarse(number, seed=seed, crop=(0.3, 1.0))),
            "orientations": (one, coarse(number, seed=seed, crop=(0.1, 0.6), orientation="SRP")),
        }

    def test_the_truth_is_the_same_in_every_crop(self) -> None:
        locators = {"true": true_locator, "voxel": locator("voxel")}
        slopes = {"true": [400.0, 300.0, 1000.0], "voxel": [300.0, 200.0, 500.0]}
        measured = invariance(locators, slopes, [0, 1], 0, pairs=self.pairs)
        assert measured["true"]["crops"]["pairs"] == 2
        assert measured["true"]["crops"]["points"]["S"]["max"] == 0.0
        assert measured["voxel"]["orientations"]["points"]["S"]["max"] < 0.01
        crops = measured["voxel"]["crops"]
        assert crops["points"]["S"]["median"] > 10.0
        assert crops["mm"]["S"] == pytest.approx(crops["points"]["S"]["median"] * 5.0, abs=0.01)

    def test_pairs_that_were_not_measured_are_counted(self) -> None:
        def locate(case: Any) -> Any:
            return TrueField(case), "" if case.crop[0] < 0.2 else "too high"

        measured = invariance({"one": locate}, {"one": [1.0] * 3}, [0], 0, pairs=self.pairs)["one"]
        assert measured["crops"] == {"pairs": 1, "not_measured": 1}
        assert measured["orientations"]["not_measured"] == 0

    def test_compare_by_hand(self) -> None:
        measured = compare([np.array([[1.0, 0.0, -2.0], [3.0, 0.0, 4.0], [5.0, 0.0, 0.0]])], [100, 200, -300])
        assert measured["points"]["R"] == {"median": 3.0, "max": 5.0}
        assert measured["points"]["S"] == {"median": 2.0, "max": 4.0}
        assert measured["mm"] == {"R": 3.0, "A": 0.0, "S": 6.0}

    def test_crops_overlap(self) -> None:
        random = np.random.default_rng(0)
        pairs = [overlapping_crops(700.0, random) for _ in range(100)]
        shared = [700 * (min(a[1], b[1]) - max(a[0], b[0])) for a, b in pairs]
        assert min(shared) >= OVERLAP
        assert min(shared) < 200.0
        assert all(0 <= low < high <= 1 and high - low >= 0.3 for pair in pairs for low, high in pair)


class FakeRegressor:
    """Scores that are a function of the patient's z; not a `Regressor`, which would take the place of the real one."""

    channel = 0
    kind = "body_part"
    options = BodyPartOptions()

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def scores(self, scan: Any) -> Any:
        positions = scan.places(2)
        scores = self.sign * positions
        scores[0] = np.nan  # a slice of air
        return positions, scores

    def measure(self, image: Any, frame: Any) -> BodyPartCurve:
        if self.sign < 0:
            return BodyPartCurve.unusable("reversed")
        places = np.array([0.0, 100.0, 200.0])
        return BodyPartCurve(np.array([0.0, 0.0, 1.0]), places, places, 1.0)


class TestMonotonicity:
    def test_rising_and_falling_scores(self) -> None:
        rising: Any = FakeRegressor(1.0)
        measured = monotonicity(rising, [0, 1], 0, draw=coarse)
        assert (measured["scans"], measured["measured"], measured["rising"]) == (2, 2, 2)
        assert measured["spearman_min"] == measured["raw_steps_up"] == 1.0
        falling: Any = FakeRegressor(-1.0)
        measured = monotonicity(falling, [0, 1], 0, draw=coarse)
        assert (measured["measured"], measured["rising"], measured["spearman_median"]) == (0, 0, -1.0)


class TestRegressors:
    def test_scans_are_drawn_when_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(anatomy_location, "whole_body_case", coarse)
        scans = PhantomScans(range(2, 4), 0, 10.0)
        assert list(scans) == ["whole_body_002", "whole_body_003"]
        scan = scans["whole_body_003"]
        assert np.allclose(scan.spacing, 10.0)
        assert np.allclose(
            (scan.affine @ [*(np.array(scan.image.shape) - 1) / 2, 1])[:3], coarse(3).frame.centre
        )

    def test_a_fit_is_kept_until_something_changes(self, tmp_path: Path) -> None:
        options = BodyPartOptions(steps=7)
        asked: list[Any] = []

        def fit(scans: Any, options: Any, folder: Path) -> BodyPartRegressor:
            assert folder.is_dir()
            asked.append((len(scans), options))
            network = SliceRegressor()
            return BodyPartRegressor(
                options, network, lowest=0.0, highest=1.0, raw_slope=0.01, raw_spread=0.001
            )

        first, record = experiment_anatomy.fitted("body_part", options, fit, range(3), tmp_path)
        again, same = experiment_anatomy.fitted("body_part", options, fit, range(3), tmp_path)
        assert asked == [(3, options)]
        assert again.to_bytes() == first.to_bytes()
        assert same["seconds"] == record["seconds"]
        assert record["parameters"] == sum(p.numel() for p in SliceRegressor().parameters())
        experiment_anatomy.fitted("body_part", BodyPartOptions(steps=8), fit, range(3), tmp_path)
        experiment_anatomy.fitted("body_part", BodyPartOptions(steps=8), fit, range(4), tmp_path)
        assert [count for count, _ in asked] == [3, 3, 4]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["body_part.json", "body_part.pt"]


class TestDocuments:
    @pytest.fixture
    def record(self) -> dict[str, Any]:
        locators = {"voxel": true_locator, "body_part": true_locator}
        location = location_errors(locators, range(2), [2, 3], 0, draw=coarse)
        slopes = {"body_part": [1.0, 2.0, 3.0]}
        rows = invariance({"body_part": true_locator}, slopes, [0], 0, pairs=TestInvariance.pairs)
        rows["body_part"]["slices of 8 mm"] = compare([None], [1.0] * 3)
        regressor: Any = FakeRegressor(1.0)
        return {
            "machine": describe_machine("cpu"),
            "fits": {"body_part": {"seconds": 90.0, "parameters": 1234}},
            "location": location,
            "invariance": rows,
            "monotonicity": {"body_part": monotonicity(regressor, [0], 0, draw=coarse)},
        }

    def test_tables_and_picture(self, record: dict[str, Any], tmp_path: Path) -> None:
        experiment_anatomy.write_report(record, tmp_path)
        text = (tmp_path / "anatomy.md").read_text()
        zero = "0.0 (0.0)"
        assert f"| `body_part` | {zero} | {zero} | {zero} | {zero} | {zero} | 0 |" in text
        assert "| best line |" in text
        assert "| `body_part` | slices of 8 mm | - | - | - | - | 0 of 1 |" in text
        assert "`body_part` in 1.5 minutes (1,234 parameters)" in text
        assert "| `body_part` | 1 of 1 | 1 | 1.000 (1.000) | 100% |" in text
        assert (tmp_path / "location_error.png").exists()
