"""Locks: held by whoever works, free when the last has ended, taken from what a killed process left behind."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nnunet_locctx import locks
from nnunet_locctx.locks import BusyError, end_abandoned, holders, lock, one_at_a_time, wait_for_lock

# Takes the lock and hands it to a worker; says both numbers.
WATCHER = """
import subprocess, sys, time
from pathlib import Path
from nnunet_locctx.locks import lock
with lock(Path(sys.argv[1]), inherited=True) as held:
    worker = subprocess.Popen(["sleep", "600"], pass_fds=(held,), start_new_session=True)
    print(worker.pid, flush=True)
    time.sleep(600)
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="looks at /proc")


@pytest.fixture
def watched(tmp_path):
    """A watcher and the number of its worker; both hold the lock `one`."""
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER, str(tmp_path / "one")], stdout=subprocess.PIPE, text=True
    )
    worker = int(watcher.stdout.readline())
    yield watcher, worker
    watcher.kill()
    watcher.wait()
    watcher.stdout.close()
    if worker in holders(tmp_path / "one"):
        os.kill(worker, signal.SIGKILL)


def test_one_at_a_time(tmp_path):
    with (
        lock(tmp_path / "one", {"what": "test"}),
        pytest.raises(BusyError, match='"what": "test"'),
        lock(tmp_path / "one"),
    ):
        pass
    with lock(tmp_path / "one"):
        pass


def test_a_link_of_that_name_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "one").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"), lock(tmp_path / "one"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


@needs_proc
def test_what_is_watched_is_left_alone(tmp_path, watched):
    watcher, worker = watched
    assert holders(tmp_path / "one") == {watcher.pid: watcher.pid, worker: watcher.pid}
    with (tmp_path / "one").open():  # a file that is only open is not held
        assert os.getpid() not in holders(tmp_path / "one")
    assert end_abandoned(tmp_path / "one") == []
    assert set(holders(tmp_path / "one")) == {watcher.pid, worker}


@needs_proc
def test_what_is_left_behind_is_ended(tmp_path, watched):
    watcher, worker = watched
    watcher.kill()
    watcher.wait()
    with pytest.raises(BusyError), lock(tmp_path / "one"):
        pass  # the worker holds it
    ended = []
    start = time.monotonic()
    with wait_for_lock(tmp_path / "one", pytest.fail, ended=ended.extend):
        assert ended == [worker]
        assert list(holders(tmp_path / "one")) == [os.getpid()]
    assert time.monotonic() - start < 8


def test_the_second_waits_and_says_for_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = []

    def second() -> None:
        with one_at_a_time(tmp_path / "a.lock", "plans.json", seconds=0.02):
            order.append("second")

    thread = threading.Thread(target=second)
    with one_at_a_time(tmp_path / "a.lock", "plans.json"):
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    printed = capsys.readouterr().out
    assert printed.count("plans.json is in use by process ") == 1
    assert printed.endswith(": waiting\n")


@pytest.mark.parametrize(
    ("content", "holder"), [("", "another process"), ("{", "{"), ('{"pid": 1}', '{"pid": 1}'), ("[]", "[]")]
)
def test_a_holder_that_does_not_say_who_it_is(content: str, holder: str) -> None:
    assert locks._described(content) == holder


@pytest.mark.parametrize("number", locks.WITHOUT_LOCKS)
def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with one_at_a_time(tmp_path / "a.lock", "it"):
        pass


def test_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with one_at_a_time(tmp_path / "a.lock", "it"):
        pass


def test_other_errors_are_raised(tmp_path: Path) -> None:
    (tmp_path / "a.lock").mkdir()
    with pytest.raises(OSError, match=r"a\.lock") as raised, one_at_a_time(tmp_path / "a.lock", "it"):
        pass
    assert raised.value.errno == errno.EISDIR
    with pytest.raises(OSError, match="of the body"), one_at_a_time(tmp_path / "b.lock", "it"):
        raise OSError(errno.ENOSYS, "of the body")
