"""Finds doubtful parts of a segmentation by the ranges of the training labels; no reference is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.label_summary import LabelSummary, to_index, twins
from nnunet_locctx.evaluation.training_ranges import Ranges

MOST = 10.0
"""Largest doubt of a class, however far it is beyond the limit; also the doubt of a missing or unseen class."""

MIRRORED = 0.9
"""A case counts as mirrored along an axis if more than this share of the offsets between its classes is reversed."""

DIRECTIONS = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
"""Against and along each patient axis."""

AXES = ("left-right", "front-back", "head-feet")


@dataclass(frozen=True)
class Finding:
    """One doubtful property of a segmentation.

    Attributes:
        kind: ``mirrored``, ``sides``, ``position``, ``pieces``, ``far`` (pieces far from the largest), ``volume``,
            ``missing``, ``unseen`` (a class that no training case has), ``empty``, ``location`` or ``file`` (the file
            cannot be judged).
        classes: The classes concerned.
        value: The measured value; None where nothing is measured.
        unit: Unit of the value and its limits: ``mm``, ``ml`` or ``fraction``.
        low, high: Limits from the training labels; None without one.
        times: The deviation from the usual value as a multiple of the limit's; :data:`MOST` without a value.
        sentence: The finding in words.
        place: Place to look at, mm along the patient's axes; None: the place of the classes.
    """

    kind: str
    classes: tuple[str, ...]
    sentence: str
    value: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    times: float = MOST
    place: tuple[float, float, float] | None = None


def judge(case: str, summary: LabelSummary, ranges: Ranges, classes: Classes) -> tuple[list[Finding], float]:
    """The findings, the most doubtful first, and the doubt of the case.

    Deviations are multiples of their limits, at most :data:`MOST`. The doubt is the largest deviation, at most 1, plus
    the excess over 1 of each class's worst deviation. So it is at most 1 if no deviation exceeds its limit.

    Args:
        case: Name of the case; a training case is judged by the other training cases.
        summary: The summary of its segmentation.
        ranges: The ranges of the training labels.
        classes: The classes.
    """
    judged = _Judged(case, summary, ranges, classes)
    findings = sorted(judged.findings(), key=lambda one: one.times, reverse=True)
    return findings, judged.doubt


class _Judged:
    """A case beside the training cases; see :func:`judge`."""

    def __init__(self, case: str, summary: LabelSummary, ranges: Ranges, classes: Classes) -> None:
        self.summary, self.limits = summary, ranges.limits
        self.names, self.pairs = list(classes.labels), twins(classes)
        self.usual = ranges.without.get(case, ranges.usual)
        others = np.stack([present for name, present in ranges.present.items() if name != case])
        self.others, self.share = len(others), others.mean(axis=0)
        self.fewest, self.most = int(others.sum(axis=1).min()), int(others.sum(axis=1).max())
        self.deviations = self.usual.deviations(summary)
        self.times = {
            kind: np.nan_to_num(values / self.limits[kind]) for kind, values in self.deviations.scaled.items()
        }
        self.unseen = summary.present & (self.share == 0)
        self.missing = self._missing()
        turned = np.nan_to_num(self.deviations.reversed)
        self.mirrored = [int(axis) for axis in np.flatnonzero(turned > MIRRORED)]

    def _missing(self) -> npt.NDArray[np.bool_]:
        """(C,) classes that every training case has and this case lacks, although the scan shows their usual place."""
        frame = self.summary.frame
        index = to_index(self.deviations.expected, frame)
        margin = self.usual.position_scatter.mean(axis=1, keepdims=True) / frame.spacing - 0.5
        # comparisons with NaN are False: a NaN place counts as not shown
        shown = ((index >= margin) & (index <= np.array(frame.shape) - 1 - margin)).all(axis=1)
        return np.asarray((self.share == 1) & ~self.summary.present & shown)

    @property
    def doubt(self) -> float:
        """See :func:`judge`."""
        worst = np.max([self.times[kind] for kind in ("position", "volume", "pieces", "far")], axis=0)
        for pair, times in zip(self.pairs, self.times["sides"], strict=True):
            worst[list(pair)] = np.maximum(worst[list(pair)], times)
        empty = self.fewest > 0 and not self.summary.present.any()
        worst = np.where(self.unseen | self.missing | empty, MOST, np.minimum(worst, MOST))
        return float((worst - 1).clip(min=0).sum() + min(1.0, worst.max()))

    def findings(self) -> Iterator[Finding]:
        """All findings, without those that follow from another finding."""
        if not self.summary.present.any():
            if self.fewest > 0:
                classes = f"{self.fewest} to {self.most}" if self.fewest < self.most else f"{self.most}"
                yield Finding("empty", (), f"nothing is labelled; training cases have {classes} classes")
            return
        for axis in self.mirrored:
            share = float(self.deviations.reversed[axis])
            sentence = (
                f"the whole prediction is mirrored {AXES[axis]}: {_percent(share)} of the directions from class to "
                "class are reversed"
            )
            yield Finding("mirrored", (), sentence, share, "fraction", high=MIRRORED)
        for number in map(int, np.flatnonzero(self.missing)):
            name, (r, a, s) = self.names[number], map(float, self.deviations.expected[number])
            sentence = f"{name} is missing; all {self.others} training cases have it"
            yield Finding("missing", (name,), sentence, place=(r, a, s))
        for number in map(int, np.flatnonzero(self.unseen)):
            name, volume = self.names[number], float(self.summary.volumes[number])
            sentence = f"{name} measures {_ml([volume])}; no training case has it"
            yield Finding("unseen", (name,), sentence, volume, "ml", high=0.0)
        confused = [int(pair) for pair in np.flatnonzero(self.times["sides"] > 1)]
        for number in confused if not self.mirrored else ():
            yield self._sides(number)
        swapped = {one for number in confused for one in self.pairs[number]}
        judges = {
            "position": self._position,
            "pieces": self._pieces,
            "far": self._far,
            "volume": self._volume,
        }
        for kind, describe in judges.items():
            told = self.times[kind] > 1
            if kind in ("pieces", "far"):  # of the same pieces, the larger deviation is told
                told &= (self.times["far"] > self.times["pieces"]) == (kind == "far")
            for number in map(int, np.flatnonzero(told)):
                if number not in swapped and not (kind == "position" and self.mirrored):
                    yield describe(number)

    def _sides(self, pair: int) -> Finding:
        left, right = (self.names[number] for number in self.pairs[pair])
        value, times = float(self.usual.wrong_side(self.summary)[pair]), float(self.times["sides"][pair])
        high = max(0.0, self.usual.side.at(pair, self.limits["sides"]))
        share = f"{_percent(value)} of their voxels ({_at_most(high)})"
        sentence = f"{left} and {right} lie on each other's side with {share}"
        return Finding("sides", (left, right), sentence, value, "fraction", None, high, times)

    def _position(self, number: int) -> Finding:
        name, offset = self.names[number], self.deviations.offset[number]
        value, times = float(np.linalg.norm(offset)), float(self.times["position"][number])
        main = [axis for axis in np.argsort(-np.abs(offset)) if abs(offset[axis]) >= np.abs(offset).max() / 2]
        where = " and ".join(DIRECTIONS[axis][int(offset[axis] > 0)] for axis in main)
        usual = f"training: up to {value / times:.2g} mm"
        sentence = f"{name} lies {value:.3g} mm too far {where} among the other classes ({usual})"
        return Finding("position", (name,), sentence, value, "mm", None, value / times, times)

    def _pieces(self, number: int) -> Finding:
        name, value = self.names[number], float(self.summary.strays[number])
        times = float(self.times["pieces"][number])
        high = max(0.0, self.usual.stray.at(number, self.limits["pieces"]))
        sentence = (
            f"{name} has several pieces, {_percent(value)} of it is outside of the largest ({_at_most(high)})"
        )
        return Finding("pieces", (name,), sentence, value, "fraction", None, high, times)

    def _far(self, number: int) -> Finding:
        name, value = self.names[number], float(self.summary.stray_mm[number])
        share = float(self.summary.strays[number])
        times = float(self.times["far"][number])
        high = max(0.0, self.usual.stray_mm.at(number, self.limits["far"]))
        sentence = (
            f"{name} has far pieces: {_percent(share)} of it lies {value / share:.3g} mm from the largest piece's box, "
            f"{value:.2g} mm on average over all of it (training: up to {high:.2g} mm)"
        )
        return Finding("far", (name,), sentence, value, "mm", None, high, times)

    def _volume(self, number: int) -> Finding:
        name, value = self.names[number], float(self.summary.volumes[number])
        times, limit = float(self.times["volume"][number]), self.limits["volume"]
        low, high = (self.usual.volume.at(number, sign * limit) for sign in (-1, 1))
        large = "large" if value > high else "small"
        sentence = f"{name} is too {large}: {_ml([value])} (training: {_ml([low, high])})"
        return Finding("volume", (name,), sentence, value, "ml", low, high, times)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %" if fraction < 0.1 else f"{100 * fraction:.0f} %"


def _at_most(fraction: float) -> str:
    return f"training: up to {_percent(fraction)}" if fraction >= 5e-5 else "training: none"


def _ml(volumes: Sequence[float]) -> str:
    """Volumes as text in ml, or in mm3 below 0.1 ml."""
    unit, factor = ("mm3", 1000.0) if max(volumes) < 0.1 else ("ml", 1.0)
    shown = (
        f"{factor * volume:.0f}" if factor * volume >= 100 else f"{factor * volume:.2g}" for volume in volumes
    )
    return f"{' to '.join(shown)} {unit}"
