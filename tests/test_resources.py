import os
from email.message import Message
from pathlib import Path

import pytest

from nnunet_locctx import resources


def test_folders_of_the_clone() -> None:
    repository = Path(__file__).resolve().parents[1]
    assert resources.trainers_folder() == repository / "trainers"
    assert resources.plans_folder() == repository / "plans"
    assert resources.studies_folder() == repository / "studies"


def test_folders_of_an_installed_package(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "nnunet_locctx"
    (package / "_data" / "trainers").mkdir(parents=True)
    assert resources._folder("trainers", package) == package / "_data" / "trainers"


def test_a_neighbour_in_site_packages_is_not_ours(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "nnunet_locctx"
    package.mkdir(parents=True)
    (package.parent / "plans").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"the folder 'plans' of nnunet_locctx is missing.*Install the package"
    ):
        resources._folder("plans", package)


def test_pages_are_led_to_the_repository_that_the_metadata_names(monkeypatch: pytest.MonkeyPatch) -> None:
    described = Message()
    monkeypatch.setattr(resources, "metadata", lambda _: described)
    text = "Layouts: docs/how-to/datasets.md. More: docs/x.md"
    assert resources.with_pages(text) == text
    described["Project-URL"] = "Changelog, https://example.org/changes"
    described["Project-URL"] = "Repository, https://example.org/it/"
    pages = "https://example.org/it/blob/main/docs"
    assert resources.with_pages(text) == f"Layouts: {pages}/how-to/datasets.md. More: {pages}/x.md"


def test_other_plugins_keep_their_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = str(resources.trainers_folder())
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(["/other", ours, ""]))
    assert resources.trainer_folders() == os.pathsep.join([ours, "/other"])
    monkeypatch.delenv("nnUNet_extTrainer")
    assert resources.trainer_folders() == ours
