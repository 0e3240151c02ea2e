"""One at a time, where there are locks."""

import errno
import sys
import threading
import time
from pathlib import Path

import pytest

from nnunet_locctx.nnunet import turns
from nnunet_locctx.nnunet.turns import one_at_a_time


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
    said = capsys.readouterr().out
    assert said.count("plans.json is in use by process ") == 1
    assert said.endswith(": waiting\n")


@pytest.mark.parametrize(
    ("said", "told"), [("", "another process"), ("{", "{"), ('{"pid": 1}', '{"pid": 1}'), ("[]", "[]")]
)
def test_a_holder_that_does_not_say_who_it_is(said: str, told: str) -> None:
    assert turns._told(said) == told


@pytest.mark.parametrize("number", turns.WITHOUT_LOCKS)
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
    with (
        pytest.raises(OSError, match=r"a\.lock") as raised,
        one_at_a_time(tmp_path / "a.lock", "it"),
    ):
        pass
    assert raised.value.errno == errno.EISDIR
    with pytest.raises(OSError, match="of the body"), one_at_a_time(tmp_path / "b.lock", "it"):
        raise OSError(errno.ENOSYS, "of the body")
