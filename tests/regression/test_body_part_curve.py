import numpy as np
import pytest

from nnunet_locctx.geometry import Array
from nnunet_locctx.location import BodyPartCurve, Measurement
from nnunet_locctx.regression.body_part.curve import make_curve, smooth

UP = (0.0, 0.0, 1.0)
SLOPE = 0.12
PLACES = np.arange(-300.0, 300.0, 4.0)
TRUE = 50 + SLOPE * PLACES


def curve(scores: Array, places: Array = PLACES) -> BodyPartCurve:
    return make_curve(UP, places, scores, expected_slope=SLOPE)


def test_line_is_kept_up_to_the_ends() -> None:
    result = curve(TRUE)
    np.testing.assert_allclose(result.scores, TRUE, atol=1e-9)
    assert result.slope == pytest.approx(SLOPE)


def test_noise_is_smoothed_and_the_curve_does_not_fall() -> None:
    noisy = TRUE + np.random.default_rng(0).normal(0, 3, len(TRUE))
    result = curve(noisy)
    assert (np.diff(noisy) < 0).any()
    assert (np.diff(result.scores) >= 0).all()
    assert np.abs(result.scores - TRUE).mean() < 0.5 * np.abs(noisy - TRUE).mean()


def test_bend_of_the_body_is_kept() -> None:
    bent = TRUE + 4 * np.sin(PLACES / 120)
    np.testing.assert_allclose(curve(bent).scores, bent, atol=0.3)


def test_continues_without_a_jump() -> None:
    bent = TRUE + 4 * np.sin(PLACES / 120)
    result = curve(bent)
    just_outside = result.score_at([PLACES[0] - 1e-6, PLACES[-1] + 1e-6])
    np.testing.assert_allclose(just_outside, result.scores[[0, -1]], atol=1e-5)
    beyond = result.score_at(PLACES[-1] + 100)
    assert float(beyond) == pytest.approx(result.scores[-1] + 100 * result.slope)


def test_short_scans_continue_closer_to_the_expected_slope() -> None:
    short, long = (curve(50 + 1.2 * SLOPE * places, places).slope for places in (PLACES[:30], PLACES))
    assert SLOPE < short < 1.1 * SLOPE < long < 1.2 * SLOPE


def test_flat_end_of_a_short_scan_is_no_reason_to_reject_it() -> None:
    """Seen on phantoms of the head: steep in the neck, level at the vertex, where the model knows little."""
    places = np.arange(0.0, 252.0, 4.0)
    scores = np.minimum(66 + 0.2 * places, 96 + 0.03 * (places - 150))
    result = curve(scores, places)
    assert result.problem == ""
    assert "implausible" in curve(scores[places < 180], places[places < 180]).problem
    assert result.slope < 0.15


def test_slices_without_a_score_are_bridged() -> None:
    holes = TRUE.copy()
    holes[[0, 1, 40, 41, 42, -1]] = np.nan
    result = curve(holes)
    assert len(result.positions) == len(PLACES)
    np.testing.assert_allclose(result.scores, TRUE, atol=1e-6)


@pytest.mark.parametrize("end", ["lower", "upper"])
def test_tail_with_wild_scores_is_replaced_by_the_continuation(end: str) -> None:
    wild = TRUE.copy()
    wild[:15] = 70 if end == "lower" else wild[:15]
    wild[-15:] = 20 if end == "upper" else wild[-15:]
    np.testing.assert_allclose(curve(wild).scores, TRUE, atol=0.1)


def test_falling_tail_beyond_the_scale_is_replaced_by_the_continuation() -> None:
    places = np.arange(-600.0, 600.0, 4.0)
    true = 50 + SLOPE * places
    folded = np.where(true > 104, 208 - true, true)
    result = make_curve(UP, places, folded, expected_slope=SLOPE)
    np.testing.assert_allclose(result.scores, true, atol=2)


def test_scores_all_over_the_place_are_no_curve() -> None:
    result = curve(np.array([0.0, 90.0, 10.0, 80.0, 30.0]), np.arange(5) * 100.0)
    assert "far off a line" in result.problem or "implausible" in result.problem


def test_flat_tail_beyond_the_scale_rises_again() -> None:
    places = np.arange(-600.0, 600.0, 4.0)
    true = 50 + SLOPE * places
    result = make_curve(UP, places, np.clip(true, -4, 104), expected_slope=SLOPE)
    np.testing.assert_allclose(result.scores, true, atol=3)
    assert result.scores[-1] > 115


def test_outlier_in_the_middle_changes_its_surroundings_only() -> None:
    spoilt = TRUE.copy()
    spoilt[70] = 0
    result = curve(spoilt)
    far = np.abs(PLACES - PLACES[70]) > 60
    np.testing.assert_allclose(result.scores[far], TRUE[far], atol=0.01)


def test_slices_may_come_in_any_order() -> None:
    order = np.random.default_rng(0).permutation(len(PLACES))
    edges = np.tile(PLACES[:, None], (1, 4))
    result = make_curve(UP, PLACES[order], TRUE[order], expected_slope=SLOPE, cross_section=edges[order])
    np.testing.assert_allclose(result.scores, TRUE, atol=1e-9)
    assert result.cross_section is not None
    np.testing.assert_array_equal(result.cross_section[:, 0], PLACES)


def test_reversed_scan_is_reported() -> None:
    assert "reversed" in curve(TRUE[::-1]).problem


@pytest.mark.parametrize("factor", [0.05, 0.5, 1.6, -3.0])
def test_implausible_slope_is_reported(factor: float) -> None:
    assert "implausible slope" in curve(50 + factor * SLOPE * PLACES).problem


def test_equal_scores_are_no_curve() -> None:
    assert "implausible slope" in curve(np.full(len(PLACES), 50.0)).problem


def test_short_scan_may_deviate_more() -> None:
    places = PLACES[:20]  # 76 mm
    assert curve(50 + 1.5 * SLOPE * places, places).problem == ""
    assert "implausible" in curve(50 + 1.5 * SLOPE * PLACES).problem


def test_slab_takes_the_expected_slope() -> None:
    places = np.arange(0.0, 40.0, 4.0)
    noisy = 30 + SLOPE * places + np.random.default_rng(1).normal(0, 3, len(places))
    result = curve(noisy, places)
    np.testing.assert_allclose(np.diff(result.scores), SLOPE * 4)
    assert abs(result.scores[0] - 30) < 3


@pytest.mark.parametrize("scores", [[50.0], [np.nan] * 100, [50.0, 51.0, 52.0, np.nan, np.nan]])
def test_too_few_scores_are_reported(scores: list[float]) -> None:
    result = curve(np.array(scores), np.arange(len(scores)) * 4.0)
    assert "slices have a score, at least 4" in result.problem


def test_unusable_curve_can_be_stored() -> None:
    problem = curve(TRUE[::-1]).problem
    assert Measurement.from_bytes(curve(TRUE[::-1]).to_bytes()).problem == problem


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": TRUE[:-1]}, "two lists of one length"),
        ({"positions": np.zeros(len(TRUE))}, "all different"),
        ({"positions": np.where(np.arange(len(TRUE)) == 3, np.nan, PLACES)}, "finite"),
        ({"expected_slope": 0.0}, "above 0 points per mm, got 0.0"),
        ({"expected_slope": np.nan}, "above 0"),
        ({"direction": (0, 0, 0)}, "not all 0"),
        ({"direction": (0, np.inf, 0)}, "three finite numbers"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    arguments = {"direction": UP, "positions": PLACES, "scores": TRUE, "expected_slope": SLOPE, **change}
    with pytest.raises(ValueError, match=message):
        make_curve(**arguments)  # type: ignore[arg-type]


def test_smoothing_keeps_lines_on_uneven_positions() -> None:
    places = np.cumsum(np.random.default_rng(0).uniform(1, 9, 50))
    np.testing.assert_allclose(smooth(places, 3 - 2 * places), 3 - 2 * places)
