"""Makes locations that are wrong by a known amount, or unknown.

There are two errors, each with an amount in percent of the axis:

* **shift**: one constant is added to the location of the whole scan, as if its field of view were misjudged;
* **noise**: every slice gets its own error, drawn from a Gaussian whose standard deviation is the amount. Slice scores
  err in this way: all voxels of a slice share one error, neighbouring slices do not.

A third change, **unknown**, removes the coordinate (NaN). It has no amount: a curve shows it at every amount above 0.

Each change concerns one channel (``R``, ``A``, or ``axial``: the coordinate along the body, S), or all three (``all``).
With noise, each channel gets one error per slice across its own axis; the slices are those of the preprocessed array
along the axis closest to the patient's. The *axis* is 1.0 for sources whose coordinates run from -0.5 to 0.5
(``voxel``, ``body_part``, ``anatomical``); for ``scanner`` it is the scan's extent in mm over
:data:`~nnunet_locctx.location.MILLIMETRES_PER_UNIT`.

Source of the experiment: Hooft et al., "LocBAM", ISBI 2026, section 3.4, axial shifts. The authors' code adds the shift
twice, and to all axes; this module adds it once.
"""

import math
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import MILLIMETRES_PER_UNIT, LocationSource
from nnunet_locctx.location.field import NEVER_ZERO

AMOUNTS = (0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0)
KINDS = ("shift", "noise", "unknown")
AXES = {"R": (0,), "A": (1,), "axial": (2,), "all": (0, 1, 2)}
"""Name -> channels that are changed."""

USUAL_AXES = ("axial", "all")
AXES_WORDS = {
    "R": "left to right",
    "A": "back to front",
    "axial": "along the body",
    "all": "along all three axes",
}

SIGNS = {"both": (1.0, -1.0), "plus": (1.0,), "minus": (-1.0,)}


@dataclass(frozen=True)
class Change:
    """One change of the location.

    Attributes:
        kind: ``shift``, ``noise``, ``unknown`` or ``none``.
        axes: Key of :data:`AXES`, or ``none``.
        percent: Of the axis; negative for a shift towards left, posterior and inferior; 100 if unknown.
    """

    kind: str
    axes: str
    percent: float


UNCHANGED = Change("none", "none", 0.0)


@dataclass(frozen=True)
class Design:
    """The changes that are tried.

    Attributes:
        amounts: Percent of the axis, increasing.
        axes: Keys of :data:`AXES`.
        kinds: Some of :data:`KINDS`.
        sign: Key of :data:`SIGNS`: directions of a shift. With ``both`` the mean of two directions is reported, as the
            Dice depends on the direction.
        seed: Seed of the noise.
    """

    amounts: tuple[float, ...] = AMOUNTS
    axes: tuple[str, ...] = USUAL_AXES
    kinds: tuple[str, ...] = ("shift", "noise")
    sign: str = "both"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, chosen, allowed in (
            ("axes", self.axes, AXES),
            ("kinds", self.kinds, KINDS),
            ("sign", (self.sign,), SIGNS),
        ):
            unknown = [value for value in chosen if value not in allowed]
            if unknown or not chosen:
                raise ValueError(
                    f"{name} must be of {', '.join(allowed)}; got {', '.join(unknown) or 'none'}"
                )
        if not self.amounts or not all(math.isfinite(amount) and amount >= 0 for amount in self.amounts):
            raise ValueError(f"amounts must be percentages of 0 or more, got {list(self.amounts)}")
        if self.seed < 0:
            raise ValueError(f"the seed must be 0 or more, got {self.seed}")
        object.__setattr__(self, "amounts", tuple(sorted({float(amount) for amount in self.amounts})))

    def curves(self) -> list[tuple[str, str]]:
        """(kind, axes) of every curve."""
        return [(kind, axes) for kind in self.kinds for axes in self.axes]

    def point(self, kind: str, axes: str, amount: float) -> list[Change]:
        """The changes whose mean is one point of a curve."""
        if amount == 0:
            return [UNCHANGED]
        if kind == "unknown":
            return [Change(kind, axes, 100.0)]
        signs = SIGNS[self.sign] if kind == "shift" else (1.0,)
        return [Change(kind, axes, sign * amount) for sign in signs]

    def changes(self) -> list[Change]:
        """All changes to predict, each once."""
        points = (self.point(*curve, amount) for curve in self.curves() for amount in self.amounts)
        return list(dict.fromkeys(change for point in points for change in point))


def axis_lengths(source: LocationSource, frame: Frame) -> Array:
    """(3,) length of the scan (100 percent) along R, A and S in the units of its location."""
    if source.name == "scanner":
        return np.asarray(frame.extent / MILLIMETRES_PER_UNIT)
    return np.ones(3)


def wrong_location(
    location: npt.NDArray[np.float32],
    frame: Frame,
    lengths: npt.ArrayLike,
    change: Change,
    *,
    case: str = "",
    seed: int = 0,
) -> npt.NDArray[np.float32]:
    """A scan's location with an error.

    The noise of a case depends only on its name, the seed and the axis: every model gets the same errors, and a larger
    amount means larger errors at the same places.

    Args:
        location: (3, *shape) true location (R, A, S); not changed.
        frame: Frame of the preprocessed array.
        lengths: (3,) lengths of 100 percent (:func:`axis_lengths`).
        change: The error.
        case: Name of the case.
        seed: Seed of the noise.

    Returns:
        (3, *shape) float32.
    """
    wrong = location.copy()
    if change.percent == 0:
        return wrong
    for channel in AXES[change.axes]:
        if change.kind == "unknown":
            wrong[channel] = np.nan
            continue
        amount = change.percent / 100 * float(np.asarray(lengths)[channel])
        if change.kind == "shift":
            wrong[channel] += np.float32(amount)
            continue
        axis = frame.array_axes[channel]
        generator = np.random.default_rng([seed, zlib.crc32(case.encode()), channel])
        errors = amount * generator.standard_normal(frame.shape[axis])
        wrong[channel] += errors.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    # nnU-Net's padding is 0 in all channels; no voxel of the scan may look like it
    wrong[0][wrong[0] == 0] = NEVER_ZERO
    return wrong
