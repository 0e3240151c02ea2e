"""What a trainer is, read from the trainer itself: its docstring, its block's or network's options."""

import functools
import inspect
import re
from typing import Any

from nnunet_locctx.blocks import complete_options
from nnunet_locctx.methods.table import GROUPS, Method
from nnunet_locctx.names import instead
from nnunet_locctx.networks.registry import complete_network_options
from nnunet_locctx.nnunet.options import LocationOptions
from nnunet_locctx.nnunet.plans.presets import list_presets, load_preset
from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
from nnunet_locctx.nnunet.training.trainers import RECOMMENDED, TRAINERS, Trainer
from nnunet_locctx.nnunet.training.whole_network import WholeNetworkTrainer

YEAR = re.compile(r"\b(19|20)\d\d\b")
OWN = "This project's own"
PUBLISHED = "_published"


def list_methods(part: str = "", *, planned: bool = False) -> list[Method]:
    """The trainers of the package, group by group.

    Args:
        part: Only those whose name contains this; upper and lower case are the same.
        planned: Only those that train the planned U-Net.

    Raises:
        ValueError: No name contains it.
    """
    chosen = [trainer for name, trainer in TRAINERS.items() if part.lower() in name.lower()]
    methods = [describe(each) for each in chosen if not (planned and issubclass(each, WholeNetworkTrainer))]
    if not methods:
        raise ValueError(f"no trainer's name contains {part!r}{instead(part, TRAINERS)}")
    return sorted(methods, key=lambda method: GROUPS.index(method.group))


def describe(trainer: Trainer) -> Method:
    """Describes one trainer."""
    what, _ = split_sources(inspect.getdoc(trainer) or "")
    sources: list[str] = []
    for parent in trainer.__mro__:  # a variant of a published method need not repeat the source
        if sources or parent in (LocatedTrainer, WholeNetworkTrainer):
            break
        sources = split_sources(inspect.getdoc(parent) or "")[1]
    place, encoding = _whole(trainer) if issubclass(trainer, WholeNetworkTrainer) else _fitted(trainer)
    presets = published_presets().get(trainer.__name__, [])
    recommended = trainer.__name__ == RECOMMENDED
    whole = issubclass(trainer, WholeNetworkTrainer)
    group = GROUPS[0 if recommended else 1 if not whole else 2 if place else 3]
    return Method(
        trainer.__name__,
        what,
        "; ".join(sources) or None,
        place,
        encoding,
        ", ".join(presets) or ("as it is" if "as published" in what else None),
        recommended,
        group,
    )


@functools.cache
def published_presets() -> dict[str, list[str]]:
    """Trainer -> presets of published forms that are made for it: those whose name ends in :data:`PUBLISHED`."""
    presets: dict[str, list[str]] = {}
    for name in list_presets():
        if name.endswith(PUBLISHED):
            for trainer in load_preset(name).made_for.trainers:
                presets.setdefault(trainer, []).append(name)
    return presets


def split_sources(docstring: str) -> tuple[str, list[str]]:
    """The first paragraph of a docstring as one line without full stop, and the publications named in all of it.

    A publication is what stands in parentheses, between semicolons, and holds a year.
    """
    sources: list[str] = []

    def take(brackets: re.Match[str]) -> str:
        parts = [part.strip() for part in brackets[1].split(";")]
        sources.extend(part for part in parts if YEAR.search(part) and part not in sources)
        others = [part for part in parts if not YEAR.search(part)]
        return f" ({'; '.join(others)})" if others else ""

    text = " ".join(docstring.replace("\n\n", "\0").split())
    text = re.sub(r" ?\(([^()]*)\)", take, text)
    if OWN in text:
        sources.append(OWN.lower())
    return text.split("\0")[0].replace(f"{OWN}.", "").strip().removesuffix("."), sources


def fittings(trainer: type[LocatedTrainer]) -> list[tuple[str, str, dict[str, Any]]]:
    """Blocks of a trainer that fits them into the planned U-Net: name, place and all options, unless the plans say
    otherwise."""
    assert trainer.block is not None
    first = LocationOptions.from_configuration({}, trainer.block, trainer.block_options, trainer.place)
    fitted = [
        (trainer.block, str(first.place), first.block),
        *((f.block, f.place, f.options) for f in trainer.also),
    ]
    return [(block, place, complete_options(block, place, options)) for block, place, options in fitted]


def _fitted(trainer: type[LocatedTrainer]) -> tuple[str | None, str | None]:
    blocks = fittings(trainer)
    encodings = [options.get("encoding") for *_, options in blocks]
    return _joined([place for _, place, _ in blocks]), _joined(encodings)


def _whole(trainer: type[WholeNetworkTrainer]) -> tuple[str | None, str | None]:
    if not trainer.located:
        return None, None
    options: dict[str, Any] = complete_network_options(trainer.network_name, trainer.network_options)
    return str(options.get("gpe_places") or "own places"), _joined([options.get("encoding")])


def _joined(names: list[Any]) -> str | None:
    """Each name once, in order."""
    return " + ".join(dict.fromkeys(str(name) for name in names if name is not None)) or None
