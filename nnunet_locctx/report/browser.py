"""Makes the content of the page's case browser: slices of scans, truth and predictions as small pictures.

One picture holds the slices of a case, from top to bottom. Scans are JPEG, labels are PNG with a palette.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import to_hex
from PIL import Image

from nnunet_locctx.report.case_images import CaseSlices, Labels
from nnunet_locctx.report.cases import (
    OPACITY,
    Key,
    PresetCases,
    draw_overlays,
    enlarged,
    label_colours,
    of_first_seed,
    outline,
)
from nnunet_locctx.report.document import Browser, count, data_url, percent
from nnunet_locctx.report.results import Results
from nnunet_locctx.report.statistics import by_case

SIDE = 256
"""Approximate pixels of a slice's longer side; labels are enlarged to it, so that outlines are thin."""

MOST_BYTES = 6_000_000
"""Largest size of all pictures together in bytes; further cases are left out."""

QUALITY = 60
SWAPPED = "#ff2bd6"
OUTLINE, SWAP = 254, 255
"""Entries of the palette for the truth's outline and for swapped voxels."""


def build_browser(study: Results, presets: Sequence[PresetCases]) -> Browser | None:
    """The browser of all presets; None if no case could be read."""
    shown = [cases for cases in presets if cases.slices]
    if not shown:
        return None
    colours = {label: (name, to_hex(colour)) for label, (name, colour) in label_colours(study).items()}
    room = MOST_BYTES // len(shown)
    content: dict[str, Any] = {
        "labels": list(map(list, dict.fromkeys(colours.values()))),
        "swapped": SWAPPED,
        "presets": [_preset(study, cases, colours, room) for cases in shown],
    }
    caption = (
        "Validation cases, the leading method's worst first. Filled: truth and predictions; white lines: the truth; "
        f"below each: the case's mean foreground Dice in 3D.{of_first_seed(study)}"
    )
    if study.pairs:
        caption += " Voxels of a left or right class that are predicted as the other side are pink."
    left_out = {preset["name"]: preset["left_out"] for preset in content["presets"]}
    if any(left_out.values()):
        words = "; ".join(f"{name}: {count(number, 'case')}" for name, number in left_out.items())
        caption += f" To keep the page small, some slices and cases are left out: {words}."
    if next(iter(shown[0].slices.values())).letters:
        caption += " Seen as radiologists do: the patient's right is at the left."
    figures = [figure for cases in shown if (figure := draw_overlays(study, cases)) is not None]
    return Browser(figures, content, caption)


def _preset(
    study: Results, cases: PresetCases, colours: Mapping[int, tuple[str, str]], room: int
) -> dict[str, Any]:
    runs = {method: study.first_scores_of(study.find(method, cases.preset)) for method in cases.methods}
    swaps = pd.DataFrame({name: by_case(scores, "swap_rate").mean(axis=1) for name, scores in runs.items()})
    entries: list[dict[str, Any]] = []
    for key, slices in cases.slices.items():
        entry = _case(study, cases, key, slices, swaps, colours)
        pictures = (entry["scan"], *(panel["labels"] or "" for panel in entry["panels"]))
        room -= sum(map(len, pictures))
        if room < 0 and entries:
            break
        entries.append(entry)
    left_out = cases.left_out + len(cases.slices) - len(entries)
    return {"name": cases.preset, "leader": cases.leader, "left_out": left_out, "cases": entries}


def _case(
    study: Results,
    cases: PresetCases,
    key: Key,
    slices: CaseSlices,
    swaps: pd.DataFrame,
    colours: Mapping[int, tuple[str, str]],
) -> dict[str, Any]:
    step = -(-max(slices.truth.shape[1:]) // SIDE)
    truth = slices.truth[:, ::step, ::step]
    panels: list[dict[str, Any]] = [
        {"method": "", "name": "truth", "labels": _labels(truth, None, None, colours)}
    ]
    for method in cases.methods:
        panel: dict[str, Any] = {"method": method, "name": method}
        panel |= {"labels": None, "swapped": None, "at": None}
        panel["dice"] = percent(cases.dice[method].get(key, np.nan), 1)
        predicted = slices.predictions.get(method)
        if predicted is not None:
            swapped = _swapped(study, slices.truth, predicted)
            rate = float(swaps[method].get(key, np.nan))
            if swapped.any() and np.isfinite(rate):
                panel |= {"swapped": percent(rate), "at": int(swapped.sum(axis=(1, 2)).argmax())}
            panel["labels"] = _labels(
                predicted[:, ::step, ::step], truth, swapped[:, ::step, ::step], colours
            )
        panels.append(panel)
    height, width = (
        size * length for size, length in zip(slices.truth.shape[1:], slices.spacing, strict=True)
    )
    return {
        "case": slices.case,
        "dice": percent(cases.dice[cases.leader].get(key, np.nan), 1),
        "names": slices.names,
        "first": slices.fullest,
        "ratio": round(width / height, 4),
        "letters": slices.letters[:2],
        "scan": _scan(slices.image[:, ::step, ::step]),
        "panels": panels,
    }


def _swapped(study: Results, truth: Labels, predicted: Labels) -> npt.NDArray[np.bool_]:
    """The voxels of a left or right class that are predicted as its twin; regions are left out."""
    labels = study.settings.get("labels") or {}
    wrong = np.zeros(truth.shape, bool)
    for names in study.pairs:
        left, right = (labels.get(name) for name in names)
        if isinstance(left, int) and isinstance(right, int):
            wrong |= ((truth == left) & (predicted == right)) | ((truth == right) & (predicted == left))
    return wrong


def _scan(image: npt.NDArray[np.floating]) -> str:
    picture = io.BytesIO()
    grey = np.rint(255 * image).astype(np.uint8)
    Image.fromarray(grey.reshape(-1, grey.shape[2])).save(picture, "JPEG", quality=QUALITY)
    return data_url(picture.getvalue(), "jpeg")


def _labels(
    labels: Labels,
    truth: Labels | None,
    swapped: npt.NDArray[np.bool_] | None,
    colours: Mapping[int, tuple[str, str]],
) -> str:
    """Transparent coloured labels (N, rows, columns) with swapped voxels and the truth's outline, as a URL."""
    entries = {label: 1 + place % (OUTLINE - 1) for place, label in enumerate(colours)}
    palette: npt.NDArray[np.uint8] = np.zeros((256, 4), np.uint8)
    for label, entry in entries.items():
        palette[entry] = (*bytes.fromhex(colours[label][1][1:]), round(255 * OPACITY))
    palette[OUTLINE], palette[SWAP] = (255, 255, 255, 200), (*bytes.fromhex(SWAPPED[1:]), 190)
    indices: npt.NDArray[Any] = np.zeros(labels.shape, np.uint8)
    for label, entry in entries.items():
        indices[labels == label] = entry
    if swapped is not None:
        indices[swapped] = SWAP
    factor = max(1, SIDE // max(labels.shape[1:]))
    indices = enlarged(indices, factor)
    if truth is not None:
        indices[outline(enlarged(truth, factor))] = OUTLINE
    picture = io.BytesIO()
    image = Image.fromarray(indices.reshape(-1, indices.shape[-1]))
    image.putpalette(palette[:, :3].tobytes())
    image.save(picture, "PNG", transparency=palette[:, 3].tobytes(), optimize=True)
    return data_url(picture.getvalue(), "png")
