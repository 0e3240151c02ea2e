"""What is doubtful about a segmentation, judged by what training labels have; no truth is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.classes import Classes
from nnunet_locctx.evaluation.label_summary import LabelSummary, to_index, twins
from nnunet_locctx.evaluation.training_ranges import Deviations, Ranges, Usual

MOST = 10.0
"""No class counts for more than this, however far beyond the limit it is; missing and unseen classes count for it."""

MIRRORED = 0.9
"""A case is called mirrored along an axis if more than this share of the offsets between its classes is reversed."""

DIRECTIONS = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
"""Against and along each patient axis."""

AXES = ("left-right", "front-back", "head-feet")


@dataclass(frozen=True)
class Finding:
    """Something doubtful.

    Attributes:
        kind: ``mirrored``, ``sides``, ``position``, ``pieces``, ``volume``, ``missing``, ``unseen`` (a class that no
            training case has), ``empty``, ``location`` or ``file`` (it cannot be judged).
        classes: What it is about.
        value: What was measured; None where nothing is.
        unit: Of the value and its limits: ``mm``, ``ml`` or ``fraction``.
        low, high: Limits that training gives; None: there is none.
        times: How many times the limit's distance from the usual value it is; :data:`MOST` of what has no value.
        sentence: All of this in words.
        place: Where to look, mm along the patient's axes; None: at the classes.
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
    """The findings, the most doubtful first, and the doubt.

    The doubt is at most 1 where nothing is beyond its limit: the largest deviation as a fraction of its limit. Beyond,
    each class adds by how many times its worst deviation exceeds the limit, at most :data:`MOST` times.

    Args:
        case: Its name; a training case is judged by the others.
        summary: Its segmentation.
        ranges: What training has.
        classes: The classes.
    """
    judged = _Judged(case, summary, ranges, classes)
    findings = sorted(judged.findings(), key=lambda one: one.times, reverse=True)
    return findings, judged.doubt


class _Judged:
    """A case beside what is usual; see :func:`judge`."""

    def __init__(self, case: str, summary: LabelSummary, ranges: Ranges, classes: Classes) -> None:
        self.summary, self.limits = summary, ranges.limits
        self.names, self.pairs = list(classes.labels), twins(classes)
        self.usual: Usual = ranges.without.get(case, ranges.usual)
        others = np.stack([present for name, present in ranges.present.items() if name != case])
        self.others, self.share = len(others), others.mean(axis=0)
        self.fewest, self.most = int(others.sum(axis=1).min()), int(others.sum(axis=1).max())
        self.deviations: Deviations = self.usual.deviations(summary)
        self.times = {
            kind: np.nan_to_num(values / self.limits[kind]) for kind, values in self.deviations.scaled.items()
        }
        self.unseen = summary.present & (self.share == 0)
        self.missing = self._missing()
        turned = np.nan_to_num(self.deviations.reversed)
        self.mirrored = [int(axis) for axis in np.flatnonzero(turned > MIRRORED)]

    def _missing(self) -> npt.NDArray[np.bool_]:
        """(C,) classes of every training case that are not here, though the scan shows where they usually lie."""
        frame = self.summary.frame
        index = to_index(self.deviations.expected, frame)
        margin = self.usual.position_scatter.mean(axis=1, keepdims=True) / frame.spacing - 0.5
        shown = ((index >= margin) & (index <= np.array(frame.shape) - 1 - margin)).all(
            axis=1
        )  # never of NaN
        absent: npt.NDArray[np.bool_] = (self.share == 1) & ~self.summary.present & shown
        return absent

    @property
    def doubt(self) -> float:
        """See :func:`judge`."""
        worst = np.max([self.times[kind] for kind in ("position", "volume", "pieces")], axis=0)
        for pair, times in zip(self.pairs, self.times["sides"], strict=True):
            worst[list(pair)] = np.maximum(worst[list(pair)], times)
        empty = self.fewest > 0 and not self.summary.present.any()
        worst = np.where(self.unseen | self.missing | empty, MOST, np.minimum(worst, MOST))
        return float((worst - 1).clip(min=0).sum() + min(1.0, worst.max()))

    def findings(self) -> Iterator[Finding]:
        """All but what follows from another one."""
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
            name, place = self.names[number], self.deviations.expected[number]
            sentence = f"{name} is missing; all {self.others} training cases have it"
            yield Finding(
                "missing", (name,), sentence, place=(float(place[0]), float(place[1]), float(place[2]))
            )
        for number in map(int, np.flatnonzero(self.unseen)):
            name, volume = self.names[number], float(self.summary.volumes[number])
            sentence = f"{name} measures {_ml([volume])}; no training case has it"
            yield Finding("unseen", (name,), sentence, volume, "ml", high=0.0)
        confused = [int(pair) for pair in np.flatnonzero(self.times["sides"] > 1)]
        for number in confused if not self.mirrored else ():
            yield self._sides(number)
        swapped = {one for number in confused for one in self.pairs[number]}
        for kind, describe in (
            ("position", self._position),
            ("pieces", self._pieces),
            ("volume", self._volume),
        ):
            for number in map(int, np.flatnonzero(self.times[kind] > 1)):
                if number not in swapped and not (kind == "position" and self.mirrored):
                    yield describe(number)

    def _sides(self, pair: int) -> Finding:
        left, right = (self.names[number] for number in self.pairs[pair])
        value = float(self.usual.wrong_side(self.summary)[pair])
        reach = self.limits["sides"] * self.usual.side_scatter[pair]
        high = max(0.0, float(np.exp(self.usual.side[pair] + reach) - self.usual.side_unit[pair]))
        sentence = f"{left} and {right} lie on each other's side with {_percent(value)} of their voxels ({_upto(high)})"
        times = float(self.times["sides"][pair])
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
        reach = self.limits["pieces"] * self.usual.stray_scatter[number]
        high = max(0.0, float(np.exp(self.usual.stray[number] + reach) - self.usual.stray_unit[number]))
        sentence = (
            f"{name} has several pieces, {_percent(value)} of it is outside of the largest ({_upto(high)})"
        )
        return Finding(
            "pieces", (name,), sentence, value, "fraction", None, high, float(self.times["pieces"][number])
        )

    def _volume(self, number: int) -> Finding:
        name, value = self.names[number], float(self.summary.volumes[number])
        reach = self.limits["volume"] * self.usual.volume_scatter[number]
        low, high = (float(np.exp(self.usual.volume[number] + sign * reach)) for sign in (-1, 1))
        large = "large" if value > high else "small"
        sentence = f"{name} is too {large}: {_ml([value])} (training: {_ml([low, high])})"
        return Finding(
            "volume", (name,), sentence, value, "ml", low, high, float(self.times["volume"][number])
        )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %" if fraction < 0.1 else f"{100 * fraction:.0f} %"


def _upto(fraction: float) -> str:
    return f"training: up to {_percent(fraction)}" if fraction >= 5e-5 else "training: none"


def _ml(volumes: Sequence[float]) -> str:
    """Millilitres, or mm3 where that reads better."""
    unit, factor = ("mm3", 1000.0) if max(volumes) < 0.1 else ("ml", 1.0)
    shown = (
        f"{factor * volume:.0f}" if factor * volume >= 100 else f"{factor * volume:.2g}" for volume in volumes
    )
    return f"{' to '.join(shown)} {unit}"
