"""`nnunet_locctx.datasets.grids`: corrupted headers among sound ones, and sound datasets of every mixture."""

from dataclasses import replace

import numpy as np
import pytest

from nnunet_locctx.datasets.grids import Grid, unusual_grids


def grid(
    name: str,
    *,
    orientation: str = "LPS",
    spacing: tuple[float, float, float] = (0.8, 0.8, 5.0),
    counts: tuple[int, int, int] = (512, 512, 80),
) -> Grid:
    """`counts` and `spacing` along the patient axes; the file's axes are ordered by the orientation."""
    axes = ["LR", "PA", "SI"]
    order = [next(axis for axis, pair in enumerate(axes) if letter in pair) for letter in orientation]
    shape = tuple(counts[axis] for axis in order)
    extent = tuple(size * number for size, number in zip(spacing, counts, strict=True))
    return Grid(name, orientation, shape, spacing, extent)  # type: ignore[arg-type]


def sound(number: int, seed: int = 0) -> list[Grid]:
    """Abdominal CT as in KiTS23: slices of 0.5 to 5 mm, 30 to 1000 of them, fields of view of 280 to 500 mm."""
    random = np.random.default_rng(seed)
    cases = []
    for case in range(number):
        inside = float(random.uniform(0.55, 0.98))
        slice_mm = float(random.choice([0.5, 0.8, 1.0, 1.25, 2.0, 2.5, 3.0, 5.0]))
        length = float(random.uniform(150, 700))
        counts = (512, 512, max(20, int(length / slice_mm)))
        cases.append(grid(f"case_{case:03d}", spacing=(inside, inside, slice_mm), counts=counts))
    return cases


def kinds(cases: list[Grid]) -> set[tuple[str, str]]:
    return {(item.case, item.kind) for item in unusual_grids(cases)}


@pytest.mark.parametrize("number", [1, 4, 5, 6, 10, 30, 200])
def test_no_alarm_on_ordinary_mixtures(number: int) -> None:
    for seed in range(20):
        assert unusual_grids(sound(number, seed)) == []


def test_no_alarm_on_two_protocols() -> None:
    """A third of the scans with thin slices, all others thick ones: the median absolute deviation is 0."""
    thin = [grid(f"thin{n}", spacing=(0.7, 0.7, 0.6), counts=(512, 512, 600)) for n in range(10)]
    thick = [grid(f"thick{n}", spacing=(0.8, 0.8, 5.0), counts=(512, 512, 90)) for n in range(20)]
    assert unusual_grids(thin + thick) == []


def test_no_alarm_on_mixed_storage() -> None:
    codes = ("LPS", "RAS", "PIR", "LAS", "SRP", "RPI")
    cases = [replace(case, orientation=codes[n % 6]) for n, case in enumerate(sound(60))]
    # shape follows the file's axes, so it is rebuilt for the new orientation
    cases = [
        grid(case.name, orientation=case.orientation, spacing=case.spacing, counts=(512, 512, 100 + n))
        for n, case in enumerate(cases)
    ]
    assert unusual_grids(cases) == []


def test_no_alarm_on_isotropic_brain_scans() -> None:
    cases = [grid(f"c{n}", spacing=(1.0, 1.0, 1.0), counts=(240, 240, 155)) for n in range(30)]
    cases += [grid(f"d{n}", spacing=(1.02, 1.0, 0.99), counts=(230, 240, 150)) for n in range(3)]
    assert unusual_grids(cases) == []


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (
            {"spacing": (0.8, 5.0, 0.8), "counts": (512, 512, 80)},
            "slices",
            "Are the sizes in the right order?",
        ),
        ({"spacing": (0.8, 0.8, 40.0), "counts": (512, 512, 80)}, "extent", "3200 mm long inferior-superior"),
        ({"spacing": (800.0, 800.0, 5000.0), "counts": (512, 512, 80)}, "extent", "no scan of a patient"),
        (
            {"spacing": (0.08, 0.08, 0.5), "counts": (512, 512, 80)},
            "voxel size",
            "voxel size left-right 0.08 mm",
        ),
        ({"spacing": (1.0, 1.0, 1.0), "counts": (512, 512, 80)}, "voxel size", "may have been lost"),
        ({"spacing": (0.8, 0.8, 2.0), "counts": (64, 64, 80)}, "extent", "extent left-right 51.2 mm"),
        ({"orientation": "SPL", "counts": (512, 512, 80)}, "axes", "in the order of LPS"),
        ({"orientation": "RPS", "counts": (512, 512, 80)}, "direction", "its axes grow to RPS"),
        (
            {"spacing": (5.0, 0.8, 0.8), "counts": (80, 512, 512)},
            "slices",
            "say that the slices follow each other left-right",
        ),
    ],
)
def test_corrupted_header_is_found(bad: dict[str, object], kind: str, words: str) -> None:
    random = np.random.default_rng(1)
    cases = []
    for n in range(25):
        size = float(random.uniform(0.6, 0.95))
        slice_mm = float(random.choice([2.0, 3.0, 5.0]))
        cases.append(grid(f"good{n}", spacing=(size, size, slice_mm), counts=(512, 512, 60 + n)))
    assert unusual_grids(cases) == []
    unusual = unusual_grids([*cases, grid("bad", **bad)])  # type: ignore[arg-type]
    assert {item.case for item in unusual} == {"bad"}
    assert any(item.kind == kind and words in item.message for item in unusual)


def test_impossible_length_needs_no_other_cases() -> None:
    assert kinds([grid("c", spacing=(0.8, 5.0, 0.8))]) == {("c", "extent")}
    # without geometry nobody knows which axis runs along the patient
    assert unusual_grids([replace(grid("c", spacing=(0.8, 5.0, 0.8)), orientation="none")]) == []


def test_several_corrupted_among_many() -> None:
    """As in KiTS23: nine of 489."""
    cases = sound(480, seed=3)
    bad = [grid(f"bad{n}", spacing=(0.8, 5.0, 0.8), counts=(512, 512, 90)) for n in range(9)]
    assert {item.case for item in unusual_grids([*cases, *bad])} == {case.name for case in bad}
