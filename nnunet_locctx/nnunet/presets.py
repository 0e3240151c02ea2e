"""Presets of `locctx plan`: JSON files in the folder plans/, each a set of changes to a planned configuration."""

import json
from pathlib import Path
from typing import Any

from nnunet_locctx.resources import plans_folder

KEYS = (
    "description",
    "patch_size",
    "batch_size",
    "batch_dice",
    "spacing",
    "location",
    "network",
    "architecture",
)


def list_presets() -> dict[str, str]:
    """Name -> description of every preset."""
    return {file.stem: str(_read(file)["description"]) for file in sorted(plans_folder().glob("*.json"))}


def read_preset(name: str) -> dict[str, Any]:
    """The changes of one preset: keyword arguments of :func:`~nnunet_locctx.nnunet.planning.add_configuration`.

    Args:
        name: A preset's name, or the path of a JSON file of the same form.

    Raises:
        ValueError: No such preset, or the file does not hold one.
    """
    file = Path(name) if name.endswith(".json") else plans_folder() / f"{name}.json"
    if not file.is_file():
        raise ValueError(
            f"no preset {name!r}; there are {', '.join(list_presets())}, or give the path of a .json file"
        )
    preset = _read(file)
    return {key: value for key, value in preset.items() if key != "description"}


def _read(file: Path) -> dict[str, Any]:
    try:
        preset = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"the preset {file} is not valid JSON: {error}") from error
    if not isinstance(preset, dict):
        raise ValueError(f"the preset {file} must hold an object, got {type(preset).__name__}")
    unknown = sorted(set(preset) - set(KEYS))
    if unknown:
        raise ValueError(f"the preset {file} does not take {', '.join(unknown)}; allowed: {', '.join(KEYS)}")
    return {"description": "", **preset}
