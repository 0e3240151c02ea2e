"""The classes of a dataset, and which of them are the two sides of one organ."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_locctx.names import check_known

LEFT = {"left", "l", "lt", "lft", "sin", "sinister", "sinistra"}
RIGHT = {"right", "r", "rt", "rgt", "dex", "dexter", "dextra"}

RIGHT_TO_LEFT = {"1": "2", "4": "3", "5": "6", "8": "7"}
"""Quadrants of the FDI's numbers of teeth (ISO 3950), permanent and deciduous ones: the patient's right -> the left."""


@dataclass(frozen=True)
class Classes:
    """The foreground classes.

    Attributes:
        labels: Class name -> label value, or the label values of a region.
        ignore: Value of the reference's voxels that are ignored; None without an ignore label.
    """

    labels: dict[str, int | tuple[int, ...]]
    ignore: int | None = None

    @classmethod
    def from_labels(cls, labels: Mapping[str, Any]) -> "Classes":
        """The classes of the ``labels`` of a ``dataset.json``.

        Raises:
            ValueError: There is no class, or a label is no whole number above 0.
        """
        try:
            by_name = {
                name: tuple(map(int, label)) if isinstance(label, list | tuple) else int(label)
                for name, label in labels.items()
                if name not in ("background", "ignore")
            }
            ignore = labels.get("ignore")
            classes = cls(by_name, None if ignore is None else int(ignore))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"the labels of dataset.json must be {{name: label or list of labels}}, got {labels!r}"
            ) from error
        wrong = [name for name, values in classes.values.items() if not values or min(values) < 1]
        if not by_name or wrong:
            what = f"class {wrong[0]!r} has {labels[wrong[0]]}" if wrong else "there is no foreground class"
            raise ValueError(f"{what}; dataset.json must give each class one label above 0 or a list of them")
        return classes

    @property
    def values(self) -> dict[str, tuple[int, ...]]:
        """Class name -> its label values."""
        return {name: label if isinstance(label, tuple) else (label,) for name, label in self.labels.items()}

    @property
    def known(self) -> frozenset[int]:
        """Every label value of a prediction, 0 included."""
        return frozenset({0}.union(*self.values.values()))

    @property
    def in_references(self) -> frozenset[int]:
        """Every label value of a reference: :attr:`known` and the ignore label."""
        return self.known if self.ignore is None else self.known | {self.ignore}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The (left, right) classes that :func:`find_pairs` recognises and that share no label value."""
        return [
            (left, right)
            for left, right in find_pairs(list(self.labels))
            if not set(self.values[left]) & set(self.values[right])
        ]

    def as_json(self) -> dict[str, int | list[int]]:
        """Class name -> label, or list of labels."""
        return {
            name: list(label) if isinstance(label, tuple) else label for name, label in self.labels.items()
        }


def value_names(labels: Mapping[str, Any]) -> dict[int, str]:
    """Value in a label file -> name of its class, without the background, in the order of dataset.json.

    A value of several regions gets the name of the smallest region.
    """
    regions = {name: label if isinstance(label, list | tuple) else [label] for name, label in labels.items()}
    names: dict[int, str] = {}
    for name in sorted(regions, key=lambda name: len(regions[name])):
        for value in regions[name]:
            names.setdefault(int(value), name)
    names.pop(0, None)
    return names


def find_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The (left, right) classes whose names differ in the side alone.

    By one word: ``kidney_left`` and ``kidney_right``, ``L. kidney`` and ``R. kidney``, ``LeftKidney`` and
    ``RightKidney``. Words end at any character that is no letter or digit, and before a capital after a small letter;
    case does not matter. By a letter before a number: ``rib_L3`` and ``rib_R3``. By a tooth's number: ``tooth_21`` and
    ``tooth_11``.
    """
    sides: dict[str, dict[tuple[str, ...], list[str]]] = {"left": {}, "right": {}}
    for name in names:
        words = _words(name)
        for side, known in (("left", LEFT), ("right", RIGHT)):
            places = [number for number, word in enumerate(words) if word in known]
            # "left" alone names no organ; a name with two words for a side is ambiguous
            if len(places) == 1 and len(words) > 1:
                rest = (*words[: places[0]], "", *words[places[0] + 1 :])
                sides[side].setdefault(rest, []).append(name)
    pairs = [
        (left[0], sides["right"][rest][0])
        for rest, left in sides["left"].items()
        if len(left) == 1 and len(sides["right"].get(rest, [])) == 1
    ]
    others = set(names).difference(*pairs)
    for right in sorted(others):
        twin = _left_letter(right) or _left_tooth(right, names)
        if twin in others:
            pairs.append((twin, right))
    return pairs


def check_pairs(pairs: Sequence[Sequence[str]], classes: Classes) -> list[tuple[str, str]]:
    """Checks the pairs of classes that a caller names; returns them as (left, right).

    Raises:
        ValueError: A pair is not two different classes, a class is in two pairs, or the classes of a pair share a
            label.
    """
    checked: list[tuple[str, str]] = []
    used: set[str] = set()
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"a pair is two different classes (left, right), got {list(pair)}")
        check_known(pair, classes.labels, "class")
        repeated = used.intersection(pair)
        if repeated:
            raise ValueError(f"class {min(repeated)!r} is in more than one pair")
        shared = set(classes.values[pair[0]]) & set(classes.values[pair[1]])
        if shared:
            raise ValueError(
                f"the classes {list(pair)} of a pair must not share labels, got {sorted(shared)}"
            )
        used.update(pair)
        checked.append((pair[0], pair[1]))
    return checked


def _words(name: str) -> list[str]:
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word for word in re.split(r"[^0-9a-z]+", split.lower()) if word]


def _left_letter(name: str) -> str:
    """``rib_R3`` -> ``rib_L3``; empty if there is no such letter."""
    match = re.search(r"(?<![A-Za-z])[Rr](?=_?\d+$)", name)
    if match is None or match.start() == 0:  # "R3" alone names no organ
        return ""
    return name[: match.start()] + ("L" if match[0] == "R" else "l") + name[match.end() :]


def _left_tooth(name: str, names: Sequence[str]) -> str:
    """The twin of a right tooth; empty if the name is no tooth's.

    A number is a tooth's if the name contains a word for teeth, or if the name of every class is such a number.
    """
    match = re.search(r"(?<!\d)([1458])([1-8])$", name)
    if match is None or not (
        re.search(r"tooth|teeth|fdi|incisor|canine|premolar|molar", name, re.IGNORECASE)
        or all(re.fullmatch(r"[1-8][1-8]", other) for other in names)
    ):
        return ""
    return name[: match.start()] + RIGHT_TO_LEFT[match[1]] + match[2]
