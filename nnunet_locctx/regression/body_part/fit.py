"""Fits a body part regressor on unlabelled scans."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import Array
from nnunet_locctx.location import BodyPartCurve
from nnunet_locctx.location.body_part import HIGHEST_SCORE
from nnunet_locctx.regression.body_part.curve import LEAST_SLICES, SHORT_MM, Line
from nnunet_locctx.regression.body_part.network import SliceRegressor
from nnunet_locctx.regression.body_part.options import BodyPartOptions
from nnunet_locctx.regression.body_part.regressor import BodyPartRegressor, score_images
from nnunet_locctx.regression.body_part.slices import take_slices
from nnunet_locctx.regression.body_part.training import TrainingScan, train
from nnunet_locctx.regression.canonical import CanonicalScan
from nnunet_locctx.regression.checkpoint import CHECKPOINT, content

Target = BodyPartCurve | Callable[[Array], npt.ArrayLike]
"""Known scores of a scan: a curve, or a function of positions (K,) in mm along S."""

LEAST_SCANS = 2

FEWEST_FOR_SPLIT = 5
"""With fewer scans all are used for training and for validation."""

PERCENTILES = (0.5, 99.5)
"""Of the training scans' scores: what becomes 0 and 100."""

POINTS_PER_RAW = 10.0
"""Points that a raw score of 1 means where the scores are known beforehand; keeps raw scores near 1."""


def fit_body_part(
    scans: Mapping[str, CanonicalScan],
    options: BodyPartOptions,
    folder: Path,
    *,
    progress: bool = True,
    targets: Mapping[str, Target] | None = None,
) -> BodyPartRegressor:
    """Fits a regressor; equal scans, options and targets give an equal one, also after an interruption.

    Scans with too few slices that show a body, and with `targets` scans without a usable target, are left out with a
    warning.

    Args:
        scans: By name, at the spacing of the options; each is looked at once.
        options: How.
        folder: Where the checkpoint lies; it is left there.
        progress: Shows a bar.
        targets: Scores known from another tool, by scan. The network then learns these, on their scale.

    Raises:
        ValueError: Fewer than 2 scans can be used, or the network did not learn that scores rise towards superior.
    """
    prepared, left_out = _prepare(scans, options, targets)
    if len(prepared) < LEAST_SCANS:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "none was given"
        raise ValueError(
            f"fitting needs {LEAST_SCANS} scans or more, {len(prepared)} of {len(scans)} can be used ({reasons})"
        )
    for name, reason in left_out.items():
        warnings.warn(f"{name} is left out: {reason}", stacklevel=2)
    names = sorted(prepared)
    training, validation = split(names, options)
    scans_of = {name: content(scan.images, scan.positions, scan.wanted) for name, scan in prepared.items()}
    identity = {"options": options.as_dict(), "scans": scans_of}
    network = train(
        [prepared[name] for name in training],
        [prepared[name] for name in validation],
        options,
        Path(folder) / CHECKPOINT,
        identity,
        progress=progress,
    )
    return _calibrated(network, [prepared[name] for name in names], options, targets is not None)


def split(names: Sequence[str], options: BodyPartOptions) -> tuple[list[str], list[str]]:
    """Names of the training and of the validation scans."""
    if len(names) < FEWEST_FOR_SPLIT:
        return list(names), list(names)
    shuffled = [str(name) for name in np.random.default_rng(options.seed).permutation(sorted(names))]
    count = min(max(1, round(options.validation_share * len(names))), len(names) - LEAST_SCANS)
    return sorted(shuffled[count:]), sorted(shuffled[:count])


def _prepare(
    scans: Mapping[str, CanonicalScan], options: BodyPartOptions, targets: Mapping[str, Target] | None
) -> tuple[dict[str, TrainingScan], dict[str, str]]:
    """The scans that can be used, and why the others cannot."""
    prepared: dict[str, TrainingScan] = {}
    left_out: dict[str, str] = {}
    for name in sorted(scans):
        scan = scans[name]
        if not np.allclose(scan.spacing, options.spacing, rtol=1e-3):
            raise ValueError(
                f"{name} has voxels of {scan.spacing.tolist()} mm, the options say {options.spacing:g} mm"
            )
        slices = take_slices(scan, options.modality, options.window, options.side)
        kept, wanted = slices.usable, None
        if targets is not None:
            found = targets.get(name)
            if found is None or (isinstance(found, BodyPartCurve) and found.problem):
                left_out[name] = "no known scores" if found is None else f"its scores: {found.problem}"
                continue
            wanted = (_known(found, scan, slices.positions) - HIGHEST_SCORE / 2) / POINTS_PER_RAW
            kept = kept & np.isfinite(wanted)
        needed = max(options.slices, LEAST_SLICES)  # with fewer it could not be measured either
        if kept.sum() < needed:
            left_out[name] = f"{kept.sum()} of {len(kept)} slices show a body, {needed} are needed"
            continue
        prepared[name] = TrainingScan(
            slices.images[kept], slices.positions[kept], None if wanted is None else wanted[kept]
        )
    return prepared, left_out


def _known(target: Target, scan: CanonicalScan, positions: Array) -> Array:
    """Known scores at positions along S; a curve is looked up in the middle of each slice."""
    if not isinstance(target, BodyPartCurve):
        return np.asarray(target(positions), dtype=np.float64)
    index = np.tile((np.array(scan.image.shape, dtype=np.float64) - 1) / 2, (len(positions), 1))
    index[:, 2] = np.arange(len(positions))
    return target.score_at((index @ scan.affine[:3, :3].T + scan.affine[:3, 3]) @ target.direction)


def _calibrated(
    network: SliceRegressor, scans: Sequence[TrainingScan], options: BodyPartOptions, known: bool
) -> BodyPartRegressor:
    """The network with its scale and its usual slope."""
    scores = [score_images(network, scan.images) for scan in scans]
    if known:
        lowest, highest = (side * HIGHEST_SCORE / 2 / POINTS_PER_RAW for side in (-1, 1))
    else:
        lowest, highest = (float(value) for value in np.percentile(np.concatenate(scores), PERCENTILES))
    lengths = np.array([scan.positions[-1] - scan.positions[0] for scan in scans])
    # short scans do not show their slope; without any long one the longest has to do
    least = min(SHORT_MM, lengths.max())
    slopes = np.array(
        [
            Line.through(scan.positions, found).slope
            for scan, found, length in zip(scans, scores, lengths, strict=True)
            if length >= least
        ]
    )
    slope = float(np.median(slopes))
    if not slope > 0:
        raise ValueError(
            f"the scores do not rise towards superior (median slope {slope:.2g} per mm over {len(scans)} scans): "
            "more scans, scans of a longer part of the body, or more training steps are needed"
        )
    return BodyPartRegressor(
        options, network, lowest=lowest, highest=highest, raw_slope=slope, raw_spread=float(slopes.std())
    )
