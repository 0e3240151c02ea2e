"""The runs of a study: what each is called, and the configuration of the plans that it trains.

nnU-Net keeps one model for each TRAINER__PLANS__CONFIGURATION and fold. So every further seed has a configuration of
its own, which inherits everything and ends in ``_seedN``; the first seed has the names of a study with that seed alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_locctx.nnunet.plans.presets import Preset
from nnunet_locctx.study.methods import Method


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
        data: The preprocessed data it uses (:func:`data_name`).
        model: nnU-Net's folder of the trained model.
    """

    slug: str
    method: Method
    preset: Preset
    seed: int
    configuration: str
    own_configurations: tuple[Configuration, ...]
    data: str
    model: Path


def make_runs(
    presets: Sequence[Preset], methods: Sequence[Method], seeds: Sequence[int], plans: str, models: Path
) -> dict[str, Run]:
    """All runs by their slug, in this order.

    Args:
        presets: At which methods run.
        methods: Each names its presets.
        seeds: The first one has the plain names.
        plans: Name of the study's plans.
        models: nnU-Net's folder of the dataset's trained models.
    """
    runs = {}
    for preset in presets:
        for method in methods:
            if preset.name not in method.presets:
                continue
            for place, seed in enumerate(seeds):
                ending = f"seed{seed}" if place else ""
                slug = "__".join(filter(None, (method.slug, preset.name, ending)))
                own = _own_configurations(method, preset, ending)
                configuration = own[-1].name if own else preset.name
                model = models / f"{method.trainer}__{plans}__{configuration}"
                runs[slug] = Run(slug, method, preset, seed, configuration, own, data_name(preset), model)
    return runs


def data_name(preset: Preset) -> str:
    """What to call the preprocessed data of a preset: one name for presets of one voxel size, which share it."""
    spacing = preset.changes.get("spacing")
    return "planned" if spacing is None else "x".join(f"{size:g}" for size in spacing) + "mm"


def digest(content: Any) -> str:
    """Short fingerprint of what JSON can hold, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _own_configurations(method: Method, preset: Preset, ending: str) -> tuple[Configuration, ...]:
    """None for a plain method; one with the source and options for a located one; one more for a further seed.

    Options are part of the name, by a fingerprint: changed options make another model, and the trained one stays.
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
