"""The methods of a study (their trainers, one method for each location source), and its runs: methods at presets.

nnU-Net knows an epoch count by a suffix of the trainer's name. It keeps one model for each
TRAINER__PLANS__CONFIGURATION and fold. So every further seed has a configuration of its own, which inherits everything
and ends in ``_seedN``; the first seed has the names of a study with that seed alone.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from nnunet_locctx.names import check_known, instead
from nnunet_locctx.nnunet.plans.presets import Preset
from nnunet_locctx.resources import trainers_folder
from nnunet_locctx.study.settings import Count, Names, Table, Text, digest, explain, preset_name

NNUNET_EPOCHS = 1000
"""Epochs of nnU-Net's trainer without a suffix."""

ITERATIONS_PER_EPOCH = 250
"""Training steps of an epoch of nnU-Net, fixed in its trainer."""


class Method(Table):
    """One line of a study's tables: a trainer and what it is told about location.

    Attributes:
        name: As in the tables.
        slug: For file names.
        trainer: As ``nnUNetv2_train -tr`` takes it, with the epochs' suffix.
        source: Location source; None for a trainer without location.
        fit: The argument of `locctx fit` for its source; None: the source is not fitted.
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


class _Entry(Table):
    """A method as the study file has it: a table, or a trainer's name alone; None: as the study says."""

    trainer: Text
    sources: Names | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    network: dict[str, Any] | None = None
    presets: Names | None = None
    epochs: Count | None = None
    against: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, entry: Any) -> Any:
        if isinstance(entry, str):
            return {"trainer": entry}
        if not isinstance(entry, Mapping):
            raise ValueError(f"must be a table ({{trainer: ...}}), got {entry!r}")
        return {key: value for key, value in entry.items() if value is not None}


def read_methods(entries: Any, study: Mapping[str, Any]) -> list[Method]:
    """The methods of a study file: one for each source of each entry.

    Args:
        entries: NAME -> trainer, or a table with it.
        study: The keys of the study that stand above: presets, sources and epochs.

    Raises:
        ValueError: Names the method, the key, the value and what is allowed.
    """
    if not isinstance(entries, Mapping) or not entries:
        raise ValueError(f"must be a table (NAME: {{trainer: ...}}), got {entries!r}")
    methods: list[Method] = []
    for name, entry in entries.items():
        try:
            methods += _read_method(name, _Entry.model_validate(entry), study)
        except ValidationError as error:
            raise ValueError(explain(error, str(name))) from error
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    for method in methods:
        others = [other.name for other in methods if other is not method]
        if method.against not in (None, *others):
            unknown = f"unknown other method {method.against!r}{instead(method.against, others)}"
            raise ValueError(f"{method.name}: against: {unknown}")
    return methods


def _read_method(name: Any, entry: _Entry, study: Mapping[str, Any]) -> Iterator[Method]:
    from nnunet_locctx.location import SOURCES
    from nnunet_locctx.nnunet.data.fitted import COMMANDS
    from nnunet_locctx.nnunet.plans.planning import check_location

    if not isinstance(name, str) or not name.strip():
        raise ValueError("a method's name must be a text with letters")
    epochs = study["epochs"] if entry.epochs is None else entry.epochs
    trainer = resolve_trainer(entry.trainer, epochs)
    sources: tuple[str | None, ...] = (None,)
    if trainer.located:
        sources = study["sources"] if entry.sources is None else entry.sources
        if not sources:
            raise ValueError("sources must name one or more location sources, got none")
        check_known(sources, SOURCES, "location source")
    elif entry.sources or entry.options:
        raise ValueError(
            f"the trainer {entry.trainer} uses no location, so it takes no sources and no options"
        )
    if "source" in entry.options:
        raise ValueError("options: the source is given by `sources`, not among the options")
    if entry.options:
        check_location(entry.options)
    known = tuple(preset.name for preset in study["presets"])
    presets = known if entry.presets is None else tuple(map(preset_name, entry.presets))
    check_known(presets, known, "preset")
    for source in sources:
        title, short = (f"{text} ({source})" if len(sources) > 1 else text for text in (name, slug(name)))
        yield Method(
            name=title,
            slug=slug(short),
            trainer=trainer.name,
            source=source,
            fit=COMMANDS.get(source or ""),
            presets=presets,
            epochs=epochs,
            recipe=trainer.recipe,
            variants=trainer.variants,
            **entry.model_dump(include={"options", "network", "against"}),
        )


@dataclass(frozen=True)
class Trainer:
    """A trainer of some length; `located`: whether it uses a location; the others are those of :class:`Method`."""

    name: str
    located: bool
    recipe: str = ""
    variants: tuple[str, ...] = ()


def resolve_trainer(name: str, epochs: int) -> Trainer:
    """The trainer of a name that trains for a number of epochs.

    Args:
        name: Without the epochs' suffix: one of this package, of nnU-Net, or of a folder of ``nnUNet_extTrainer``.
        epochs: Their number; each has 250 iterations.

    Raises:
        ValueError: There is no such trainer, or none of that length; names those that exist.
    """
    from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
    from nnunet_locctx.nnunet.training.trainers import TRAINERS, find_trainer

    if re.search(r"_\d+epochs?(?=_|$)", name):
        raise ValueError(
            f"the trainer {name!r} is given without its epochs' suffix; the study's `epochs` sets it"
        )
    own = find_trainer(name)
    if own is not None:
        recipe = getattr(own, "recipe", None)
        if recipe is None:
            usual, described = NNUNET_EPOCHS, ""
        else:
            usual = recipe.epochs
            described = f"{recipe.optimizer}, rate {recipe.learning_rate:g}, {recipe.schedule}"
        full = name if epochs == usual else name + _suffix(epochs)
        return Trainer(full, issubclass(own, LocatedTrainer), described, tuple(name.split("_")[1:]))
    known = sorted(_stock_trainers() | _foreign_trainers())
    check_known([name], [*TRAINERS, *known], "trainer")
    variant = name.removeprefix("nnUNetTrainer").lstrip("_")
    variants = (variant,) if variant else ()
    if epochs == NNUNET_EPOCHS:
        return Trainer(name, False, variants=variants)
    base = name.removesuffix("NoMirroring")  # nnU-Net has nnUNetTrainer_250epochs_NoMirroring
    candidates = [name + _suffix(epochs)]
    candidates += [f"{base}{_suffix(epochs)}_NoMirroring"] if base != name else []
    for candidate in candidates:
        if candidate in known:
            return Trainer(candidate, False, variants=variants)
    pattern = re.compile(rf"{re.escape(name)}_(\d+)epochs?$|{re.escape(base)}_(\d+)epochs?_NoMirroring$")
    lengths = {int(match[1] or match[2]) for other in known if (match := pattern.match(other))}
    listed = ", ".join(map(str, sorted(lengths | {NNUNET_EPOCHS})))
    raise ValueError(
        f"there is no trainer {candidates[0]}; {name} exists with {listed} epochs. Set `epochs` to one of these, or "
        "put a trainer of that name into a folder of nnUNet_extTrainer."
    )


def _suffix(epochs: int) -> str:
    return f"_{epochs}epoch{'s' if epochs > 1 else ''}"


@cache
def _stock_trainers() -> set[str]:
    """nnU-Net's trainers; its files are read, not imported, which would take seconds."""
    import nnunetv2

    return _classes(Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer")


def _foreign_trainers() -> set[str]:
    """Trainers of the folders that the caller's ``nnUNet_extTrainer`` names, but for ours."""
    folders = [
        Path(text) for text in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if text.strip()
    ]
    own = trainers_folder().resolve()
    return {name for folder in folders if folder.resolve() != own for name in _classes(folder)}


def _classes(folder: Path) -> set[str]:
    """The classes that the files of a folder define, and the trainers that those at its top export again."""
    classes: set[str] = set()
    for file in folder.rglob("*.py"):
        text = file.read_text(encoding="utf-8", errors="replace")
        classes.update(re.findall(r"^class (\w+)\(", text, re.MULTILINE))
        for line in re.findall(r"^from \S+ import \(?([^)]*?)\)?$", text, re.MULTILINE):
            if file.parent == folder and file.name != "__init__.py":
                classes.update(re.findall(r"\w+Trainer\w*", line))
    return classes


def slug(name: str) -> str:
    """A name as part of a file's name: ``LocBAM (body_part)`` -> ``LocBAM-body_part``, ``UNETR++`` -> ``UNETRpp``.

    A name without any letter or digit of ASCII becomes a fingerprint.
    """
    ascii_only = re.sub(r"[^A-Za-z0-9_.]+", "-", name.replace("+", "p")).strip("-").replace("__", "_")
    if ascii_only:
        return ascii_only
    return "method-" + hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Configuration:
    """One configuration to add to the plans: its name, the one it inherits from, and the changes as
    :func:`~nnunet_locctx.nnunet.plans.planning.add_configuration` takes them."""

    name: str
    base: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A method at a preset, trained with a seed.

    Attributes:
        slug: ``METHOD__PRESET``, of further seeds ``METHOD__PRESET__seedN``, for folders.
        configuration: Its configuration in the study's plans.
        own_configurations: Those it needs besides the preset's, each after the one it inherits from.
        model: nnU-Net's folder of the trained model.
    """

    slug: str
    method: Method
    preset: Preset
    seed: int
    configuration: str
    own_configurations: tuple[Configuration, ...]
    model: Path

    @property
    def data(self) -> str:
        """Name of the preprocessed data that it uses."""
        return data_name(self.preset)


def data_name(preset: Preset) -> str:
    """What to call the preprocessed data of a preset: one name for presets of one voxel size, which share it."""
    spacing = preset.changes.get("spacing")
    return "planned" if spacing is None else "x".join(f"{size:g}" for size in spacing) + "mm"


def own_configurations(method: Method, preset: Preset, ending: str) -> tuple[Configuration, ...]:
    """None for a plain method; one with the source and options for a located one; one more for a further seed.

    Options are part of the name, by a fingerprint: changed options make another model, and the trained one stays.

    Args:
        method: The method.
        preset: Its preset.
        ending: ``seedN`` of a further seed; empty for the first one.
    """
    name, own = preset.name, []
    if method.source is not None or method.network is not None:
        parts = [name]
        changes: dict[str, Any] = {}
        if method.source is not None:
            parts.append(method.source)
            changes["location"] = {"source": method.source, **method.options}
        if method.network is not None:
            changes["network"] = method.network
        if method.options or method.network is not None:
            parts.append(digest([method.options, method.network])[:6])
        name = "_".join(parts)
        own.append(Configuration(name, preset.name, changes))
    if ending:
        own.append(Configuration(f"{name}_{ending}", name, {}))
    return tuple(own)
