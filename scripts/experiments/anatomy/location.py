"""Measures the error of each source's location on whole-body phantoms, and its dependence on the field of view.

Used by `run.py`. A *locator* gives the location field of a phantom's scan. The truth is the place in the atlas body, mm
along (R, A, S). One slope and one offset per axis, fitted on the training scans, convert a source's coordinates to it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

from nnunet_locctx.geometry import Array
from nnunet_locctx.location import BodyPartCurve, LocationField, make_source
from nnunet_locctx.phantoms.whole_body import ATLAS_HEIGHT, WholeBodyCase, whole_body_case
from nnunet_locctx.regression.canonical import CanonicalScan, to_canonical
from nnunet_locctx.regression.intensity import body_mask
from nnunet_locctx.regression.regressor import Regressor
from scripts.benchmarks.harness import Record

AXES = ("R", "A", "S")

POINTS = 2000
"""Number of measured places per scan."""

GRID = 6.0
"""Voxel size in mm of the grid for finding the body."""

QUANTILES = tuple(range(0, 101, 2))
"""Percentiles of the errors' distribution that are kept."""

LEVELS = 24
"""Number of heights per scan in the picture."""

OVERLAP = 60.0
"""Smallest overlap of two crops along the body in mm."""

SMALL = 0.6
"""Largest share of the body in a field of view that counts as small."""

SLICE_SPACINGS = (1.0, 2.0, 8.0)
REFERENCE_SPACING = 4.0

POINTS_PER_UNIT = 100.0
"""Points per coordinate of 1."""

Pair = tuple[WholeBodyCase, WholeBodyCase]
Located = tuple[LocationField, str]
Locator = Callable[[WholeBodyCase], Located]
"""A scan -> its location field, and a sentence if the source could not measure it."""


def locator(source: str, regressor: Regressor | None = None) -> Locator:
    """The locator of a source; a fitted source needs its regressor."""
    made = make_source(source)

    def locate(case: WholeBodyCase) -> Located:
        if regressor is None:
            return made.field(case.frame), ""
        measured = regressor.measure(case.images[regressor.channel].astype(np.float32), case.frame)
        if measured.problem:
            return make_source("voxel").field(case.frame), measured.problem
        return made.field(case.frame, measured), ""

    return locate


class PhantomScans(Mapping[str, CanonicalScan]):
    """Training phantoms on the canonical grid, drawn on access."""

    def __init__(self, numbers: Sequence[int], seed: int, spacing: float) -> None:
        self.numbers = {f"whole_body_{number:03d}": number for number in numbers}
        self.seed, self.spacing = seed, spacing

    def __getitem__(self, name: str) -> CanonicalScan:
        case = whole_body_case(self.numbers[name], seed=self.seed)
        return to_canonical(case.images[0].astype(np.float32), case.frame, self.spacing)

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


# ------------------------------------------------------------------------------------------------------ true places


def body_places(case: WholeBodyCase, count: int, random: np.random.Generator) -> Array:
    """(count, 3) random places in the body in mm LPS, inside the scan."""
    scan = to_canonical(case.images[0].astype(np.float32), case.frame, GRID)
    cells = np.argwhere(body_mask(scan, "ct"))
    index = cells[random.integers(len(cells), size=count)] + random.uniform(-0.5, 0.5, (count, 3))
    return np.asarray(index @ scan.affine[:3, :3].T + scan.affine[:3, 3])


def at(field: LocationField, case: WholeBodyCase, places: Array) -> Array:
    """Location (n, 3) at places (n, 3) in mm LPS."""
    return field.at(case.frame.index_from_millimetres(places))


# ------------------------------------------------------------------------------------------------------------ errors


def fit_line(coordinates: Array, truth: Array) -> Array:
    """(2, 3) slopes and offsets from coordinates (n, 3) to true places (n, 3), axis by axis: least squares."""
    return np.array([np.polyfit(coordinates[:, axis], truth[:, axis], 1) for axis in range(3)]).T


def on_line(line: Array, coordinates: Array) -> Array:
    """Coordinates (n, 3) -> mm in the atlas."""
    return np.asarray(coordinates * line[0] + line[1])


def summary(difference: Array) -> Record:
    """Median, 90th percentile and distribution of errors (n, 3) in mm, of each axis and in 3D."""
    columns = {**dict(zip(AXES, np.abs(difference).T, strict=True)), "3D": np.linalg.norm(difference, axis=1)}
    return {
        name: {
            "median": round(float(np.median(values)), 2),
            "p90": round(float(np.percentile(values, 90)), 2),
            "quantiles": np.round(np.percentile(values, QUANTILES), 2).tolist(),
        }
        for name, values in columns.items()
    }


def location_errors(
    locators: Mapping[str, Locator],
    training: Sequence[int],
    held_out: Sequence[int],
    seed: int,
    *,
    draw: Callable[..., WholeBodyCase] = whole_body_case,
) -> Record:
    """Calibrates each source on the training scans and measures it on the held-out ones.

    A scan that a fitted source could not measure is left out of the calibration, and counts with its voxel fractions
    among the held-out ones. ``line`` is the best possible result of coordinates that are linear in mm: one slope and
    one offset per axis, fitted to the truth of each held-out scan.
    """
    located: dict[str, dict[str, list[Any]]] = {name: {"training": [], "held_out": []} for name in locators}
    scans: list[Record] = []
    straight: list[Array] = []
    parts = {"training": training, "held_out": held_out}
    for part, numbers in parts.items():
        for number in tqdm(numbers, desc=f"errors, {part}", unit="scan"):
            case = draw(number, seed=seed)
            places = body_places(case, POINTS, np.random.default_rng([seed, number, 10]))
            truth = case.body.to_atlas(places)
            for name, locate in locators.items():
                field, problem = locate(case)
                located[name][part].append((at(field, case, places), truth, problem))
            if part == "held_out":
                straight.append(on_line(fit_line(places, truth), places) - truth)
                scans.append({"case": number, "crop": [round(end, 4) for end in case.crop]})
    small = [number for number, scan in enumerate(scans) if scan["crop"][1] - scan["crop"][0] <= SMALL]
    record: Record = {"scans": scans, "line": _pooled(straight, small), "sources": {}}
    for name, own in located.items():
        usable = [(values, truth) for values, truth, problem in own["training"] if not problem]
        if not usable:
            raise ValueError(f"the source {name} could measure none of the {len(training)} training scans")
        line = fit_line(*map(np.concatenate, zip(*usable, strict=True)))
        estimated = [(on_line(line, values), truth) for values, truth, _ in own["held_out"]]
        lost = {
            part: {number: one[2] for number, one in zip(numbers, own[part], strict=True) if one[2]}
            for part, numbers in parts.items()
        }
        record["sources"][name] = {
            "slopes_mm": np.round(line[0], 2).tolist(),
            "offsets_mm": np.round(line[1], 2).tolist(),
            "not_measured": lost,
            **_pooled([estimate - truth for estimate, truth in estimated], small),
            "heights": [height_curve(truth[:, 2], estimate[:, 2]) for estimate, truth in estimated],
        }
    return record


def _pooled(differences: Sequence[Array], small: Sequence[int]) -> Record:
    """Errors over all scans, and over those with small fields of view if there are any."""
    record = {"errors": summary(np.concatenate(differences))}
    if small:
        record["errors_small"] = summary(np.concatenate([differences[number] for number in small]))
    return record


def height_curve(truth: Array, estimate: Array) -> list[list[float]]:
    """Median true and estimated atlas height (mm) in bins of equally many places."""
    bins = np.array_split(np.argsort(truth), LEVELS)
    return [[round(float(np.median(values[part])), 1) for part in bins] for values in (truth, estimate)]


# -------------------------------------------------------------------------------------------------------- invariance


def random_crop(random: np.random.Generator) -> tuple[float, float]:
    """A random crop of 30 to 100 % of the body, as in the datasets."""
    share = random.uniform(0.3, 1.0)
    start = random.uniform(0.0, 1.0 - share)
    return start, start + share


def overlapping_crops(body_length: float, random: np.random.Generator) -> list[tuple[float, float]]:
    """Two random crops that share at least `OVERLAP` mm."""
    while True:
        first, second = random_crop(random), random_crop(random)
        if (min(first[1], second[1]) - max(first[0], second[0])) * body_length >= OVERLAP:
            return [first, second]


def shared_places(first: WholeBodyCase, second: WholeBodyCase, seed: int) -> Array:
    """(n, 3) random places in the body in mm LPS that both scans of a patient show."""
    places = body_places(first, POINTS, np.random.default_rng([seed, 11]))
    index = second.frame.index_from_millimetres(places)
    return np.asarray(places[((index >= -0.5) & (index <= np.array(second.frame.shape) - 0.5)).all(axis=1)])


def compare(pairs: Sequence[Array | None], slopes: Sequence[float]) -> Record:
    """Median and largest difference over pairs of scans, in points and, by the calibration, in mm."""
    known = [np.abs(values) for values in pairs if values is not None]
    record: Record = {"pairs": len(pairs), "not_measured": len(pairs) - len(known)}
    if known:
        together = np.concatenate(known)
        record["points"] = {
            axis: {"median": round(float(np.median(values)), 3), "max": round(float(values.max()), 3)}
            for axis, values in zip(AXES, together.T, strict=True)
        }
        record["mm"] = {
            axis: round(float(np.median(values)) * abs(slope) / POINTS_PER_UNIT, 2)
            for axis, values, slope in zip(AXES, together.T, slopes, strict=True)
        }
    return record


def pairs_of(number: int, seed: int) -> dict[str, Pair]:
    """Pairs of scans of one patient that differ only in the crop, in the orientation or in the slices' spacing."""
    random = np.random.default_rng([seed, number, 12])
    draw = functools.partial(whole_body_case, number, seed=seed)
    whole = draw(crop=(0.0, 1.0), spacing=20.0)
    crops = overlapping_crops(float(whole.body.level(ATLAS_HEIGHT)), random)
    crop = random_crop(random)
    codes = random.choice(["RAS", "PIR", "SRP", "IPL", "ARS"], 2, replace=False)
    pairs: dict[str, Pair] = {
        "crops": (draw(crop=crops[0]), draw(crop=crops[1])),
        "orientations": (
            draw(crop=crop, orientation=str(codes[0])),
            draw(crop=crop, orientation=str(codes[1])),
        ),
    }
    start = random.uniform(0.0, 0.6)
    slices = functools.partial(draw, crop=(start, start + 0.4))
    reference = slices(spacing=(5, 5, REFERENCE_SPACING))
    for step in SLICE_SPACINGS:
        pairs[f"slices of {step:g} mm"] = reference, slices(spacing=(5, 5, step))
    return pairs


def invariance(
    locators: Mapping[str, Locator],
    slopes: Mapping[str, Sequence[float]],
    patients: Sequence[int],
    seed: int,
    *,
    pairs: Callable[[int, int], dict[str, Pair]] = pairs_of,
) -> Record:
    """Differences between two scans of one patient: source -> kind of difference -> :func:`compare`.

    Args:
        locators: By source.
        slopes: mm per unit of each axis, by source.
        patients: Numbers of cases.
        seed: Of the dataset.
        pairs: Number and seed -> pairs of scans.
    """
    compared: dict[str, dict[str, list[Array | None]]] = {source: {} for source in locators}
    for number in tqdm(patients, desc="invariance", unit="patient"):
        located: dict[tuple[str, int], Located] = {}
        drawn = pairs(number, seed)  # kept: scans are told apart by their id
        for what, pair in drawn.items():
            places = shared_places(*pair, number)
            for source, locate in locators.items():
                for case in pair:
                    if (source, id(case)) not in located:  # one scan is in several pairs
                        located[source, id(case)] = locate(case)
                both = [(*located[source, id(case)], case) for case in pair]
                lost = any(problem for _, problem, _ in both)
                first, second = (at(field, case, places) for field, _, case in both)
                difference = None if lost else POINTS_PER_UNIT * (first - second)
                compared[source].setdefault(what, []).append(difference)
    return {
        source: {what: compare(values, slopes[source]) for what, values in kinds.items()}
        for source, kinds in compared.items()
    }


# ------------------------------------------------------------------------------------------------------ monotonicity


def raw_heights(regressor: Regressor, case: WholeBodyCase) -> tuple[Array, Array]:
    """A regressor's values slice by slice, before smoothing and trimming, and the true heights.

    Body part scores have one value per slice; of anatomical coordinates the mean of S over the body is taken.

    Returns:
        True atlas heights (K,) in mm and values (K,), for slices that show a body.
    """
    image = case.images[regressor.channel].astype(np.float32)
    middle = case.body.to_patient(np.array([0.0, 0.0, 450.0]))
    if hasattr(regressor, "scores"):
        positions, values = regressor.scores(to_canonical(image, case.frame, regressor.options.spacing))  # type: ignore[attr-defined]
    else:
        scan = to_canonical(image, case.frame, GRID)
        body = body_mask(scan, "ct")
        field, _ = locator(regressor.kind, regressor)(case)
        cells = np.argwhere(body)
        heights = at(field, case, cells @ scan.affine[:3, :3].T + scan.affine[:3, 3])[:, 2]
        sums = np.bincount(cells[:, 2], heights, body.shape[2])
        counts = np.bincount(cells[:, 2], minlength=body.shape[2])
        positions = scan.places(2)
        values = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    kept = np.isfinite(values)
    places = np.tile(middle, (int(kept.sum()), 1))
    places[:, 2] = positions[kept]
    return case.body.to_atlas(places)[:, 2], np.asarray(values[kept])


def monotonicity(
    regressor: Regressor,
    numbers: Sequence[int],
    seed: int,
    *,
    draw: Callable[..., WholeBodyCase] = whole_body_case,
) -> Record:
    """Whether coordinates rise with the true height: before cleaning by rank correlation, after it step by step."""
    rising, measured, ranks, steps = 0, 0, [], []
    for number in tqdm(numbers, desc="monotonicity", unit="scan"):
        case = draw(number, seed=seed)
        truth, values = raw_heights(regressor, case)
        ranks.append(float(spearmanr(truth, values).statistic))
        ordered = values[np.argsort(truth)]
        steps.append(float((np.diff(ordered) > 0).mean()))
        measurement = regressor.measure(case.images[regressor.channel].astype(np.float32), case.frame)
        if measurement.problem:
            continue
        measured += 1
        cleaned = measurement.scores if isinstance(measurement, BodyPartCurve) else ordered
        rising += bool((np.diff(cleaned) >= 0).all() and cleaned[-1] > cleaned[0])
    return {
        "scans": len(numbers),
        "measured": measured,
        "rising": rising,
        "spearman_min": round(min(ranks), 4),
        "spearman_median": round(float(np.median(ranks)), 4),
        "raw_steps_up": round(float(np.mean(steps)), 4),
    }
