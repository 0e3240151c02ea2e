"""location.json: put together by several writers, one entry a scan."""

import json
import pickle
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_locctx.location import AffineField, hide_axes, make_source
from nnunet_locctx.nnunet.predicting.location_file import (
    LOCATION_FILE,
    RECORD,
    LocatedPlans,
    add_record,
    describe,
    make_record,
)
from tests.geometry_cases import sitk_properties
from tests.nnunet.small_plans import configuration, plans


@pytest.mark.parametrize(
    ("unknown", "line"),
    [
        ({}, "location of scan (voxel): R, A, S known"),
        ({"S": "too long"}, "location of scan (voxel): R, A known; S unknown: too long"),
        (
            {"R": "left out", "A": "too wide", "S": "left out"},
            (
                "location of scan (voxel): R, S unknown: left out; A unknown: too wide; "
                "a plain model may do better where nothing is known"
            ),
        ),
    ],
)
def test_a_record_and_its_line(unknown: dict[str, str], line: str) -> None:
    record = make_record(make_source("voxel"), hide_axes(AffineField(np.eye(3, 4), (2, 2, 2)), unknown))
    assert record == {
        "source": "voxel",
        "known": [axis for axis in "RAS" if axis not in unknown],
        "unknown": unknown,
    }
    assert describe("scan", record) == line


def test_many_writers_lose_no_entry(tmp_path: Path) -> None:
    """Each has its own descriptor of the lock, as processes have."""
    record = {"source": "voxel", "known": [], "unknown": {}}
    with ThreadPool(8) as pool:
        pool.starmap(add_record, [(tmp_path, f"case_{number:02d}", record) for number in range(40)])
    content = json.loads((tmp_path / LOCATION_FILE).read_text())
    assert list(content) == [f"case_{number:02d}" for number in range(40)]
    assert {path.name for path in tmp_path.iterdir()} == {LOCATION_FILE, f".{LOCATION_FILE}.lock"}


def test_another_users_lock_costs_no_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("nnunet_locctx.nnunet.predicting.location_file.one_at_a_time", denied)
    add_record(tmp_path, "a", {"known": ["R"]})
    assert json.loads((tmp_path / LOCATION_FILE).read_text()) == {"a": {"known": ["R"]}}


@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_what_is_no_such_file_is_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / LOCATION_FILE).write_text(content)
    add_record(tmp_path, "a", {"known": ["R"]})
    assert json.loads((tmp_path / LOCATION_FILE).read_text()) == {"a": {"known": ["R"]}}


def test_the_writer_of_predictions_writes_it_first(tmp_path: Path) -> None:
    """Also after the pickling to a worker, and for names that hold dots; a prediction replaces its entry only."""
    manager = PlansManager(plans({"c": configuration()}))
    manager.__class__ = LocatedPlans
    manager = pickle.loads(pickle.dumps(manager))
    writer = pickle.loads(pickle.dumps(manager.image_reader_writer_class()))
    assert isinstance(writer, SimpleITKIO)
    add_record(tmp_path, "b.0", {"known": ["S"]})
    add_record(tmp_path, "other", {"known": ["S"]})
    properties = {**sitk_properties((4, 4, 4)), RECORD: {"known": ["R"]}}
    for name in ("a.nii.gz", "b.0.nii.gz"):
        writer.write_seg(np.zeros((4, 4, 4), np.uint8), str(tmp_path / name), properties)
        assert (tmp_path / name).is_file()
    content = json.loads((tmp_path / LOCATION_FILE).read_text())
    assert content == {"a": {"known": ["R"]}, "b.0": {"known": ["R"]}, "other": {"known": ["S"]}}
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'ndim'"):
        writer.write_seg(None, str(tmp_path / "failed.nii.gz"), properties)
    assert "failed" in json.loads((tmp_path / LOCATION_FILE).read_text())


def test_predictions_without_location_are_written_as_ever(tmp_path: Path) -> None:
    manager = PlansManager(plans({"c": configuration()}))
    manager.__class__ = LocatedPlans
    writer = manager.image_reader_writer_class()
    writer.write_seg(np.zeros((4, 4, 4), np.uint8), str(tmp_path / "a.nii.gz"), sitk_properties((4, 4, 4)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
