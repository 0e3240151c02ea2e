"""Which source of location separates the classes of a dataset, and whether it can help at the planned patch."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_locctx.geometry import Array
from nnunet_locctx.location import AXES, make_source
from nnunet_locctx.nnunet.data.class_places import CasePoints, SourcePlaces, read_points, source_places
from nnunet_locctx.nnunet.data.fitted import COMMANDS, REGRESSOR, WITHOUT_FIT, CaseMeasurements, fitted_folder
from nnunet_locctx.nnunet.data.fitting import fit_source, regressor_for_training
from nnunet_locctx.nnunet.plans.coverage import coverage
from nnunet_locctx.nnunet.plans.misfits import description
from nnunet_locctx.nnunet.plans.planning import resolve
from nnunet_locctx.nnunet.plans.plans_file import Plans

CANDIDATES: Sequence[Mapping[str, Any]] = (
    {"source": "voxel"},
    {"source": "scanner"},
    {"source": "scanner", "absolute": True},
    {"source": "body"},
    {"source": "body_part"},
    {"source": "anatomical"},
)
"""Location keys of the plans that are compared; the simpler ones first."""

LEAST_RATIO = 1.0
"""Ratio of the classes' spread along an axis to the scatter of one class, above which the axis separates classes."""

LEAST_CERTAINTY = 2.0
"""Ratio of the spread of random places in the scan to the scatter of one class, above which the axis separates the
classes from the background, even if all classes lie at the same height. An axis below both ratios misleads: its
coordinate tells the cases apart rather than the classes."""

LARGEST_RATIO = 1e6

AS_GOOD = 0.95
"""The simplest source that reaches this share of the best source's bits is recommended."""


@dataclass(frozen=True)
class Candidate:
    """One source, measured on a dataset.

    Attributes:
        location: The plans' ``location`` key: source and options.
        places: Where it sees the classes.
        anywhere: (3,) standard deviation in mm of a place that may be anywhere in the median scan, along R, A, S.
    """

    location: Mapping[str, Any]
    places: SourcePlaces
    anywhere: Array

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.location['source']}{', absolute' if self.location.get('absolute') else ''}"

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that separate classes from each other, or from what is none."""
        apart = np.nan_to_num(self.places.spread.ratio) >= LEAST_RATIO
        certain = self.anywhere >= LEAST_CERTAINTY * self.places.spread.scatter * self.places.millimetres
        return tuple(axis for axis, good in zip(AXES, apart | certain, strict=True) if bool(good))

    @property
    def bits(self) -> float:
        """Information of its :attr:`axes` about the class, times the share of the cases that have a location: the
        capacity of a Gaussian channel, log2(1 + ratio^2) / 2 for each axis (Shannon, "Communication in the presence of
        noise", 1949)."""
        # copies of one case do not scatter at all
        ratio = np.nan_to_num(self.places.spread.ratio, posinf=LARGEST_RATIO)
        used = [AXES.index(axis) for axis in self.axes]
        return float(0.5 * np.log2(1 + ratio[used] ** 2).sum() * self.places.measured)


@dataclass(frozen=True)
class PatchPlaces:
    """Uncertainty of a patch's place; all (3,) along the patient's axes (R, A, S).

    Attributes:
        fraction: Share of the median scan's length that the patch sees.
        guess: Uncertainty in mm without location, when the patch may lie anywhere in the scan.
        scatter: Uncertainty in mm with location: the place of a class differs between patients.
        axes: The axes in use.
    """

    fraction: Array
    guess: Array
    scatter: Array
    axes: tuple[str, ...]

    @property
    def gaining(self) -> tuple[str, ...]:
        """The axes in use along which location lowers the uncertainty."""
        better = self.guess > self.scatter
        return tuple(
            axis for axis, good in zip(AXES, better, strict=True) if bool(good) and axis in self.axes
        )


def measure_sources(
    folder: Path, plans: Plans, configuration: Mapping[str, Any], *, quick: bool = False, processes: int = 1
) -> tuple[list[CasePoints], list[Candidate]]:
    """Measures every source that can be: those without fit, and those fitted on the dataset.

    Args:
        folder: The dataset's folder in nnUNet_preprocessed.
        plans: The plans of the configuration.
        configuration: Inheritance resolved.
        quick: Leave ``body`` out where its boxes were not measured before, for which all raw scans are read once.
        processes: Worker processes for that.

    Raises:
        ValueError: Nothing was preprocessed, or a source's measurements are incomplete.
    """
    data = folder / configuration["data_identifier"]
    labels = description(folder).get("labels", {})
    if not data.is_dir():
        others = {name: resolve(plans, name)["data_identifier"] for name in plans["configurations"]}
        ready = [name for name, identifier in others.items() if (folder / identifier).is_dir()]
        own = next((name for name, identifier in others.items() if identifier == data.name), "CONFIGURATION")
        raise ValueError(
            f"sources are compared on preprocessed data, and {data} is not there; "
            + (f"that of {', '.join(ready)} is: give one with -c, or run " if ready else "run ")
            + f"nnUNetv2_preprocess -d {int(folder.name[7:10])} -plans_name {plans['plans_name']} -c {own}"
        )
    cases = list(read_points(data, labels, plans["transpose_forward"]))
    anywhere = _anywhere(np.median([case.frame.extent for case in cases], axis=0))
    candidates = []
    for location in CANDIDATES:
        source = make_source(**{"name" if key == "source" else key: value for key, value in location.items()})
        measurements = None
        if source.fitted:
            fitted = (fitted_folder(folder.name, source.name) / REGRESSOR).is_file()
            if not fitted and (quick or source.name not in WITHOUT_FIT):
                continue
            if not fitted:
                fit_source(folder.name, source.name, processes=processes)
            data_of_regressor = regressor_for_training(folder.name, source.name)
            measurements = CaseMeasurements(fitted_folder(folder.name, source.name), data_of_regressor)
        candidates.append(Candidate(location, source_places(cases, source, measurements), anywhere))
    return cases, candidates


def _anywhere(length: Array) -> Array:
    """The standard deviation of a place that may be anywhere in a length: the length over the root of 12."""
    return length / np.sqrt(12)


def recommend(candidates: Sequence[Candidate]) -> Candidate | None:
    """The simplest source with about as many bits as the best one; None if none has any."""
    best = max((candidate.bits for candidate in candidates), default=0.0)
    return next((each for each in candidates if each.bits > 0 and each.bits >= AS_GOOD * best), None)


def location_key(candidate: Candidate) -> dict[str, Any]:
    """The plans' ``location`` key for a recommended source: axes that mislead are left out, jitter is the scatter."""
    axes = {} if len(candidate.axes) == len(AXES) else {"axes": list(candidate.axes)}
    return {**candidate.location, **axes, "jitter": "auto"}


def patch_places(
    cases: Sequence[CasePoints], configuration: Mapping[str, Any], candidate: Candidate
) -> PatchPlaces:
    """The uncertainty of the place of a configuration's patch, without location and with it.

    Args:
        cases: The preprocessed cases.
        configuration: Inheritance resolved.
        candidate: The source in use.
    """
    seen = coverage(configuration)
    (axes, _), *_ = Counter(case.frame.array_axes for case in cases).most_common(1)
    extent = np.median([case.frame.extent for case in cases], axis=0)
    # a 2D patch is one slice of the first axis
    slices = [float(np.median([case.frame.spacing[0] for case in cases]))] * (3 - len(seen.patch_size))
    patch = np.array([*slices, *np.multiply(seen.patch_size, seen.spacing)])[list(axes)]
    fraction = np.minimum(1.0, patch / extent)
    scatter = candidate.places.spread.scatter * candidate.places.millimetres
    return PatchPlaces(fraction, _anywhere((1 - fraction) * extent), scatter, candidate.axes)


def report_sources(candidates: Sequence[Candidate]) -> Iterator[str]:
    """The table, a line each."""
    yield (
        f"{'':<20}{'cases':>9}   {'scatter between cases, mm':<24}   {'classes apart / scatter':<24}{'bits':>6}"
    )
    axes = " ".join(f"{axis:>7}" for axis in AXES)
    yield f"{'source':<20}{'measured':>9}   {axes:<24}   {axes:<24}"
    for candidate in candidates:
        places = candidate.places
        scatter, count = places.spread.scatter * places.millimetres, len(places.places)
        yield (
            f"{candidate.name:<20}{f'{count - len(places.problems)} of {count}':>9}   {_three(scatter):<24}   "
            f"{_three(places.spread.ratio):<24}{candidate.bits:>6.1f}"
        )


def report_recommendation(
    candidates: Sequence[Candidate], cases: Sequence[CasePoints], configuration: Mapping[str, Any]
) -> Iterator[str]:
    """The meaning of the table, one sentence in each line.

    Args:
        candidates: The measured sources.
        cases: The preprocessed cases.
        configuration: The planned one.
    """
    compared = {candidate.location["source"] for candidate in candidates}
    missing = [source for source in COMMANDS if source not in compared]
    for source in missing:
        yield f"{source}: not compared; measure it with `locctx fit {COMMANDS[source]}`."
    for candidate in candidates:
        for sentence, count in Counter(candidate.places.problems.values()).items():
            yield f"{candidate.name}: unknown in {count} cases: {sentence}"
    best = recommend(candidates)
    if best is None:
        yield (
            "No source tells the classes apart: along every axis each class scatters more between cases than the "
            "classes lie apart, and nearly as much as any place in the scan. Location cannot be expected to help; "
            "train plain nnU-Net."
        )
        return
    left_out = [axis for axis in AXES if axis not in best.axes]
    yield f"recommended: {best.name}, axes {', '.join(best.axes)}, jitter auto (the scatter above)"
    if left_out:
        yield (
            f"{', '.join(left_out)} {'is' if len(left_out) == 1 else 'are'} left out: a class scatters more between "
            "cases than the classes lie apart, and nearly as much as any place in the scan, which misleads."
        )
    yield from _about_patch(patch_places(cases, configuration, best))


def _about_patch(patch: PatchPlaces) -> Iterator[str]:
    shares = ", ".join(
        f"{100 * value:.0f}% ({axis})" for axis, value in zip(AXES, patch.fraction, strict=True)
    )
    guess, scatter = (
        ", ".join(f"{values[AXES.index(axis)]:.3g} ({axis})" for axis in patch.axes)
        for values in (patch.guess, patch.scatter)
    )
    yield (
        f"The planned patch sees {shares} of the median scan. Without location its place is known to {guess} mm, with "
        f"it a class's to {scatter} mm."
    )
    if not patch.gaining:
        yield (
            "Location cannot be expected to help at this patch, which sees where it is; at a smaller one it may."
        )
    else:
        yield f"Location can be expected to help along {', '.join(patch.gaining)}."


def _three(values: Array) -> str:
    """Three numbers for a table, - where one is not known."""
    return " ".join(f"{value:>7.3g}" if np.isfinite(value) else f"{'-':>7}" for value in values)
