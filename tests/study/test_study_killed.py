"""`locctx study` in the background, stopped and killed layer by layer: no training is left over, none runs twice.

Only the command itself, the folder it is given and the trainings it starts are looked at.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.study.small_study import write_dataset, write_environment, write_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="looks at /proc"),
]

# A training with a worker, as nnU-Net has them, that lasts until the file `go` is there. It notes when it begins, which
# other trainings are at work then, and when it ends.
TRAINING = r"""#!{python} -IS
import os, runpy, sys, time
from pathlib import Path

base = Path(sys.argv[0]).parent.parent.parent
log = base / "trainings.txt"
worker = os.fork()
if worker == 0:
    time.sleep(600)

def alive(number):
    try:
        return Path("/proc", number, "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

def say(*words):
    with log.open("a") as file:
        print(*words, file=file)

before = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
beside = [number for what, *numbers in before if what == "begin" for number in numbers if alive(number)]
say("begin", os.getpid(), worker)
if beside:
    say("beside", *beside)
while not (base / "go").exists():
    time.sleep(0.1)
runpy.run_path(str(Path(sys.argv[0]).with_name("writes")), run_name="__main__")
say("end", os.getpid())
"""


def is_alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def parent(number):
    return int(Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[1])


def wait_until(condition, what, seconds=400):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.2)


class Background:
    """A study that is started with ``nohup ... &`` as often as it takes."""

    def __init__(self, folder):
        self.folder = folder
        write_dataset(folder)
        self.python = write_environment(folder)
        train = self.python.parent / "train"
        # what the usual stand-in writes at its end, under the name it looks for
        (self.python.parent / "writes").write_text(
            train.read_text().replace("Path(sys.argv[0]).name", "'train'")
        )
        train.write_text(TRAINING.format(python=sys.executable))
        methods = {"Plain": {"trainer": "nnUNetTrainer"}}
        self.file = write_study(folder, methods=methods, presets=["near.json"])

    def start(self):
        """Starts it; returns its number."""
        command = 'nohup "$@" >> out.txt 2>&1 & echo $!'
        words = [str(self.python), "-m", "nnunet_locctx", "study", str(self.file)]
        answer = subprocess.run(
            ["sh", "-c", command, "sh", *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return int(answer.stdout)

    @property
    def out(self):
        return (self.folder / "out.txt").read_text()

    def lines(self, what):
        """What the trainings noted: lists of numbers."""
        file = self.folder / "trainings.txt"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [list(map(int, numbers)) for first, *numbers in lines if first == what]

    def training(self, count):
        """Numbers of the training and its worker that begins as the count-th."""
        wait_until(lambda: len(self.lines("begin")) >= count, f"no training {count}: {self.shown()}")
        assert len(self.lines("begin")) == count
        return self.lines("begin")[-1]

    def layers(self, runner, training):
        """Numbers of what stands between the command and a training: the job's process first, Snakemake last."""
        numbers = [parent(training)]
        while parent(numbers[-1]) != runner:
            numbers.append(parent(numbers[-1]))
        return numbers

    def shown(self):
        return self.out if (self.folder / "out.txt").exists() else ""

    def end(self):
        for number in {number for numbers in self.lines("begin") for number in numbers if is_alive(number)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


@pytest.fixture
def study(tmp_path):
    background = Background(tmp_path)
    yield background
    background.end()


def gone(numbers):
    return not any(map(is_alive, numbers))


def kill(*numbers):
    for number in numbers:
        os.kill(number, signal.SIGKILL)
    wait_until(lambda: gone(numbers), f"{numbers} cannot be killed")


def test_each_layer_in_turn(study):
    # stopped, where the shell had it ignore SIGINT: ends with all it started
    runner = study.start()
    first = study.training(1)
    ignored = int(Path(f"/proc/{runner}/status").read_text().split("SigIgn:")[1].split()[0], 16)
    assert ignored >> (signal.SIGINT - 1) & 1
    layers = study.layers(runner, first[0])
    os.kill(runner, signal.SIGTERM)
    # sooner than what does not answer is killed
    wait_until(lambda: gone([*layers, *first]), "the stop leaves something at work", 25)
    wait_until(lambda: gone([runner]), "the command does not end")

    # the job's process killed: the command ends, and with it what the job had started
    runner = study.start()
    second = study.training(2)
    kill(study.layers(runner, second[0])[0])
    wait_until(lambda: gone([runner, *second]), "a killed job leaves its training at work")
    assert "failed: train Plain, near, fold 0: the job ended without a word" in study.out

    # everything killed but the training: the next start ends it before it trains again
    runner = study.start()
    third = study.training(3)
    kill(runner, *study.layers(runner, third[0]))
    time.sleep(1)
    assert all(map(is_alive, third))
    runner = study.start()
    fourth = study.training(4)
    assert gone(third)

    # everything killed but a worker of the training, which holds what the training held
    kill(runner, *study.layers(runner, fourth[0]), fourth[0])
    assert is_alive(fourth[1])
    runner = study.start()
    fifth = study.training(5)
    assert gone(fourth)

    # only those above the job killed: it goes on, and the next start waits for it
    kill(runner, *study.layers(runner, fifth[0])[1:])
    runner = study.start()
    log = study.folder / "work" / "logs" / "train.Plain__near.fold_0.txt"
    wait_until(lambda: log.is_file() and "waiting for the process" in log.read_text(), study.shown())
    (study.folder / "go").touch()
    wait_until(lambda: gone([runner]), study.shown())
    assert "report: " in study.out
    assert len(study.lines("begin")) == 5
    assert len(study.lines("end")) == 1
    assert study.lines("beside") == []
    assert (study.folder / "work/runs/Plain__near/fold_0/evaluation/evaluation.json").is_file()
    assert gone([number for numbers in study.lines("begin") for number in numbers])
