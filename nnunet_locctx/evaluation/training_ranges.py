"""What training labels have: where the classes lie, how large they are, in how many pieces, on which sides.

A class's place, from where to where it reaches, is told by the other classes of the same case: each of them, and the
scan's centre, tells it by the offset that training has (the median), and the weighted median of what they tell is
taken, each with the reciprocal of its offset's scatter as its weight. Neither the position of the scan's frame nor what
it shows of the body matters then (fields of view differ more than patients do), close neighbours count most, and no
single displaced or missing class decides. Of a class that stands alone the scan's centre tells the place, as badly as
it did in training. A class is displaced along an axis by as much as both its ends are, in one direction: one that is
incomplete, or has grown, is not.

How much is too much is calibrated on the training cases: each is judged by what the others have (in at most
:data:`GROUPS` groups). Deviations are in units of the class's own robust scatter, and the case's largest is what
counts, because every class may raise an alarm. Their median and robust spread (of the values or their logarithms) give
the upper limit of a prediction interval: a further case like those of training goes beyond it with the probability
:data:`ALARMS` per kind of deviation; training cases that are unlike the others do not widen it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from nnunet_locctx.evaluation.label_summary import LabelSummary
from nnunet_locctx.geometry import PATIENT_FROM_LPS, Array

FEWEST = 3
"""Cases that a class, or an offset, must have been seen in to tell what is usual."""

GROUPS = 20
"""Of training cases, each judged by the others; with fewer cases each is a group."""

ALARMS = 0.005
"""Probability that a case like those of training goes beyond the limit of one kind of deviation."""

PRIOR = 5.0
"""Cases that the scatter usual among the classes counts for, beside a class's own: of few cases it is uncertain."""

TELLING = 3.0
"""An offset that is this many times its scatter tells a direction."""

ONE_SIDED = 0.25
"""A pair tells its sides along an axis if training has a smaller share of its voxels on the twin's side."""

KINDS = ("position", "volume", "pieces", "sides")
"""Of deviations; ``sides`` has a number a pair, the others a number a class."""


@dataclass(frozen=True)
class Deviations:
    """How far a case is from what is usual.

    Attributes:
        scaled: Kind -> (C,) or (P,) deviations in units of the scatter; NaN where nothing can be told.
        offset: (C, 3) mm from the usual place along R, A, S.
        expected: (C, 3) middle of the usual place in mm, also of absent classes; NaN where nothing tells it.
        reversed: (3,) fraction of the telling offsets that point to the other side; NaN where none tells.
    """

    scaled: Mapping[str, Array]
    offset: Array
    expected: Array
    reversed: Array


@dataclass(frozen=True)
class Usual:
    """Medians and robust scatters of training cases.

    Attributes:
        offsets, offset_scatter: (C, C + 1, 2, 3) mm, from the centroid of another class, or (last) the scan's centre,
            to both ends of a class.
        position_scatter: (C, 3) root mean square of the displacements in mm.
        volume, volume_scatter: (C,) of the logarithms of ml, of classes within the scan.
        stray, stray_scatter: (C,) of the logarithms of the fraction, :attr:`stray_unit` added.
        stray_unit: (C,) fraction below which differences mean little: the mean of the training cases, and a voxel.
        side_axis: Number of the axis (R, A, S) that tells the sides.
        side_sign: (P,) 1 if the left class lies before the right one along it, -1 if behind it, 0 if that differs.
        side, side_scatter, side_unit: (P,) likewise of the fraction on the twin's side.
    """

    offsets: Array
    offset_scatter: Array
    position_scatter: Array
    volume: Array
    volume_scatter: Array
    stray: Array
    stray_scatter: Array
    stray_unit: Array
    side_axis: int
    side_sign: npt.NDArray[np.int64]
    side: Array
    side_scatter: Array
    side_unit: Array

    @classmethod
    def of(cls, cases: Sequence[LabelSummary], pairs: Sequence[tuple[int, int]]) -> "Usual":
        """Learned from cases; `pairs` are the numbers of the twins."""
        half_voxel = float(np.median([case.frame.spacing.mean() for case in cases])) / 2
        anchors, reach = (
            np.stack([_anchors(case) for case in cases]),
            np.stack([case.reach for case in cases]),
        )
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

        whole = np.stack(
            [np.where(case.present & ~case.cut.any(axis=1), case.volumes, np.nan) for case in cases]
        )
        volume, volume_scatter = _robust(np.log(whole))
        voxels = np.exp(volume) / np.median([case.voxel_ml for case in cases])
        half_voxel_more = 1.5 / np.cbrt(6 / np.pi * voxels)  # in diameter: what it makes of the volume
        volume_scatter = _shared(volume_scatter, _counts(whole), half_voxel_more)

        strays = np.stack([case.strays for case in cases])
        everything = np.stack([case.volumes / case.voxel_ml for case in cases])
        voxel = 1 / np.maximum(1, np.median(everything, axis=0))
        stray_unit = voxel + _mean(strays)
        stray, stray_scatter = _robust(np.log(strays + stray_unit))
        stray_scatter = _shared(stray_scatter, _counts(strays), np.log(2))

        across = np.stack([case.across for case in cases])
        middle = _robust(across)[0]
        away = np.abs(np.nan_to_num(middle, nan=0.5) - 0.5)
        axis = int(away.sum(axis=0).argmax())
        sign = np.where(middle[:, axis] < 0.5, 1, -1)
        wrong = _wrong(across, axis, sign)
        telling = np.nan_to_num(_robust(wrong)[0], nan=1.0) < ONE_SIDED
        sign = np.where(telling, sign, 0)
        side_unit = np.array([1 / np.sum(1 / voxel[list(pair)]) for pair in pairs]) + _mean(wrong[:, telling])
        side, side_scatter = _robust(np.log(wrong + side_unit))
        side_scatter = _shared(side_scatter, _counts(wrong), np.log(2))
        return cls(
            offsets,
            offset_scatter,
            position_scatter,
            volume,
            volume_scatter,
            stray,
            stray_scatter,
            stray_unit,
            axis,
            sign,
            side,
            side_scatter,
            side_unit,
        )

    def deviations(self, case: LabelSummary) -> Deviations:
        """Of a case."""
        offset, expected = _displacement(case, self.offsets, self.offset_scatter)
        position = np.sqrt(np.mean((offset / self.position_scatter) ** 2, axis=1))
        with np.errstate(divide="ignore"):
            volume = (
                np.log(np.where(case.present, case.volumes, np.nan)) - self.volume
            ) / self.volume_scatter
        volume = np.where(
            case.cut.any(axis=1), volume.clip(min=0), np.abs(volume)
        )  # what is cut off may be smaller
        stray = (np.log(case.strays + self.stray_unit) - self.stray) / self.stray_scatter
        side = (np.log(self.wrong_side(case) + self.side_unit) - self.side) / self.side_scatter
        between = case.centres[:, None] - case.centres[None]
        usual, scatter = self.offsets[:, :-1].mean(axis=2), self.offset_scatter[:, :-1].mean(axis=2)
        telling = (np.abs(usual) > TELLING * scatter) & np.isfinite(between)
        turned = telling & (between * usual < 0)
        count = telling.sum(axis=(0, 1))
        scaled = {"position": position, "volume": volume, "pieces": stray, "sides": side}
        share = np.where(count > 0, turned.sum(axis=(0, 1)) / np.maximum(count, 1), np.nan)
        return Deviations(scaled, offset, expected, share)

    def wrong_side(self, case: LabelSummary) -> Array:
        """(P,) fraction of the pair's voxels on the twin's side; NaN where training does not tell the sides."""
        return np.where(self.side_sign == 0, np.nan, _wrong(case.across, self.side_axis, self.side_sign))


@dataclass(frozen=True)
class Ranges:
    """What training has, and how far from it a case may be.

    Attributes:
        usual: Of all training cases.
        without: Training case -> what is usual among the others.
        limits: Kind -> largest deviation in units of the scatter.
        present: Training case -> (C,) which classes it has.
    """

    usual: Usual
    without: Mapping[str, Usual]
    limits: Mapping[str, float]
    present: Mapping[str, npt.NDArray[np.bool_]]


def learn_ranges(cases: Mapping[str, LabelSummary], pairs: Sequence[tuple[int, int]]) -> Ranges:
    """Learns from training cases.

    Args:
        cases: Their segmentations' numbers.
        pairs: Numbers of the twins.

    Raises:
        ValueError: Too few of them hold a class.
    """
    names = [name for name, case in cases.items() if case.present.any()]
    if len(names) <= FEWEST:
        raise ValueError(
            f"{len(names)} of {len(cases)} training labels hold a class; it takes {FEWEST + 1} to tell what is usual"
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

    Fractions are deviations of logarithms already. Of the others both the values and their logarithms may be near to
    normal, of few and of many classes; the larger limit is taken.
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
    """(C, 3) mm by which both ends of each class are beyond the usual, and (C, 3) the middle of the usual ends."""
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
    """(..., P) fraction on the twin's side along the axis that tells it."""
    along = across[..., axis]
    return np.where(sign > 0, along, 1 - along)


def _robust(values: Array) -> tuple[Array, Array]:
    """Median and robust standard deviation along the first axis, without NaN; NaN of fewer than :data:`FEWEST`."""
    few = _counts(values) < FEWEST
    filled = np.where(few, 0.0, values)
    median = np.nanmedian(filled, axis=0)
    scatter = 1.4826 * np.nanmedian(np.abs(filled - median), axis=0)
    return np.where(few, np.nan, median), np.where(few, np.nan, scatter)


def _shared(scatter: Array, counts: Array, least: float | Array) -> Array:
    """Each class's scatter, drawn to what is usual among the classes as far as it is uncertain; at least `least`."""
    known = np.isfinite(scatter)
    if not known.any():
        return scatter
    usual = np.sqrt(np.nanmedian(scatter**2, axis=0))
    drawn = np.sqrt((counts * scatter**2 + PRIOR * usual**2) / (counts + PRIOR))
    return np.maximum(drawn, least)


def _counts(values: Array) -> Array:
    return np.isfinite(values).sum(axis=0)


def _mean(values: Array) -> float:
    """Without NaN; 0 of nothing."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else 0.0
