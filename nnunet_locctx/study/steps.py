"""What a rule of the Snakefile runs, in the work folder: ``python -m nnunet_locctx.study.steps KIND WILDCARD ...``.

A process may outlive a runner that was killed. A job that such a process still works on is waited for, not done twice.
The commands of a job hold the locks of the job and of its GPUs too: if only this process is killed, nobody takes the
locks for free, and whoever needs them next ends the commands.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import stat
import string
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnunet_locctx.files import link, replacing, write_atomically
from nnunet_locctx.locks import BusyError, end_abandoned, lock, note, wait_for_lock
from nnunet_locctx.nnunet.commands import CommandError, run_logged
from nnunet_locctx.nnunet.data.paths import training_labels
from nnunet_locctx.study.cases import SPLITS, labelled_tests, raw_cases, read_splits
from nnunet_locctx.study.jobs import OUTPUTS, Job, Jobs
from nnunet_locctx.study.model import Study
from nnunet_locctx.study.preparing import plan, preprocess
from nnunet_locctx.study.scheduling import terminable
from nnunet_locctx.study.settings import MADE, digest, write_json

GPUS = "LOCCTX_STUDY_GPUS"
"""A runner on one machine sets it to the GPUs that its jobs share, as in ``CUDA_VISIBLE_DEVICES``."""


def environment(study: Study) -> dict[str, str]:
    """The variables that nnU-Net's commands need for this study, whatever the shell says."""
    from nnunet_locctx.resources import trainer_folders

    return {
        **{f"nnUNet_{name}": str(folder) for name, folder in study.folders},
        "nnUNet_extTrainer": trainer_folders(),
        "nnUNet_n_proc_DA": str(study.processes),
        "nnUNet_def_n_proc": str(study.processes),
        "OMP_NUM_THREADS": "1" if study.device == "cuda" else str(study.processes),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait must not keep a core from the augmentation
        "PYTHONUNBUFFERED": "1",
    }


def run_job(jobs: Jobs, job: Job) -> None:
    """Does a job, unless a process that was waited for has done it.

    Raises:
        CommandError: A command failed.
        ValueError: A step refuses its input, or the commands wrote no result.
    """
    output, identity = Path(job.output), digest(jobs.depends_on(job))
    holders: list[str] = []

    def wait(holder: str) -> None:
        holders.append(holder)
        print(f"waiting for the process that works on it: {holder}", flush=True)

    def end(processes: Sequence[int]) -> None:
        print(f"ended what a killed process had left at work: {processes}", flush=True)

    with wait_for_lock(Path("locks") / job.name, wait, inherited=True, ended=end) as held:
        if output.is_file() and any(identity in holder for holder in holders):
            print("done by the process that was waited for")
            return
        note(held, {"depends_on": identity, "slurm_job": os.environ.get("SLURM_JOB_ID")})
        os.environ.update(environment(jobs.study))
        visible = [gpu for gpu in os.environ.get(GPUS, "").split(",") if gpu]
        number = (
            jobs.resources(job.kind).get("gpu", 0) if visible else 0
        )  # a cluster hands out the GPUs itself
        with claim_gpus(visible, number) as gpus:
            if gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            made = Path(job.output + MADE)
            made.unlink(missing_ok=True)
            step = _Step(jobs, job, (held, *gpus.values()))
            getattr(step, job.kind)(**job.names)
        if not output.is_file():
            raise ValueError(f"the commands ended well but did not write {output.resolve()}")
        write_atomically(made, jobs.identity(job).encode())


@contextlib.contextmanager
def claim_gpus(visible: Sequence[str], number: int) -> Iterator[dict[str, int]]:
    """Holds as many of this machine's GPUs as a job needs, so that no two jobs of a user's studies share one.

    Args:
        visible: Ids as in ``CUDA_VISIBLE_DEVICES``.
        number: How many.

    Yields:
        GPU -> descriptor of the lock that claims it, for the process that works on it to inherit.

    Raises:
        ValueError: There are fewer GPUs, or the claims' folder is another user's.
    """
    if number > len(visible):
        raise ValueError(
            f"a job needs {number} GPUs, visible are {len(visible)} ({', '.join(visible) or 'none'})"
        )
    if not number:
        yield {}
        return
    folder = _claims_folder()
    files = {gpu: folder / gpu.replace("/", "-") for gpu in visible}
    waiting = False
    while True:
        with contextlib.ExitStack() as stack:
            held: dict[str, int] = {}
            for gpu, file in files.items():
                with contextlib.suppress(BusyError):
                    held[gpu] = stack.enter_context(lock(file, inherited=True))
                if len(held) == number:
                    yield held
                    return
        ended = [process for file in files.values() for process in end_abandoned(file)]
        if ended:  # workers of a training that was killed would hold its GPU for ever
            print(f"ended what a killed process had left at work: {ended}", flush=True)
            continue
        if not waiting:
            print(f"waiting for {number} of the GPUs {', '.join(visible)}", flush=True)
        waiting = True
        time.sleep(2.0)


def _claims_folder() -> Path:
    """A folder of this user in the temporary one, where others may have put something of that name before."""
    folder = Path(tempfile.gettempdir()) / f"locctx-gpus-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ValueError(
            f"{folder}, where GPUs are claimed, is no folder of yours (owner {status.st_uid}, "
            f"{stat.filemode(status.st_mode)}); have it removed, or set TMPDIR to a folder of your own"
        )
    folder.chmod(0o700)
    return folder


class _Step:
    """Does one job; a method for each kind, with the wildcards of its rule.

    Args:
        jobs: The study's jobs.
        job: The job to do.
        locks: Descriptors of the locks that its commands hold too.
    """

    def __init__(self, jobs: Jobs, job: Job, locks: Sequence[int]) -> None:
        self.study, self.scans, self.job, self.locks = jobs.study, jobs.scans, job, locks
        self.np = ("-np", str(self.study.processes))
        self.dataset_json = ("--dataset-json", str(self.study.raw / "dataset.json"))

    def plan(self) -> None:
        write_json(Path(self.job.output), plan(self.study, self._command))

    def fit(self, source: str) -> None:
        from nnunet_locctx.nnunet.data.fitted import REGRESSOR, fitted_folder

        seed = ("--seed", str(self.study.seeds[0]))
        words = ("-d", self.study.number, *seed, *self.np, "--quiet")
        self._command("locctx", "fit", self.study.fitted[source], *words)
        file = fitted_folder(self.study.dataset, source) / REGRESSOR
        content = {"regressor": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        write_json(Path(self.job.output), content)

    def preprocess(self, data: str) -> None:
        write_json(Path(self.job.output), preprocess(self.study, data, self.scans["Tr"], self._command))

    def train(self, run: str, fold: str) -> None:
        self._command(sys.executable, "-m", "nnunet_locctx.study.train", run, fold)

    def evaluate(self, run: str, part: str) -> None:
        predictions = self.study.runs[run].model / part / "validation"
        if part == "test":
            predictions = Path(Job("predict", {"run": run}).output).parent
        with _anew(Path(self.job.output).parent) as draft:
            self._evaluate(predictions, draft, "Ts" if part == "test" else "Tr")

    def predict(self, run: str) -> None:
        study, trained = self.study, self.study.runs[run]
        words = ["-d", study.dataset, "-p", study.plans, "-c", trained.configuration]
        words += ["-tr", trained.method.trainer, "-f", *map(str, study.folds)]
        words += ["-device", study.device, "--disable_progress_bar"]
        words += ["-npp", str(study.processes), "-nps", str(study.processes)]
        with _anew(Path(self.job.output).parent) as draft:
            self._command("nnUNetv2_predict", "-i", str(study.raw / "imagesTs"), "-o", str(draft), *words)

    def postprocess(self, run: str, method: str) -> None:
        model, labels = self.study.runs[run].model, ["--labels", self._labels("Tr")]
        validation = {fold: str(model / f"fold_{fold}" / "validation") for fold in self.study.folds}
        common = (*self.dataset_json, *self.np, "--quiet")
        with _anew(Path(self.job.output).parents[1]) as draft:
            if method == "atlas":
                words = [*labels, "--validation", *validation.values()]
                words += ["-o", str(draft / "atlas.npz"), "--fold-atlases"]
                self._command("locctx", "postprocess", "fit-atlas", *words, *common)
            for fold, predictions in validation.items():
                action = [method.replace("_", "-")]
                if method == "atlas":
                    action = ["apply-atlas", str(draft / f"atlas_fold_{fold}.npz")]
                words = [*action, predictions, "-o", str(draft / "predictions")]
                words += labels if method == "sides" else []
                self._command("locctx", "postprocess", *words, *common)
            self._evaluate(draft / "predictions", draft / "evaluation", "Tr")

    def robustness(self, run: str) -> None:
        study, trained, asked = self.study, self.study.runs[run], self.study.robustness
        assert asked is not None
        fold, folder = study.folds[0], Path(self.job.output).parent
        cases = sorted(read_splits(study.preprocessed / SPLITS)[fold]["val"])[: asked.cases]
        images, labels = link_cases(study.raw, cases, folder / "cases")
        words = ["--model", str(trained.model), "--fold", str(fold), "-i", str(images), "-l", str(labels)]
        words += ["-o", str(folder), "--quiet", "--name", trained.method.name, "--device", study.device]
        words += ["--amounts", *(f"{amount:g}" for amount in asked.amounts)]
        words += ["--changes", *asked.changes, "--axes", *asked.axes]
        self._command("locctx", "robustness", *words)

    def _labels(self, part: str) -> str:
        study = self.study
        return str(training_labels(study.raw, study.preprocessed) if part == "Tr" else study.raw / "labelsTs")

    def _evaluate(self, predictions: Path, output: Path, part: str) -> None:
        asked = self.study.evaluation
        words = [str(predictions), self._labels(part), "-o", str(output), *self.dataset_json, *self.np]
        words += ["--predicted-only", "--quiet", "--tolerance-mm", f"{asked.tolerance_mm:g}"]
        words += ["--off-region-mm", f"{asked.off_region_mm:g}"]
        words += [] if asked.paper is None else ["--paper", asked.paper]
        words += ["--cases", *labelled_tests(self.study)] if part == "Ts" else []
        self._command("locctx", "evaluate", *words)

    def _command(self, *words: str) -> None:
        """Runs a command to its end; what it prints goes to the job's log."""
        print(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} $ {shlex.join(words)}", flush=True)
        log = Path("logs", f"{self.job.name}.txt")
        run_logged(words, os.environ, log, lambda line: None, append=True, locks=self.locks)


def link_cases(raw: Path, cases: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Folders with just these training cases, as links.

    Args:
        raw: The dataset's raw folder.
        cases: The cases.
        folder: It gets the folders ``images`` and ``labels``.

    Returns:
        The two folders.
    """
    ending = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    files = raw_cases(raw)
    images, labels = folder / "images", folder / "labels"
    for target in (images, labels):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    for case in cases:
        *scans, label = files[case]
        for channel, scan in enumerate(scans):
            link(scan, images / f"{case}_{channel:04d}{ending}")
        link(label, labels / f"{case}{ending}")
    return images, labels


@contextlib.contextmanager
def _anew(folder: Path) -> Iterator[Path]:
    """A draft that takes the folder's place when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as draft:
        yield draft
        shutil.rmtree(folder, ignore_errors=True)


FAILED = "error: "
"""Begins what a job's log ends with when the job could say why it failed."""


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    kind, *values = arguments
    names = [name for _, name, *_ in string.Formatter().parse(OUTPUTS[kind]) if name]
    try:
        with terminable():  # what is raised ends the command's whole process group on the way out
            run_job(Jobs.load(), Job(kind, dict(zip(names, values, strict=True))))
    except KeyboardInterrupt:
        return 130
    except (CommandError, OSError, ValueError) as error:
        print(f"{FAILED}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
