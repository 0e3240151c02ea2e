"""The curves of `locctx robustness`: labels that can be read."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from nnunet_locctx.evaluation.robustness_figure import draw_curves, spread


def points(models: int, amounts: tuple[float, ...], dice: float) -> pd.DataFrame:
    names = [f"model {number}" for number in range(models)]
    index = pd.MultiIndex.from_product(
        [("shift", "noise"), names, ("axial", "all"), amounts], names=["kind", "model", "axes", "percent"]
    )
    return pd.DataFrame({"dice": dice}, index=index).reset_index()


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


def test_an_unknown_location_stands_at_no_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    rows = points(1, (0.0, 10.0, 50.0), 0.5).replace({"kind": {"noise": "unknown"}})
    draw_curves(rows)
    shift, unknown = drawn[0].axes
    assert [text.get_text() for text in shift.get_xticklabels()] == ["0", "10", "50"]
    assert [text.get_text() for text in unknown.get_xticklabels()] == ["true", "unknown"]
    assert len(unknown.lines[0].get_ydata()) == 2
