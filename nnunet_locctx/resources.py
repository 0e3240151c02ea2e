"""Folders that travel with the package: the trainers nnU-Net discovers, presets of `locctx plan`, studies of `locctx
study`; and where its documentation lies.

In a clone (and an editable install, which points at one) they lie at the top level of the repository; a wheel carries
copies in ``nnunet_locctx/_data``.
"""

import os
import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def trainers_folder() -> Path:
    """The folder that ``nnUNet_extTrainer`` must point at.

    Raises:
        FileNotFoundError: The installation is incomplete.
    """
    return _folder("trainers")


def trainer_folders() -> str:
    """The value of ``nnUNet_extTrainer`` that our commands set: our folder, then those that the shell names."""
    others = os.environ.get("nnUNet_extTrainer", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(trainers_folder()), *filter(None, others)]))


def plans_folder() -> Path:
    """The folder of the presets (JSON) that `locctx plan --preset` knows.

    Raises:
        FileNotFoundError: The installation is incomplete.
    """
    return _folder("plans")


def studies_folder() -> Path:
    """The folder of the studies (YAML) that `locctx study` knows.

    Raises:
        FileNotFoundError: The installation is incomplete.
    """
    return _folder("studies")


def repository_address() -> str | None:
    """``Repository`` of ``[project.urls]`` in pyproject.toml, as installed; None if there is none."""
    try:
        addresses = metadata("nnunet-locctx").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    address = dict(address.split(", ", 1) for address in addresses).get("Repository")
    return address and address.rstrip("/")


def with_pages(text: str) -> str:
    """The text with the address of each page that it names as ``docs/NAME.md``; without an address as it is."""
    address = repository_address()
    return re.sub(r"\bdocs/[\w/-]+\.md\b", rf"{address}/blob/main/\g<0>", text) if address else text


def _folder(name: str, package: Path = _PACKAGE) -> Path:
    installed = package / "_data" / name
    if installed.is_dir():
        return installed
    clone = package.parent / name
    # beside an installed package lies site-packages, where a folder of this name would be somebody else's
    if clone.is_dir() and (package.parent / "pyproject.toml").is_file():
        return clone
    raise FileNotFoundError(
        f"the folder {name!r} of nnunet_locctx is missing: neither {installed} (installed package) nor {clone} (clone) "
        "exists. Install the package again."
    )
