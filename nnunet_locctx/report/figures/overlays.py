"""The best and the worst cases: truth and the methods' predictions on the image, side by side."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_locctx.evaluation.robustness_figure import COLOURS
from nnunet_locctx.report.case_images import CaseSlice, read_case
from nnunet_locctx.report.comparison import Comparison
from nnunet_locctx.report.document import Figure, percent, slug
from nnunet_locctx.report.figures.style import WIDTH, new_figure, to_png
from nnunet_locctx.report.model import Study
from nnunet_locctx.report.scores import Key, mean_known, shared_keys

OPACITY = 0.45
SMALLEST_PANEL, MOST_COLUMNS = 1.5, 7
LONGEST_LEGEND = 24
DISTINCT = 20
"""Colours, if there are more labels than Okabe and Ito's."""


def choose_cases(leader: Comparison, base: Comparison | None) -> dict[Key, str]:
    """Cases to show, and why: the leading method's best and worst, and its largest gain and loss.

    Args:
        leader: The method that leads.
        base: The baseline at the same preset, if the leader is another.
    """
    dice = mean_known(leader.scores.values["dice"], axis=1)
    found: dict[Key, str] = {}

    def add(key: Key, why: str) -> None:
        found[key] = f"{found[key]}, {why}" if key in found else why

    known = np.flatnonzero(np.isfinite(dice))
    if not len(known):
        return {}
    add(leader.scores.keys[known[np.argmax(dice[known])]], f"best of {leader.method}")
    add(leader.scores.keys[known[np.argmin(dice[known])]], f"worst of {leader.method}")
    if base is not None:
        keys = shared_keys(leader.scores, base.scores)
        mine, theirs = (mean_known(one.scores.chosen(keys).values["dice"], axis=1) for one in (leader, base))
        gain = np.asarray(mine - theirs)
        known = np.flatnonzero(np.isfinite(gain))
        if len(known):
            most, least = known[np.argmax(gain[known])], known[np.argmin(gain[known])]
            add(keys[most], "largest gain")
            add(keys[least], "largest loss" if gain[least] < 0 else "smallest gain")
    return found


def draw_overlays(study: Study, rows: Sequence[Comparison], preset: str) -> tuple[Figure | None, list[str]]:
    """The figure of one preset, and what could not be drawn.

    Args:
        study: The study.
        rows: The comparisons of the validation cases.
        preset: Which one.
    """
    chosen = [row for row in rows if row.preset == preset and np.isfinite(row.mean)]
    if not chosen:
        return None, []
    base = next((row for row in chosen if row.method == study.baseline), None)
    others = [row for row in chosen if row is not base]
    leader = max(others, key=lambda row: row.mean) if others else chosen[0]
    wanted = choose_cases(leader, base if leader is not base else None)
    methods = [row.method for row in chosen]
    if len(methods) > MOST_COLUMNS:  # the baseline, the leader and the next best
        ranked = sorted(others, key=lambda row: -row.mean)[: MOST_COLUMNS - (base is not None)]
        methods = [
            name for name in methods if name == study.baseline or name in {row.method for row in ranked}
        ]
    runs = [run for run in study.at(preset) if run.method in methods]
    slices: list[tuple[Key, CaseSlice, str]] = []
    problems: list[str] = []
    for key, why in wanted.items():
        try:
            piece = read_case(study, key[1], key[0], runs)
        except (ValueError, KeyError, OSError) as error:
            problems.append(f"{preset}, {key[1]}: {error}")
            continue
        problems += [f"{preset}, {key[1]}, {problem}" for problem in piece.problems]
        slices.append((key, piece, why))
    slices = [one for one in slices if any(plane is not None for plane in one[1].predictions.values())]
    if not slices:
        return None, problems
    dice = {row.method: _case_dice(row) for row in chosen}
    png = _draw(study, methods, slices, dice)
    order = "; ".join(f"{key[1]} ({why})" for key, _, why in slices)
    caption = (
        f"{preset}: validation cases chosen by Dice, from the top: {order}. Each in the slice with the most "
        "true foreground, cropped to what is labelled or predicted there. Filled: truth (left) and "
        "predictions; white lines: the truth. Below: the case's mean foreground Dice in 3D."
    )
    if len(label_colours(study)) > DISTINCT:
        caption += " Colours repeat: there are more labels than colours."
    if slices[0][1].letters:
        caption += " Seen as radiologists do: the patient's right is at the left."
    return Figure(
        f"cases_{slug(preset)}", png, caption, f"Truth and predictions in {len(slices)} cases at {preset}"
    ), problems


def label_colours(study: Study) -> dict[int, tuple[str, Any]]:
    """Label -> its name and colour; the label of a region that overlaps others is named by its number."""
    import matplotlib as mpl

    names: dict[int, str] = {}
    for name, label in (study.settings.get("labels") or {}).items():
        if name == "ignore":
            continue
        for one in label if isinstance(label, list | tuple) else [label]:
            names[int(one)] = (
                name if not isinstance(label, list | tuple) or len(label) == 1 else f"label {one}"
            )
    numbers = sorted(number for number in names if number > 0)
    many = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    palette = COLOURS[:-1] if len(numbers) < len(COLOURS) else many
    return {number: (names[number], palette[place % len(palette)]) for place, number in enumerate(numbers)}


def _case_dice(row: Comparison) -> dict[Key, float]:
    values = mean_known(row.scores.values["dice"], axis=1)
    return {key: float(value) for key, value in zip(row.scores.keys, values, strict=True)}


def _draw(
    study: Study,
    methods: Sequence[str],
    slices: Sequence[tuple[Key, CaseSlice, str]],
    dice: Mapping[str, Mapping[Key, float]],
) -> bytes:
    from matplotlib.patches import Patch

    colours = label_colours(study)
    columns = len(methods) + 1
    side = max(SMALLEST_PANEL, WIDTH / columns)
    ratios = [
        min(
            1.5, max(0.5, piece.truth.shape[0] * piece.spacing[0] / (piece.truth.shape[1] * piece.spacing[1]))
        )
        for _, piece, _ in slices
    ]
    legend = [Patch(color=colour, label=name) for name, colour in _shown(slices, colours)]
    in_row = max(1, int(side * columns / 1.6))
    height = 0.5 + 0.17 * -(-len(legend) // in_row)
    with new_figure(side * columns, sum(0.9 * side * ratio + 0.25 for ratio in ratios) + height) as figure:
        panels = figure.subplots(len(slices), columns, squeeze=False, height_ratios=ratios)
        for row, (key, piece, why) in zip(panels, slices, strict=True):
            _paint(row[0], piece, piece.truth, colours)
            row[0].set_xlabel(piece.name, fontsize=7)
            row[0].set_ylabel(
                "\n".join([piece.case, *(part.split(" of ")[0] for part in why.split(", "))]), fontsize=7
            )
            for panel, method in zip(row[1:], methods, strict=True):
                _paint(panel, piece, piece.predictions.get(method), colours)
                panel.set_xlabel(f"Dice {percent(dice[method].get(key, np.nan), 1)}%", fontsize=7.5)
        for panel, name in zip(panels[0], ["truth", *methods], strict=True):
            panel.set_title(name, fontsize=8.5)
        if legend:
            figure.legend(
                handles=legend, loc="outside lower center", ncols=min(in_row, len(legend)), fontsize=7.5
            )
        return to_png(figure)


def _shown(
    slices: Sequence[tuple[Key, CaseSlice, str]], colours: Mapping[int, tuple[str, Any]]
) -> list[tuple[str, Any]]:
    """Names and colours of the labels in the pictures; of very many, those with the most voxels."""
    found: Counter[int] = Counter()
    for _, piece, _ in slices:
        for plane in (piece.truth, *piece.predictions.values()):
            if plane is not None:
                found.update(
                    dict(zip(*(part.tolist() for part in np.unique(plane, return_counts=True)), strict=True))
                )
    kept = {
        label
        for label, _ in Counter({one: found[one] for one in colours if found[one]}).most_common(
            LONGEST_LEGEND
        )
    }
    return [value for label, value in colours.items() if label in kept]


def _paint(
    panel: Any, piece: CaseSlice, labels: npt.NDArray[np.int64] | None, colours: Mapping[int, tuple[str, Any]]
) -> None:
    from matplotlib.colors import to_rgba

    rows, columns = piece.truth.shape
    extent = (0, columns * piece.spacing[1], rows * piece.spacing[0], 0)
    panel.imshow(piece.image, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    panel.set_xticks([])
    panel.set_yticks([])
    for edge in panel.spines.values():
        edge.set_visible(False)
    if labels is None:
        panel.text(
            0.5,
            0.5,
            "no prediction",
            transform=panel.transAxes,
            ha="center",
            va="center",
            color="white",
            fontsize=8,
        )
    else:
        overlay = np.zeros((rows, columns, 4))
        for label, (_, colour) in colours.items():
            overlay[labels == label] = (*to_rgba(colour)[:3], OPACITY)
        panel.imshow(overlay, extent=extent, interpolation="nearest")
    _outline(panel, piece, extent)
    if piece.letters:
        left, right, *_ = piece.letters
        for x, letter, align in ((0.03, left, "left"), (0.97, right, "right")):
            panel.text(
                x, 0.5, letter, transform=panel.transAxes, color="#ffe680", ha=align, va="center", fontsize=7
            )


def _outline(panel: Any, piece: CaseSlice, extent: tuple[float, float, float, float]) -> None:
    """The true classes' borders, along the edges of voxels."""
    from matplotlib.collections import LineCollection

    height, width = piece.spacing
    segments = []
    inner = np.pad(piece.truth, 1)
    for row, column in zip(*np.nonzero(inner[1:, 1:-1] != inner[:-1, 1:-1]), strict=True):
        segments.append([(column * width, row * height), ((column + 1) * width, row * height)])
    for row, column in zip(*np.nonzero(inner[1:-1, 1:] != inner[1:-1, :-1]), strict=True):
        segments.append([(column * width, row * height), (column * width, (row + 1) * height)])
    panel.add_collection(LineCollection(segments, colors="white", linewidths=0.7), autolim=False)
    panel.set_xlim(extent[0], extent[1])
    panel.set_ylim(extent[2], extent[3])
