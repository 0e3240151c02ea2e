import dataclasses
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import BodyPartCurve, Measurement
from nnunet_locctx.regression import checkpoint
from nnunet_locctx.regression.body_part import (
    BodyPartOptions,
    BodyPartRegressor,
    anchored_scale,
    fit,
    fit_body_part,
)
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.checkpoint import CHECKPOINT
from tests.regression.body_part_scans import HEIGHT, OPTIONS, SPACING, frame_of, small_scan, small_scans

QUICK = dataclasses.replace(OPTIONS, steps=6, evaluate_every=2, volumes=2)


@pytest.fixture(autouse=True, scope="module")
def few_validation_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "VALIDATION_VOLUMES", 4)
        yield


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> BodyPartRegressor:
    return fit_body_part(small_scans(), OPTIONS, tmp_path_factory.mktemp("fit"), progress=False)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> BodyPartRegressor:
    """What comes out of three scans and the quick options."""
    return fit_body_part(small_scans(3), QUICK, tmp_path_factory.mktemp("quick"), progress=False)


@pytest.fixture(scope="module")
def whole() -> CanonicalScan:
    """A patient that was not fitted on, from end to end."""
    return small_scan(50)


def levels_of(scan: CanonicalScan, seed: int) -> np.ndarray:
    return scan.places(2) - 100 * seed


def test_unseen_scan_is_scored_by_its_level(fitted: BodyPartRegressor, whole: CanonicalScan) -> None:
    curve = fitted.measure(whole.image, frame_of(whole))
    assert curve.problem == ""
    np.testing.assert_allclose(curve.positions, whole.places(2))
    assert np.corrcoef(curve.scores, levels_of(whole, 50))[0, 1] > 0.98
    lower, upper = curve.score_at(np.array([0.1, 0.9]) * HEIGHT + 5000)
    assert lower < 25
    assert upper > 75


def test_score_does_not_depend_on_the_field_of_view(fitted: BodyPartRegressor, whole: CanonicalScan) -> None:
    part = small_scan(50, lowest=160, highest=400, shift=(3, 4))
    curves = [fitted.measure(scan.image, frame_of(scan)) for scan in (whole, part)]
    places = curves[1].positions
    # the parts' noise differs
    np.testing.assert_allclose(curves[1].scores, curves[0].score_at(places), atol=4)


def test_score_does_not_depend_on_storage(fitted: BodyPartRegressor, whole: CanonicalScan) -> None:
    frame = frame_of(whole)
    stored = np.ascontiguousarray(whole.image[:, ::-1, ::-1].transpose(2, 0, 1))
    affine = frame.affine_lps.copy()
    affine[:3, 3] += affine[:3, 1] * (whole.image.shape[1] - 1) + affine[:3, 2] * (whole.image.shape[2] - 1)
    affine[:3, 1:3] *= -1
    affine[:, :3] = affine[:, [2, 0, 1]]
    shape = stored.shape
    curves = [
        fitted.measure(whole.image, frame),
        fitted.measure(stored, Frame.from_affine((shape[0], shape[1], shape[2]), affine, "LPS")),
    ]
    np.testing.assert_allclose(curves[1].positions, curves[0].positions)
    np.testing.assert_allclose(curves[1].scores, curves[0].scores, atol=0.2)


def test_cross_section_comes_with_the_curve(fitted: BodyPartRegressor, whole: CanonicalScan) -> None:
    curve = fitted.measure(whole.image, frame_of(whole))
    assert curve.cross_section is not None
    width = curve.cross_section[:, 1] - curve.cross_section[:, 0]
    assert width[-1] - width[0] > 80  # the cone grows by 133 to 147 mm


def test_scores_of_slices_are_on_the_scale(fitted: BodyPartRegressor, whole: CanonicalScan) -> None:
    positions, scores = fitted.scores(whole)
    np.testing.assert_allclose(positions, whole.places(2))
    curve = fitted.measure(whole.image, frame_of(whole))
    assert np.abs(scores - curve.scores).mean() < 3


def test_slices_of_air_have_no_score(fitted: BodyPartRegressor, whole: CanonicalScan) -> None:
    image = whole.image.copy()
    image[:, :, -10:] = -1000
    _, scores = fitted.scores(CanonicalScan(image, whole.inside, whole.affine))
    assert np.isnan(scores[-9:]).all()
    assert np.isfinite(scores[:-11]).all()


def test_scan_of_another_spacing_is_refused(fitted: BodyPartRegressor, whole: CanonicalScan) -> None:
    affine = whole.affine.copy()
    affine[:3, :3] /= 2
    with pytest.raises(ValueError, match="the regressor needs 8 mm"):
        fitted.scores(CanonicalScan(whole.image, whole.inside, affine))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((40, 40, 30), -1000.0), "air only"),
        (np.zeros((40, 40, 30)), "air only"),
        (np.full((40, 40, 1), 40.0), "single axial slice"),
        (np.full((40, 40, 30), np.nan), "NaN"),
    ],
)
def test_what_cannot_be_measured_says_why(fitted: BodyPartRegressor, image: np.ndarray, message: str) -> None:
    shape = image.shape
    frame = Frame.from_affine(
        (shape[0], shape[1], shape[2]), np.diag([-SPACING, -SPACING, SPACING, 1]), "LPS"
    )
    assert message in fitted.measure(image, frame).problem


def test_upside_down_scan_is_reported(fitted: BodyPartRegressor, whole: CanonicalScan) -> None:
    problem = fitted.measure(whole.image[:, :, ::-1], frame_of(whole)).problem
    assert "reversed" in problem or "implausible" in problem


def test_two_slices_are_too_few(fitted: BodyPartRegressor, whole: CanonicalScan) -> None:
    slab = CanonicalScan(whole.image[:, :, 20:22], whole.inside[:, :, 20:22], whole.affine)
    assert "2 of 2 slices have a score, at least 4" in fitted.measure(slab.image, frame_of(slab)).problem


def test_stored_regressor_measures_the_same(fitted: BodyPartRegressor, whole: CanonicalScan) -> None:
    again = BodyPartRegressor.from_state(fitted.state())
    assert again.to_bytes() == fitted.to_bytes()
    pickled = pickle.loads(pickle.dumps(fitted))
    curves = [r.measure(whole.image, frame_of(whole)) for r in (fitted, again, pickled)]
    for curve in curves[1:]:
        np.testing.assert_array_equal(curve.scores, curves[0].scores)
    assert isinstance(Measurement.from_bytes(curves[0].to_bytes()), BodyPartCurve)


def test_state_is_plain(fitted: BodyPartRegressor, tmp_path: Path) -> None:
    torch.save(fitted.state(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert BodyPartRegressor.from_state(loaded).options == fitted.options


def test_same_seed_gives_equal_bytes(tmp_path: Path, quick: BodyPartRegressor) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = fit_body_part(small_scans(3), QUICK, tmp_path / "b", progress=False)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is not used
    assert again.to_bytes() == quick.to_bytes()
    other = fit_body_part(small_scans(3), dataclasses.replace(QUICK, seed=1), tmp_path / "c", progress=False)
    assert other.to_bytes() != quick.to_bytes()


@pytest.mark.parametrize(("interrupted_at", "seconds", "resumed_at"), [(3, 60.0, 2), (3, 0.0, 3)])
def test_interrupted_fit_ends_as_an_uninterrupted_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupted_at: int,
    seconds: float,
    resumed_at: int,
    capsys: pytest.CaptureFixture[str],
    quick: BodyPartRegressor,
) -> None:
    """From the last look at the validation scans, or where a minute has passed."""
    scans = small_scans(3)
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", seconds)
    step = fit._train_step

    def interrupt(state: Any, *rest: Any) -> None:
        if state.step == interrupted_at:
            raise KeyboardInterrupt
        step(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(fit, "_train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit_body_part(scans, QUICK, tmp_path / "b", progress=False)
    resumed = fit_body_part(scans, QUICK, tmp_path / "b", progress=False)
    assert resumed.to_bytes() == quick.to_bytes()
    assert (f"continuing at step {resumed_at} of 6" in capsys.readouterr().out) == (resumed_at > 0)
    assert [path.name for path in (tmp_path / "b").iterdir()] == [CHECKPOINT]


def test_finished_fit_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit_body_part(small_scans(3), QUICK, tmp_path, progress=False)
    monkeypatch.setattr(fit, "_train_step", pytest.fail)
    assert fit_body_part(small_scans(3), QUICK, tmp_path, progress=False).to_bytes() == first.to_bytes()


@pytest.mark.parametrize("what", ["options", "scans", "content", "damage"])
def test_checkpoint_of_something_else_is_not_continued(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str], quick: BodyPartRegressor
) -> None:
    scans, options = small_scans(3), QUICK
    fit_body_part(scans, options, tmp_path, progress=False)
    if what == "options":
        options = dataclasses.replace(QUICK, alpha=2.0)
    elif what == "scans":
        scans.pop("scan_0")
    elif what == "content":  # another scan of the same name
        scans["scan_0"] = dataclasses.replace(scans["scan_0"], image=scans["scan_0"].image + 50)
    else:
        path = tmp_path / CHECKPOINT
        path.write_bytes(path.read_bytes()[:1000])
    again = fit_body_part(scans, options, tmp_path, progress=False)
    assert "starting again" in capsys.readouterr().out
    fresh = quick if what == "damage" else fit_body_part(scans, options, tmp_path / "b", progress=False)
    assert again.to_bytes() == fresh.to_bytes()


def test_stops_early_and_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.5, 0.3, 0.4, 0.6, 0.7])
    kept: dict[float, float] = {}
    evaluate = fit._evaluate

    def worse_and_worse(state: fit.Progress, *rest: Any) -> None:
        value = next(losses)
        kept[value] = float(state.network.score.bias.detach())
        monkeypatch.setattr(fit, "_loss", lambda *_: torch.tensor(value))
        with monkeypatch.context() as patch:
            patch.setattr(fit, "_loss", lambda *_: torch.tensor(value))
            evaluate(state, *rest)
        monkeypatch.setattr(fit, "_loss", loss)

    loss = fit._loss
    monkeypatch.setattr(fit, "_evaluate", worse_and_worse)
    options = dataclasses.replace(QUICK, steps=100, patience=3)
    regressor = fit_body_part(small_scans(3), options, tmp_path, progress=False)
    assert list(kept) == [0.5, 0.3, 0.4, 0.6, 0.7]  # three looks after the best
    assert float(regressor.network.score.bias.detach()) == kept[0.3]


def test_few_scans_are_used_for_both_and_many_are_split() -> None:
    few = [f"scan_{n}" for n in range(4)]
    assert fit.split(few, OPTIONS) == (few, few)
    many = [f"scan_{n:02d}" for n in range(20)]
    training_names, validation = fit.split(many, OPTIONS)
    assert len(validation) == 4
    assert sorted(training_names + validation) == many
    assert fit.split(many, OPTIONS) == (training_names, validation)
    assert fit.split(many, dataclasses.replace(OPTIONS, seed=1)) != (training_names, validation)


def test_scans_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    scans = small_scans(2)
    empty = scans["scan_0"]
    scans["empty"] = CanonicalScan(np.full_like(empty.image, -1000), empty.inside, empty.affine)
    with pytest.warns(UserWarning, match="empty is left out: 0 of 40 slices show a body, 4 are needed"):
        fit_body_part(scans, QUICK, tmp_path, progress=False)
    del scans["scan_1"]
    with pytest.raises(ValueError, match=r"2 scans or more, 1 of 2 can be used \(empty: 0 of 40 slices"):
        fit_body_part(scans, QUICK, tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()


def test_scans_of_another_spacing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scan_0 has voxels of .* the options say 4 mm"):
        fit_body_part(small_scans(2), dataclasses.replace(QUICK, spacing=4.0), tmp_path, progress=False)


def test_known_scores_are_learned_on_their_scale(tmp_path: Path, whole: CanonicalScan) -> None:
    scans = small_scans(4)
    targets: dict[str, Any] = {}
    for seed, (name, scan) in enumerate(scans.items()):
        places = scan.places(2)
        scores = 20 + 60 * levels_of(scan, seed) / HEIGHT
        targets[name] = BodyPartCurve(np.array([0.0, 0.0, 1.0]), places, scores, 60 / HEIGHT)
    targets["scan_1"] = targets["scan_1"].score_at
    targets["scan_3"] = BodyPartCurve.unusable("reversed")
    longer = dataclasses.replace(OPTIONS, steps=60, volumes=8)
    with pytest.warns(UserWarning, match="scan_3 is left out: its scores: reversed"):
        regressor = fit_body_part(scans, longer, tmp_path, progress=False, targets=targets)
    curve = regressor.measure(whole.image, frame_of(whole))
    assert curve.problem == ""
    expected = 20 + 60 * levels_of(whole, 50) / HEIGHT
    assert np.abs(curve.scores - expected).mean() < 5
    assert regressor.expected_slope == pytest.approx(60 / HEIGHT, rel=0.2)


def test_scan_without_known_scores_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scan_0: no known scores; scan_1: no known scores"):
        fit_body_part(small_scans(2), QUICK, tmp_path, progress=False, targets={})


def test_anchors_define_the_scale(fitted: BodyPartRegressor) -> None:
    scans = small_scans()
    low = {f"scan_{seed}": 180.0 + 100 * seed for seed in range(6)}
    high = {"scan_0": 300.0, "scan_4": 300.0 + 400}
    anchored = anchored_scale(fitted, scans, low, high)
    scores = []
    for name, height in low.items():
        positions, values = anchored.scores(scans[name])
        scores.append(np.interp(height, positions, values))
    assert np.mean(scores) == pytest.approx(0, abs=15)  # 100 points are 120 mm here
    assert anchored.expected_slope > 2 * fitted.expected_slope
    assert anchored.raw_slope == fitted.raw_slope
    curve = anchored.measure(scans["scan_4"].image, frame_of(scans["scan_4"]))
    assert curve.score_at(700) == pytest.approx(100, abs=15)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ({}, {"scan_0": 300.0}, "lower level of the scale is in none"),
        ({"scan_0": 200.0}, {}, "upper level of the scale is in none"),
        ({"scan_0": 300.0}, {"scan_0": 100.0}, "right order"),
        ({"scan_0": 2000.0}, {"scan_0": 300.0}, "lower level of scan_0 lies at 2000 mm"),
        ({"other": 200.0}, {"scan_0": 300.0}, "'other', which is none of the scans"),
    ],
)
def test_bad_anchors(
    fitted: BodyPartRegressor, low: dict[str, float], high: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        anchored_scale(fitted, small_scans(), low, high)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "pet"}, "modality must be one of ct, mr"),
        ({"loss": "l2"}, "loss must be one of heuristic, classification; got 'l2'"),
        ({"alpha": 0.0}, "alpha must be a positive number, got 0.0"),
        ({"spacing": float("nan")}, "spacing"),
        ({"side": 32}, "side must be an integer >= 80, got 32"),
        ({"slices": 1}, "slices must be an integer >= 2, got 1"),
        ({"steps": 2.5}, "steps must be an integer >= 1, got 2.5"),
        ({"window": (100.0, -100.0)}, "two rising numbers"),
        ({"validation_share": 1.0}, "between 0 and 1, got 1.0"),
    ],
)
def test_bad_options(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BodyPartOptions(**change)


def test_classification_loss_learns_the_order(tmp_path: Path, whole: CanonicalScan) -> None:
    options = dataclasses.replace(OPTIONS, loss="classification")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regressor = fit_body_part(small_scans(), options, tmp_path, progress=False)
    _, scores = regressor.scores(whole)
    assert np.corrcoef(scores, levels_of(whole, 50))[0, 1] > 0.9
