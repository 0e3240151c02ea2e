import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from nnunet_locctx.nnunet.plans.plans_file import (
    check_name,
    check_plans,
    derive_plans,
    is_derived,
    read_plans,
    renew,
    write_plans,
)
from tests.nnunet.small_plans import configuration, plans


@pytest.fixture
def original() -> dict[str, Any]:
    return plans({"3d_fullres": configuration()})


def test_derived_plans_carry_their_own_name(original: dict[str, Any]) -> None:
    derived = derive_plans(original, "nnUNetPlans_locctx")
    assert derived["plans_name"] == "nnUNetPlans_locctx"
    assert derived["configurations"] == original["configurations"]
    assert is_derived(derived)
    assert not is_derived(original)
    with pytest.raises(ValueError, match="must differ from the original's, got 'nnUNetPlans' for both"):
        derive_plans(original, "nnUNetPlans")


@pytest.mark.parametrize("name", ["", "a b", "a__b", "../a", "-a", "a/b"])
def test_names_that_folders_cannot_carry(name: str) -> None:
    with pytest.raises(ValueError, match="the plans' name must be made of at most 100 letters"):
        check_name(name, "plans' name")


def test_write_and_read(original: dict[str, Any], tmp_path: Path) -> None:
    derived = derive_plans(original, "own")
    file = tmp_path / "own.json"
    assert write_plans(derived, file)
    assert read_plans(file) == json.loads(json.dumps(derived))
    assert not write_plans(derived, file)  # nothing to do
    derived["configurations"]["more"] = {"inherits_from": "3d_fullres"}
    assert write_plans(derived, file)
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


def test_a_failed_write_leaves_the_old_file(original: dict[str, Any], tmp_path: Path) -> None:
    derived = derive_plans(original, "own")
    write_plans(derived, tmp_path / "own.json")
    derived["configurations"]["bad"] = {"inherits_from": "3d_fullres", "value": {1, 2}}  # no JSON for a set
    with pytest.raises(TypeError):
        write_plans(derived, tmp_path / "own.json")
    assert "bad" not in read_plans(tmp_path / "own.json")["configurations"]
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


def test_plans_of_nnunet_are_never_overwritten(original: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps({**original, "plans_name": "other"}))
    before = file.read_bytes()
    with pytest.raises(ValueError, match="was not written by locctx and is left alone"):
        write_plans(derive_plans(original, "other"), file)
    assert file.read_bytes() == before


def test_the_name_must_match_the_file(original: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plans named 'own' must be saved as own\.json, got x\.json"):
        write_plans(derive_plans(original, "own"), tmp_path / "x.json")


def test_missing_plans_name_those_there(original: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are none"):
        read_plans(tmp_path / "a.json")
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(original))
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"there are nnUNetPlans\. Plans are made by"):
        read_plans(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "must hold an object, got list"),
        ('{"configurations": {}}', "lacks plans_name, dataset_name, transpose_forward"),
    ],
)
def test_files_that_hold_no_plans(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_plans(tmp_path / "a.json")


def test_plans_of_older_versions(original: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plans file of nnU-Net 1; plan the dataset again"):
        read_plans(tmp_path / "nnUNetPlansv2.1_plans_3D.pkl")
    old = deepcopy(original)
    del old["configurations"]["3d_fullres"]["architecture"]
    old["configurations"]["3d_fullres"]["UNet_class_name"] = "PlainConvUNet"
    with pytest.raises(
        ValueError, match=r"'3d_fullres' has no 'architecture', as plans written before nnU-Net 2\.5"
    ):
        check_plans(old)


def test_renewing_keeps_what_was_added(original: dict[str, Any]) -> None:
    derived = derive_plans(original, "own")
    derived["configurations"]["small"] = {"inherits_from": "3d_fullres", "batch_size": 1}
    assert renew(derived, original) == derived
    again = deepcopy(original)
    again["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]
    with pytest.raises(
        ValueError, match=r"made anew since 'own' was derived .*different: configuration 3d_fullres"
    ):
        renew(derived, again)
    renewed = renew(derived, again, force=True)
    assert renewed["configurations"]["3d_fullres"]["spacing"] == [1.0, 1.0, 1.0]
    assert renewed["configurations"]["small"] == derived["configurations"]["small"]


def test_a_successor_added_to_a_cascade_is_no_change(original: dict[str, Any]) -> None:
    derived = derive_plans(original, "own")
    derived["configurations"]["3d_fullres"]["next_stage"] = ["x"]
    assert renew(derived, original) == derived
