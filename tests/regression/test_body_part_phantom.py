"""The figures that body part regression is for: held-out patients in random fields of view."""

import numpy as np
import pytest

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import BodyPartCurve
from nnunet_locctx.phantoms.whole_body import WholeBodyCase, whole_body_case
from nnunet_locctx.regression.body_part import BodyPartOptions, BodyPartRegressor, fit_body_part
from nnunet_locctx.regression.canonical import to_canonical

pytestmark = pytest.mark.slow

TRAINING, HELD_OUT = range(20), range(20, 30)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> BodyPartRegressor:
    options = BodyPartOptions()
    cases = {f"case_{n:02d}": whole_body_case(n) for n in TRAINING}
    scans = {
        name: to_canonical(case.images[0].astype(np.float32), case.frame, options.spacing)
        for name, case in cases.items()
    }
    return fit_body_part(scans, options, tmp_path_factory.mktemp("phantom"), progress=False)


def measured(regressor: BodyPartRegressor, case: WholeBodyCase) -> BodyPartCurve:
    curve = regressor.measure(case.images[0].astype(np.float32), case.frame)
    assert curve.problem == ""
    return curve


def heights(case: WholeBodyCase, positions: Array) -> Array:
    """True atlas heights (K,) of places in the middle of the scan."""
    places = np.tile(case.frame.centre, (len(positions), 1))
    places[:, 2] = positions
    return case.body.to_atlas(places)[:, 2]


def both_parts(case: WholeBodyCase) -> list[tuple[np.ndarray, Frame]]:
    """The scan's lower and upper 70 %, in either order."""
    frame, axis = case.frame, case.frame.array_axes[2]
    count = frame.shape[axis]
    parts = []
    for first, last in ((0, round(0.7 * count)), (round(0.3 * count), count)):
        where = [slice(None)] * 3
        where[axis] = slice(first, last)
        image = case.images[0][tuple(where)].astype(np.float32)
        affine = frame.affine_lps.copy()
        affine[:3, 3] += first * affine[:3, axis]
        shape = image.shape
        parts.append((image, Frame.from_affine((shape[0], shape[1], shape[2]), affine, "LPS")))
    return parts


def test_levels_of_held_out_patients_are_found(fitted: BodyPartRegressor) -> None:
    def scores_and_heights(numbers: range) -> tuple[Array, Array]:
        cases = [whole_body_case(n) for n in numbers]
        curves = [measured(fitted, case) for case in cases]
        true = [heights(case, curve.positions) for case, curve in zip(cases, curves, strict=True)]
        return np.concatenate([curve.scores for curve in curves]), np.concatenate(true)

    line = np.polyfit(*scores_and_heights(TRAINING), 1)
    scores, true = scores_and_heights(HELD_OUT)
    errors = np.abs(np.polyval(line, scores) - true)
    assert np.median(errors) <= 15
    assert np.percentile(errors, 90) <= 40


def test_score_does_not_depend_on_the_field_of_view(fitted: BodyPartRegressor) -> None:
    differences = []
    for number in HELD_OUT:
        case = whole_body_case(number)
        if case.fraction < 0.5:
            continue
        parts = [fitted.measure(image, frame) for image, frame in both_parts(case)]
        assert [part.problem for part in parts] == ["", ""]
        lower, upper = sorted(parts, key=lambda part: part.positions[0])
        shared = lower.positions[lower.positions >= upper.positions[0]]
        assert len(shared) > 20
        differences.append(np.abs(lower.score_at(shared) - upper.score_at(shared)))
    assert len(differences) > 3
    assert np.percentile(np.concatenate(differences), 95) <= 2


def test_score_does_not_depend_on_orientation_and_voxel_size(fitted: BodyPartRegressor) -> None:
    arguments = {"crop": (0.2, 0.8)}
    usual = measured(fitted, whole_body_case(25, spacing=3.0, orientation="LPS", **arguments))  # type: ignore[arg-type]
    for spacing, orientation in ((2.0, "ASR"), (5.0, "PIR"), (8.0, "RAI")):
        case = whole_body_case(25, spacing=spacing, orientation=orientation, **arguments)  # type: ignore[arg-type]
        curve = measured(fitted, case)
        inside = usual.positions[5:-5]
        assert np.median(np.abs(curve.score_at(inside) - usual.score_at(inside))) <= 2
