"""JSON files of bpreg."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_locctx.geometry import Array

EXPECTED_SLOPE = 0.118
"""Points per mm of bpreg's public model."""

SCORES = ("cleaned slice scores", "cleaned slice-scores")
"""Names of the list of scores: what the tool writes, and what its documentation says."""


@dataclass(frozen=True)
class BpregScores:
    """What a JSON file of bpreg says about one scan.

    Attributes:
        file: Where it was read from.
        scores: (K,) one per slice of the reordered stack, 0 to 100 between pelvis and eyes; NaN where cleaned away.
        spacing: Voxel size along the body in mm, None if the file does not say.
        falling: Whether the scores fall with the slice number.
        plausible: Whether the tool found the voxel size along the body plausible.
        expected_slope: Points per mm of a usual scan.
    """

    file: Path
    scores: Array
    spacing: float | None
    falling: bool
    plausible: bool
    expected_slope: float = EXPECTED_SLOPE


def read_scores(file: Path | str) -> BpregScores:
    """Reads a JSON file of bpreg.

    Raises:
        ValueError: It is no JSON file of bpreg, or holds no score.
    """
    file = Path(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold an object, got {type(content).__name__}")
    name = next((name for name in SCORES if name in content), None)
    if name is None:
        raise ValueError(f"{file} has no {SCORES[0]!r}, so bpreg did not write it; it has {_listed(content)}")
    values = content[name]
    if not isinstance(values, list) or not values:
        raise ValueError(f"{file}: {name!r} must be a list of numbers, got {_shortened(values)}")
    scores = np.array([_score(file, name, value) for value in values], dtype=np.float64)
    if np.isnan(scores).all():
        raise ValueError(f"{file}: none of the {len(scores)} slices has a score, all are NaN")
    spacing = _number(file, content, "z-spacing")
    if spacing is not None and spacing <= 0:
        raise ValueError(f"{file}: 'z-spacing' must be above 0 mm, got {spacing:g}")
    falling = _number(file, content, "reverse z-ordering")
    plausible = _number(file, content, "valid z-spacing")
    slope = _number(file, content, "expected slope")
    return BpregScores(
        file=file,
        scores=scores,
        spacing=spacing,
        falling=_falls(scores) if falling is None else falling != 0,
        plausible=plausible is None or plausible != 0,
        expected_slope=EXPECTED_SLOPE if slope is None or slope <= 0 else slope,
    )


def find_files(
    folder: Path | str, cases: Iterable[str], channel: int = 0
) -> tuple[dict[str, Path], list[str]]:
    """The JSON file of each case: ``CASE.json`` or, as bpreg names it after an image, ``CASE_0000.json``.

    Returns:
        Case -> file, and the cases without one.

    Raises:
        ValueError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    files: dict[str, Path] = {}
    missing = []
    for case in cases:
        candidates = [folder / f"{case}.json", folder / f"{case}_{channel:04d}.json"]
        found = next((file for file in candidates if file.is_file()), None)
        if found is None:
            missing.append(case)
        else:
            files[case] = found
    return files, missing


def _falls(scores: Array) -> bool:
    known = np.flatnonzero(np.isfinite(scores))
    return len(known) > 1 and bool(np.polyfit(known, scores[known], 1)[0] < 0)


def _score(file: Path, name: str, value: Any) -> float:
    if value is None:  # how strict JSON writers put NaN
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
        raise ValueError(f"{file}: {name!r} must hold numbers or NaN, got {_shortened(value)}")
    return float(value)


def _number(file: Path, content: Mapping[str, Any], name: str) -> float | None:
    """A number of the file, None where it is missing or NaN."""
    value = content.get(name)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or math.isinf(value):
        raise ValueError(f"{file}: {name!r} must be a number, got {_shortened(value)}")
    return None if math.isnan(value) else float(value)


def _listed(content: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(content)[:8])) or "no keys"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
