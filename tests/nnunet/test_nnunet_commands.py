"""Running nnU-Net's commands: variables, what is shown, what is kept, failures."""

import sys
import time
from pathlib import Path

import pytest

from nnunet_locctx.nnunet import commands
from nnunet_locctx.nnunet.commands import CommandError, NNUNet
from nnunet_locctx.resources import trainers_folder


@pytest.fixture
def nnunet(tmp_path, monkeypatch):
    """Commands are Python programs: the first argument after the name is the source."""
    monkeypatch.setattr(commands, "executable", lambda name: sys.executable)
    return NNUNet(tmp_path / "work")


def test_folders_are_set_for_the_command_only(nnunet, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/somewhere/else")
    names = ("nnUNet_raw", "nnUNet_results", "nnUNet_extTrainer")
    source = f"import os; print(*(os.environ[name] for name in {names}), sep='|')"
    nnunet.run("python", "-c", source, log="variables")
    raw, results, trainers = (nnunet.logs / "variables.txt").read_text().strip().split("|")
    assert (raw, results) == (str(nnunet.raw), str(nnunet.results))
    assert trainers == str(trainers_folder())
    assert nnunet.raw.is_dir()
    assert raw in capsys.readouterr().out


def test_shows_chosen_lines_and_keeps_all(nnunet, capsys):
    source = "import sys; print('one'); print('two', file=sys.stderr, flush=True); print('three')"
    nnunet.run(
        "nnUNetv2_some", "-c", source, log="some", show=lambda line: line.upper() if "o" in line else None
    )
    out = capsys.readouterr().out
    assert "ONE" in out
    assert "TWO" in out
    assert "three" not in out.splitlines()[-1].lower()
    assert sorted((nnunet.logs / "some.txt").read_text().split()) == ["one", "three", "two"]
    assert nnunet.history == [out.splitlines()[0].removeprefix("$ ")]
    assert nnunet.history[0].startswith("nnUNetv2_some -c 'import sys")


def test_a_failure_carries_the_end_of_the_output(nnunet):
    with pytest.raises(CommandError, match=r"nnUNetv2_x .* ended with exit status 3") as caught:
        nnunet.run(
            "nnUNetv2_x", "-c", "print('the reason'); raise SystemExit(3)", log="x", show=lambda line: None
        )
    assert "the reason" in str(caught.value)
    assert "x.txt" in str(caught.value)
    assert nnunet.history == []


# prints the number of a worker that would live on for a minute
WITH_WORKER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(worker.pid, flush=True)
"""


def assert_ends(pid):
    """Waits for a process to end; its number is free, or it is a zombie nobody has collected."""
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} still runs")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_an_interrupted_command_is_ended_with_its_workers(nnunet):
    pids = []

    def interrupt(line):
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nnunet.run("x", "-c", f"{WITH_WORKER}\ntime.sleep(60)", log="x", show=interrupt)
    assert_ends(pids[0])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_killed_command_is_no_reason_to_wait_for_its_workers(nnunet):
    source = f"{WITH_WORKER}\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    start = time.monotonic()
    with pytest.raises(CommandError, match="ended with exit status -9"):
        nnunet.run("x", "-c", source, log="x")
    assert time.monotonic() - start < 50
    assert_ends(int((nnunet.logs / "x.txt").read_text()))


def test_a_command_that_is_not_installed(tmp_path):
    with pytest.raises(CommandError, match=r"nnUNetv2_nonsense is neither beside .* nor on the PATH"):
        NNUNet(tmp_path).run("nnUNetv2_nonsense", log="x")


def test_the_stock_commands_are_found():
    for name in (
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_train",
        "nnUNetv2_predict",
        "nnUNetv2_evaluate_folder",
    ):
        assert commands.executable(name).endswith(name)
