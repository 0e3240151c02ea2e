"""Presets of `locctx plan`: JSON files in the folder plans/, each a set of changes to a planned configuration."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_locctx.names import check_options, instead
from nnunet_locctx.resources import plans_folder
from nnunet_locctx.values import check_integer, check_positive

KEYS: dict[str, type] = {
    "description": str,
    "made_for": dict,
    "patch_size": list,
    "batch_size": int,
    "batch_dice": bool,
    "spacing": list,
    "location": dict,
    "network": dict,
    "architecture": dict,
}
"""Key of a preset -> what it holds."""

WORDS: dict[type, str] = {
    str: "text",
    dict: "an object",
    list: "a list",
    int: "a whole number",
    bool: "true or false",
}

MODALITIES = ("CT", "MR")


@dataclass(frozen=True)
class MadeFor:
    """The data that a preset expects; None: no expectation.

    Attributes:
        modality: ``"CT"`` or ``"MR"``.
        channels: Image channels.
        upsampling: How many times longer than the preset's voxels the data's may be along an axis.
        trainers: Trainers that should take the configuration: those with a network of their own, or of the block that
            it has options for.
    """

    modality: str | None = None
    channels: int | None = None
    upsampling: float = 2.0
    trainers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.modality not in (None, *MODALITIES):
            raise ValueError(
                f"made_for.modality must be one of {', '.join(MODALITIES)}, got {self.modality!r}"
            )
        if self.channels is not None:
            check_integer("made_for.channels", self.channels, 1)
        check_positive("made_for.upsampling", self.upsampling)
        if not all(isinstance(trainer, str) for trainer in self.trainers):
            raise ValueError(f"made_for.trainers must be a list of names, got {list(self.trainers)}")


@dataclass(frozen=True)
class Preset:
    """One preset.

    Attributes:
        name: Name of its file, without ``.json``.
        description: One line.
        made_for: What it expects of the data.
        changes: Keyword arguments of :func:`~nnunet_locctx.nnunet.plans.planning.add_configuration`.
    """

    name: str
    description: str
    made_for: MadeFor
    changes: Mapping[str, Any]


def list_presets() -> dict[str, str]:
    """Name -> description of every preset."""
    return {file.stem: _read(file).description for file in sorted(plans_folder().glob("*.json"))}


def load_preset(name: str) -> Preset:
    """A preset.

    Args:
        name: A preset's name, or the path of a JSON file of the same form.

    Raises:
        ValueError: No such preset, or the file does not hold one.
    """
    file = Path(name) if name.endswith(".json") else plans_folder() / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"no preset or file {name!r}{instead(name, list_presets())}")
    return _read(file)


def _read(file: Path) -> Preset:
    try:
        preset = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the preset {file} is not valid JSON: {error}") from error
    if not isinstance(preset, dict):
        raise ValueError(f"the preset {file} must hold an object, got {type(preset).__name__}")
    check_options(preset, KEYS, f"the preset {file}")
    for key, value in preset.items():
        _check_type(value, KEYS[key], f"the preset {file}: {key}")
    _check_type(preset.get("location", {}).get("block", {}), dict, f"the preset {file}: location.block")
    purpose = preset.pop("made_for", {})
    allowed = [field.name for field in dataclasses.fields(MadeFor)]
    check_options(purpose, allowed, f"made_for of the preset {file}")
    if "trainers" in purpose:
        _check_type(purpose["trainers"], list, f"the preset {file}: made_for.trainers")
        purpose["trainers"] = tuple(purpose["trainers"])
    description = str(preset.pop("description", ""))
    return Preset(file.stem, description, MadeFor(**purpose), preset)


def _check_type(value: Any, kind: type, name: str) -> None:
    if type(value) is not kind:
        raise ValueError(f"{name} must be {WORDS[kind]}, got {value!r}")
