"""Places of the classes in each training case, from the sample of every class's voxels that nnU-Net stores.

A source of location is the more useful, the farther the classes lie apart from each other compared with how much the
place of a class differs from case to case.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Array, Frame
from nnunet_locctx.location import LocationField, LocationSource
from nnunet_locctx.nnunet.data.fitted import CaseMeasurements

POINTS = 500
"""Most voxels of a class and case that are used."""

FEWEST_CASES = 3
"""Cases that a class must occur in; the scatter of fewer means nothing."""

STEP = 2.0
"""Voxels by which a place is moved to see how many mm a unit of the coordinate is."""


@dataclass(frozen=True)
class CasePoints:
    """One preprocessed case.

    Attributes:
        identifier: nnU-Net's name of the case.
        frame: Geometry of the preprocessed array.
        points: Class -> (n, 3) index of some of its voxels, array axis order; none if it does not occur.
    """

    identifier: str
    frame: Frame
    points: Mapping[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Spread:
    """Separation of the classes by a coordinate; all (3,) along (R, A, S), in units of the coordinate.

    Attributes:
        between: Standard deviation of the classes' mean places; for a single class, of the whole scan's voxels.
        scatter: Standard deviation of a class's place between cases, median over the classes.
    """

    between: Array
    scatter: Array

    @property
    def ratio(self) -> Array:
        """(3,) `between` over `scatter`; NaN along an axis that was not measured."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.between / self.scatter)


@dataclass(frozen=True)
class SourcePlaces:
    """Where a source sees the classes.

    Attributes:
        source: The source.
        classes: Names of the classes.
        places: (cases, classes, 3) mean location of each class; NaN where it does not occur or is not known.
        whole: (3,) standard deviation of the location over a scan's voxels, median over the cases.
        millimetres: (3,) mm per unit of the coordinate, median over classes and cases.
        problems: Case -> why its location is not known along any axis.
    """

    source: LocationSource
    classes: Sequence[str]
    places: Array
    whole: Array
    millimetres: Array
    problems: Mapping[str, str]

    @property
    def measured(self) -> float:
        """Share of the cases with a location."""
        return 1 - len(self.problems) / len(self.places)

    @property
    def spread(self) -> Spread:
        """See :func:`spread`."""
        return spread(self.places, self.whole)


def read_points(
    folder: Path, labels: Mapping[str, Any], transpose_forward: Sequence[int]
) -> Iterator[CasePoints]:
    """The cases of a folder of preprocessed data; no voxel of an image is read.

    Args:
        folder: Such as nnUNet_preprocessed/Dataset003_Liver/nnUNetPlans_3d_fullres.
        labels: Labels of dataset.json.
        transpose_forward: The plans'.

    Raises:
        ValueError: There is no case, or one of them has no usable geometry.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    if not any(folder.glob("*.pkl")):
        raise ValueError(f"{folder} holds no preprocessed data; run nnUNetv2_preprocess first")
    names = {_key(value): name for name, value in labels.items() if name not in ("background", "ignore")}
    dataset = infer_dataset_class(str(folder))(str(folder))
    for identifier in dataset.identifiers:
        data, *_, properties = dataset.load_case(identifier)
        try:
            frame = Frame.from_properties(properties, data.shape[1:], transpose_forward)
        except ValueError as error:
            raise ValueError(f"case {identifier}: {error}") from error
        yield CasePoints(identifier, frame, class_points(properties["class_locations"], names))


def class_points(locations: Mapping[Any, Any], names: Mapping[Any, str]) -> dict[str, npt.NDArray[np.int64]]:
    """nnU-Net's ``class_locations`` as class -> (n, 3) index, at most :data:`POINTS` spread over them.

    Args:
        locations: Label, or tuple of the labels of a region -> (n, 4), a channel and the index.
        names: The classes that are looked at, by the same keys.
    """
    points = {}
    for key, name in names.items():
        index = np.asarray(locations.get(key, ()), dtype=np.int64).reshape(-1, 4)[:, 1:]
        points[name] = index[:: max(1, -(-len(index) // POINTS))]
    return points


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def mean_places(field: LocationField, points: Mapping[str, npt.NDArray[np.int64]]) -> Array:
    """(classes, 3) mean location of each class; NaN where it does not occur or an axis is unknown."""
    absent = np.full(3, np.nan)
    return np.stack([field.at(index).mean(axis=0) if len(index) else absent for index in points.values()])


def spread(places: Array, whole: Array) -> Spread:
    """Distances between the classes, and how much the place of each class differs between cases.

    Args:
        places: (cases, classes, 3), NaN where not known; classes known in fewer than :data:`FEWEST_CASES` are left out.
        whole: (3,) standard deviation of the location over a scan, with which a single class is compared.
    """
    between, scatter = np.full(3, np.nan), np.full(3, np.nan)
    for axis in range(3):
        known = places[:, np.isfinite(places[..., axis]).sum(axis=0) >= FEWEST_CASES, axis]
        if known.shape[1] == 0:
            continue
        means = np.nanmean(known, axis=0)
        between[axis] = means.std() if len(means) > 1 else whole[axis]
        scatter[axis] = np.median(np.nanstd(known, axis=0))
    return Spread(between, scatter)


def source_places(
    cases: Sequence[CasePoints], source: LocationSource, measurements: CaseMeasurements | None = None
) -> SourcePlaces:
    """Where a source sees the classes.

    Args:
        cases: The preprocessed cases.
        source: The source.
        measurements: What was measured in each case; needed where the source is fitted.

    Raises:
        ValueError: A case was not measured.
    """
    places, spans, slopes = [], [], []
    problems: dict[str, str] = {}
    for case in cases:
        measured = None if measurements is None else measurements.read(case.identifier)
        if measured is not None and measured.problem:
            problems[case.identifier] = measured.problem
            places.append(np.full((len(case.points), 3), np.nan))
            continue
        field = source.field(case.frame, measured)
        places.append(mean_places(field, case.points))
        spans.append(_whole(field))
        slopes += [
            _slopes(field, case.frame, index.mean(axis=0)) for index in case.points.values() if len(index)
        ]
    nothing = np.full((1, 3), np.nan)
    with np.errstate(divide="ignore"):
        millimetres = 1 / np.median(slopes or nothing, axis=0)
    return SourcePlaces(
        source,
        list(cases[0].points),
        np.stack(places),
        np.median(spans or nothing, axis=0),
        millimetres,
        problems,
    )


def measured_scatter(cases: Iterable[tuple[LocationField, Mapping[str, npt.NDArray[np.int64]]]]) -> Array:
    """(3,) scatter of the classes between cases, in units of the coordinate; 0 along an axis that is not known.

    Args:
        cases: Each case's location, and its classes' voxels (:attr:`CasePoints.points`).

    Raises:
        ValueError: No class is known in enough cases along any axis.
    """
    places = [mean_places(field, points) for field, points in cases]
    scatter = spread(np.stack(places), np.zeros(3)).scatter if places else np.full(3, np.nan)
    if np.isnan(scatter).all():
        raise ValueError(
            f"location.jitter 'auto' is the scatter of the classes between cases, and no class has a known place in "
            f"{FEWEST_CASES} or more of {len(places)} cases; give jitter as a number"
        )
    return np.nan_to_num(scatter)


def _whole(field: LocationField) -> Array:
    """(3,) standard deviation of the location over the volume."""
    axes = [np.linspace(-0.5, n - 0.5, 9) for n in field.shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return np.asarray(field.at(grid).reshape(-1, 3).std(axis=0))


def _slopes(field: LocationField, frame: Frame, index: Array) -> Array:
    """(3,) units per mm along each patient axis at one place."""
    length = STEP * float(frame.spacing.max())
    ends = np.stack([frame.millimetres(index) + sign * length * PATIENT_FROM_LPS for sign in (-1, 1)])
    low, high = field.at(frame.index_from_millimetres(ends))
    return np.asarray(np.abs(np.diag(high - low)) / (2 * length))
