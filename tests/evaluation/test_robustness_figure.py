"""The curves of `locctx robustness`: labels that can be read."""

from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_locctx.evaluation.robustness_figure import draw_curves, spread


def points(models: int, amounts: tuple[float, ...], dice: float = 0.9) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(model=f"model {number}", kind=kind, axes=axes, percent=amount, dice=dice)
        for kind in ("shift", "noise")
        for number in range(models)
        for axes in ("axial", "all")
        for amount in amounts
    ]


def test_labels_that_are_far_apart_stay() -> None:
    assert spread([0.9, 0.1, 0.5], 0.1, 0, 1) == pytest.approx([0.9, 0.1, 0.5])


def test_labels_of_one_place_part_to_both_sides() -> None:
    assert spread([0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.45, 0.55])
    assert spread([0.52, 0.5, 0.9], 0.1, 0, 1) == pytest.approx([0.56, 0.46, 0.9])


def test_labels_stay_in_the_panel() -> None:
    assert spread([0.0, 0.0, 0.01], 0.1, 0, 1) == pytest.approx([0.0, 0.1, 0.2])
    assert spread([1.0, 1.0, 0.99], 0.1, 0, 1) == pytest.approx([0.9, 1.0, 0.8])
    # more labels than there is room for keep their distance
    assert np.diff(spread([0.5] * 20, 0.1, 0, 1)) == pytest.approx([0.1] * 19)


@pytest.mark.parametrize(("models", "amounts"), [(1, (0.0,)), (9, (0.0, 1.0, 5.0, 100.0))])
@pytest.mark.parametrize("dice", [0.0, 1.0, float("nan")])
def test_any_number_of_curves_is_drawn(models: int, amounts: tuple[float, ...], dice: float) -> None:
    picture = draw_curves(points(models, amounts, dice))
    assert picture.startswith(b"\x89PNG")
