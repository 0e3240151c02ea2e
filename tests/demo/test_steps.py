"""Steps that are done once."""

import pytest

from nnunet_locctx.demo.run import Steps


def test_a_finished_step_is_not_repeated(tmp_path, capsys):
    done = []
    for _ in range(2):
        steps = Steps(tmp_path / "steps.json", {"seed": 0, "features": (1, 2)})
        steps.run("first", "the first step", lambda: done.append("first"))
    assert done == ["first"]
    assert list(steps.seconds) == ["first"]
    assert "the first step: done before" in capsys.readouterr().out


def test_goes_on_where_it_stopped(tmp_path):
    done = []

    def fail():
        raise RuntimeError("stop")

    steps = Steps(tmp_path / "steps.json", {})
    steps.run("first", "first", lambda: done.append("first"))
    with pytest.raises(RuntimeError, match="stop"):
        steps.run("second", "second", fail)
    steps = Steps(tmp_path / "steps.json", {})
    steps.run("first", "first", lambda: done.append("again"))
    steps.run("second", "second", lambda: done.append("second"))
    assert done == ["first", "second"]
    assert list(steps.seconds) == ["first", "second"]


def test_other_settings(tmp_path):
    Steps(tmp_path / "steps.json", {"seed": 0}).run("a", "a", lambda: None)
    with pytest.raises(
        ValueError, match=r"begun with other settings \(seed: was 0, is now 1\); choose another folder"
    ):
        Steps(tmp_path / "steps.json", {"seed": 1})


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {}}', '{"settings": 3, "seconds": {}}'])
def test_a_file_that_holds_something_else(tmp_path, content):
    (tmp_path / "steps.json").write_text(content)
    with pytest.raises(ValueError, match="does not hold the state of a job"):
        Steps(tmp_path / "steps.json", {"seed": 0})
