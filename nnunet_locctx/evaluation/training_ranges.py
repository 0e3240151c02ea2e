"""Learns ranges from the training labels: places, sizes, numbers of pieces and sides of the classes.

The place of a class (both of its ends) is predicted from the other classes of the same case. Each other class, and the
scan's centre, predicts it by the median offset in training. The prediction is the median of these, weighted by the
reciprocal of each offset's scatter. So the field of view does not matter (fields of view differ more than patients),
close neighbours count most, and no single displaced or missing class decides. The place of a class that is alone in a
scan is predicted from the scan's centre only. The displacement of a class along an axis is the smaller displacement of
its two ends, if both are displaced in one direction: a class that is incomplete, or has grown, is not displaced.

The limits are calibrated on the training cases: each is judged by the others (in at most :data:`GROUPS` groups).
Deviations are in units of the class's own robust scatter, and only the case's largest deviation counts, because every
class may raise an alarm. The median and the robust spread of the largest deviations (or of their logarithms) give the
upper limit of a prediction interval: a further case like those of training exceeds it with the probability
:data:`ALARMS` per kind of deviation. Robust statistics keep unusual training cases from widening it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from nnunet_locctx.evaluation.label_summary import LabelSummary, voxel_ml
from nnunet_locctx.geometry import PATIENT_FROM_LPS, Array

FEWEST = 3
"""Smallest number of cases with a class, or an offset, from which its usual range is computed."""

GROUPS = 20
"""Largest number of groups of training cases for the calibration; each group is judged by the others."""

ALARMS = 0.005
"""Probability that a case like those of training exceeds the limit of one kind of deviation."""

PRIOR = 5.0
"""Weight, in cases, of the median scatter of all classes in a class's scatter, which few cases leave uncertain."""

TELLING = 3.0
"""An offset counts as directed if it is at least this many times its scatter."""

ONE_SIDED = 0.25
"""A pair has sides along an axis if in training a smaller share of its voxels lies on the twin's side."""

KINDS = ("position", "volume", "pieces", "far", "sides")
"""Kinds of deviations; ``sides`` has one value per pair, the others have one per class."""


@dataclass(frozen=True)
class Deviations:
    """The deviations of a case from the training cases.

    Attributes:
        scaled: Kind -> (C,) or (P,) deviations in units of the scatter; NaN where they are not known.
        offset: (C, 3) displacement in mm along R, A, S.
        expected: (C, 3) middle of the usual place in mm, also of absent classes; NaN if not known.
        reversed: (3,) fraction of the directed offsets that point the other way; NaN if no offset is directed.
    """

    scaled: Mapping[str, Array]
    offset: Array
    expected: Array
    reversed: Array


@dataclass(frozen=True)
class LogScale:
    """The usual size of numbers that are 0 or more: N medians and robust scatters of their logarithms.

    Attributes:
        middle, scatter: (N,) of the logarithms of the numbers with :attr:`unit` added.
        unit: (N,) numbers that are added before taking logarithms; smaller differences hardly count.
    """

    middle: Array
    scatter: Array
    unit: Array

    @classmethod
    def of(cls, values: Array, unit: Array, least: float | Array) -> "LogScale":
        """The scale of (cases, N) numbers; `least` is the smallest scatter."""
        middle, scatter = _robust(np.log(values + unit))
        return cls(middle, _shared(scatter, _counts(values), least), unit)

    def deviations(self, values: Array) -> Array:
        """(N,) deviations of numbers from the middle, in units of the scatter."""
        return np.asarray((np.log(values + self.unit) - self.middle) / self.scatter)

    def at(self, number: int, deviation: float) -> float:
        """The value with this deviation."""
        logarithm = self.middle[number] + deviation * self.scatter[number]
        return float(np.exp(logarithm) - self.unit[number])


@dataclass(frozen=True)
class Usual:
    """Medians and robust scatters of training cases.

    Attributes:
        offsets, offset_scatter: (C, C + 1, 2, 3) mm from the centroid of another class, or (last) the scan's centre, to
            both ends of a class.
        position_scatter: (C, 3) root mean square of the displacements in mm.
        volume: Scale of the volumes (ml) of the classes that the scan does not cut off.
        stray: Scale of the fractions outside the largest piece; its unit is the training mean plus one voxel.
        stray_mm: Scale of the mean distances in mm from the box around the largest piece; its unit is the training mean
            plus half a voxel.
        side_axis: The axis (0: R, 1: A, 2: S) along which the sides differ.
        side_sign: (P,) 1 if the left class has the lower coordinate along it, -1 if the higher, 0 if the cases differ.
        side: Scale of each pair's fraction on the twin's side; its unit is the training mean plus one voxel.
    """

    offsets: Array
    offset_scatter: Array
    position_scatter: Array
    volume: LogScale
    stray: LogScale
    stray_mm: LogScale
    side_axis: int
    side_sign: npt.NDArray[np.int64]
    side: LogScale

    @classmethod
    def of(cls, cases: Sequence[LabelSummary], pairs: Sequence[tuple[int, int]]) -> "Usual":
        """Learns from cases; `pairs` holds (left, right) numbers of classes."""
        half_voxel = float(np.median([case.frame.spacing.mean() for case in cases])) / 2
        anchors = np.stack([_anchors(case) for case in cases])
        reach = np.stack([case.reach for case in cases])
        count = reach.shape[1]
        offsets, offset_scatter = np.full((2, count, count + 1, 2, 3), np.nan)
        for number in range(count):
            others = np.arange(count + 1) != number
            between = reach[:, [number]] - anchors[:, others, None]
            offsets[number, others], offset_scatter[number, others] = _robust(between)
        offset_scatter = np.maximum(offset_scatter, half_voxel)
        moved = np.stack([_displacement(case, offsets, offset_scatter)[0] for case in cases])
        counts = _counts(moved)
        mean_square = np.nansum(moved**2, axis=0) / np.where(counts < FEWEST, np.nan, counts)
        position_scatter = _shared(np.sqrt(mean_square), counts, half_voxel)

        uncut = np.stack(
            [np.where(case.present & ~case.cut.any(axis=1), case.volumes, np.nan) for case in cases]
        )
        voxel_volumes = [voxel_ml(case.frame) for case in cases]
        voxels = np.exp(_robust(np.log(uncut))[0]) / np.median(voxel_volumes)
        half_voxel_more = 1.5 / np.cbrt(6 / np.pi * voxels)  # relative volume of half a voxel in diameter
        volume = LogScale.of(uncut, np.zeros(count), half_voxel_more)

        strays = np.stack([case.strays for case in cases])
        sizes = [case.volumes / ml for case, ml in zip(cases, voxel_volumes, strict=True)]
        voxel = 1 / np.maximum(1, np.median(sizes, axis=0))
        stray = LogScale.of(strays, voxel + _mean(strays), np.log(2))
        distances = np.stack([case.stray_mm for case in cases])
        stray_mm = LogScale.of(distances, np.full(count, half_voxel + _mean(distances)), np.log(2))

        across = np.stack([case.across for case in cases])
        middle = _robust(across)[0]
        away = np.abs(np.nan_to_num(middle, nan=0.5) - 0.5)
        axis = int(away.sum(axis=0).argmax())
        sign = np.where(middle[:, axis] < 0.5, 1, -1)
        wrong = _wrong(across, axis, sign)
        one_sided = np.nan_to_num(_robust(wrong)[0], nan=1.0) < ONE_SIDED
        sign = np.where(one_sided, sign, 0)
        unit = np.array([1 / np.sum(1 / voxel[list(pair)]) for pair in pairs]) + _mean(wrong[:, one_sided])
        side = LogScale.of(wrong, unit, np.log(2))
        return cls(offsets, offset_scatter, position_scatter, volume, stray, stray_mm, axis, sign, side)

    def deviations(self, case: LabelSummary) -> Deviations:
        """The deviations of a case."""
        offset, expected = _displacement(case, self.offsets, self.offset_scatter)
        position = np.sqrt(np.mean((offset / self.position_scatter) ** 2, axis=1))
        volume = self.volume.deviations(np.where(case.present, case.volumes, np.nan))
        # a class that the scan cuts off may be smaller than usual
        volume = np.where(case.cut.any(axis=1), volume.clip(min=0), np.abs(volume))
        stray, side = self.stray.deviations(case.strays), self.side.deviations(self.wrong_side(case))
        between = case.centres[:, None] - case.centres[None]
        usual, scatter = self.offsets[:, :-1].mean(axis=2), self.offset_scatter[:, :-1].mean(axis=2)
        directed = (np.abs(usual) > TELLING * scatter) & np.isfinite(between)
        turned = directed & (between * usual < 0)
        count = directed.sum(axis=(0, 1))
        far = self.stray_mm.deviations(case.stray_mm)
        scaled = {"position": position, "volume": volume, "pieces": stray, "far": far, "sides": side}
        share = np.where(count > 0, turned.sum(axis=(0, 1)) / np.maximum(count, 1), np.nan)
        return Deviations(scaled, offset, expected, share)

    def wrong_side(self, case: LabelSummary) -> Array:
        """(P,) fraction of the pair's voxels on the twin's side; NaN where the pair has no sides in training."""
        return np.where(self.side_sign == 0, np.nan, _wrong(case.across, self.side_axis, self.side_sign))


@dataclass(frozen=True)
class Ranges:
    """The ranges of the training cases and the largest usual deviations from them.

    Attributes:
        usual: The medians and scatters of all training cases.
        without: Training case -> the medians and scatters of the other cases.
        limits: Kind -> largest usual deviation in units of the scatter.
        present: Training case -> (C,) whether each class is present.
    """

    usual: Usual
    without: Mapping[str, Usual]
    limits: Mapping[str, float]
    present: Mapping[str, npt.NDArray[np.bool_]]


def learn_ranges(cases: Mapping[str, LabelSummary], pairs: Sequence[tuple[int, int]]) -> Ranges:
    """Learns from training cases.

    Args:
        cases: Case -> summary of its segmentation.
        pairs: Numbers of the twins.

    Raises:
        ValueError: Too few cases have a class.
    """
    names = [name for name, case in cases.items() if case.present.any()]
    if len(names) <= FEWEST:
        raise ValueError(
            f"{len(names)} of {len(cases)} training labels hold a class; at least {FEWEST + 1} are needed"
        )
    without: dict[str, Usual] = {}
    largest: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for start in range(min(GROUPS, len(names))):
        group = names[start :: min(GROUPS, len(names))]
        usual = Usual.of([cases[name] for name in names if name not in group], pairs)
        for name in group:
            without[name] = usual
            for kind, values in usual.deviations(cases[name]).scaled.items():
                largest[kind].append(float(np.max(np.nan_to_num(values), initial=0.0)))
    return Ranges(
        Usual.of([cases[name] for name in names], pairs),
        without,
        {kind: _limit(kind, values) for kind, values in largest.items()},
        {name: case.present for name, case in cases.items()},
    )


def _limit(kind: str, largest: Sequence[float]) -> float:
    """Upper limit of the prediction interval of a further case, at least 1.

    Deviations of ``pieces``, ``far`` and ``sides`` are already deviations of logarithms. For the other kinds, either
    the values or their logarithms may be nearly normal, depending on the number of classes; the larger limit is taken.
    """
    limits = [_interval(np.asarray(largest))]
    if kind in ("position", "volume"):
        limits.append(float(np.exp(_interval(np.log(np.maximum(largest, 1.0))))))
    return max(1.0, *limits)


def _interval(values: Array) -> float:
    median, count = float(np.median(values)), len(values)
    spread = 1.4826 * float(np.median(np.abs(values - median)))
    return median + float(stats.t.ppf(1 - ALARMS, count - 1)) * spread * math.sqrt(1 + 1 / count)


def _anchors(case: LabelSummary) -> Array:
    """(C + 1, 3) centroids and the scan's centre in mm; NaN along an axis where the scan cuts the class off."""
    return np.vstack([np.where(case.cut, np.nan, case.centres), case.frame.centre @ PATIENT_FROM_LPS])


def _displacement(case: LabelSummary, offsets: Array, scatter: Array) -> tuple[Array, Array]:
    """(C, 3) displacement of each class in mm, and (C, 3) the middle of its usual ends."""
    places = _anchors(case)[None, :, None] + offsets
    weights = np.where(np.isfinite(places), 1 / scatter, 0.0)
    order = np.argsort(places, axis=1)  # NaN last
    heights = np.take_along_axis(weights, order, axis=1).cumsum(axis=1)
    at = (heights < heights[:, -1:] / 2).sum(axis=1, keepdims=True)
    ends = np.take_along_axis(places, np.take_along_axis(order, at, axis=1), axis=1)[:, 0]
    beyond = case.reach - ends
    signs = np.sign(beyond).sum(axis=1) / 2  # 0 unless both are on one side
    offset = np.where(np.abs(signs) == 1, signs * np.abs(beyond).min(axis=1), 0.0)
    return np.where(np.isfinite(beyond).all(axis=1), offset, np.nan), ends.mean(axis=1)


def _wrong(across: Array, axis: int, sign: npt.NDArray[np.int64]) -> Array:
    """(..., P) fraction on the twin's side along the axis of the sides."""
    along = across[..., axis]
    return np.where(sign > 0, along, 1 - along)


def _robust(values: Array) -> tuple[Array, Array]:
    """Median and robust standard deviation along the first axis, ignoring NaN; NaN for fewer than :data:`FEWEST`
    values."""
    few = _counts(values) < FEWEST
    filled = np.where(few, 0.0, values)
    median = np.nanmedian(filled, axis=0)
    scatter = 1.4826 * np.nanmedian(np.abs(filled - median), axis=0)
    return np.where(few, np.nan, median), np.where(few, np.nan, scatter)


def _shared(scatter: Array, counts: Array, least: float | Array) -> Array:
    """Each class's scatter, shrunk towards the median of all classes (more with fewer cases), and at least `least`."""
    known = np.isfinite(scatter)
    if not known.any():
        return scatter
    usual = np.sqrt(np.nanmedian(scatter**2, axis=0))
    drawn = np.sqrt((counts * scatter**2 + PRIOR * usual**2) / (counts + PRIOR))
    return np.maximum(drawn, least)


def _counts(values: Array) -> Array:
    return np.isfinite(values).sum(axis=0)


def _mean(values: Array) -> float:
    """The mean of the values that are not NaN; 0 without any."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else 0.0
