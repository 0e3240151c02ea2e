"""Files are replaced as a whole, and what killed processes left of them goes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_locctx.files import HOST, link, replacing, write_atomically

GONE = 2**22 + 1
"""No process: above the largest number that Linux gives."""


def test_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    write_atomically(file, b"old")

    def stop() -> None:
        with replacing(file) as draft:
            draft.write_bytes(b"ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop()
    assert file.read_bytes() == b"old"
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_disk_that_is_full_only_when_it_is_asked_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.txt"
    write_atomically(file, b"old")

    def full(descriptor: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{file}'"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(sys.platform == "win32", reason="asks for the process by a signal")
def test_what_a_killed_process_left(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from nnunet_locctx.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as draft:\n"
        "    draft.mkdir() if sys.argv[2] == 'folder' else None\n"
        "    (draft / 'part' if draft.is_dir() else draft).write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for target, kind in ((tmp_path / "model.pt", "file"), (tmp_path / "crops", "folder")):
        ended = subprocess.run([sys.executable, "-c", code, str(target), kind], check=False)
        assert ended.returncode == -signal.SIGKILL
        (draft,) = tmp_path.glob(f".*.{target.name}")
        assert draft.is_dir() == (kind == "folder")
        write_atomically(tmp_path / "other", b"")
        assert draft.exists()  # another file's
        with replacing(target) as mine:
            assert not draft.exists()
            mine.write_bytes(b"whole")
        assert target.read_bytes() == b"whole"
    assert not list(tmp_path.glob(".*"))


def test_only_what_is_abandoned_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    alive = tmp_path / f".{os.getppid()}@{HOST}.file.txt"
    elsewhere, long_ago = (tmp_path / f".{GONE}@{host}.file.txt" for host in ("other", "another"))
    earlier_version = tmp_path / f".{GONE}.file.txt"
    folder = tmp_path / f".{GONE + 1}@other.file.txt"
    folder.mkdir()
    unlike = tmp_path / ".hidden.file.txt"
    for path in (alive, elsewhere, long_ago, earlier_version, unlike, folder / "part"):
        path.write_bytes(b"")
    old = time.time() - 2 * 86400
    for path in (long_ago, alive, folder):
        os.utime(path, (old, old))
    write_atomically(file, b"new")
    # the folder is old, what is in it is not
    assert set(tmp_path.iterdir()) == {file, alive, elsewhere, earlier_version, unlike, folder}
    for path in (earlier_version, folder / "part", folder):
        os.utime(path, (old, old))
    write_atomically(file, b"new")
    assert set(tmp_path.iterdir()) == {file, alive, elsewhere, unlike}


def test_the_draft_of_an_earlier_process_of_the_same_number(tmp_path: Path) -> None:
    left = tmp_path / f".{os.getpid()}@{HOST}.file.txt"
    left.mkdir()
    (left / "part").write_bytes(b"")
    write_atomically(tmp_path / "file.txt", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("refused", [(), ("symlink",), ("symlink", "link")])
def test_links_fall_back_to_hard_links_and_copies(
    refused: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "a privilege is missing")

    (tmp_path / "scan").write_bytes(b"voxels")
    for name in refused:
        monkeypatch.setattr(os, name, refuse)
    link(tmp_path / "scan", tmp_path / "case")
    assert (tmp_path / "case").read_bytes() == b"voxels"
    assert (tmp_path / "case").is_symlink() == ("symlink" not in refused)
    assert (tmp_path / "case").samefile(tmp_path / "scan") == ("link" not in refused)
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        link(tmp_path / "other", tmp_path / "case")
    assert (tmp_path / "scan").read_bytes() == b"voxels"


def test_no_copy_is_written_through_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("scan")
    (tmp_path / "target").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        link(tmp_path / "source", tmp_path / "target")
    assert not (tmp_path / "elsewhere").exists()
