"""The runs of a study, one method at one preset, and the configurations of the plans that they use."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_locctx.study.definition import Method, Preset, Study


@dataclass(frozen=True)
class Run:
    """A method at a preset.

    Attributes:
        slug: ``METHOD__PRESET``, for folders.
        configuration: Its configuration in the study's plans.
        data: The preprocessed data it uses (:func:`data_name`).
        model: nnU-Net's folder of the trained model.
    """

    slug: str
    method: Method
    preset: Preset
    configuration: str
    data: str
    model: Path


@dataclass(frozen=True)
class Configuration:
    """One configuration to add to the plans.

    Attributes:
        name: Of the configuration.
        base: The configuration it inherits from.
        changes: As :func:`~nnunet_locctx.nnunet.plans.planning.add_configuration` takes them.
    """

    name: str
    base: str
    changes: Mapping[str, Any]


def digest(content: Any) -> str:
    """Short fingerprint of what JSON can hold, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def runs_of(study: Study) -> list[Run]:
    """All runs, in the order of the methods and presets of the file."""
    found = []
    for preset in study.presets:
        for method in study.methods:
            if preset.name in method.presets:
                configuration = _own_configuration(method, preset).name
                name = f"{method.trainer.name}__{study.plans}__{configuration}"
                found.append(
                    Run(
                        f"{method.slug}__{preset.name}",
                        method,
                        preset,
                        configuration,
                        data_name(preset),
                        study.folders.results / study.dataset / name,
                    )
                )
    return found


def configurations_of(study: Study) -> list[Configuration]:
    """Every configuration the study adds to the plans, each after the one it inherits from."""
    found = {
        preset.name: Configuration(preset.name, study.base_configuration, preset.changes)
        for preset in study.presets
    }
    for run in runs_of(study):
        own = _own_configuration(run.method, run.preset)
        if own.name != run.preset.name:
            found[own.name] = own
    return list(found.values())


def data_name(preset: Preset) -> str:
    """What to call the preprocessed data of a preset: one name for presets of one voxel size, which share it."""
    spacing: Sequence[float] | None = preset.changes.get("spacing")
    return "planned" if spacing is None else "x".join(f"{size:g}" for size in spacing) + "mm"


def data_configuration(study: Study, name: str) -> str:
    """A configuration that is preprocessed to the data of that name."""
    first = next(preset for preset in study.presets if data_name(preset) == name)
    return study.base_configuration if "spacing" not in first.changes else first.name


def _own_configuration(method: Method, preset: Preset) -> Configuration:
    """The preset's own for a plain method; one with the source and options for a located one.

    Options are part of the name, by a fingerprint: changed options make another model, and the trained one stays.
    """
    if method.source is None and method.network is None:
        return Configuration(preset.name, preset.name, {})
    parts = [preset.name]
    changes: dict[str, Any] = {}
    if method.source is not None:
        parts.append(method.source)
        changes["location"] = {"source": method.source, **method.options}
    if method.network is not None:
        changes["network"] = dict(method.network)
    if method.options or method.network is not None:
        parts.append(digest([dict(method.options), method.network])[:6])
    return Configuration("_".join(parts), preset.name, changes)
