"""What each rule runs, in the work folder; nnU-Net's commands and ours are only noted."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nnunet_locctx.locks import lock
from nnunet_locctx.nnunet.commands import CommandError
from nnunet_locctx.study import record, steps
from nnunet_locctx.study.cases import SPLITS as SPLITS_FILE
from nnunet_locctx.study.cases import digests_of_cases
from nnunet_locctx.study.jobs import Jobs
from nnunet_locctx.study.model import read_study
from nnunet_locctx.study.settings import digest
from tests.study.small_study import CASES, SPLITS, write_dataset, write_study

METHODS = {"Loc": {"trainer": "LocBAMTrainer", "sources": ["body_part"]}}


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """The jobs of a study with all there can be, in its work folder."""
    write_dataset(tmp_path)
    monkeypatch.setattr(os, "environ", {**os.environ})
    asked = {
        "postprocessing": ["atlas", "largest_component", "sides"],
        "robustness": {"presets": ["far"], "cases": 1},
    }
    file = write_study(
        tmp_path,
        methods=METHODS,
        baseline="Loc",
        folds=[0, 1],
        test=True,
        evaluation={"paper": True},
        **asked,
    )
    study = read_study(file)
    jobs = Jobs(study, digests_of_cases(study, progress=False))
    record.write_study(jobs)
    for name in ("logs", "locks"):
        (study.work / name).mkdir()
    monkeypatch.chdir(study.work)
    return jobs


@pytest.fixture
def commands(jobs, monkeypatch):
    """The commands; each writes what its kind would."""
    made = []

    def run(words, environment, log, show, *, append, locks):
        assert environment["nnUNet_raw"] == str(jobs.study.folders.raw)
        assert len(locks) == (2 if steps.GPUS in environment else 1)
        made.append(list(words))
        output = Path(words[words.index("-o") + 1]) if "-o" in words else None
        if output is not None and output.suffix != ".npz":
            output.mkdir(parents=True, exist_ok=True)
            for name in ("evaluation.json", "plans.json", "robustness.json"):
                (output / name).write_text("{}")
        if "fit" in words:
            file = jobs.study.preprocessed / "locctx_body_part" / "regressor.pt"
            file.parent.mkdir()
            file.write_text("regressor")
        if "nnunet_locctx.study.train" in words:
            Path("runs", words[-2], f"fold_{words[-1]}", "training.json").write_text("{}")

    monkeypatch.setattr(steps, "run_logged", run)
    return made


def run(jobs, name):
    """Runs a job, as Snakemake does once it has made the folders of its output."""
    job = next(job for job in jobs.all() if job.name == name)
    Path(job.output).parent.mkdir(parents=True, exist_ok=True)
    return steps.main([job.kind, *job.names.values()]), Path(job.output)


def test_each_kind_runs_its_commands(jobs, commands):
    model = jobs.study.runs["Loc__far"].model
    (jobs.study.preprocessed / SPLITS_FILE).write_text(json.dumps(SPLITS))
    begun = {
        "fit.body_part": [["locctx", "fit", "body-part", "-d", "12"]],
        "train.Loc__far.fold_1": [None],
        "evaluate.Loc__far.fold_1": [["locctx", "evaluate", str(model / "fold_1" / "validation")]],
        "predict.Loc__far": [["nnUNetv2_predict", "-i", str(jobs.study.raw / "imagesTs")]],
        "evaluate.Loc__far.test": [["locctx", "evaluate", "runs/Loc__far/test/predictions"]],
        "postprocess.Loc__far.atlas": [
            ["locctx", "postprocess", "fit-atlas"],
            ["locctx", "postprocess", "apply-atlas"],
            ["locctx", "postprocess", "apply-atlas"],
            ["locctx", "evaluate"],
        ],
        "postprocess.Loc__far.largest_component": [
            *[["locctx", "postprocess", "largest-component"]] * 2,
            ["locctx", "evaluate"],
        ],
        "postprocess.Loc__far.sides": [
            ["locctx", "postprocess", "sides", str(model / "fold_0" / "validation")],
            ["locctx", "postprocess", "sides", str(model / "fold_1" / "validation")],
            ["locctx", "evaluate"],
        ],
        "robustness.Loc__far": [["locctx", "robustness", "--model", str(model), "--fold", "0"]],
    }
    for name, expected in begun.items():
        commands.clear()
        status, output = run(jobs, name)
        assert status == 0, name
        assert output.is_file(), name
        assert not list(output.parent.parent.glob(".*")), "a draft is left"
        assert len(commands) == len(expected), name
        for words, first in zip(commands, expected, strict=True):
            assert first is None or words[: len(first)] == first
    links = [file.name for file in Path("runs/Loc__far/robustness/cases/images").iterdir()]
    assert links == [f"{CASES[0]}_0000.nii.gz"]
    assert json.loads(Path("fits/body_part.json").read_text())["regressor"].endswith("regressor.pt")


def test_a_job_holds_a_gpu_of_this_machine(jobs, commands, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    content = json.loads(Path("study.json").read_text())
    Path("study.json").write_text(json.dumps({**content, "study": {**content["study"], "device": "cuda"}}))
    os.environ[steps.GPUS] = "3,5"
    assert run(jobs, "predict.Loc__far")[0] == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_an_older_result_gives_way_to_a_whole_one(jobs, commands, monkeypatch):
    folder = Path("runs/Loc__far/fold_0/evaluation")
    folder.mkdir(parents=True)
    (folder / "of_before.csv").touch()
    assert run(jobs, "evaluate.Loc__far.fold_0")[0] == 0
    assert not (folder / "of_before.csv").exists()

    def fail(*words, **options):
        raise CommandError("no luck", 3)

    monkeypatch.setattr(steps, "run_logged", fail)
    assert run(jobs, "evaluate.Loc__far.fold_0")[0] == 1
    assert [file.name for file in folder.parent.iterdir()] == ["evaluation"]
    assert (folder / "evaluation.json").is_file()


def test_commands_that_write_nothing(jobs, monkeypatch, capsys):
    monkeypatch.setattr(steps, "run_logged", lambda *words, **options: None)
    assert run(jobs, "train.Loc__far.fold_0")[0] == 1
    assert "error: the commands ended well but did not write" in capsys.readouterr().err


@pytest.mark.parametrize("same", [True, False], ids=["as asked now", "as asked before"])
def test_what_another_process_was_doing_is_not_done_again(jobs, commands, capsys, same):
    job = next(job for job in jobs.all() if job.name == "predict.Loc__far")
    identity = digest(jobs.depends_on(job)) if same else "of other options"
    begun = threading.Event()

    def other():
        with lock(Path("locks") / job.name, {"depends_on": identity}):
            begun.set()
            time.sleep(0.5)
            Path(job.output).parent.mkdir(parents=True)
            Path(job.output).write_text("{}")

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    assert steps.main(["predict", "Loc__far"]) == 0
    thread.join()
    assert "waiting for the process that works on it" in capsys.readouterr().out
    assert len(commands) == (0 if same else 1)


def test_a_forked_worker_ends_at_sigterm_whatever_becomes_of_exceptions():
    """nnU-Net forks pools in our processes, and waits for workers that it has asked to end."""
    code = """if True:
        import os, signal, time
        from nnunet_locctx.study.scheduling import terminable
        before = signal.getsignal(signal.SIGTERM)
        reading, writing = os.pipe()
        with terminable():
            worker = os.fork()
            while worker == 0:
                try:
                    os.write(writing, b"!")
                    time.sleep(60)
                except KeyboardInterrupt:
                    pass
            os.read(reading, 1)
            os.kill(worker, signal.SIGTERM)
            print(os.WTERMSIG(os.waitpid(worker, 0)[1]) == signal.SIGTERM, signal.getsignal(signal.SIGTERM) != before)
        print(signal.getsignal(signal.SIGTERM) == before)
    """
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True
    )
    assert ended.stdout.split() == ["True"] * 3


def test_a_dataset_that_lists_its_files(jobs, monkeypatch):
    raw = jobs.study.raw
    content = json.loads((raw / "dataset.json").read_text())
    os.environ["ELSEWHERE"] = str(raw / "imagesTr")
    files = {
        case: {"images": [f"$ELSEWHERE/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
        for case in CASES
    }
    before = digests_of_cases(jobs.study, progress=False)
    (raw / "dataset.json").write_text(json.dumps({**content, "dataset": files}))
    assert digests_of_cases(jobs.study, progress=False) == before
