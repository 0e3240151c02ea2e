"""Fitting an anatomical regressor."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_locctx.denormals import flushed
from nnunet_locctx.geometry import PATIENT_FROM_LPS, Frame
from nnunet_locctx.location import AnatomicalMap
from nnunet_locctx.regression import checkpoint
from nnunet_locctx.regression.anatomical import AnatomicalOptions, AnatomicalRegressor, fit, fit_anatomical
from nnunet_locctx.regression.anatomical.sampling import ScanSample
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.registry import load_regressor
from tests.anatomical_cases import SPACING, anatomy, scan, scans

TINY = AnatomicalOptions(
    spacing=SPACING,
    steps=6,
    scans_per_step=2,
    pairs_per_scan=1,
    crop=(16, 16, 16),
    paired_points=20,
    body_points=10,
    background_points=10,
    checkpoint_every=2,
    widths=(4, 8),
    depths=(1, 1),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AnatomicalRegressor:
    """What comes out of five scans and the tiny options."""
    return fit_anatomical(scans(5), TINY, tmp_path_factory.mktemp("whole"), progress=False)


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path, whole: AnatomicalRegressor) -> None:
    torch.rand(5)  # the global generator plays no part
    again = fit_anatomical(scans(5), TINY, tmp_path / "b", progress=False)
    assert whole.to_bytes() == again.to_bytes()
    other = fit_anatomical(scans(5), dataclasses.replace(TINY, seed=1), tmp_path / "c", progress=False)
    assert whole.to_bytes() != other.to_bytes()


@pytest.mark.parametrize(("at", "seconds", "resumed_at"), [(5, 60.0, 4), (3, 0.0, 3)])
def test_an_interrupted_fit_goes_on_to_the_same_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    seconds: float,
    resumed_at: int,
    capsys: pytest.CaptureFixture[str],
    whole: AnatomicalRegressor,
) -> None:
    """From the last checkpoint: at an entry of the history, or where a minute has passed."""
    cases = scans(5)
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", seconds)
    with monkeypatch.context() as patch:

        def rate(step: int, options: AnatomicalOptions) -> float:
            if step == at:
                raise KeyboardInterrupt
            return learning_rate(step, options)

        learning_rate = fit.learning_rate
        patch.setattr(fit, "learning_rate", rate)
        with pytest.raises(KeyboardInterrupt):
            fit_anatomical(cases, TINY, tmp_path / "part", progress=False)
    steps: list[int] = []

    def counted(step: int, options: AnatomicalOptions) -> float:
        steps.append(step)
        return learning_rate(step, options)

    monkeypatch.setattr(fit, "learning_rate", counted)
    resumed = fit_anatomical(cases, TINY, tmp_path / "part", progress=False)
    assert steps == list(range(resumed_at, 6))
    assert resumed.to_bytes() == whole.to_bytes()
    output = capsys.readouterr().out
    assert "again" not in output
    assert (f"continuing at step {resumed_at} of 6" in output) == (resumed_at > 0)
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["checkpoint.pt"]


def test_denormals_are_flushed_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def rate(step: int, options: AnatomicalOptions) -> float:
        seen.append(flushed())
        return learning_rate(step, options)

    learning_rate = fit.learning_rate
    monkeypatch.setattr(fit, "learning_rate", rate)
    fit_anatomical(scans(2), TINY, tmp_path, progress=False)
    assert seen == [True] * TINY.steps
    assert not flushed()


def test_a_finished_fit_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = scans(3)
    first = fit_anatomical(cases, TINY, tmp_path, progress=False)
    monkeypatch.setattr(fit, "sample_loss", None)  # would fail if called
    assert fit_anatomical(cases, TINY, tmp_path, progress=False).to_bytes() == first.to_bytes()


def test_a_checkpoint_of_other_options_or_scans_or_none_at_all_restarts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = scans(3)
    changed = {**cases, "case_0": dataclasses.replace(cases["case_0"], image=cases["case_0"].image + 50)}
    fit_anatomical(cases, dataclasses.replace(TINY, length=90.0), tmp_path, progress=False)
    results = [fit_anatomical(cases, TINY, tmp_path, progress=False).to_bytes()]
    for others in (scans(4), changed):
        assert "other options or scans" in capsys.readouterr().out
        fit_anatomical(others, TINY, tmp_path, progress=False)
    assert "other options or scans" in capsys.readouterr().out
    file = tmp_path / "checkpoint.pt"
    stored = torch.load(file, weights_only=True)
    identity = {"options": dataclasses.asdict(TINY), "scans": stored["identity"]["scans"]}
    # of another version: the weights fit, the rest does not
    half = {**stored, "identity": identity, "optimiser": {}}
    for damaged in (lambda: file.write_bytes(b"half a file"), lambda: torch.save(half, file)):
        damaged()
        results.append(fit_anatomical(changed, TINY, tmp_path, progress=False).to_bytes())
        assert "cannot be read" in capsys.readouterr().out
    assert results[1] == results[2] != results[0]


def test_too_few_scans_and_scans_without_body(tmp_path: Path) -> None:
    cases = scans(2)
    air = dataclasses.replace(cases["case_0"], image=np.full_like(cases["case_0"].image, -1000))
    with pytest.raises(ValueError, match="2 or more scans, got 1"):
        fit_anatomical({"one": cases["case_0"]}, TINY, tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"enough of a body, got 1 of 2; air: 0 nodes of body were found"):
        fit_anatomical({"air": air, "one": cases["case_0"]}, TINY, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="scan air is left out of the fit: 0 nodes"):
        fit_anatomical({"air": air, **cases}, TINY, tmp_path, progress=False)


def test_scans_too_small_to_be_measured_are_refused_before_the_fit(tmp_path: Path) -> None:
    """A hippocampus at 8 mm: as many nodes as it has, and the voxel size at which there would be enough."""
    small = {name: scan((-16, -16, first), (6, 6, 8)) for name, first in [("a", -100.0), ("b", 20.0)]}
    with pytest.raises(ValueError, match=r"got 0 of 2; a: 36 nodes of body were found.*--spacing 5\.9\)"):
        fit_anatomical(small, TINY, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_scan_on_another_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the options say 5 mm"):
        fit_anatomical(scans(2), dataclasses.replace(TINY, spacing=5.0), tmp_path, progress=False)


def test_scans_smaller_than_a_crop(tmp_path: Path) -> None:
    small = {name: scan((-160, -120, first), (40, 30, 5)) for name, first in [("a", -100.0), ("b", 20.0)]}
    options = dataclasses.replace(TINY, crop=(32, 32, 32), scans_per_step=4)
    fitted = fit_anatomical(small, options, tmp_path, progress=False)
    assert np.isfinite(fitted.history["train"]).all()


def test_held_out_scans_only_watch(tmp_path: Path, whole: AnatomicalRegressor) -> None:
    """What a held-out scan looks like changes the validation loss and nothing else."""
    cases = scans(5)
    names = fit._held_out(sorted(cases), TINY)
    assert len(names) == 1
    cases[names[0]] = scan((-160, -120, -100), (40, 30, 20), 99)
    other = fit_anatomical(cases, TINY, tmp_path / "b", progress=False)
    assert other.history["train"] == whole.history["train"]
    assert other.history["validation"] != whole.history["validation"]
    for name, value in whole.state()["network"].items():
        assert torch.equal(value, other.state()["network"][name])


def test_fewer_than_five_scans_are_all_trained_on(tmp_path: Path) -> None:
    fitted = fit_anatomical(scans(4), TINY, tmp_path, progress=False)
    assert all(math.isnan(loss) for loss in fitted.history["validation"])


def test_a_loss_that_is_not_finite_ends_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "equality_term", lambda first, second: (first - second).sum() * math.nan)
    with pytest.raises(ValueError, match=r"learning rate \S+ is too high"):
        fit_anatomical(scans(2), TINY, tmp_path, progress=False)


def test_learning_rate_rises_and_falls() -> None:
    options = dataclasses.replace(TINY, steps=100, warm_up=0.1, learning_rate=2.0)
    rates = [fit.learning_rate(step, options) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[10] == pytest.approx(2.0)
    assert rates[-1] < 0.01
    assert np.all(np.diff(rates[10:]) < 0)


@pytest.mark.parametrize(("loss", "normalise"), [("paper", "length"), ("signed", "scan")])
def test_the_papers_options_are_fitted_and_stored(
    tmp_path: Path, loss: str, normalise: str, whole: AnatomicalRegressor
) -> None:
    cases = scans(5)
    options = dataclasses.replace(TINY, loss=loss, normalise=normalise)
    regressor = fit_anatomical(cases, options, tmp_path, progress=False)
    assert regressor.to_bytes() != whole.to_bytes()
    stored = load_regressor(regressor.to_bytes())
    assert isinstance(stored, AnatomicalRegressor)
    assert (stored.options.loss, stored.options.normalise) == (loss, normalise)
    one = cases["case_0"]
    measured = stored.measure(one.image, Frame.from_affine((40, 30, one.image.shape[2]), one.affine, "LPS"))
    assert isinstance(measured, AnatomicalMap)
    assert measured.problem == ""


class Truth(torch.nn.Module):
    """Gives the voxel positions that the made-up crops hold instead of intensities, as a perfect network would."""

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool3d(volume, 4)


@pytest.mark.parametrize("normalise", ["length", "scan"])
@pytest.mark.parametrize("loss", ["signed", "paper"])
def test_the_loss_of_perfect_embeddings_is_zero(loss: str, normalise: str) -> None:
    """Positions / 100 mm are read from crops at half-voxel precision; a shift between the scans costs nothing."""
    options = dataclasses.replace(TINY, loss=loss, normalise=normalise)
    generator = np.random.default_rng(0)
    places = generator.uniform(-0.7, 0.7, (2, 40, 3)).astype(np.float32)
    places[1, :20] = places[0, :20]
    positions = (places + 1) / 2 * 16 * SPACING  # a crop of 16 voxels from mm 0, voxel centres at 4, 12, ...
    centres = (np.arange(16) + 0.5) * SPACING
    crop = np.stack(np.meshgrid(centres, centres, centres, indexing="ij")).astype(np.float32)
    mean, scale = 0.0, 100.0
    if normalise == "scan":
        mean, scale = positions[0].mean(0), positions[0].std(0, ddof=1)
        mean, scale = mean[:, None, None, None], scale[:, None, None, None]
    crops = np.stack([(crop - mean) / scale] * 2).astype(np.float32)
    sample = ScanSample(crops, places, positions, 20)
    assert fit.sample_loss(Truth(), sample, options).item() == pytest.approx(0, abs=1e-5)
    mirrored = dataclasses.replace(sample, crops=-crops)
    value = fit.sample_loss(Truth(), mirrored, options).item()
    assert value == pytest.approx(0, abs=1e-5) if loss == "paper" else value > 0.1


@pytest.mark.slow
def test_coordinates_of_unseen_scans_mean_the_same_place(tmp_path: Path) -> None:
    """At least twice as close along the body as fractions of the field of view."""
    options = AnatomicalOptions(
        spacing=SPACING, steps=400, crop=(32, 24, 24), widths=(16, 24, 32), depths=(1, 1, 1)
    )
    regressor = fit_anatomical(scans(8), options, tmp_path, progress=False)
    tables = [
        np.concatenate(table) for table in zip(*[measured(regressor, n) for n in range(20, 26)], strict=True)
    ]
    coordinates, fractions, places = tables
    error = calibrated_error(coordinates, places)
    assert error[2] < 0.5 * calibrated_error(fractions, places)[2]
    assert max(error[:2]) < 15.0


def calibrated_error(coordinates: np.ndarray, places: np.ndarray) -> list[float]:
    """Median distance in mm along each axis after the best linear map of each coordinate."""
    return [
        float(np.median(np.abs(np.polyval(np.polyfit(c, p, 1), c) - p)))
        for c, p in zip(coordinates.T, places.T, strict=True)
    ]


def measured(regressor: AnatomicalRegressor, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates, fractions of the scan, and places in mm along (R, A, S) of the body's voxels in an unseen scan."""
    generator = np.random.default_rng(number)
    levels = int(generator.integers(20, 60))
    first = float(generator.uniform(-250, 250 - SPACING * levels))
    canonical: CanonicalScan = scan((-160, -120, first), (40, 30, levels), number)
    frame = Frame.from_affine((40, 30, levels), canonical.affine, "LPS")
    anatomical_map = load_regressor(regressor.to_bytes()).measure(canonical.image, frame)
    assert isinstance(anatomical_map, AnatomicalMap)
    assert anatomical_map.problem == ""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in frame.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    millimetres = frame.millimetres(index)
    places = millimetres @ PATIENT_FROM_LPS
    body = anatomy(places) > -900
    return anatomical_map.at(millimetres)[body], frame.fraction(index)[body], places[body]
