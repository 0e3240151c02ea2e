"""The plans' ``location`` key: what is allowed, what is filled in, what is refused."""

import json
from typing import Any

import pytest

from nnunet_locctx.blocks import BLOCKS, DEFAULTS
from nnunet_locctx.location import ScannerSource, VoxelSource
from nnunet_locctx.nnunet.options import LocationOptions

read = LocationOptions.from_configuration


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_without_the_key_the_defaults_hold(block: str) -> None:
    options = read({"patch_size": [32, 32, 32]}, block)
    assert (options.source, options.absolute, options.jitter, options.dropout) == ("voxel", False, 0.0, 0.0)
    assert options.axes == ("R", "A", "S")
    assert options.place == DEFAULTS[block].place
    assert options.block == DEFAULTS[block].options
    assert options.make_source() == VoxelSource()


def test_the_plans_win_over_the_defaults() -> None:
    options = read(
        {"location": {"place": "decoder", "block": {"bands": 3}, "jitter": 0.02, "dropout": 1}}, "prior"
    )
    assert (options.place, options.block["bands"], options.jitter, options.dropout) == ("decoder", 3, 0.02, 1)


def test_scanner() -> None:
    assert read({"location": {"source": "scanner"}}).make_source() == ScannerSource(absolute=False)
    assert read({"location": {"source": "scanner", "absolute": True}}).make_source() == ScannerSource(
        absolute=True
    )


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            {"source": "gps"},
            "unknown location.source 'gps'; there are anatomical, body, body_part, scanner, voxel",
        ),
        (
            {"sauce": "voxel"},
            "sauce; allowed: source, absolute, cross_section, axes, jitter, dropout, unlocated_weight, place, block",
        ),
        ("voxel", "must be a table, got 'voxel'"),
        ({"absolute": True}, "option of the source 'scanner', got source 'voxel'"),
        ({"absolute": 1, "source": "scanner"}, "location.absolute must be true or false, got 1"),
        ({"jitter": -0.1}, "location.jitter must be a number from 0 to 1 or 'auto', got -0.1"),
        ({"jitter": "much"}, "location.jitter must be a number from 0 to 1 or 'auto', got 'much'"),
        ({"dropout": 1.5}, "location.dropout must be a number from 0 to 1, got 1.5"),
        ({"dropout": True}, "location.dropout must be a number from 0 to 1, got True"),
        ({"unlocated_weight": -1}, "location.unlocated_weight must be a number from 0 to 1, got -1"),
        ({"jitter": float("nan")}, "location.jitter must be a number from 0 to 1 or 'auto', got nan"),
        ({"axes": ["R", "X"]}, "location.axes: there is no axis 'X'; allowed: R, A, S"),
        ({"axes": ["R", ["A"]]}, r"location.axes: there is no axis \['A'\]; allowed: R, A, S"),
        ({"axes": "RA"}, "location.axes must list one or more of R, A, S, each once, got 'RA'"),
        ({"axes": []}, r"location.axes must list one or more of R, A, S, each once, got \[\]"),
        ({"axes": ["S", "S"]}, "location.axes must list one or more of R, A, S, each once, got"),
        ({"block": 3}, "location.block must be a table of options, got 3"),
        ({"place": "roof"}, "unknown place 'roof'; there are input"),
        ({"block": {"colour": 1}}, "block 'prior' does not take colour; allowed:"),
    ],
)
def test_wrong_keys_and_values(location: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read({"location": location}, "prior")


def test_the_signature_holds_what_the_weights_depend_on() -> None:
    one = read({"location": {"jitter": 0.1, "dropout": 0.2}}, "prior")
    assert one.signature("prior") == read({}, "prior").signature("prior")
    assert one.signature("prior") != read({"location": {"source": "scanner"}}, "prior").signature("prior")
    assert one.signature("prior") != read({}, "locbam").signature("locbam")
    # models from before axes could be left out do not name them
    assert one.signature("prior") == read({"location": {"axes": ["A", "S", "R"]}}, "prior").signature("prior")
    left_out = read({"location": {"axes": ["S", "R"]}}, "prior")
    assert json.loads(left_out.signature("prior"))["axes"] == ["R", "S"]
    written = json.loads(one.signature("prior"))
    assert written["source"] == "voxel"
    # the defaults of this version are written out: another version's must not be taken for them
    assert written["block"]["bands"] == 6
