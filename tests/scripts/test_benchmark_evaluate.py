"""The benchmark of the evaluation: what it measures and writes."""

import numpy as np
import pytest

from scripts.benchmarks import evaluate as benchmark


def test_ellipsoid() -> None:
    mask = benchmark.ellipsoid((20, 30, 40), 0.25)
    assert mask.sum() == pytest.approx(4 / 3 * np.pi * 5 * 7.5 * 10, rel=0.05)
    assert np.array_equal(benchmark.ellipsoid((20, 30, 40), 0.25, 2), np.roll(mask, 2, (0, 1, 2)))


def test_rows_and_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SIZES", {"organ": 0.2})
    (row,) = benchmark.measure((20, 24, 24), 2)
    assert [len(row[name]) for name in ("cropped", "whole", "all")] == [2, 2, 2]
    assert f"| {row['values'][0]:.2f} |" in benchmark.rows_table([row]).splitlines()[-1]
