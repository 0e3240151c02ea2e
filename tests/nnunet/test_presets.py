import json
from pathlib import Path

import pytest

from nnunet_locctx.nnunet.planning import add_configuration
from nnunet_locctx.nnunet.presets import list_presets, read_preset
from tests.nnunet.small_plans import configuration, plans


@pytest.mark.parametrize("name", sorted(list_presets()))
def test_presets_of_the_package_can_be_planned(name: str) -> None:
    assert list_presets()[name]
    made = add_configuration(plans({"3d_fullres": configuration()}), "3d_fullres", "new", **read_preset(name))
    assert made["configurations"]["new"]["patch_size"] == read_preset(name)["patch_size"]


def test_own_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"batch_size": 3, "description": "mine"}))
    assert read_preset(str(file)) == {"batch_size": 3}


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match="no preset 'huge'; there are patch16, patch32"):
        read_preset("huge")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("3", "must hold an object, got int"),
        ('{"speed": 1}', "does not take speed; allowed: desc"),
    ],
)
def test_files_that_are_no_presets(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_preset(str(tmp_path / "p.json"))
