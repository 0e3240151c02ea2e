"""Training jobs: what is there is not trained again, nothing else is taken for it, and everything is seeded."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_locctx.nnunet.plans.planning import read_plans
from nnunet_locctx.nnunet.training.trainer import LocatedTrainer
from nnunet_locctx.study import train as module
from nnunet_locctx.study.model import read_study
from nnunet_locctx.study.preparing import plan
from nnunet_locctx.study.seeding import FACTS, install, worker_seeds
from nnunet_locctx.study.train import FINGERPRINT, differences, training_record
from tests.study.small_study import CASES, DATASET, SPLITS, write_dataset, write_study

LOG = {
    "train_losses": [0.5, 0.25],
    "val_losses": [0.75, np.float32(np.nan)],
    "dice_per_class_or_region": [[0.1], [np.float64(0.2)]],
    "epoch_start_timestamps": [100.0, 110.0],
    "epoch_end_timestamps": [109.0, 121.0],
}


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path)
    plan(read_study(write_study(tmp_path)), print)
    write_scans(tmp_path)
    return tmp_path


def write_scans(folder, **scans):
    """What the data was made from."""
    file = folder / "work" / "data" / "planned.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"scans": {**dict.fromkeys(CASES, "first"), **scans}}))


@pytest.fixture
def runs(monkeypatch, folder):
    """The calls of nnU-Net's training, which leaves a finished model."""
    made = []

    def run(study, run, fold, epoch, *, resume=False, validate=False):
        made.append({"epoch": epoch, "resume": resume, "validate": validate})
        if not validate:
            checkpoint(fold_of(folder) / "checkpoint_final.pth", 2)
        summary = fold_of(folder) / "validation" / "summary.json"
        summary.parent.mkdir(exist_ok=True)
        summary.touch()

    monkeypatch.setattr(module, "_run_training", run)
    return made


def train(folder, **changes):
    """Trains the plain method; returns the record."""
    study = read_study(write_study(folder, **changes))
    return module.train(study, study.runs["Plain__near"], 0)


def fold_of(folder):
    return folder / "results" / DATASET / "nnUNetTrainer_5epochs__nnUNetPlans_small__near" / "fold_0"


def checkpoint(file, epoch):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"current_epoch": epoch, "logging": LOG}, file)


def test_each_state_of_a_training(folder, runs):
    record = train(folder)
    assert runs == [{"epoch": 0, "resume": False, "validate": False}]
    assert (record["seconds"], record["iterations"], record["seed"]) == (20.0, 500, 0)
    losses = {"train_loss": 0.25, "val_loss": None, "pseudo_dice": [0.2]}
    assert record["epochs"][1] == {"epoch": 1, **losses, "seconds": 11.0}

    runs.clear()
    assert train(folder) == record
    assert runs == []  # only recorded

    (fold_of(folder) / "validation" / "summary.json").unlink()
    train(folder)
    assert runs == [{"epoch": 0, "resume": False, "validate": True}]

    runs.clear()
    (fold_of(folder) / "checkpoint_final.pth").unlink()
    checkpoint(fold_of(folder) / "checkpoint_latest.pth", 3)
    assert train(folder)["resumed"] == [3]
    assert runs == [{"epoch": 3, "resume": True, "validate": False}]


def test_a_training_of_something_else_is_left_alone(folder, runs):
    train(folder)
    (folder / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(SPLITS[::-1]))
    with pytest.raises(ValueError, match=r"seed: 0 before, 1 now; split\.train: \[.*\] before, \[.*\] now"):
        train(folder, seed=1)
    assert len(runs) == 1
    (fold_of(folder) / FINGERPRINT).unlink()
    with pytest.raises(ValueError, match="did not start"):
        train(folder)


def test_a_model_of_other_scans_is_not_taken_for_one_of_these(folder, runs):
    train(folder)
    write_scans(folder, case_1="second", case_8="of no fold")
    with pytest.raises(ValueError, match=r'with something else: scans\.case_1: "first" before, "second" now'):
        train(folder)
    # trainings of earlier versions do not say what their scans and their dropout were
    file = fold_of(folder) / FINGERPRINT
    content = json.loads(file.read_text())
    del content["fingerprint"]["scans"], content["fingerprint"]["dropout"]
    del content["fingerprint"]["unlocated_weight"], content["fingerprint"]["smoothed_dice"]
    file.write_text(json.dumps(content))
    train(folder)
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("unlocated_weight", 1.0, r"unlocated_weight: 1\.0 before, 0\.0 now"),
        ("smoothed_dice", False, "smoothed_dice: false before, true now"),
    ],
)
def test_a_model_with_another_loss_is_another(folder, runs, key, value, reason):
    train(folder)
    file = fold_of(folder) / FINGERPRINT
    content = json.loads(file.read_text())
    content["fingerprint"][key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"something else: {reason}"):
        train(folder)


def test_a_default_loss_of_another_version_is_seen(folder, monkeypatch):
    study = read_study(write_study(folder))
    plans = read_plans(study.preprocessed / f"{study.plans}.json")
    run = next(run for run in study.runs.values() if run.method.trainer.startswith("CoordConv"))
    before = module.fingerprint_of(study, run, plans, SPLITS[0], {})
    monkeypatch.setattr(LocatedTrainer, "unlocated_weight", 0.5)
    monkeypatch.setattr(LocatedTrainer, "place", "logits")
    monkeypatch.setattr(LocatedTrainer, "smooths", False)
    now = module.fingerprint_of(study, run, plans, SPLITS[0], {})
    assert differences(before, now) == [
        "smoothed_dice: true before, false now",
        "unlocated_weight: 0.0 before, 0.5 now",
    ]


def test_the_plans_dropout_counts_for_a_trainer_from_elsewhere(folder, monkeypatch):
    """Such as one of the user's own in nnUNet_extTrainer."""
    study = read_study(write_study(folder))
    plans = read_plans(study.preprocessed / f"{study.plans}.json")
    run = next(iter(study.runs.values()))
    plans["configurations"][run.configuration].setdefault("location", {})["dropout"] = 0.1
    monkeypatch.setattr("nnunet_locctx.nnunet.training.trainers.find_trainer", lambda name: None)
    assert module.fingerprint_of(study, run, plans, SPLITS[0], {})["dropout"] == 0.1


def test_nothing_trained_nothing_to_protect(folder, runs):
    train(folder)
    (fold_of(folder) / "checkpoint_final.pth").unlink()
    train(folder, seed=1)
    assert json.loads((fold_of(folder) / FINGERPRINT).read_text())["fingerprint"]["seed"] == 1


def test_the_entry_records_below_the_work_folder(folder, runs, monkeypatch, capsys):
    from nnunet_locctx.study.jobs import Jobs
    from nnunet_locctx.study.record import write_study as write_record

    write_record(Jobs(read_study(write_study(folder)), {}))
    monkeypatch.chdir(folder / "work")
    assert module.main(["Plain__near", "0"]) == 0
    assert json.loads(Path("runs/Plain__near/fold_0/training.json").read_text())["iterations"] == 500
    (fold_of(folder) / FINGERPRINT).unlink()
    assert module.main(["Plain__near", "0"]) == 1
    assert "did not start" in capsys.readouterr().err


def test_facts_of_the_training(folder):
    checkpoint(fold_of(folder) / "checkpoint_final.pth", 2)
    facts = {"parameters": 7, "iterations_per_epoch": 10, "device": "cuda", "gpu": "A100", "peak_memory": 9}
    (fold_of(folder) / FACTS).write_text(json.dumps(facts))
    record = training_record(fold_of(folder), 3)
    assert {
        key: record[key] for key in ("parameters", "iterations", "device", "gpu", "peak_memory", "seed")
    } == {
        "parameters": 7,
        "iterations": 20,
        "device": "cuda",
        "gpu": "A100",
        "peak_memory": 9,
        "seed": 3,
    }


def test_differences_name_the_place():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2 before, 3 now"]
    assert differences({"a": 1}, {"a": 1}) == []
    assert differences({}, {"a": 1}) == ["a: null before, 1 now"]


def test_worker_seeds_differ_where_patches_must():
    seeds = [worker_seeds(0, 0, 0, 0, 3), worker_seeds(0, 0, 0, 1, 3), worker_seeds(0, 50, 0, 0, 3)]
    seeds += [worker_seeds(0, 0, 1, 0, 3), worker_seeds(1, 0, 0, 0, 3)]
    assert len({one for some in seeds for one in some}) == 15
    assert worker_seeds(0, 0, 0, 0, 3) == seeds[0]
    assert worker_seeds(0, 0, 0, 0, 2) == seeds[0][:2]


@pytest.fixture
def classes(monkeypatch):
    """nnU-Net's classes, put back after the test."""
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    monkeypatch.setattr(NonDetMultiThreadedAugmenter, "__init__", NonDetMultiThreadedAugmenter.__init__)
    for name in ("save_checkpoint", "on_train_start", "on_train_end"):
        monkeypatch.setattr(nnUNetTrainer, name, getattr(nnUNetTrainer, name))
    state = torch.get_rng_state()
    yield NonDetMultiThreadedAugmenter, nnUNetTrainer
    torch.set_rng_state(state)


def test_workers_are_seeded_as_nnunet_makes_them(classes, monkeypatch):
    augmenter, trainer = classes
    before = {name: getattr(trainer, name) for name in ("save_checkpoint", "on_train_start", "on_train_end")}
    begin = augmenter.__init__
    drawn = []
    for _ in range(2):
        monkeypatch.setattr(augmenter, "__init__", begin)
        for name, function in before.items():
            monkeypatch.setattr(trainer, name, function)
        install(4, 0, 5)
        made = [
            augmenter(
                data_loader=None, transform=None, num_processes=2, num_cached=6, seeds=None, pin_memory=False
            ),
            augmenter(None, None, 1, seeds=None, wait_time=0.002),
        ]
        drawn.append([one.seeds for one in made] + [torch.rand(1).item(), np.random.rand()])  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]
    assert augmenter(None, None, 1, seeds=[77]).seeds == [77]


def test_checkpoints_are_whole_or_not_there(classes, tmp_path, monkeypatch):
    _, trainer = classes

    def torn(self, filename):
        Path(filename).write_text("half")
        if self.fails:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_checkpoint", torn)
    install(0, 0, 5)
    target = tmp_path / "checkpoint_latest.pth"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(argparse.Namespace(fails=True, local_rank=0), str(target))
    assert target.read_text() == "old"
    trainer.save_checkpoint(argparse.Namespace(fails=False, local_rank=0), str(target))
    assert target.read_text() == "half"


def test_a_trainer_of_another_length_does_not_start(classes):
    _, trainer = classes
    install(0, 0, 5)
    with pytest.raises(ValueError, match="trains for 7 epochs, the study asks for 5"):
        trainer.on_train_start(argparse.Namespace(num_epochs=7))


def test_the_peak_of_the_memory_is_noted_when_the_training_ends(classes, tmp_path, monkeypatch):
    _, trainer = classes
    for name in ("on_train_start", "on_train_end"):
        monkeypatch.setattr(trainer, name, lambda self: None)
    install(0, 0, 5)
    training = argparse.Namespace(
        num_epochs=5,
        local_rank=0,
        output_folder=str(tmp_path),
        device=torch.device("cpu"),
        network=torch.nn.Linear(2, 3),
        num_iterations_per_epoch=250,
    )
    trainer.on_train_start(training)
    assert "peak_memory" not in json.loads((tmp_path / FACTS).read_text())
    size = 100_000_000
    np.ones(size, np.uint8)  # freed again at once
    trainer.on_train_end(training)
    facts = json.loads((tmp_path / FACTS).read_text())
    assert facts["parameters"] == 9
    assert size * 0.9 < facts["peak_memory"] < size * 1.5
