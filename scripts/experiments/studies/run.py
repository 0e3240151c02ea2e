"""Runs one of the example studies from nothing, kills it on the way with --kill-after, and keeps its report.

    python -m scripts.experiments.studies.run phantom --kill-after 300 600
    python -m scripts.experiments.studies.run hippocampus --data ../shared/data

The study is the package's own file (studies/phantom.yaml, studies/hippocampus.yaml), started as a user starts it:
`locctx study NAME --cores N`. With --kill-after its processes are all killed (SIGKILL) after so many seconds of each
start, and the same command is given again. Everything lies in the work folder; the same command takes an interrupted
run up again. The report goes to NAME beside this script, with run.json, which says how long each start took.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from nnunet_locctx.demo import make_study_data
from nnunet_locctx.files import write_atomically
from scripts.benchmarks.harness import REPOSITORY, Record, describe_machine, described_parser, say

HIPPOCAMPUS = "Dataset201_HippocampusMR"
LEFT_OUT = "Pictures of the scans are left out here: the scans are CC BY-SA 4.0, this repository is not."


def prepare(name: str, raw: Path, data: Path) -> None:
    """Puts the study's dataset into nnUNet_raw, unless it is there."""
    raw.mkdir(parents=True, exist_ok=True)
    if name == "phantom":
        make_study_data(raw)
        return
    source, target = data / HIPPOCAMPUS, raw / HIPPOCAMPUS
    if not source.is_dir():
        raise ValueError(f"there is no {source}; name the folder that holds {HIPPOCAMPUS} with --data")
    if not target.is_dir():
        draft = raw / f".{HIPPOCAMPUS}"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(source, draft)
        draft.replace(target)


def run_study(name: str, work: Path, cores: int, kill_after: float | None) -> Record:
    """Starts the study once; returns how long it ran and how it ended.

    Args:
        name: Name of the study.
        work: Holds nnU-Net's folders, and the study's.
        cores: Jobs at a time.
        kill_after: Seconds after which every process of it is killed; None: it runs to its end.
    """
    folders = {key: str(work / key) for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir(exist_ok=True)
    command = [str(Path(sys.executable).parent / "locctx"), "study", name, "--cores", str(cores)]
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=work, env={**os.environ, **folders})
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)
        process.wait()
    return {"seconds": round(time.monotonic() - start, 1), "exit_status": process.returncode}


def kill_tree(pid: int) -> None:
    """Kills a process and everything it started, at once and without a warning."""
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def keep_report(work: Path, report: Path, target: Path, record: Record, *, scans: bool) -> None:
    """Replaces the kept report.

    Args:
        work: Its path is taken out of the report: whoever reads it has another folder.
        report: What the study wrote.
        target: Where it is kept.
        record: How it was made.
        scans: Whether pictures of scans are kept; else they and the page that holds them are left out.
    """
    draft = target.with_name(f".{target.name}")
    shutil.rmtree(draft, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(report, draft)
    if not scans:
        (draft / "index.html").unlink()
        for picture in (draft / "figures").glob("cases_*"):
            picture.unlink()
    for file in (draft / "index.html", draft / "report.md"):
        if file.is_file():
            text = file.read_text(encoding="utf-8").replace(f"{work}/", "")
            if not scans:
                text = re.sub(r"(?s)(\n## Cases\n).*?(?=\n## )", rf"\1\n{LEFT_OUT}\n", text)
            file.write_text(text, encoding="utf-8")
    write_atomically(draft / "run.json", (json.dumps(record, indent=1) + "\n").encode())
    shutil.rmtree(target, ignore_errors=True)
    draft.replace(target)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = described_parser(__doc__)
    parser.add_argument("study", choices=("phantom", "hippocampus"))
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/locctx_example"), help="work folder (default: %(default)s)"
    )
    parser.add_argument(
        "--data", type=Path, default=REPOSITORY.parent / "shared" / "data", help=f"holds {HIPPOCAMPUS}"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent, help="default: this script's folder"
    )
    parser.add_argument("--cores", type=int, default=2, metavar="N", help="jobs at a time (default: 2)")
    parser.add_argument(
        "--kill-after",
        type=float,
        nargs="+",
        default=[],
        metavar="SECONDS",
        help="kill the first starts after so long",
    )
    options = parser.parse_args(arguments)
    work = options.work.resolve() / options.study
    prepare(options.study, work / "nnUNet_raw", options.data)
    starts = work / "starts.json"
    runs = json.loads(starts.read_text()) if starts.exists() else []
    for limit in [*options.kill_after[len(runs) :], None]:
        runs.append(run_study(options.study, work, options.cores, limit))
        if runs[-1]["exit_status"] > 0:
            return int(runs[-1]["exit_status"])  # it printed why; a killed process has a negative status
        write_atomically(starts, json.dumps(runs).encode())
        say(f"start {len(runs)}: {runs[-1]}")
    record = {
        "command": f"python -m scripts.experiments.studies.run {options.study}"
        + (f" --kill-after {' '.join(f'{s:g}' for s in options.kill_after)}" if options.kill_after else ""),
        "starts": runs,
        "minutes": round(sum(run["seconds"] for run in runs) / 60, 1),
        "machine": describe_machine("cpu"),
    }
    target = options.out / options.study
    keep_report(work, work / options.study / "report", target, record, scans=options.study == "phantom")
    say(f"{record['minutes']} minutes in all; report: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
