"""The jobs of a study, and the steps that plan, preprocess and claim GPUs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_locctx.cli import main
from nnunet_locctx.locks import holders
from nnunet_locctx.nnunet.training import timing
from nnunet_locctx.study import expected as module
from nnunet_locctx.study.cases import digests_of_cases, labelled_tests
from nnunet_locctx.study.expected import expected_minutes, report_expected
from nnunet_locctx.study.jobs import Job, Jobs
from nnunet_locctx.study.model import read_study
from nnunet_locctx.study.preparing import expected_plans, plan, preprocess
from nnunet_locctx.study.record import describe
from nnunet_locctx.study.settings import digest
from nnunet_locctx.study.steps import claim_gpus
from tests.study.small_study import CASES, DATASET, SPLITS, write_study

WHOLE = {
    "test": True,
    "folds": [0, 1],
    "postprocessing": ["largest_component", "atlas"],
    "robustness": {"presets": ["far"], "cases": 1},
    "methods": {
        "Plain": {"trainer": "nnUNetTrainer"},
        "Loc": {"trainer": "LocBAMTrainer", "sources": ["voxel", "body_part"]},
    },
}


def test_dry_run_counts(folder, capsys, monkeypatch):
    monkeypatch.setattr(timing, "step_seconds", lambda *words: 0.6)
    assert main(["study", str(write_study(folder, **WHOLE)), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    # 3 methods x 2 presets = 6 runs, 2 folds each; 2 of them located at `far`
    counts = {"plan": 1, "fit": 1, "preprocess": 2, "train": 12, "evaluate": 18, "predict": 6}
    counts |= {"postprocess": 12, "robustness": 2, "all": 54}
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.split()[1:2]}
    assert {kind: lines[kind] for kind in counts} == {kind: [str(n), str(n)] for kind, n in counts.items()}
    # 5 epochs of 16^3 x 4 and 32^3 x 2, two folds of three methods each
    minutes = 6 * (540 * 5 / 1000) * (16**3 * 4 + 32**3 * 2) / (128**3 * 2)
    assert lines["total"] == ["12", f"{minutes:.3g}", f"{12 * 5 * 250 * 0.6 / 60:.0f}"]
    assert "A100 40GB PCIe" in shown
    assert not (folder / "work").exists()


def expected(study, jobs):
    """The words of each run's line."""
    return [line.split() for line in report_expected(study, jobs) if re.match(r"(Plain|CoordConv),", line)]


def test_minutes_of_this_machine_are_timed_steps(folder, monkeypatch):
    timed = []

    def step_seconds(plans, configuration, trainer, dataset_json, device):
        timed.append((configuration, trainer, device))
        if trainer.startswith("CoordConv"):
            raise ValueError("cannot be told")
        return 0.6

    monkeypatch.setattr(timing, "step_seconds", step_seconds)
    study = read_study(write_study(folder))
    jobs = [Job("train", {"run": run, "fold": "0"}) for run in study.runs]
    lines = expected(study, [*jobs, *jobs[:1]])
    trainers = {"near": "nnUNetTrainer_5epochs", "near_voxel": "CoordConvTrainer_5epochs"}
    assert timed[:2] == [(name, trainer, "cpu") for name, trainer in trainers.items()]
    assert [name for name, *_ in timed] == ["near", "near_voxel", "far", "far_voxel"]
    # 5 epochs of 250 steps of 0.6 s; the first run counts twice
    assert [line[4] for line in lines] == ["25", "-", "12.5", "-"]
    monkeypatch.setattr(module, "PATIENCE", -1)  # all but the first are scaled from it by voxels
    timed.clear()
    lines = expected(study, jobs)
    assert len(timed) == 1
    assert float(lines[2][4]) == pytest.approx(12.5 * 32**3 * 2 / (16**3 * 4), rel=0.01)


def test_a_step_is_timed_once_for_all_seeds(folder, monkeypatch):
    timed = []
    monkeypatch.setattr(timing, "step_seconds", lambda plans, name, *rest: timed.append(name) or 0.6)
    study = read_study(write_study(folder, seeds=[0, 1]))
    lines = expected(study, [Job("train", {"run": run, "fold": "0"}) for run in study.runs])
    assert [line[3] for line in lines] == ["0", "1"] * 4
    assert [line[4:] for line in lines[::2]] == [line[4:] for line in lines[1::2]]
    assert timed == ["near", "near_voxel", "far", "far_voxel"]


def test_a_step_is_timed_on_the_planned_network(folder):
    study = read_study(write_study(folder))
    plans, description = expected_plans(study), json.loads((study.raw / "dataset.json").read_text())
    run = study.runs["CoordConv__near"]
    seconds = timing.step_seconds(plans, run.configuration, run.method.trainer, description, "cpu", steps=1)
    assert 0 < seconds < 600


@pytest.mark.parametrize(
    ("batch", "minutes"),
    [
        (((128, 128, 128), 2, 1000), 540),
        ((None, None, 500), 270),
        (((32, 32, 32), 128, 1000), 540),
        (((64, 128, 128), 2, 1000), 270),
    ],
)
def test_expected_minutes(batch, minutes):
    assert expected_minutes(*batch) == pytest.approx(minutes)


def jobs_of(folder, **changes):
    study = read_study(write_study(folder, **changes))
    return Jobs(study, digests_of_cases(study, progress=False))


def test_a_job_waits_for_jobs_before_it(folder):
    jobs = jobs_of(folder, **WHOLE)
    names = [job.name for job in jobs.all()]
    waits = {job.name: [before.name for before in jobs.waits_for(job)] for job in jobs.all()}
    assert len(set(names)) == len(names) == 54
    for place, name in enumerate(names):
        assert set(waits[name]) <= set(names[:place]), name
    assert waits["train.Loc-body_part__far.fold_1"] == ["plan", "preprocess.3x3x3mm", "fit.body_part"]
    folds = ["train.Plain__near.fold_0", "train.Plain__near.fold_1"]
    assert waits["predict.Plain__near"] == waits["postprocess.Plain__near.atlas"] == folds
    assert waits["evaluate.Plain__near.fold_1"] == folds[1:]
    assert waits["evaluate.Plain__near.test"] == ["predict.Plain__near"]
    assert waits["robustness.Loc-voxel__far"] == ["train.Loc-voxel__far.fold_0"]


def identities(folder, **changes):
    jobs = jobs_of(folder, **changes)
    return {job.name: jobs.depends_on(job) for job in jobs.all()}


def changed(before, after):
    """The kinds of the jobs that are to run again."""
    assert set(before) == set(after)
    return {name.split(".")[0] for name in after if before[name] != after[name]}


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"processes": 2, "device": "cuda"}, set()),
        ({"evaluation": {"tolerance_mm": 1}}, {"evaluate", "postprocess"}),
        ({"evaluation": {"off_region_mm": 2}}, {"evaluate", "postprocess"}),
        ({"seed": 1}, {"train", "fit"}),
        ({"epochs": 10}, {"train"}),
        ({"title": "another"}, set()),
    ],
    ids=str,
)
def test_only_what_a_result_depends_on_is_run_again(folder, changes, kinds):
    assert changed(identities(folder, **WHOLE), identities(folder, **{**WHOLE, **changes})) == kinds


def test_names_and_identities_are_those_of_earlier_versions(folder):
    """Else finished studies would train again. The fingerprint is of the version before studies had several seeds."""
    jobs = jobs_of(folder, **WHOLE)
    known = [[job.output, jobs.depends_on(job).replace(str(folder), "")] for job in jobs.all()]
    assert digest(known) == "3be018ebf9631f4c"


def test_a_further_seed_leaves_the_first_as_it_was(folder):
    before, after = identities(folder, **WHOLE), identities(folder, **WHOLE, seeds=[0, 1])
    assert {name for name in before if after[name] != before[name]} == {"plan"}
    added = set(after) - set(before)
    assert all("__seed1" in name for name in added)
    assert len(added) == len(before) - len(["plan", "fit", "preprocess", "preprocess"])
    jobs = jobs_of(folder, **WHOLE, seeds=[0, 1])
    job = jobs.named["predict.Loc-voxel__far__seed1"]
    waits = [before.name for before in jobs.waits_for(job)]  # all folds of one seed
    assert waits == [f"train.Loc-voxel__far__seed1.fold_{fold}" for fold in (0, 1)]
    assert json.loads(after[waits[0]])["seed"] == 1
    assert jobs.title(job) == "predict Loc (voxel), far, seed 1, test cases"
    chosen = {job.names["run"] for job in jobs.chosen(["train", "seed1", "Plain", "far"])}
    runs = ("Plain__near", "Plain__far", "Loc-voxel__far", "Loc-body_part__far")
    assert chosen == {f"{run}__seed1" for run in runs}


def test_plans_and_record_of_several_seeds(folder):
    jobs = jobs_of(folder, seeds=[0, 1])
    study = jobs.study
    plan(study, never)
    plans = json.loads((folder / "preprocessed" / DATASET / "nnUNetPlans_small.json").read_text())
    assert plans["configurations"]["far_voxel_seed1"] == {"inherits_from": "far_voxel"}
    manager = PlansManager(plans)  # nnU-Net's own reading
    further, first = (manager.get_configuration(name) for name in ("far_voxel_seed1", "far_voxel"))
    assert further.configuration | {"inherits_from": "far"} == first.configuration
    for run in study.runs.values():
        record = study.work / "runs" / run.slug / "fold_0" / "training.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"seed": run.seed, "iterations": 1250, "device": "cpu"}))
    described = describe(jobs)
    assert [run["seed"] for run in described["runs"]] == [0, 1] * 4
    fair = {entry["what"]: entry for entry in described["fairness"]}
    assert fair["the same seeds of weights and patches"]["detail"] == "seeds 0, 1; 8 of 8 trainings looked at"
    assert all(entry["holds"] for entry in fair.values())
    record.write_text(json.dumps({"seed": 0}))
    broken = {entry["what"]: entry["detail"] for entry in describe(jobs)["fairness"] if not entry["holds"]}
    assert broken["the same seeds of weights and patches"] == (
        "CoordConv__far__seed1, fold 0: trained with seed 0 instead of 1"
    )


def test_another_preset_is_another_training(folder):
    before = identities(folder)
    (folder / "near.json").write_text(json.dumps({"patch_size": [16, 16, 16], "batch_size": 8}))
    after = identities(folder)
    trainings = {"train.Plain__near.fold_0", "train.CoordConv__near.fold_0"}
    assert {name for name in after if before[name] != after[name]} == {"plan", *trainings}


@pytest.mark.parametrize(
    ("part", "case", "kinds"),
    [("Tr", "case_1", {"fit", "preprocess", "train"}), ("Ts", "case_8", {"predict", "evaluate"})],
)
@pytest.mark.parametrize("file", ["images{}/{}_0000.nii.gz", "labels{}/{}.nii.gz"])
def test_what_was_made_from_a_changed_file_is_made_again(folder, part, case, kinds, file):
    before = identities(folder, **WHOLE)
    file = folder / "raw" / DATASET / file.format(part, case)
    file.touch()
    assert identities(folder, **WHOLE) == before
    file.write_text("another scan")
    assert changed(before, identities(folder, **WHOLE)) == kinds


def test_test_cases_without_labels_are_predicted_only(folder):
    raw = folder / "raw" / DATASET
    (raw / "imagesTs" / "case_9_0000.nii.gz").touch()
    jobs = jobs_of(folder, **WHOLE)
    assert labelled_tests(jobs.study) == describe(jobs)["test_cases"] == ["case_8"]
    assert "evaluate.Plain__near.test" in jobs.named
    (raw / "labelsTs" / "case_8.nii.gz").unlink()
    assert {job.kind for job in jobs_of(folder, **WHOLE).all() if job.names.get("part") == "test"} == set()
    assert "predict.Plain__near" in jobs_of(folder, **WHOLE).named


def never(*words):
    raise AssertionError(words)


def test_the_plans(folder):
    located = {"trainer": "LocBAMTrainer", "options": {"jitter": 0.1}}
    jobs = jobs_of(folder, methods={"Plain": "nnUNetTrainer", "Loc": located})
    study = jobs.study
    plan(study, never)
    file = folder / "preprocessed" / DATASET / "nnUNetPlans_small.json"
    written = file.read_bytes()
    plans = json.loads(written)
    assert {"near", "far"} < set(plans["configurations"])
    plan(study, never)
    assert file.read_bytes() == written
    described = describe(jobs)
    assert [preset["patch_size"] for preset in described["presets"]] == [[16, 16, 16], [32, 32, 32]]
    assert described["cases"] == {"0": SPLITS[0]}
    far = plans["configurations"]["far"]["data_identifier"]
    assert far == "nnUNetPlans_small_3x3x3mm"
    assert described["presets"][0]["coverage"] == pytest.approx(16**3 / 20**3)
    fair = {entry["what"]: entry["holds"] for entry in described["fairness"]}
    assert fair["the same preprocessed data at each preset"]
    assert fair["the same loss"]
    assert fair["the same patches in the same order"]  # jitter and dropout draw no number of the patches'


def test_a_trainer_that_cannot_take_a_preset(folder):
    (folder / "near.json").write_text(json.dumps({"patch_size": [20, 20, 20]}))
    methods = {"Plain": "nnUNetTrainer", "UNETR": "UNETRTrainer"}
    with pytest.raises(ValueError, match=r"UNETR__near: patch_size .* does not fit UNETR"):
        plan(read_study(write_study(folder, methods=methods)), never)
    assert not (folder / "preprocessed" / DATASET / "nnUNetPlans_small.json").exists()


def test_own_recipes_are_not_called_fair(folder):
    methods = {"Plain": "nnUNetTrainer", "UNETR": {"trainer": "UNETRTrainer", "epochs": 10}}
    fair = {entry["what"]: entry for entry in describe(jobs_of(folder, methods=methods))["fairness"]}
    assert not fair["the same optimiser and learning rates"]["holds"]
    assert "UNETR: adamw" in fair["the same optimiser and learning rates"]["detail"]
    assert not fair["the same number of iterations"]["holds"]
    assert fair["the same seed of weights and patches"]["holds"]


def test_a_loss_with_more_terms_is_not_called_the_same(folder):
    methods = {
        "Plain": "nnUNetTrainer",
        "Both": {"trainer": "LocCtxTrainer", "options": {"unlocated_weight": 0.5}},
        "Once": {"trainer": "LocCtxTrainer", "options": {"unlocated_weight": 0}},
        "L2G": "L2GTrainer",
        "Stock": {"trainer": "nnUNetTrainerDiceCELoss_noSmooth", "epochs": 1000},
    }
    jobs = jobs_of(folder, methods=methods)
    plan(jobs.study, never)
    (loss,) = (entry for entry in describe(jobs)["fairness"] if entry["what"] == "the same loss")
    assert loss["detail"].split("; ") == [
        "Both: nnU-Net's with Dice without smoothing, what the network says without location (weight 0.5)",
        "Once: nnU-Net's with Dice without smoothing",
        "L2G: nnU-Net's with the codebook's commitment",
        "Stock: DiceCELoss_noSmooth",
    ]
    assert not loss["holds"]


def test_base_plans_that_are_not_there(folder):
    made = []
    with pytest.raises(ValueError, match="there are no plans ownPlans in"):
        plan(read_study(write_study(folder, plans="ownPlans")), never)
    with pytest.raises(ValueError, match=r"ended well, but did not write .*nnUNetResEncUNetMPlans\.json"):
        plan(
            read_study(write_study(folder, plans="nnUNetResEncUNetMPlans")), lambda *words: made.append(words)
        )
    planner = ("--no_pp", "-pl", "nnUNetPlannerResEncM", "-npfp", "1")
    assert made == [("nnUNetv2_plan_and_preprocess", "-d", "12", *planner)]


def test_whole_data_is_not_preprocessed_again(folder):
    made = []
    data = folder / "preprocessed" / DATASET / "nnUNetPlans_3d"

    def command(*words):
        """Stands in for nnU-Net's."""
        made.append(words)
        data.mkdir(exist_ok=True)
        for file in (f"{case}{ending}" for case in CASES for ending in (".pkl", ".b2nd")):
            (data / file).touch()

    study = read_study(write_study(folder))
    plan(study, never)
    scans = dict.fromkeys(CASES, "digest")
    for expected in (1, 1):
        assert preprocess(study, "planned", scans, command) == {"folder": str(data), "scans": scans}
        assert len(made) == expected
    words = ("-plans_name", "nnUNetPlans_small", "-c", "3d_fullres", "-np", "1")
    assert made == [("nnUNetv2_preprocess", "-d", "12", *words)]
    (data / "case_1.b2nd").unlink()
    sign = data.with_name("nnUNetPlans_3d.locctx.json")
    for expected, text in ((2, None), (3, sign.read_text().replace("done", "begun")), (4, "{")):
        if text is not None:
            sign.write_text(text)  # as a run leaves it that was killed, or nobody
        preprocess(study, "planned", scans, command)
        assert len(made) == expected
    scans["case_2"] = "of another scan"
    preprocess(study, "planned", scans, command)
    assert len(made) == 5
    # of earlier versions, and of nnU-Net itself, nobody knows of which scans it is: taken as it is, and noted
    content = json.loads(sign.read_text())
    sign.write_text(json.dumps({key: value for key, value in content.items() if key != "scans"}))
    preprocess(study, "planned", scans, command)
    assert json.loads(sign.read_text()) == content
    sign.unlink()
    preprocess(study, "planned", scans, command)
    assert json.loads(sign.read_text()) == content
    assert len(made) == 5
    (data / "case_1.pkl").unlink()
    with pytest.raises(ValueError, match=r"ended well, but .* lacks case_1"):
        preprocess(study, "planned", scans, lambda *words: None)


@pytest.fixture
def claims(tmp_path, monkeypatch):
    """The folder of the claims, which is not there yet."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return tmp_path / f"locctx-gpus-{os.getuid()}"


def test_gpus_are_shared_out(claims):
    with claim_gpus(["0", "1", "2"], 2) as first, claim_gpus(["0", "1", "2"], 1) as second:
        assert (list(first), list(second)) == (["0", "1"], ["2"])
    with pytest.raises(ValueError, match=r"needs 2 GPUs, visible are 1 \(0\)"), claim_gpus(["0"], 2):
        pass


CLAIMER = """
import subprocess, sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from nnunet_locctx.study.steps import claim_gpus
with claim_gpus(["0"], 1) as held:
    worker = subprocess.Popen(["sleep", "600"], pass_fds=tuple(held.values()), start_new_session=True)
    print(worker.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="looks at /proc")
def test_a_gpu_is_claimed_by_whoever_works_on_it(claims, capsys):
    command = [sys.executable, "-c", CLAIMER, str(claims.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as claimer:
        worker = int(claimer.stdout.readline())
        claimer.kill()
    assert list(holders(claims / "0")) == [worker]
    with claim_gpus(["0"], 1) as held:
        assert list(held) == ["0"]
    assert capsys.readouterr().out == f"ended what a killed process had left at work: [{worker}]\n"


def test_claims_that_others_have_prepared(claims, monkeypatch):
    victim, others = claims.with_name("mine.txt"), claims.with_name("theirs")
    victim.write_text("precious")
    others.mkdir()
    claims.symlink_to(others)
    with pytest.raises(ValueError, match="is no folder of yours"), claim_gpus(["0"], 1):
        pass
    assert list(others.iterdir()) == []
    claims.unlink()
    claims.mkdir(mode=0o777)
    (claims / "0").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"), claim_gpus(["0"], 1):
        pass
    assert victim.read_text() == "precious"
    assert claims.stat().st_mode & 0o077 == 0
    user = os.getuid() + 1
    claims.rename(claims.with_name(f"locctx-gpus-{user}"))
    monkeypatch.setattr("os.getuid", lambda: user)
    with pytest.raises(ValueError, match="is no folder of yours"), claim_gpus(["0"], 1):
        pass
