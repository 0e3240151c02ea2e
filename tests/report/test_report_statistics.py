"""Intervals, tests and their correction against values computed otherwise."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_locctx.report import statistics
from nnunet_locctx.report.statistics import foreground, gain_interval, holm, mean_interval, signed_rank


def test_holm_on_a_worked_example() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 -> times 4, 3, 2, 1 -> 0.02, 0.03, 0.06, max(0.06, 0.04)
    assert list(holm(pd.Series([0.01, 0.04, 0.03, 0.005]))) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_counts_only_what_was_tested() -> None:
    corrected = holm(pd.Series([0.02, math.nan, 0.6]))
    assert corrected[0] == pytest.approx(0.04)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.6)
    assert holm(pd.Series([0.6, 0.7]))[1] == 1.0


def test_wilcoxon_is_scipys_without_pairs_that_lack_a_value() -> None:
    rng = np.random.default_rng(0)
    values, baseline = rng.normal(0.82, 0.05, 14), rng.normal(0.8, 0.05, 14)
    values[3], baseline[8] = np.nan, np.nan
    keep = [place for place in range(14) if place not in (3, 8)]
    expected = stats.wilcoxon(values[keep], baseline[keep])
    result = signed_rank(values, baseline)
    assert (result.better + result.worse, result.reason) == (12, "")
    assert result.p == pytest.approx(float(expected.pvalue), rel=1e-12)


def test_wilcoxon_says_why_it_was_not_done() -> None:
    values = np.linspace(0.5, 0.9, 5)
    assert signed_rank(values + 0.1, values).reason == "not tested: n = 5"
    assert signed_rank(values, values).reason == "not tested: equal in all 5 cases"
    # six cases, of which five differ
    six = np.linspace(0.5, 0.9, 6)
    moved = six + np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.0])
    assert signed_rank(moved, six).reason == "not tested: n = 5"
    assert math.isnan(signed_rank(moved, six).p)


def test_foreground_is_the_mean_of_class_means() -> None:
    # class means 0.6 and 0.9; the mean of all four numbers would be 0.7
    values = np.array([[0.4, np.nan], [0.6, 0.9], [0.8, np.nan]])
    assert float(foreground(values)) == pytest.approx(0.75)
    assert math.isnan(float(foreground(np.full((2, 2), np.nan))))


def test_interval_of_one_class_is_scipys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 2000)
    sample = np.random.default_rng(1).normal(0.8, 0.1, 30)
    low, high = mean_interval(sample[:, None])
    expected = stats.bootstrap(
        (sample,), np.mean, n_resamples=2000, method="BCa", random_state=5
    ).confidence_interval
    assert low == pytest.approx(float(expected.low), abs=0.004)
    assert high == pytest.approx(float(expected.high), abs=0.004)
    assert low < sample.mean() < high


def test_interval_of_a_gain_draws_both_methods_together() -> None:
    rng = np.random.default_rng(2)
    baseline = rng.normal(0.7, 0.15, (20, 3))
    values = baseline + 0.05 + rng.normal(0, 0.001, (20, 3))
    low, high = gain_interval(values, baseline)
    # cases differ by 0.15, gains by 0.001: drawn apart, the interval would be 0.1 wide
    assert high - low < 0.003
    assert low < 0.05 < high


def test_intervals_of_too_few_or_equal_cases() -> None:
    assert np.isnan(mean_interval(np.full((4, 2), 0.5))).all()
    assert mean_interval(np.full((6, 2), 0.5)) == (0.5, 0.5)
    lost = np.full((6, 1), 0.5)
    lost[:2] = np.nan  # four are left
    assert np.isnan(mean_interval(lost)).all()


def test_batches_do_not_change_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random((12, 2))
    whole = mean_interval(values)
    monkeypatch.setattr(statistics, "BATCH_NUMBERS", 7 * values.size)
    assert mean_interval(values) == whole
