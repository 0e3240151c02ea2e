"""Compares the side of the body in a class's name with the side on which the class lies."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from nnunet_locctx.check.report import CaseSummary, Finding
from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.names import named

FARTHER = 0.01
"""Smallest distance between two twins, as a share of the scan's width, that shows on which side each lies."""


def side_findings(cases: Sequence[CaseSummary], labels: Mapping[int, str]) -> list[Finding]:
    """Reports left and right twin classes that lie on each other's side.

    A mirrored header concerns all twins of a case; exchanged names concern one pair of twins.

    Args:
        cases: The readable cases. A case without geometry has no sides and is skipped.
        labels: Label value -> name.
    """
    values = {name: value for value, name in labels.items()}
    pairs = find_pairs([name for name in values if name != "background"])
    mirrored: dict[str, dict[tuple[str, str], bool]] = {}
    for case in cases:
        if case.orientation == "none":
            continue
        places = {pair: [case.positions.get(values[name]) for name in pair] for pair in pairs}
        # the first coordinate grows to the patient's right
        apart = {pair: one[0] - other[0] for pair, (one, other) in places.items() if one and other}
        on_the_right = {pair: distance > 0 for pair, distance in apart.items() if abs(distance) >= FARTHER}
        if on_the_right:
            mirrored[case.name] = on_the_right
    return list(_findings(mirrored))


def _findings(mirrored: Mapping[str, Mapping[tuple[str, str], bool]]) -> Iterator[Finding]:
    """The findings; `mirrored` is case -> (left, right) class -> whether the left one lies to the right."""
    wrong = [case for case, twins in mirrored.items() if 2 * sum(twins.values()) > len(twins)]
    pairs = list(dict.fromkeys(pair for twins in mirrored.values() for pair in twins))
    unlike, here, elsewhere = wrong, "right", "left"
    if 2 * len(wrong) > len(mirrored):
        message = (
            f"{_common([left for left, _ in pairs])} lie on the patient's right in {len(wrong)} of {len(mirrored)} "
            "cases: header or names are mirrored"
        )
        yield Finding("warning", "sides", None, message)
        unlike, here, elsewhere = [case for case in mirrored if case not in wrong], "left", "right"
    for case in unlike:
        message = (
            f"{_common([left for left, _ in mirrored[case]])} lie on the patient's {here}, and in most other cases on "
            f"the {elsewhere}: the header or the label of this case is mirrored"
        )
        yield Finding("warning", "sides", case, message)
    for left, right in pairs:
        labelled = [case for case, twins in mirrored.items() if (left, right) in twins]
        odd = [case for case in labelled if mirrored[case][left, right] != (case in wrong)]
        if odd and 2 * len(odd) > len(labelled):
            message = (
                f"{left} and {right} lie on each other's side, unlike other twins, in {len(odd)} of {len(labelled)} "
                "cases: their names are exchanged"
            )
            yield Finding("warning", "sides", None, message)


def _common(names: Sequence[str]) -> str:
    """``left_*`` for classes whose names begin alike, ``*_left`` for names that end alike, else the names."""
    if len(names) > 1:
        start, end = _shared(names), _shared([name[::-1] for name in names])[::-1]
        if re.search(r"left|^l[_ .]|sin", start, re.IGNORECASE):
            return f"{start}*"
        if re.search(r"left|[_ .]l$|sin", end, re.IGNORECASE):
            return f"*{end}"
    return named(names, 3)


def _shared(names: Sequence[str]) -> str:
    """The letters that all names begin with."""
    columns = zip(*names, strict=False)
    return "".join(
        letters[0] for letters in itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    )
