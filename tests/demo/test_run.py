"""The demo from end to end, nnU-Net's commands replaced by quick ones; the real thing is marked slow."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from nnunet_locctx.demo import DemoSettings, run_demo
from nnunet_locctx.demo.run import CONFIGURATION, FOLD, PLANS, _Progress, format_results
from nnunet_locctx.locks import holders
from nnunet_locctx.nnunet import commands
from nnunet_locctx.phantoms.twin_organs import ORGANS
from tests.nnunet.small_plans import architecture, configuration, plans

SMALL = DemoSettings(cases=2, test_cases=1, size=16, epochs=1, features=(4, 8, 16))

# Does what the demo needs from each command: argv[1] is the command's name.
FAKE = """
import json, os, shutil, sys
from pathlib import Path

name, arguments = sys.argv[1], sys.argv[2:]
option = lambda flag: arguments[arguments.index(flag) + 1]
print("2026-01-01 00:00:00.0: Epoch 0")
print("not worth showing")
if name == "nnUNetv2_plan_and_preprocess":
    folder = Path(os.environ["nnUNet_preprocessed"]) / "Dataset901_Phantom"
    folder.mkdir()
    shutil.copy(os.environ["FAKE_PLANS"], folder / "nnUNetPlans.json")
elif name == "nnUNetv2_predict":
    source, target = Path(option("-i")).with_name("labelsTs"), Path(option("-o"))
    for file in source.iterdir():
        shutil.copy(file, target / file.name)
    (target / "plans.json").write_text("{}")
    (target / "dataset.json").write_text("{}")
elif name == "nnUNetv2_evaluate_folder":
    dice = 0.9 if "located" in arguments[1] else 0.1
    summary = {"mean": {str(k): {"Dice": dice + k / 100} for k in range(1, 7)}, "metric_per_case": [{}]}
    (Path(arguments[1]) / "summary.json").write_text(json.dumps(summary))
with open(os.environ["FAKE_LOG"], "a") as file:
    file.write(" ".join([name, *arguments]) + "\\n")
if name == os.environ.get("FAKE_FAILS"):
    sys.exit("out of luck")
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Replaces nnU-Net's commands; returns a function giving the calls made since it was last called."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    fullres = configuration(3, patch_size=[64] * 3, architecture=architecture(3, features=(4, 8, 16, 32, 32)))
    planned = tmp_path / "plans.json"
    planned.write_text(json.dumps(plans({"3d_fullres": fullres})))
    monkeypatch.setenv("FAKE_PLANS", str(planned))
    log = tmp_path / "calls.txt"
    monkeypatch.setenv("FAKE_LOG", str(log))

    def executable(name):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" {name} "$@"\n')
        path.chmod(0o755)
        return str(path)

    monkeypatch.setattr(commands, "executable", executable)

    def since():
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return since


def test_results_and_files(tmp_path, calls, capsys):
    results = run_demo(tmp_path / "demo", settings=SMALL)
    assert json.loads((tmp_path / "demo" / "results.json").read_text()) == json.loads(json.dumps(results))
    for run, dice in (("plain", 0.1), ("located", 0.9)):
        assert list(results[run]["per_class"]) == list(ORGANS)
        assert results[run]["per_class"]["upper_left"] == pytest.approx(dice + 0.01)
        assert results[run]["dice"] == pytest.approx(dice + 0.035)
    assert results["plain"]["trainer"] == "nnUNetTrainer_1epoch"
    assert results["located"]["trainer"] == "LocCtxTrainer_1epoch"
    assert results["seconds"] == pytest.approx(sum(results["seconds_per_step"].values()), abs=0.1)
    assert results["commands"] == calls()
    assert (tmp_path / "demo" / "figure.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "Epoch 0" in out
    assert "not worth showing" not in out
    assert format_results(results) in out
    assert "figure.png" in out
    assert f"export nnUNet_raw={tmp_path / 'demo' / 'nnUNet_raw'}" in out


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_commands_hold_the_lock_of_the_folder(tmp_path, calls, monkeypatch):
    """So that a training which outlives a demo that was killed is found and ended by the next one."""
    held = []
    run_logged = commands.run_logged

    def noted(*words, locks, **options):
        held.extend(holders(tmp_path / "demo" / "demo.lock"))
        assert [os.get_inheritable(descriptor) for descriptor in locks] == [True]
        run_logged(*words, locks=locks, **options)

    monkeypatch.setattr(commands, "run_logged", noted)
    run_demo(tmp_path / "demo", settings=SMALL)
    assert held == [os.getpid()] * len(calls())
    assert holders(tmp_path / "demo" / "demo.lock") == {}


def test_both_runs_get_the_same_budget(tmp_path, calls):
    run_demo(tmp_path / "demo", settings=SMALL)
    made = calls()
    for name in ("nnUNetv2_train", "nnUNetv2_predict"):
        plain, located = (line for line in made if line.startswith(name))
        for ours, theirs in (("LocCtxTrainer", "nnUNetTrainer"), ("/located ", "/plain ")):
            located = located.replace(ours, theirs)
        assert located == plain
    [training] = [line for line in made if line.startswith("nnUNetv2_train") and "LocCtx" in line]
    assert (
        training
        == f"nnUNetv2_train 901 {CONFIGURATION} {FOLD} -tr LocCtxTrainer_1epoch -p {PLANS} -device cpu"
    )
    preprocessed = tmp_path / "demo" / "nnUNet_preprocessed" / "Dataset901_Phantom"
    written = json.loads((preprocessed / f"{PLANS}.json").read_text())["configurations"][CONFIGURATION]
    assert written["patch_size"] == [24, 24, 24]
    assert written["batch_size"] == 4
    assert written["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8, 16]
    [split] = json.loads((preprocessed / "splits_final.json").read_text())
    assert split == {"train": ["phantom_000"], "val": ["phantom_001"]}


def test_a_second_run_repeats_nothing(tmp_path, calls):
    first = run_demo(tmp_path / "demo", settings=SMALL)
    assert len(calls()) == 7
    shutil.rmtree(tmp_path / "demo" / "nnUNet_results")  # would be missed by any step that ran again
    assert run_demo(tmp_path / "demo", settings=SMALL) == first
    assert calls() == []


@pytest.mark.parametrize(
    ("fails", "before", "after"),
    [("predict", 3, ["predict", "evaluate_folder"]), ("evaluate_folder", 4, ["evaluate_folder"])],
)
def test_goes_on_after_a_failure(tmp_path, calls, monkeypatch, fails, before, after):
    monkeypatch.setenv("FAKE_FAILS", f"nnUNetv2_{fails}")
    with pytest.raises(commands.CommandError, match="out of luck"):
        run_demo(tmp_path / "demo", settings=SMALL)
    assert len(calls()) == before
    assert not (tmp_path / "demo" / "results.json").exists()
    # what an interrupted prediction left must not count
    leftover = tmp_path / "demo" / "predictions" / "plain" / "leftover.nii.gz"
    leftover.write_text("half a file")
    monkeypatch.delenv("FAKE_FAILS")
    results = run_demo(tmp_path / "demo", settings=SMALL)
    assert [line.split()[0].removeprefix("nnUNetv2_") for line in calls()] == [
        *after,
        "train",
        "predict",
        "evaluate_folder",
    ]
    assert len(results["commands"]) == 7
    assert leftover.exists() == (fails == "evaluate_folder")


def test_another_seed_needs_another_folder(tmp_path, calls):
    run_demo(tmp_path / "demo", settings=SMALL)
    with pytest.raises(ValueError, match=r"begun with other settings \(seed: was 0, is now 3"):
        run_demo(tmp_path / "demo", settings=DemoSettings(**{**vars(SMALL), "seed": 3}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "epochs must be 1, 5, 10, 20 or 50 .*, got 3"),
        ({"cases": 1}, "at least 2 cases and 1 test case, got 1 and"),
        ({"test_cases": 0}, "at least 2 cases and 1 test case, got .* and 0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        DemoSettings(**changes)


@pytest.mark.parametrize("epochs", [1, 5, 10, 20, 50])
def test_the_trainers_exist(epochs):
    from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs

    from nnunet_locctx.nnunet.training.trainers import find_trainer

    names = DemoSettings(epochs=epochs).trainers
    assert hasattr(nnUNetTrainer_Xepochs, names["plain"])
    located = find_trainer(names["located"])
    assert located is not None
    assert located.epochs == epochs


def test_progress_shows_epochs_without_the_date():
    show = _Progress()
    assert show("2026-11-21 09:04:09.650588: Epoch 4").endswith(" s  Epoch 4")
    assert show("2026-11-21 09:04:09.650588: Epoch time: 44.18 s").endswith("Epoch time: 44.18 s")
    assert show("RuntimeError: no space left").endswith("RuntimeError: no space left")
    pseudo = show("2026-11-21 09:04:09.650588: Pseudo dice [np.float32(0.9008), np.float32(nan)]")
    assert pseudo.endswith("Pseudo dice [0.90, nan]")
    assert show("Preprocessing...").endswith("Preprocessing...")
    assert show("Preprocessing cases:   4%") is None
    assert show("2026-11-21 09:04:09.650588: Current learning rate: 0.01") is None
    assert show("") is None


@pytest.mark.slow
def test_location_is_what_tells_the_twins_apart(tmp_path):
    """The whole demo, as `make demo` runs it."""
    results = run_demo(Path(tmp_path) / "demo")
    assert results["located"]["dice"] >= 0.85
    assert results["plain"]["dice"] <= 0.45
