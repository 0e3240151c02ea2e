"""Digests follow the content of files, and files that did not change are not read."""

import hashlib
import os
from pathlib import Path

import pytest

from nnunet_locctx.nnunet.data import digests
from nnunet_locctx.nnunet.data.digests import file_digests


def test_only_what_may_have_changed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_text(file.name)
    read: list[str] = []
    digest = digests.file_digest

    def counted(file: Path) -> str:
        read.append(file.name)
        return digest(file)

    monkeypatch.setattr(digests, "file_digest", counted)
    record = tmp_path / "folder" / "record.json"

    def computed() -> dict[str, str]:
        read.clear()
        return {file.name: value for file, value in file_digests(files, record, progress=False).items()}

    first = computed()
    assert first == {name: hashlib.sha256(name.encode()).hexdigest() for name in "abc"}
    assert read == ["a", "b", "c"]
    assert computed() == first
    assert read == []
    # another content in as many bytes, with the time of the file before: only the system's own time tells
    before = files[1].stat()
    files[1].write_text("B")
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    second = computed()
    assert read == ["b"]
    assert second == {**first, "b": hashlib.sha256(b"B").hexdigest()}
    os.utime(files[2], ns=(1, 1))
    assert computed() == second
    assert read == ["c"]
    # what is known of other files stays
    file_digests(files[:1], record, progress=False)
    assert computed() == second
    assert read == []


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": [1, 2, 3]}', "\x00"])
def test_a_record_that_cannot_be_read_counts_as_empty(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "record.json").write_text(content)
    computed = file_digests([tmp_path / "a"], tmp_path / "record.json", progress=False)
    assert computed == {tmp_path / "a": hashlib.sha256(b"a").hexdigest()}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        file_digests([tmp_path / "missing"], tmp_path / "record.json", progress=False)
