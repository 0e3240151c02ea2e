"""nnU-Net's own dataset converters, called on one case at a time.

The functions of nnunetv2.dataset_conversion copy a whole tree into the folder that their module's global `nnUNet_raw`
names, cannot go on after a stop, and do not check what they copy. So each call gets a folder of links in the release's
layout with one case. During the call two globals of the module are replaced: `nnUNet_raw` by a working folder, and
`shutil` by a copy function that can make links. ACDC needs `nnUNet_raw` as text anyway: its `nnUNet_raw.replace(...)`
fails with nnU-Net 2.8's path objects. Not thread-safe.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from nnunet_locctx.datasets.release import Copy

SOME_ID = 1
"""Dataset number for the converters; their folder is renamed afterwards."""


def converter(module: str) -> ModuleType:
    """A module of nnunetv2.dataset_conversion, by name without the package."""
    return importlib.import_module(f"nnunetv2.dataset_conversion.{module}")


def convert_view(module: str, function: str, view: Path, folder: Path, copy: Copy) -> Path:
    """Runs a converter on a release, or on a view of one.

    Args:
        module: Such as ``"Dataset220_KiTS2023"``.
        function: Its function, called with the view and a number.
        view: Folder in the release's layout.
        folder: New folder to work in.
        copy: Used in place of `shutil.copy`.

    Returns:
        The dataset's folder below `folder`, with dataset.json.
    """
    folder.mkdir(parents=True)
    code = converter(module)
    with replaced(code, nnUNet_raw=str(folder), shutil=SimpleNamespace(copy=copy)):
        getattr(code, function)(str(view), SOME_ID)
    (made,) = folder.iterdir()
    return made


def converted_description(module: str, function: str, view: Path) -> dict[str, Any]:
    """The dataset.json that a converter writes for a view without cases."""
    with tempfile.TemporaryDirectory() as folder:
        made = convert_view(module, function, view, Path(folder) / "raw", shutil.copyfile)
        content: dict[str, Any] = json.loads((made / "dataset.json").read_text())
    return content


def move_files(made: Path, folder: Path) -> None:
    """Moves a converted case's images and labels below `folder`."""
    for file in sorted(made.glob("*/*.nii.gz")):
        target = folder / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)


@contextlib.contextmanager
def replaced(module: ModuleType, **values: object) -> Iterator[None]:
    """Replaces globals of a module within a ``with`` block."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def describe(content: dict[str, Any], training: int, **entries: object) -> dict[str, Any]:
    """A converter's dataset.json with the true number of cases and the given entries."""
    return {**content, "numTraining": training, "converted_by": "locctx convert", **entries}
