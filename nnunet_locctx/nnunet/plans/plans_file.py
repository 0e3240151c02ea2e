"""Reads nnU-Net's plans and keeps plans of our own beside them."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunet_locctx.files import write_atomically
from nnunet_locctx.names import instead

Plans = dict[str, Any]

MARK = "nnunet_locctx"
"""Key that marks a plans file as ours; nnU-Net keeps keys it does not know."""


def read_plans(file: Path | str) -> Plans:
    """Reads and checks a plans file.

    Raises:
        ValueError: No such file, no JSON, or not the plans format of nnU-Net 2.8.
    """
    file = Path(file)
    if file.suffix == ".pkl":
        raise ValueError(
            f"{file} is a plans file of nnU-Net 1; plan the dataset again with nnUNetv2_plan_experiment"
        )
    if not file.is_file():
        others = sorted(path.stem for path in file.parent.glob("*.json") if _looks_like_plans(path))
        raise ValueError(
            f"no plans file {file}{instead(file.stem, others)}. Plans are made by nnUNetv2_plan_and_preprocess."
        )
    try:
        plans = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    check_plans(plans, str(file))
    return dict(plans)


def check_plans(plans: Any, name: str = "the plans") -> None:
    """Refuses what is not plans in the format of nnU-Net 2.8.

    Raises:
        ValueError: Says what is missing.
    """
    again = "Plan the dataset again with nnUNetv2_plan_experiment."
    if not isinstance(plans, dict):
        raise ValueError(f"{name} must hold an object, got {type(plans).__name__}. {again}")
    missing = [
        key
        for key in ("configurations", "plans_name", "dataset_name", "transpose_forward")
        if key not in plans
    ]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}: not plans of nnU-Net 2.8. {again}")
    for configuration, content in plans["configurations"].items():
        if "UNet_class_name" in content or not ("architecture" in content or "inherits_from" in content):
            raise ValueError(
                f"{name}: configuration {configuration!r} has no 'architecture', as plans written before nnU-Net 2.5. "
                f"{again}"
            )


def check_name(name: str, what: str) -> None:
    """Refuses names that nnU-Net's folder names (TRAINER__PLANS__CONFIGURATION) cannot carry.

    Raises:
        ValueError: The name is empty, longer than 100 letters (a folder's name may have 255), or holds ``__`` or other
            characters than letters, digits, ``_``, ``.``, ``-``.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name) or "__" in name:
        raise ValueError(
            f"the {what} must be made of at most 100 letters, digits, '_', '.' and '-', without '__' (it becomes "
            f"part of a folder name), got {name!r}"
        )


def derive_plans(plans: Plans, name: str) -> Plans:
    """A copy of the plans under another name, marked as ours. Its preprocessed data stays shared with the original.

    Raises:
        ValueError: The name cannot be used.
    """
    check_name(name, "plans' name")
    if name == plans["plans_name"]:
        raise ValueError(f"the plans' name must differ from the original's, got {name!r} for both")
    derived = deepcopy(plans)
    derived["plans_name"] = name
    derived[MARK] = {"based_on": plans["plans_name"]}
    return derived


def is_derived(plans: Plans) -> bool:
    """Whether the plans were made by :func:`derive_plans`."""
    return MARK in plans


def renew(derived: Plans, original: Plans, *, force: bool = False) -> Plans:
    """Derived plans on top of the original as it is now; the configurations that were added stay.

    Raises:
        ValueError: The original was planned anew since and ``force`` is not given.
    """
    fresh = derive_plans(original, derived["plans_name"])
    changed = [
        key
        for key in fresh
        if key not in ("configurations", "plans_name", MARK) and fresh[key] != derived.get(key)
    ]
    for name, content in original["configurations"].items():
        if _without_next_stage(content) != _without_next_stage(derived["configurations"].get(name, {})):
            changed.append(f"configuration {name}")
    if changed and not force:
        raise ValueError(
            f"the plans {original['plans_name']!r} were made anew since {derived['plans_name']!r} was derived from "
            f"them (different: {', '.join(changed)}). Renew it with --force, or choose another name with --plans-name."
        )
    if not changed:
        return deepcopy(derived)
    added = {
        name: content
        for name, content in derived["configurations"].items()
        if name not in fresh["configurations"]
    }
    fresh["configurations"].update(deepcopy(added))
    return fresh


def write_plans(plans: Plans, file: Path | str) -> bool:
    """Writes plans in one step: a reader sees the old file or the new one, never a part.

    Returns:
        Whether the file changed.

    Raises:
        ValueError: The file exists and is not ours (nnU-Net's own plans are never overwritten), or the plans' name does
            not match the file's, by which nnU-Net finds it.
    """
    file = Path(file)
    check_plans(plans)
    if plans["plans_name"] != file.stem:
        raise ValueError(
            f"plans named {plans['plans_name']!r} must be saved as {plans['plans_name']}.json, got {file.name}"
        )
    if file.exists():
        existing = read_plans(file)
        if not is_derived(existing):
            raise ValueError(
                f"{file} was not written by locctx and is left alone; choose another name for the plans"
            )
        if existing == json.loads(json.dumps(plans)):
            return False
    write_atomically(file, (json.dumps(plans, indent=4) + "\n").encode())
    return True


def _without_next_stage(configuration: dict[str, Any]) -> dict[str, Any]:
    # extended by us when a configuration is added to a cascade
    return {key: value for key, value in configuration.items() if key != "next_stage"}


def _looks_like_plans(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and "configurations" in content
