"""Jobs sent to SLURM by Snakemake's executor; sbatch, sacct and the others are stand-ins that note and run them."""

import json
import shlex
import sys

import pytest

from nnunet_locctx.study.jobs import Jobs
from nnunet_locctx.study.model import read_study
from nnunet_locctx.study.runner import Runner
from nnunet_locctx.study.scheduling import SLURM_PROFILE, Where, snakemake_command
from tests.study.small_study import calls, order, write_study

pytestmark = pytest.mark.usefixtures("environment")

# Runs what it is given, one job after the other, and keeps the request and the state.
SBATCH = r"""#!{python} -IS
import json, os, subprocess, sys
from pathlib import Path
folder = Path(__file__).parent
number = str(len(list(folder.glob("job_*.json"))) + 100)
words = sys.argv[1:]
wrap = [word[7:] for word in words if word.startswith("--wrap=")][0]
environment = dict(os.environ, SLURM_JOB_ID=number)
log = open(folder / ("job_" + number + ".txt"), "w")
run = subprocess.run(["bash", "-c", wrap], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
state = "COMPLETED" if run.returncode == 0 else "FAILED"
(folder / ("job_" + number + ".json")).write_text(json.dumps({{"words": words, "state": state}}))
print(number)
"""
SRUN = r"""#!{python} -IS
import os, sys
words = sys.argv[1:]
while words and words[0].startswith("-"):
    words = words[1:]
os.execvp(words[0], words)
"""
SACCT = r"""#!{python} -IS
import json
from pathlib import Path
for file in sorted(Path(__file__).parent.glob("job_*.json")):
    print(file.stem[4:] + "|" + json.loads(file.read_text())["state"])
"""
QUIET = "#!/bin/sh\n{text}\n"


@pytest.fixture
def cluster(folder, monkeypatch):
    """Puts the stand-ins on the path; returns their folder."""
    programs_of = folder / "cluster"
    programs_of.mkdir()
    programs = {
        "sbatch": SBATCH.format(python=sys.executable),
        "srun": SRUN.format(python=sys.executable),
        "sacct": SACCT.format(python=sys.executable),
        "squeue": QUIET.format(
            text='[ -e "$(dirname "$0")/queued" ] && cat "$(dirname "$0")/queued"; exit 0'
        ),
        "scancel": QUIET.format(text="exit 0"),
        "sinfo": QUIET.format(text="echo 'PARTITION'; echo 'short*'"),
        "scontrol": QUIET.format(text="echo 'MinJobAge = 300 sec'"),
        "sacctmgr": QUIET.format(text="echo lab"),
        "sshare": QUIET.format(text="echo lab"),
    }
    for name, text in programs.items():
        (programs_of / name).write_text(text)
        (programs_of / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs_of), prepend=":")
    return programs_of


RESOURCES = {
    "train": {
        "memory_gb": 48,
        "hours": 12.5,
        "partition": "gpu",
        "constraint": "a100",
        "slurm_extra": "--reservation='two; words'",
    },
    "default": {"memory_gb": 8, "hours": 2, "account": "lab"},
}


def test_requests_of_each_kind(folder):
    study = read_study(write_study(folder, device="cuda", gpus=2, processes=6, resources=RESOURCES))
    asked = {kind: Jobs(study, {}).resources(kind) for kind in ("train", "evaluate", "preprocess")}
    assert asked["train"] == {
        "mem_mb": 48000,
        "runtime": 750,
        "cpus_per_task": 7,
        "gpu": 2,
        "slurm_partition": "gpu",
        "slurm_account": "lab",
        "constraint": "a100",
        "slurm_extra": "'--reservation=two; words'",
    }
    assert asked["evaluate"] == {"mem_mb": 8000, "runtime": 120, "cpus_per_task": 7, "slurm_account": "lab"}
    assert "gpu" not in asked["preprocess"]


def test_command_lines(folder):
    study = read_study(write_study(folder, device="cuda"))
    jobs = Jobs(study, {})
    targets = list(jobs.all())
    here = snakemake_command(jobs, targets, Where(cores=3), ["0", "1"])
    assert here[here.index("--cores") + 1] == "3"
    assert here[here.index("--resources") + 1] == "gpu=2"
    command = snakemake_command(jobs, targets, Where(profile=SLURM_PROFILE, jobs=7))
    assert command[command.index("--profile") + 1] == str(SLURM_PROFILE)
    assert command[command.index("--jobs") + 1] == "7"
    assert "--cores" not in command
    assert "--slurm-no-account" in command
    own = folder / "own"
    own.mkdir()
    with pytest.raises(ValueError, match="no folder of a Snakemake profile"):
        Runner(study).run(Where(profile=own))


def test_jobs_left_on_the_cluster(folder, cluster):
    runner = Runner(read_study(write_study(folder)))
    (folder / "work" / "locks").mkdir(parents=True)
    (folder / "work" / "locks" / "train.Plain__near.fold_0").write_text(json.dumps({"slurm_job": "105"}))
    (cluster / "queued").write_text("105\n")
    with pytest.raises(ValueError, match=r"still at work: 105 \(train\.Plain__near\.fold_0\)"):
        runner.run(Where())


@pytest.mark.slow
def test_a_study_on_a_cluster(folder, cluster):
    profile = folder / "profile"
    profile.mkdir()
    quick = "slurm-init-seconds-before-status-checks: 1\nseconds-between-status-checks: 1\n"
    text = (SLURM_PROFILE / "config.yaml").read_text().replace("latency-wait: 60", "latency-wait: 5")
    (profile / "config.yaml").write_text(text + quick)
    order(folder, **{"evaluate": "fail"})
    methods = {"Plain": {"trainer": "nnUNetTrainer"}}
    file = write_study(
        folder, methods=methods, presets=["near.json"], resources=RESOURCES, device="cuda", work="wo{x}rk"
    )
    shown = []
    status = Runner(read_study(file)).run(Where(profile=profile, jobs=2), shown.append)
    log = (folder / "wo{x}rk" / "logs" / "snakemake.txt").read_text()
    assert status == 1, log
    made = calls(folder)
    assert [call.split()[0] for call in made] == [
        "nnUNetv2_preprocess",
        "train",
        "locctx",
        "locctx",
    ], log
    assert (folder / "wo{x}rk" / "failures" / "evaluate.Plain__near.fold_0.json").is_file()
    sent = [json.loads(file.read_text()) for file in sorted(cluster.glob("job_*.json"))]
    assert [job["state"] for job in sent] == ["COMPLETED", "COMPLETED", "COMPLETED", "FAILED"], log
    assert "--reservation=two; words" in sent[2]["words"]
    training = shlex.join(sent[2]["words"])
    for request in ("-p gpu", "--gpus=1", "--mem 48000", "-t 750", "--cpus-per-task=2", "-C a100", "lab"):
        assert request in training, training
    evaluation = shlex.join(sent[3]["words"])
    assert "--mem 8000" in evaluation
    assert "--gpus" not in evaluation
    assert "short" in evaluation  # the cluster's own partition
    variables = [json.loads(line) for line in (folder / "variables.txt").read_text().splitlines()]
    assert all(one["nnUNet_raw"] == str(folder / "raw") for _, one in variables)
