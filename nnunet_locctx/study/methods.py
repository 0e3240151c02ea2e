"""The methods of a study: their trainers, and one method for each location source.

nnU-Net knows an epoch count by a suffix of the trainer's name.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from nnunet_locctx.names import check_known
from nnunet_locctx.study.reading import Count, Names, Table, Text, all_different, preset_name

NNUNET_EPOCHS = 1000
"""Epochs of nnU-Net's trainer without a suffix."""

ITERATIONS_PER_EPOCH = 250
"""Training steps of an epoch of nnU-Net, fixed in its trainer."""

_LENGTH = re.compile(r"_(\d+)epochs?(?=_|$)")


class Method(Table):
    """One line of a study's tables: a trainer and what it is told about location.

    Attributes:
        name: As in the tables.
        slug: For file names.
        trainer: As ``nnUNetv2_train -tr`` takes it, with the epochs' suffix.
        source: Location source; None for a trainer without location.
        fit: What to give to `locctx fit` for its source; None: the source is not fitted.
        options: ``location`` keys of the plans.
        network: ``network`` keys of the plans; None: the preset's.
        presets: Presets it runs at.
        epochs: Length of the training.
        against: The method it is compared with; None: the study's baseline.
        recipe: Optimiser and schedule that differ from nnU-Net's, in words; empty if they do not.
        variants: Parts of the trainer's name that change the augmentation.
    """

    name: Text
    slug: Text
    trainer: Text
    source: str | None = None
    fit: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    network: dict[str, Any] | None = None
    presets: Names
    epochs: Count
    against: Text | None = None
    recipe: str = ""
    variants: tuple[str, ...] = ()


def read_method(name: Any, given: Any, study: Mapping[str, Any]) -> list[Method]:
    """The methods of one entry: one for each of its sources."""
    from nnunet_locctx.location import SOURCES
    from nnunet_locctx.nnunet.data.fitted import COMMANDS
    from nnunet_locctx.nnunet.plans.planning import check_location

    if not isinstance(name, str) or not name.strip():
        raise ValueError("a method's name must be a text with letters")
    entry = {"trainer": given} if isinstance(given, str) else given
    if not isinstance(entry, Mapping):
        raise ValueError(f"must be a table ({{trainer: ...}}), got {given!r}")
    keys = ("trainer", "sources", "options", "network", "presets", "epochs", "against")
    check_known(entry, keys, "key")
    entry = {key: value for key, value in entry.items() if value is not None}
    trainer, epochs = entry.pop("trainer", None), entry.pop("epochs", study["epochs"])
    if not isinstance(trainer, str) or not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise ValueError(
            f"needs a trainer (a text) and epochs (a whole number above 0), got {trainer!r} and {epochs!r}"
        )
    resolved = resolve_trainer(trainer, epochs)
    sources = entry.pop("sources", study["sources"] if resolved.located else ())
    if not resolved.located and ("options" in entry or sources):
        raise ValueError(f"the trainer {trainer} uses no location, so it takes no sources and no options")
    if not isinstance(sources, list | tuple) or (resolved.located and not sources):
        raise ValueError(f"sources must be a list of location sources, got {sources!r}")
    check_known(sources, SOURCES, "location source")
    all_different(tuple(sources))
    options, names = entry.get("options", {}), [preset.name for preset in study["presets"]]
    if isinstance(options, Mapping):
        if "source" in options:
            raise ValueError("options: the source is given by `sources`, not among the options")
        if options:
            check_location(options)
    presets = entry.pop("presets", names)
    if isinstance(presets, list):
        presets = [preset_name(one) if isinstance(one, str) else one for one in presets]
        check_known(presets, names, "preset")
    common = {"trainer": resolved.name, "epochs": epochs, "recipe": resolved.recipe, "presets": presets}
    common |= {"variants": resolved.variants, **entry}
    methods = []
    for source in sources or (None,):
        title, short = (f"{one} ({source})" if len(sources) > 1 else one for one in (name, slug(name)))
        called = {"name": title, "slug": slug(short), "source": source, "fit": COMMANDS.get(source)}
        methods.append(Method.model_validate({**called, **common}))
    return methods


@dataclass(frozen=True)
class Trainer:
    """A trainer of a given length; `located`: whether it uses a location, the others as in :class:`Method`."""

    name: str
    located: bool
    recipe: str = ""
    variants: tuple[str, ...] = ()


def resolve_trainer(name: str, epochs: int) -> Trainer:
    """The trainer of that name that trains for so many epochs.

    Args:
        name: Without the epochs' suffix: one of this package, of nnU-Net, or of a folder of ``nnUNet_extTrainer``.
        epochs: Of 250 iterations.

    Raises:
        ValueError: No such trainer, or it has no variant of that length; names those there are.
    """
    from nnunet_locctx.nnunet.training.trainers import TRAINERS, find_trainer

    if _LENGTH.search(name):
        raise ValueError(
            f"the trainer {name!r} is given without its epochs' suffix; the study's `epochs` sets it"
        )
    own = find_trainer(name)
    if own is not None:
        recipe = getattr(own, "recipe", None)
        usual = NNUNET_EPOCHS if recipe is None else recipe.epochs
        described = (
            "" if recipe is None else f"{recipe.optimizer}, rate {recipe.learning_rate:g}, {recipe.schedule}"
        )
        full = name if epochs == usual else name + _suffix(epochs)
        return Trainer(full, _is_located(own), described, tuple(name.split("_")[1:]))
    stock, foreign = _stock_trainers(), _foreign_trainers()
    check_known([name], [*TRAINERS, *stock, *foreign], "trainer")
    if epochs == NNUNET_EPOCHS:
        return Trainer(name, False, variants=_variants(name))
    known = {**stock, **foreign}
    base = name.removesuffix("NoMirroring")  # nnU-Net has nnUNetTrainer_250epochs_NoMirroring
    wanted = (name + _suffix(epochs), f"{base}{_suffix(epochs)}_NoMirroring" if base != name else "")
    for candidate in wanted:
        if candidate in known:
            return Trainer(candidate, False, variants=_variants(name))
    pattern = re.compile(rf"{re.escape(name)}_(\d+)epochs?$|{re.escape(base)}_(\d+)epochs?_NoMirroring$")
    lengths = sorted(
        {int(match[1] or match[2]) for other in known if (match := pattern.match(other))} | {NNUNET_EPOCHS}
    )
    raise ValueError(
        f"there is no trainer {wanted[0]}; {name} exists with {', '.join(map(str, lengths))} epochs. Set "
        "`epochs` to one of these, or put a trainer of that name into a folder of nnUNet_extTrainer."
    )


def _suffix(epochs: int) -> str:
    return f"_{epochs}epoch{'s' if epochs > 1 else ''}"


def _is_located(trainer: type) -> bool:
    from nnunet_locctx.nnunet.training.trainer import LocatedTrainer

    return issubclass(trainer, LocatedTrainer)


def _variants(name: str) -> tuple[str, ...]:
    return (name.removeprefix("nnUNetTrainer").lstrip("_"),) if name != "nnUNetTrainer" else ()


@cache
def _stock_trainers() -> dict[str, Path]:
    """nnU-Net's trainers; its files are read, not imported, which would take seconds."""
    import nnunetv2

    return _classes(Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer")


def _foreign_trainers() -> dict[str, Path]:
    """Trainers of the folders that the caller's ``nnUNet_extTrainer`` names, but for ours."""
    from nnunet_locctx.resources import trainers_folder

    classes: dict[str, Path] = {}
    for text in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep):
        folder = Path(text)
        if text.strip() and folder.is_dir() and folder.resolve() != trainers_folder().resolve():
            classes.update(_classes(folder))
    return classes


def _classes(folder: Path) -> dict[str, Path]:
    classes: dict[str, Path] = {}
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text(encoding="utf-8", errors="replace")
        for name in re.findall(r"^class (\w+)\(", text, re.MULTILINE):
            classes[name] = file
        for line in re.findall(r"^from \S+ import \(?([^)]*?)\)?$", text, re.MULTILINE):
            if file.parent == folder and file.name != "__init__.py":  # a folder of re-exports
                classes.update(dict.fromkeys(re.findall(r"\w+Trainer\w*", line), file))
    return classes


def slug(name: str) -> str:
    """A name as part of a file's name: ``LocBAM (body_part)`` -> ``LocBAM-body_part``, ``UNETR++`` -> ``UNETRpp``.

    A name without any letter or digit of ASCII becomes a fingerprint.
    """
    ascii_only = re.sub(r"[^A-Za-z0-9_.]+", "-", name.replace("+", "p")).strip("-").replace("__", "_")
    if ascii_only:
        return ascii_only
    return "method-" + hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest()[:8]
