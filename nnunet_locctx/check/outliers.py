"""Cases unlike the rest of their data set: voxel grids, places and volumes of labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from nnunet_locctx.check.report import CaseSummary, Finding
from nnunet_locctx.datasets.grids import (
    COMMON,
    DEVIATIONS,
    FEWEST_CASES,
    PATIENT_AXES,
    Grid,
    robust,
    unusual_grids,
)

POSITION_DISTANCE = 0.2
"""A label whose mean position is this fraction of the volume away from where it usually lies may be reported ..."""

POSITION_DEVIATIONS = 6.0
"""... if that is also this many (robust) standard deviations."""

VOLUME_FACTOR = 3.0
"""The label that varies least in volume tells of a wrong voxel size if it is this many times larger or smaller."""


def outliers(cases: list[CaseSummary], labels: dict[int, str]) -> list[Finding]:
    """Compares the cases of a data set.

    Args:
        cases: Those that could be read.
        labels: Label value -> name.
    """
    displaced = list(_displaced(cases, labels))
    doubtful = {finding.case for finding in displaced}
    seen = {case.name for case in cases if case.positions}
    findings = []
    for item in unusual_grids([_grid(case) for case in cases]):
        severity, message = "warning", item.message
        if item.kind == "direction" and item.case in seen - doubtful:
            # the header tells the truth about this scan if its organs lie where they lie elsewhere
            severity, message = "note", f"{message} Its labels lie where they do in other cases."
        findings.append(Finding(severity, item.kind, item.case, message))
    return findings + displaced + list(_volumes(cases, labels))


def _grid(case: CaseSummary) -> Grid:
    fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(Grid)}
    if not case.stored or case.stored == case.orientation:
        return Grid(**fields)
    # the reader turned the scan: the order of the file's own axes is what a broken header gives away
    axes = {letter: index for index, pair in enumerate(("RL", "AP", "SI")) for letter in pair}
    along = {axes[letter]: number for letter, number in zip(case.orientation, case.shape, strict=True)}
    shape = tuple(along[axes[letter]] for letter in case.stored)
    return Grid(**{**fields, "orientation": case.stored, "shape": shape})


def _displaced(cases: list[CaseSummary], labels: dict[int, str]) -> Iterator[Finding]:
    """Labels far from where they lie in all other cases: the usual sign of a wrong direction matrix."""
    far: dict[tuple[str, int], list[str]] = {}
    for value, name in labels.items():
        having = [case for case in cases if value in case.positions]
        if len(having) < FEWEST_CASES:
            continue
        positions = np.array([case.positions[value] for case in having])
        median, deviation = robust(positions)
        limit = np.maximum(POSITION_DISTANCE, POSITION_DEVIATIONS * deviation)
        for case, position in zip(having, positions, strict=True):
            for axis in map(int, np.flatnonzero(np.abs(position - median) > limit)):
                text = f"{name} at {position[axis]:+.2f} (elsewhere {median[axis]:+.2f})"
                far.setdefault((case.name, axis), []).append(text)
    for (case_name, axis), texts in far.items():
        yield Finding(
            "warning",
            "position",
            case_name,
            f"labels lie far from where they are in other cases, {PATIENT_AXES[axis]} as a fraction of the volume: "
            f"{', '.join(texts[:3])}{f' and {len(texts) - 3} more' if len(texts) > 3 else ''}. Is the direction right?",
        )


def _volumes(cases: list[CaseSummary], labels: dict[int, str]) -> Iterator[Finding]:
    """A wrong voxel size makes organs too large or too small; the label that varies least is the measure."""
    spread: dict[int, tuple[float, float]] = {}
    for value in labels:
        volumes = np.log([case.volumes[value] for case in cases if value in case.volumes])
        if len(volumes) >= FEWEST_CASES and len(volumes) >= COMMON * len([c for c in cases if c.positions]):
            median, deviation = robust(volumes)
            spread[value] = float(median), float(deviation)
    if not spread:
        return
    value = min(spread, key=lambda label: spread[label][1])
    median_ml, deviation_ml = spread[value]
    limit = max(math.log(VOLUME_FACTOR), DEVIATIONS * deviation_ml)
    for case in cases:
        if value in case.volumes and abs(math.log(case.volumes[value]) - median_ml) > limit:
            yield Finding(
                "warning",
                "volume",
                case.name,
                f"{labels[value]} measures {case.volumes[value]:.3g} ml, the dataset's median is "
                f"{math.exp(median_ml):.3g} ml. Is the voxel size right?",
            )
