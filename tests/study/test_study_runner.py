"""The runner with Snakemake and our steps, nnU-Net's commands replaced: kills, changes, failures."""

import json
import os
import re
import signal
import time

import pytest

from nnunet_locctx.cli import main
from nnunet_locctx.locks import lock
from nnunet_locctx.study.model import read_study
from nnunet_locctx.study.runner import Runner
from nnunet_locctx.study.scheduling import Where
from tests.study.small_study import DATASET, calls, order, write_study

HERE = Where(cores=1)
pytestmark = pytest.mark.usefixtures("environment")


def run(file, only=(), show=None):
    """Runs the study; returns the status and what was shown."""
    shown = []

    def both(line):
        shown.append(line)
        if show is not None:
            show(line)

    return Runner(read_study(file), only).run(HERE, both), shown


def trained(made):
    return sorted(call.removeprefix("train ") for call in made if call.startswith("train "))


def outdated(work):
    """The outputs that were not made from what the study says now."""
    made = json.loads((work / "study.json").read_text())["made"]
    return {output for output, identity in made.items() if (work / f"{output}.made").read_text() != identity}


def snakemake_of(folder):
    return json.loads((folder / "work" / "locks" / "runner").read_text())["snakemake"]


@pytest.mark.slow
def test_what_changed_is_run_and_what_fails_is_named(folder, capsys):
    order(folder, **{"train CoordConvTrainer_5epochs far": "fail"})
    file = write_study(folder)
    status, shown = run(file)
    assert status == 1, shown
    made = calls(folder)
    assert trained(made) == [
        "CoordConvTrainer_5epochs far_voxel 0",
        "CoordConvTrainer_5epochs near_voxel 0",
        "nnUNetTrainer_5epochs far 0",
        "nnUNetTrainer_5epochs near 0",
    ]
    assert sum(call.startswith("locctx evaluate") for call in made) == 3
    assert made[-1].startswith("locctx report")
    work = folder / "work"
    failure = json.loads((work / "failures" / "train.CoordConv__far.fold_0.json").read_text())
    assert (failure["run"], failure["fold"], failure["exit_status"]) == ("CoordConv__far", 0, 3)
    assert "the reason: no luck" in failure["message"]
    assert [path.stem for path in (work / "failures").iterdir()] == ["train.CoordConv__far.fold_0"]
    assert any(line.startswith("failed: train CoordConv, far, fold 0") for line in shown)
    assert "failed: 1, waiting for those that failed: 1" in shown

    # the method that failed has other options now: its jobs run and no others
    order(folder)
    methods = {
        "Plain": {"trainer": "nnUNetTrainer"},
        "CoordConv": {"trainer": "CoordConvTrainer", "options": {"jitter": 0.1}},
    }
    file = write_study(folder, methods=methods)
    capsys.readouterr()
    assert main(["study", str(file), "--dry-run"]) == 0
    to_run = dict(re.findall(r"^(\w+) +\d+ +(\d+)$", capsys.readouterr().out, re.MULTILINE))
    assert to_run == {"plan": "1", "preprocess": "0", "train": "2", "evaluate": "2", "all": "5"}
    status, shown = run(file)
    assert status == 0, shown
    made = calls(folder)
    assert len(trained(made)) == 2
    assert all(call.startswith("CoordConvTrainer_5epochs") for call in trained(made))
    assert not any("_preprocess" in call or "Plain" in call for call in made)
    assert list((work / "failures").iterdir()) == []
    assert outdated(work) == set()

    # nothing to do: the report is written again, even if all files look newer, in another order
    for path in sorted(work.rglob("*.json"), reverse=True):
        os.utime(path)
    status, shown = run(file)
    assert status == 0
    assert [call.split()[:2] for call in calls(folder)] == [["locctx", "report"]]

    # a result that was deleted is made again, and nothing that does not need it
    (work / "runs" / "Plain__near" / "fold_0" / "evaluation" / "evaluation.json").unlink()
    status, shown = run(file, only=["evaluate"])
    assert [call.split()[1] for call in calls(folder)] == ["evaluate", "report"]

    # so is a model, which is evaluated again, and nobody else's
    model = read_study(file).runs["Plain__near"].model
    (model / "fold_0" / "validation" / "summary.json").unlink()
    status, shown = run(file)
    made = calls(folder)
    assert trained(made) == ["nnUNetTrainer_5epochs near 0"]
    assert [call.split()[1] for call in made[1:]] == ["evaluate", "report"]

    # data is made again from a scan that is not the one it was made from
    (folder / "raw" / DATASET / "imagesTr" / "case_2_0000.nii.gz").write_text("another scan")
    status, shown = run(file, only=["near", "train"])
    assert status == 0, shown
    made = calls(folder)
    assert [call.split()[0] for call in made] == ["nnUNetv2_preprocess", "train", "train", "locctx"]
    # the other results are of the scans as they were, and the report will not take them for today's
    left = {f"runs/{name}__far/fold_0/training.json" for name in ("CoordConv", "Plain")}
    left |= {f"runs/{run}/fold_0/evaluation/evaluation.json" for run in read_study(file).runs}
    assert outdated(work) == {*left, "data/3x3x3mm.json"}

    resolved = json.loads((work / "study.json").read_text())
    assert [entry["run"] for entry in resolved["runs"]] == [
        "Plain__near",
        "CoordConv__near",
        "Plain__far",
        "CoordConv__far",
    ]
    assert all(entry["holds"] for entry in resolved["fairness"][:5]), resolved["fairness"]


@pytest.mark.slow
def test_another_seed_trains_that_seed_alone(folder, capsys):
    presets = {"presets": ["near.json"], "test": True}
    assert run(write_study(folder, **presets))[0] == 0
    calls(folder)
    file = write_study(folder, **presets, seeds=[0, 1])
    capsys.readouterr()
    assert main(["study", str(file), "--dry-run"]) == 0
    to_run = dict(re.findall(r"^(\w+) +\d+ +(\d+)$", capsys.readouterr().out, re.MULTILINE))
    assert to_run == {
        "plan": "1",
        "preprocess": "0",
        "train": "2",
        "evaluate": "4",
        "predict": "2",
        "all": "9",
    }
    status, shown = run(file)
    assert status == 0, shown
    made = calls(folder)
    assert trained(made) == [
        "CoordConvTrainer_5epochs near_voxel_seed1 0",
        "nnUNetTrainer_5epochs near_seed1 0",
    ]
    predicted = [call.split()[call.split().index("-c") + 1] for call in made if "_predict" in call]
    assert sorted(predicted) == ["near_seed1", "near_voxel_seed1"]
    assert any("started  train Plain, near, seed 1, fold 0" in line for line in shown)
    # without it nothing is made again, and its models stay
    assert run(write_study(folder, **presets))[0] == 0
    assert [call.split()[:2] for call in calls(folder)] == [["locctx", "report"]]
    assert run(file)[0] == 0
    assert trained(calls(folder)) == []


@pytest.mark.slow
def test_killed_twice_and_taken_up(folder):
    file = write_study(folder)
    order(folder, **{"train ": 900})
    hit, noted = {}, folder / "calls.txt"

    def killing(kill):
        def look(line):
            if "started  train" in line and kill not in hit:
                hit[kill] = line.split("started")[1]
                while not noted.exists() or "train " not in noted.read_text():
                    time.sleep(0.2)
                kill(snakemake_of(folder), signal.SIGKILL)

        return look

    # Snakemake and our job die; the training's own program is ended by the runner, for nobody would watch it
    status, shown = run(file, show=killing(os.killpg))
    assert status == 1
    started = [name for name in shown if "started  train" in name]
    first = trained(calls(folder))
    assert len(started) == len(first) == 1
    failures = {file.stem: json.loads(file.read_text()) for file in (folder / "work" / "failures").iterdir()}
    assert len(failures) == 2
    assert "ended by signal 9" in failures.pop("snakemake")["message"]
    assert "killed" in failures.popitem()[1]["message"]

    # only Snakemake dies: its job goes on, and the next run waits for it instead of starting it again
    status, _ = run(file, show=killing(os.kill))
    assert status == 1
    assert len(hit) == 2
    second = trained(calls(folder))
    assert len(second) == 1

    order(folder)

    def go(line):
        logs = folder / "work" / "logs"
        if f"started{hit[os.kill]}" in line:
            while not any("waiting for the process" in log.read_text() for log in logs.glob("train*")):
                time.sleep(0.2)
            (folder / "go").touch()

    status, shown = run(file, show=go)
    assert status == 0, shown
    third = trained(calls(folder))
    assert second[0] not in third
    assert set(first + second + third) == {
        "CoordConvTrainer_5epochs far_voxel 0",
        "CoordConvTrainer_5epochs near_voxel 0",
        "nnUNetTrainer_5epochs far 0",
        "nnUNetTrainer_5epochs near 0",
    }
    # only the one whose job was killed was started twice
    assert len(first + second + third) == 5
    assert {name for name in third if name in second} == set()
    assert list((folder / "work" / "failures").iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_study_ends_its_jobs(folder):
    # names that a pattern, a shell or an old file system could trip over
    methods = {"Plain": {"trainer": "nnUNetTrainer"}, "基线": {"trainer": "CoordConvTrainer"}}
    file = write_study(folder, work="wo{x}rk 'of ü", methods=methods)
    order(folder, **{"train nnUNetTrainer_5epochs near": 600})

    def interrupt(line):
        if "started  train Plain, near" in line:
            time.sleep(0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(file, show=interrupt)
    order(folder)
    start = time.monotonic()
    status, shown = run(file)
    assert status == 0, shown
    assert len(list((folder / "wo{x}rk 'of ü").glob("runs/*/fold_0/training.json"))) == 4
    assert time.monotonic() - start < 300  # the job that would have slept does not hold its lock


def test_a_second_runner_is_refused(folder):
    file = write_study(folder)
    runner = Runner(read_study(file))
    with (
        lock(folder / "work" / "locks" / "runner"),
        pytest.raises(ValueError, match=f"by process {os.getpid()} on"),
    ):
        runner.run(HERE)
    assert not (folder / "work" / "study.json").exists()


def test_only_some_jobs(folder):
    study = read_study(write_study(folder))

    def chosen(*only):
        return set(Runner(study, only).chosen)

    data = {"plan", "preprocess.planned", "preprocess.3x3x3mm"}
    assert chosen("train", "Plain") == data | {"train.Plain__near.fold_0", "train.Plain__far.fold_0"}
    assert chosen("near", "preprocess") == set()
    assert chosen("evaluate", "CoordConv__far") == data - {"preprocess.planned"} | {
        "train.CoordConv__far.fold_0",
        "evaluate.CoordConv__far.fold_0",
    }
    with pytest.raises(ValueError, match=r"'trian' \(did you mean train\?\)"):
        chosen("trian")


def test_without_a_gpu(folder, monkeypatch):
    from nnunet_locctx.study import scheduling

    monkeypatch.setattr(scheduling, "visible_gpus", lambda: [])
    with pytest.raises(ValueError, match=r"needs 1 GPUs for a training \(device: cuda\), this machine has 0"):
        Runner(read_study(write_study(folder, device="cuda"))).run(HERE)
    assert not (folder / "work").exists()
