"""Results survive an interruption, and nothing else is taken for one."""

from pathlib import Path

import pytest

from nnunet_locctx.evaluation.records import Records


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "results.jsonl"
    records = Records(file)
    records.add({"case": "a", "percent": 1.0}, {"liver": 0.5})
    records.add({"case": "b", "percent": 1.0}, {"liver": None})
    return file


def test_results_are_found_again(file: Path) -> None:
    records = Records(file)
    assert len(records) == 2
    assert {"percent": 1.0, "case": "a"} in records
    assert {"percent": 2.0, "case": "a"} not in records
    assert records.get({"case": "a", "percent": 1.0}) == {"liver": 0.5}
    assert records.get({"case": "b", "percent": 1.0}) == {"liver": None}
    with pytest.raises(KeyError):
        records.get({"case": "c", "percent": 1.0})


def test_half_a_line_is_replaced(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    records = Records(file)
    assert len(records) == 1
    assert file.read_bytes() == whole[:-9]  # looking changes nothing
    records.add({"case": "b", "percent": 1.0}, {"liver": None})
    assert file.read_bytes() == whole
    assert len(Records(file)) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"case": "a"}\n', "line 1 of .* holds no result"),
        ('{"case": "a", "result": 1}\nnotes\n', "line 2 of .* holds no result"),
        ("[1, 2]\n", "line 1 of .* holds no result"),
        ("my notes", "holds no results; choose another folder"),
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=words):
        Records(file)
    assert file.read_text() == content


def test_numbers_json_does_not_know(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        Records(file).add({"case": "c"}, {"liver": float("nan")})
    assert file.read_bytes() == before
