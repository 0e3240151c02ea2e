"""A dataset.json that nnU-Net cannot use is named with the right form."""

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_locctx.nnunet.data.dataset_json import dataset_json_problems, read_dataset_json

GOOD: dict[str, Any] = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "liver": 1, "tumour": 2, "ignore": 3},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"labels": REGIONS, "regions_class_order": [1, 2, 3]},
        {"labels": {"background": 0, "liver": [1]}},  # one value is no region
        {"dataset": {"a": {"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}}},
        {"overwrite_image_reader_writer": "NibabelIO", "description": None},
    ],
)
def test_what_nnunet_takes_has_no_problem(more: dict[str, Any]) -> None:
    assert dataset_json_problems({**GOOD, **more}) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("labels", {"0": "background", "1": "liver"}, '{"background": 0, "liver": 1}'),
        ("labels", ["background", "liver"], '{"background": 0, "liver": 1}'),
        ("labels", {}, '"labels" must give each name its number'),
        ("labels", {"background": 0, "liver": "1"}, "label 'liver' must be a whole number, 1, got \"1\""),
        ("labels", {"background": 0, "liver": 1.5}, "label 'liver' must be a whole number, 1, got 1.5"),
        ("labels", {"background": 0, "both": []}, "label 'both' must be one number or a list of numbers"),
        ("labels", {"background": [0], "liver": 1}, "label 'background' must be a whole number, 0, got [0]"),
        ("labels", {"background": 1, "liver": 0}, "label 'background' must be 0, got 1"),
        ("labels", REGIONS, 'it lacks "regions_class_order", which classes of several labels (whole, core)'),
        ("numTraining", "5", '"numTraining" must be a whole number, 5, got "5"'),
        ("numTraining", True, '"numTraining" must be a whole number, the number of training cases, got true'),
        ("channel_names", ["CT"], '{"0": "CT"}, got ["CT"]'),
        ("channel_names", {"CT": 0, "PET": 1}, '{"0": "CT", "1": "PET"}, got {"CT": 0'),
        ("channel_names", {"1": "CT"}, '{"0": "CT"}, got {"1": "CT"}'),
        (
            "file_ending",
            "nii.gz",
            '"file_ending" must be text that begins with a dot, ".nii.gz", got "nii.gz"',
        ),
        ("overwrite_image_reader_writer", None, "must be the name of a reader"),
        ("overwrite_image_reader_writer", 5, "or left out, got 5"),
        ("dataset", [{"image": "a"}], '"dataset" must give each case its files'),
        ("dataset", {"a": {"images": "a_0000.nii.gz", "label": "a"}}, "case 'a' of \"dataset\" must be"),
    ],
)
def test_the_right_form_is_shown(key: str, value: Any, words: str) -> None:
    (problem,) = dataset_json_problems({**GOOD, key: value})
    assert words in problem


def test_nested_regions_are_flattened() -> None:
    nested = {**GOOD, "labels": {"background": 0, "both": [[1, 2], 3]}, "regions_class_order": [1]}
    (problem,) = dataset_json_problems(nested)
    assert "label 'both' must be one number or a list of numbers, [1, 2, 3], got [[1, 2], 3]" in problem


def test_order_of_regions_has_one_number_for_each_class() -> None:
    (problem,) = dataset_json_problems({**GOOD, "labels": REGIONS, "regions_class_order": [1, 2]})
    assert "a list of 3 whole numbers, one for each of whole, core, enhancing, got [1, 2]" in problem


def test_every_problem_is_named_at_once_and_only_of_the_keys_that_are_used() -> None:
    content = {"modality": {"0": "CT"}, "labels": ["background", "liver"], "numTraining": "5"}
    assert len(dataset_json_problems(content)) == 4
    assert len(dataset_json_problems(content, ("labels",))) == 1
    assert dataset_json_problems(["a"]) == ['it must hold an object such as {"labels": ...}, got ["a"]']


def test_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    with pytest.raises(ValueError, match=r"dataset\.json cannot be read"):
        read_dataset_json(tmp_path)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json cannot be read"):
        read_dataset_json(tmp_path)
    file.write_text(json.dumps({**GOOD, "labels": ["background", "liver"]}))
    with pytest.raises(ValueError, match=r'dataset\.json: "labels" must give .*"liver": 1'):
        read_dataset_json(tmp_path)
    file.write_text(json.dumps({**GOOD, "numTraining": "5"}))  # not looked at
    assert read_dataset_json(tmp_path)["numTraining"] == "5"
