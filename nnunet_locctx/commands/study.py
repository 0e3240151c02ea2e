"""`locctx study`: methods x location sources x presets x folds x seeds, trained, evaluated and reported."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command, require


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "study",
        run,
        "run a study (methods, location sources, presets, folds, seeds) and report it",
        """Plans, preprocesses, trains, validates, predicts, evaluates and reports what a study file (YAML) asks for.
        The jobs are run by Snakemake, on this machine or on a cluster. Run again, it goes on where it stopped; what
        is trained is not trained again. A job that fails does not stop the others; it is named in the report, and the
        exit status is 1.""",
        """
        locctx study locbam_btcv --dry-run
        locctx study my_study.yaml --cores 2
        locctx study my_study.yaml --slurm --jobs 20
        locctx study my_study.yaml --only train LocBAM
        """,
    )
    parser.add_argument(
        "study", metavar="STUDY", help="study file (YAML), or the name of one that comes with the package"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the jobs and the minutes that the trainings will take, on an A100 and on this machine, and stop",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only jobs of these kinds (train, evaluate, ...), seeds (seed1), runs, methods or presets, and what they "
        "wait for",
    )
    where = parser.add_argument_group("where jobs run")
    where.add_argument(
        "--cores", type=int, default=1, metavar="N", help="jobs at a time on this machine (default: 1)"
    )
    where.add_argument(
        "--slurm", action="store_true", help="on a SLURM cluster, with the profile of this package"
    )
    where.add_argument(
        "--profile", type=Path, metavar="DIR", help="on a cluster, with this Snakemake profile"
    )
    where.add_argument("--jobs", type=int, metavar="N", help="jobs at a time on the cluster")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    require("study")
    from nnunet_locctx.study.model import find_study, read_study
    from nnunet_locctx.study.runner import Runner
    from nnunet_locctx.study.scheduling import SLURM_PROFILE, Where

    if options.slurm and options.profile:
        raise ValueError("--slurm names the profile of this package; give it or --profile, not both")
    for name in ("cores", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if options.jobs is not None and not (options.slurm or options.profile):
        raise ValueError("--jobs is for clusters (--slurm, --profile); on one machine: --cores")
    runner = Runner(read_study(find_study(options.study)), options.only)
    if options.dry_run:
        _show_jobs(runner)
        return CLEAN
    profile = SLURM_PROFILE if options.slurm else options.profile
    return runner.run(Where(options.cores, profile and profile.resolve(), options.jobs))


def _show_jobs(runner: Any) -> None:
    """The jobs by kind, and the expected minutes of the trainings."""
    from nnunet_locctx.study.expected import report_expected
    from nnunet_locctx.study.settings import KINDS

    study, chosen, pending = runner.study, runner.chosen, runner.pending()
    every, to_run = (Counter(chosen[name].kind for name in names) for names in (chosen, pending))
    print(f"{study.name}: {study.title}\n{study.dataset}, work folder {study.work}\n")
    print(f"{'kind':<12}{'jobs':>6}{'to run':>8}")
    for kind in KINDS:
        if every[kind]:
            print(f"{kind:<12}{every[kind]:>6}{to_run[kind]:>8}")
    print(f"{'all':<12}{len(chosen):>6}{len(pending):>8}")
    for line in report_expected(study, [chosen[name] for name in pending]):
        print(line, flush=True)
