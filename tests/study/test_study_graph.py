"""The jobs of a study, and the jobs that plan, preprocess and lock."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_locctx.cli import main
from nnunet_locctx.locks import holders
from nnunet_locctx.study import plan as plan_module
from nnunet_locctx.study import preprocess as preprocess_module
from nnunet_locctx.study.expected import Size, expected_hours
from nnunet_locctx.study.gpus import claim_gpus
from nnunet_locctx.study.graph import build_graph, digests_of
from nnunet_locctx.study.plan import plan, plan_request
from nnunet_locctx.study.preprocess import preprocess
from nnunet_locctx.study.record import describe
from nnunet_locctx.study.study_file import read_study
from tests.study.small_study import CASES, DATASET, SPLITS, write_dataset, write_study


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path)
    return tmp_path


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


def test_dry_run_counts(folder, capsys):
    assert main(["study", str(write_study(folder, **WHOLE)), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    # 3 methods x 2 presets = 6 runs, 2 folds each; 2 of them located at `far`
    counts = {"plan": 1, "fit": 1, "preprocess": 2, "train": 12, "evaluate": 18, "predict": 6}
    counts |= {"postprocess": 12, "robustness": 2, "all": 54}
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.split()[1:2]}
    assert {kind: lines[kind] for kind in counts} == {kind: [str(n), str(n)] for kind, n in counts.items()}
    # 5 epochs of 16^3 x 4 and 32^3 x 2, two folds of three methods each
    hours = 6 * (9 * 5 / 1000) * (16**3 * 4 + 32**3 * 2) / (128**3 * 2)
    assert f"expected for the trainings: {hours:.3g} hours" in shown
    assert "A100 40GB PCIe" in shown
    assert not (folder / "work").exists()


def test_expected_hours():
    assert expected_hours(Size((128, 128, 128), 2), 1000) == pytest.approx(9)
    assert expected_hours(Size(None, None), 500) == pytest.approx(4.5)
    assert expected_hours(Size((32, 32, 32), 128), 1000) == pytest.approx(9)
    assert expected_hours(Size((64, 128, 128), 2), 1000) == pytest.approx(4.5)


def test_a_job_waits_for_jobs_before_it(folder):
    graph = build_graph(read_study(write_study(folder, **WHOLE)))
    names = list(graph)
    for place, (name, job) in enumerate(graph.items()):
        assert job.name == name
        assert all(other in names[:place] for other in (*job.needs, *job.after)), name
    body_part = graph["train.Loc-body_part__far.fold_1"]
    assert set(body_part.needs) == {"preprocess.3x3x3mm", "fit.body_part"}
    assert set(graph["predict.Plain__near"].needs) == {"train.Plain__near.fold_0", "train.Plain__near.fold_1"}
    atlas = graph["postprocess.Plain__near.atlas"]
    assert [command[2] for command in atlas.commands[:3]] == ["fit-atlas", "apply-atlas", "apply-atlas"]


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"processes": 2, "device": "cuda"}, set()),
        ({"evaluation": {"tolerance_mm": 1}}, {"evaluate"}),
        ({"seed": 1}, {"train", "evaluate"}),
        ({"epochs": 10}, {"train", "evaluate"}),
        ({"title": "another"}, set()),
    ],
    ids=str,
)
def test_only_what_a_result_depends_on_is_run_again(folder, changes, changed):
    def digests(**more):
        graph = build_graph(read_study(write_study(folder, **more)))
        return {name: (graph[name].kind, value) for name, value in digests_of(graph).items()}

    before, after = digests(), digests(**changes)
    assert set(before) == set(after)
    assert {kind for name, (kind, value) in after.items() if before[name][1] != value} == changed


def test_another_preset_is_another_training(folder):
    def digests():
        return digests_of(build_graph(read_study(write_study(folder))))

    before = digests()
    (folder / "near.json").write_text(json.dumps({"patch_size": [16, 16, 16], "batch_size": 8}))
    after = digests()
    changed = {name for name in after if before[name] != after[name]}
    assert changed == {"plan.all"} | {
        f"{kind}.{method}__near.fold_0" for kind in ("train", "evaluate") for method in ("Plain", "CoordConv")
    }


def test_the_plans(folder):
    methods = {
        "Plain": {"trainer": "nnUNetTrainer"},
        "Loc": {"trainer": "LocBAMTrainer", "options": {"jitter": 0.1}},
    }
    study = read_study(write_study(folder, methods=methods))
    request = plan_request(study)
    plan(request)
    file = folder / "preprocessed" / DATASET / "nnUNetPlans_small.json"
    written = file.read_bytes()
    plans = json.loads(written)
    assert {"near", "far"} < set(plans["configurations"])
    plan(request)
    assert file.read_bytes() == written
    described = describe(study)
    assert [preset["patch_size"] for preset in described["presets"]] == [[16, 16, 16], [32, 32, 32]]
    assert described["cases"] == {"0": SPLITS[0]}
    far = plans["configurations"]["far"]["data_identifier"]
    assert far == "nnUNetPlans_small_3x3x3mm"
    assert described["presets"][0]["coverage"] == pytest.approx(16**3 / 20**3)
    fair = {entry["what"]: entry for entry in described["fairness"]}
    assert fair["the same preprocessed data at each preset"]["holds"]
    assert not fair["the same patches in the same order"]["holds"]
    assert "jitter" in fair["the same patches in the same order"]["detail"]


def test_a_trainer_that_cannot_take_a_preset(folder):
    (folder / "near.json").write_text(json.dumps({"patch_size": [20, 20, 20]}))
    methods = {"Plain": {"trainer": "nnUNetTrainer"}, "UNETR": {"trainer": "UNETRTrainer"}}
    with pytest.raises(ValueError, match=r"UNETR__near: patch_size .* does not fit UNETR"):
        plan(plan_request(read_study(write_study(folder, methods=methods))))
    assert not (folder / "preprocessed" / DATASET / "nnUNetPlans_small.json").exists()


def test_own_recipes_are_not_called_fair(folder):
    methods = {"Plain": {"trainer": "nnUNetTrainer"}, "UNETR": {"trainer": "UNETRTrainer", "epochs": 10}}
    fair = {
        entry["what"]: entry
        for entry in describe(read_study(write_study(folder, methods=methods)))["fairness"]
    }
    assert not fair["the same optimiser and learning rates"]["holds"]
    assert "UNETR: adamw" in fair["the same optimiser and learning rates"]["detail"]
    assert not fair["the same number of iterations"]["holds"]
    assert fair["the same seed of weights and patches"]["holds"]


@pytest.fixture
def commands(monkeypatch, folder):
    """Stands in for nnU-Net's commands; what they wrote is given by the test."""
    made = []

    def run(command, check, close_fds):
        made.append(command)
        for case in CASES:
            for ending in (".pkl", ".b2nd"):
                (data / f"{case}{ending}").parent.mkdir(exist_ok=True)
                (data / f"{case}{ending}").touch()

    data = folder / "preprocessed" / DATASET / "nnUNetPlans_3d"
    monkeypatch.setattr(preprocess_module.subprocess, "run", run)
    monkeypatch.setattr(plan_module, "executable", str)
    monkeypatch.setattr(preprocess_module, "executable", str)
    return made


def test_whole_data_is_not_preprocessed_again(folder, commands):
    request = plan_request(read_study(write_study(folder)))
    plan(request)
    preprocess(request, "3d_fullres")
    assert commands == [
        [
            "nnUNetv2_preprocess",
            "-d",
            "12",
            "-plans_name",
            "nnUNetPlans_small",
            "-c",
            "3d_fullres",
            "-np",
            "1",
        ]
    ]
    preprocess(request, "3d_fullres")
    assert len(commands) == 1
    data = folder / "preprocessed" / DATASET / "nnUNetPlans_3d"
    (data / "case_1.b2nd").unlink()
    preprocess(request, "3d_fullres")
    assert len(commands) == 2
    sign = data.with_name("nnUNetPlans_3d.locctx.json")
    sign.write_text(sign.read_text().replace("done", "begun"))  # as a run leaves it that was killed
    preprocess(request, "3d_fullres")
    assert len(commands) == 3
    sign.unlink()  # made by nnU-Net before
    preprocess(request, "3d_fullres")
    assert len(commands) == 3


def test_gpus_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with claim_gpus(["0", "1", "2"], 2, print) as first, claim_gpus(["0", "1", "2"], 1, print) as second:
        assert (list(first), list(second)) == (["0", "1"], ["2"])
    with pytest.raises(ValueError, match=r"needs 2 GPUs, visible are 1 \(0\)"), claim_gpus(["0"], 2, print):
        pass


CLAIMER = """
import subprocess, sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from nnunet_locctx.study.gpus import claim_gpus
with claim_gpus(["0"], 1, print) as held:
    worker = subprocess.Popen(["sleep", "600"], pass_fds=tuple(held.values()), start_new_session=True)
    print(worker.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="looks at /proc")
def test_a_gpu_is_claimed_by_whoever_works_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", CLAIMER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as claimer:
        worker = int(claimer.stdout.readline())
        claimer.kill()
    claims = tmp_path / f"locctx-gpus-{os.getuid()}"
    assert list(holders(claims / "0")) == [worker]
    said = []
    with claim_gpus(["0"], 1, said.append) as held:
        assert list(held) == ["0"]
    assert said == [f"ended what a killed process had left at work: [{worker}]"]


def test_claims_that_others_have_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    claims, victim = tmp_path / f"locctx-gpus-{os.getuid()}", tmp_path / "mine.txt"
    victim.write_text("precious")
    (tmp_path / "theirs").mkdir()
    claims.symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match="is no folder of yours"), claim_gpus(["0"], 1, print):
        pass
    assert list((tmp_path / "theirs").iterdir()) == []
    claims.unlink()
    claims.mkdir()
    monkeypatch.setattr("os.getuid", lambda: int(claims.name.rsplit("-")[-1]) + 1)
    claims.rename(tmp_path / f"locctx-gpus-{os.getuid()}")
    with pytest.raises(ValueError, match="is no folder of yours"), claim_gpus(["0"], 1, print):
        pass
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    claims.mkdir(mode=0o777)
    (claims / "0").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"), claim_gpus(["0"], 1, print):
        pass
    assert victim.read_text() == "precious"
    assert claims.stat().st_mode & 0o077 == 0
