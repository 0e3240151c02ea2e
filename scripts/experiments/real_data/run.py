"""Real scans, raw files to predictions, with nnU-Net's own commands; writes results.json and docs/results.md.

Two datasets in nnU-Net's raw format (``../shared/data``, not part of the repository):

* Dataset201_HippocampusMR, 195 MR crops: plan, preprocess, 5-fold splits; plain nnU-Net and located trainers on fold 0
  at small patches with one budget; nnU-Net's validation and nnUNetv2_predict.
* Dataset203_TotalSegCT, one CT: orientation and coordinates of its left and right structures, `locctx show`, and the
  prediction of a model trained on the phantom.

Only fold 0 is trained: the script is made for two CPU cores. The raw folders are linked, never written to. Every step
leaves its figures in ``<folder>/records.json``; the same command takes an interrupted run up again and skips what is
done. The documents are written when all steps are done, or with what there is by ``--report``.

    python -m scripts.experiments.real_data.run                        # everything
    python -m scripts.experiments.real_data.run --only 'train:*:plain' # these steps only, see --list
    python -m scripts.experiments.real_data.run --report               # only the documents, from the records
"""

import argparse
import contextlib
import fnmatch
import json
import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_locctx.resources import trainers_folder
from scripts.benchmarks.harness import OUT_HELP, destinations
from scripts.experiments.real_data.positions import (
    Atlas,
    Scan,
    StepError,
    check_sides,
    check_spine,
    positions,
    read_labels,
    require_same_geometry,
)
from scripts.experiments.real_data.report import (
    FOREGROUND,
    Record,
    averages,
    confusion,
    dice,
    read_summary,
    write_atomically,
    write_documents,
)

REPOSITORY = Path(__file__).resolve().parents[3]
HIPPOCAMPUS = "Dataset201_HippocampusMR"
TOTALSEG = "Dataset203_TotalSegCT"
PHANTOM = "Dataset902_Phantom"
PLANS = "nnUNetPlans_locctx"
PATCHES = {"patch16": (16, 4), "patch24": (24, 2)}
"""Configuration -> edge of its patch in voxels of 1 mm, patches per batch."""
SMALLEST = "patch16"
NETWORK = {
    "features_per_stage": [8, 16, 32],
    "n_conv_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
}
TRAINERS = {"plain": "nnUNetTrainer", "locbam": "LocBAMTrainer", "prior": "PriorHeadTrainer"}
BLOCKS = {"locbam": "locbam", "prior": "prior"}
PHANTOM_TRAINER = "PriorHeadTrainer_1epoch"
PHANTOMS = 6
LONGER = {5: 20, 10: 50, 20: 100, 50: 250}
"""Length of the trainings -> length of plain nnU-Net trained longer; nnU-Net has a trainer for each of these."""
PREDICTED = 3


# -------------------------------------------------------------------------------------------------------- running


class Work:
    """The folder of a run: nnU-Net's folders, logs and records."""

    def __init__(self, folder: Path, data: Path, out: Path, epochs: int) -> None:
        self.folder = folder
        self.data = data
        self.out = out
        self.epochs = epochs
        self.raw = folder / "nnUNet_raw"
        self.preprocessed = folder / "nnUNet_preprocessed"
        self.results = folder / "nnUNet_results"
        self.logs = folder / "logs"
        self.records_file = folder / "records.json"
        for path in (self.raw, self.preprocessed, self.results, self.logs):
            path.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")  # scans and models stay out of the repository
        self.records: Record = json.loads(self.records_file.read_text()) if self.records_file.exists() else {}
        self.environment = {
            **os.environ,
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": str(trainers_folder()),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            # nnU-Net takes as many threads as there are cores; beside other work they waste their time spinning
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            "MPLBACKEND": "Agg",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
        }
        os.environ.update({k: v for k, v in self.environment.items() if k.startswith("nnUNet_")})

    def command(self, *words: object, log: str) -> Record:
        """Runs a command, its output to the terminal and to a log file.

        Returns:
            The command, its wall time and the CPU time of its processes in seconds.

        Raises:
            StepError: It failed; carries the end of its output.
        """
        line = [str(word) for word in words]
        shown = shlex.join(line)
        for path, name in ((self.folder, ""), (self.out, ""), (self.data, "data/")):
            shown = shown.replace(f"{path}/", name)
        print(f"$ {shown}", flush=True)
        began, before = time.perf_counter(), _children_seconds()
        tail: list[str] = []
        options: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
            "errors": "replace",
        }
        with (
            (self.logs / f"{log}.log").open("w", buffering=1) as file,
            subprocess.Popen(line, env=self.environment, cwd=REPOSITORY, **options) as process,
        ):
            try:
                for text in process.stdout or ():
                    sys.stdout.write(text)
                    sys.stdout.flush()
                    file.write(text)
                    tail = [*tail[-19:], text]
            except BaseException:
                process.terminate()
                raise
        if process.returncode != 0:
            raise StepError(
                f"the command ended with exit code {process.returncode}:\n$ {shown}\n{''.join(tail)}"
            )
        return {
            "command": shown,
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(_children_seconds() - before, 1),
        }

    def save(self, name: str, record: Record) -> None:
        if self.records_file.exists():  # another step may have been run meanwhile
            self.records = json.loads(self.records_file.read_text())
        self.records[name] = record
        write_atomically(self.records_file, json.dumps(self.records, indent=1) + "\n")

    def model(self, dataset: str, trainer: str, plans: str, configuration: str) -> Path:
        return self.results / dataset / f"{trainer}__{plans}__{configuration}"


@dataclass(frozen=True)
class Step:
    """One resumable part of the run.

    Attributes:
        name: Key of its record.
        run: Does it and returns its figures.
        depends: What it was done with; a record made with something else is stale and the step is done again.
    """

    name: str
    run: Callable[[Work], Record]
    depends: Any = None


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def make_steps(epochs: int) -> list[Step]:
    """All steps in order."""
    steps = [
        Step("hippocampus:preprocess", preprocess_hippocampus),
        Step("hippocampus:plan", plan_hippocampus, [PATCHES, NETWORK]),
        Step("hippocampus:position", position_hippocampus),
    ]
    for configuration in PATCHES:
        for method in (*TRAINERS, "longer") if configuration == SMALLEST else TRAINERS:
            steps.append(
                Step(
                    f"train:{configuration}:{method}",
                    lambda work, c=configuration, m=method: train(work, c, m),  # type: ignore[misc]
                    [trainer_name(method, epochs), PATCHES, NETWORK, location_of(method)],
                )
            )
    steps.append(Step("hippocampus:atlas", atlas_hippocampus))
    for method in TRAINERS:
        # a new training makes an old prediction stale
        depends = [trainer_name(method, epochs), PATCHES, NETWORK, location_of(method)]
        steps.append(Step(f"predict:{method}", lambda work, m=method: predict(work, m), depends))  # type: ignore[misc]
    steps += [
        Step("totalseg:position", position_totalseg),
        Step("phantom:train", train_phantom, [NETWORK, location_of("prior")]),
        Step("totalseg:predict", predict_totalseg, [NETWORK, location_of("prior")]),
        Step("totalseg:show", show_totalseg),
    ]
    return steps


def trainer_name(method: str, epochs: int) -> str:
    """The trainer of a method (``longer``: plain nnU-Net with a larger budget) for trainings of that many epochs."""
    if method == "longer":
        return f"{TRAINERS['plain']}_{LONGER[epochs]}epochs"
    return f"{TRAINERS[method]}_{epochs}epochs"


def location_of(method: str) -> str | None:
    """What the weights of a located trainer depend on with this package's defaults, as JSON; None for plain nnU-Net."""
    from nnunet_locctx.nnunet.options import LocationOptions

    if method not in BLOCKS:
        return None
    return LocationOptions.from_configuration({}, BLOCKS[method]).signature(BLOCKS[method])


# ---------------------------------------------------------------------------------------------------- hippocampus


def link_raw(work: Work, dataset: str) -> Path:
    """Links a dataset into nnUNet_raw.

    Raises:
        StepError: There is no such dataset.
    """
    source, link = work.data / dataset, work.raw / dataset
    if not (source / "dataset.json").is_file():
        raise StepError(f"no dataset {dataset} in {work.data}; give the folder that holds it with --data")
    if link.is_symlink():
        link.unlink()
    link.symlink_to(source.resolve(), target_is_directory=True)
    return source


def preprocess_hippocampus(work: Work) -> Record:
    link_raw(work, HIPPOCAMPUS)
    ran = work.command(
        "nnUNetv2_plan_and_preprocess",
        *("-d", 201, "-c", "3d_fullres", "-npfp", 1, "-np", 1, "--verify_dataset_integrity"),
        log="preprocess_201",
    )
    plans = json.loads((work.preprocessed / HIPPOCAMPUS / "nnUNetPlans.json").read_text())
    planned = plans["configurations"]["3d_fullres"]
    return {
        **ran,
        "planned_patch": planned["patch_size"],
        "planned_batch": planned["batch_size"],
        "median_shape": planned["median_image_size_in_voxels"],
        "spacing": planned["spacing"],
    }


def plan_hippocampus(work: Work) -> Record:
    """Adds the small-patch configurations to a plans file of their own."""
    from nnunet_locctx.nnunet.planning import coverage, plan_configuration, resolve

    covered = {}
    for name, (edge, batch) in PATCHES.items():
        plans, _ = plan_configuration(
            work.preprocessed / HIPPOCAMPUS,
            "nnUNetPlans",
            "3d_fullres",
            name,
            own_plans_name=PLANS,
            force=True,
            patch_size=[edge] * 3,
            batch_size=batch,
            architecture=NETWORK,
        )
        share = coverage(resolve(plans, name))
        covered[name] = {
            "patch_size": list(share.patch_size),
            "batch": batch,
            "share_of_median": [round(part, 3) for part in share.fraction],
            "windows": share.patches,
        }
    return {"plans": PLANS, "network": NETWORK, "configurations": covered}


def position_hippocampus(work: Work) -> Record:
    """Where the two parts lie in the coordinates that the source `voxel` gives."""
    labels = sorted((work.data / HIPPOCAMPUS / "labelsTr").glob("*.nii.gz"))
    centres, orientations = [], set()
    for file in tqdm(labels, desc="positions", unit="case"):
        scan = Scan(file)
        orientations.add(scan.orientation)
        centres.append([scan.frame.fraction(scan.centroid(label)) for label in (1, 2)])
    values = np.array(centres)  # (cases, 2 labels, 3)
    ahead = values[:, 0, 1] > values[:, 1, 1]
    return {
        "cases": len(labels),
        "orientations": sorted(orientations),
        "mean": dict(zip(FOREGROUND, np.round(values.mean(0), 3).tolist(), strict=True)),
        "sd": dict(zip(FOREGROUND, np.round(values.std(0, ddof=1), 3).tolist(), strict=True)),
        "anterior_lies_ahead": int(ahead.sum()),
    }


def train(work: Work, configuration: str, method: str) -> Record:
    """Trains on fold 0 with the stock command, which ends with nnU-Net's validation, and reads that validation."""
    trainer = trainer_name(method, work.epochs)
    model = work.model(HIPPOCAMPUS, trainer, PLANS, configuration)
    shutil.rmtree(model, ignore_errors=True)
    ran = work.command(
        *("nnUNetv2_train", 201, configuration, 0, "-tr", trainer, "-p", PLANS, "-device", "cpu"),
        log=f"train_{configuration}_{method}",
    )
    splits = json.loads((work.preprocessed / HIPPOCAMPUS / "splits_final.json").read_text())
    validation = model / "fold_0" / "validation"
    truth = work.preprocessed / HIPPOCAMPUS / "gt_segmentations"
    cases = read_summary(validation / "summary.json")
    for name, case in cases.items():
        case.update(
            confusion(read_labels(truth / f"{name}.nii.gz"), read_labels(validation / f"{name}.nii.gz"))
        )
    return {
        **ran,
        "trainer": trainer,
        "patch": list(PATCHES[configuration]),
        "location": location_of(method),
        "parameters": count_parameters(model / "fold_0" / "checkpoint_final.pth"),
        "folds": len(splits),
        "training_cases": len(splits[0]["train"]),
        "validation_cases": len(splits[0]["val"]),
        "cases": cases,
    }


def atlas_hippocampus(work: Work) -> Record:
    """What location alone tells: the most frequent label at each place, counted over the training cases of fold 0."""
    fold = json.loads((work.preprocessed / HIPPOCAMPUS / "splits_final.json").read_text())[0]
    folder = work.data / HIPPOCAMPUS / "labelsTr"
    bar = tqdm(fold["train"], desc="atlas", unit="case")
    atlas = Atlas((Scan(folder / f"{name}.nii.gz") for name in bar), classes=3)
    cases = {}
    for name in tqdm(fold["val"], desc="atlas on validation cases", unit="case"):
        scan = Scan(folder / f"{name}.nii.gz")
        found = atlas.segment(scan)
        parts = {
            part: dice(scan.array == label, found == label) for label, part in enumerate(FOREGROUND, start=1)
        }
        cases[name] = {"dice": parts, **confusion(scan.array, found)}
    mean = averages(cases)
    return {
        "training_cases": len(fold["train"]),
        "dice": {part: round(mean[part], 4) for part in (*FOREGROUND, "mean", "whole")},
        "swapped": round(mean["swapped"], 4),
    }


def count_parameters(checkpoint: Path) -> int:
    """Weights in a checkpoint, each counted once (nnU-Net's decoder also lists the encoder's)."""
    import torch

    weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["network_weights"]
    seen = {value.untyped_storage().data_ptr(): value.numel() for value in weights.values()}
    return sum(seen.values())


def predict(work: Work, method: str) -> Record:
    """nnUNetv2_predict on validation scans: must give what nnU-Net's validation gave."""
    configuration = SMALLEST
    trainer = trainer_name(method, work.epochs)
    splits = json.loads((work.preprocessed / HIPPOCAMPUS / "splits_final.json").read_text())
    names = sorted(splits[0]["val"])[:PREDICTED]
    source, target = work.folder / "predict_in" / "201", work.folder / "predict_out" / f"201_{method}"
    shutil.rmtree(target, ignore_errors=True)
    source.mkdir(parents=True, exist_ok=True)
    for name in names:
        _copy(work.data / HIPPOCAMPUS / "imagesTr" / f"{name}_0000.nii.gz", source)
    ran = work.command(
        *("nnUNetv2_predict", "-d", 201, "-c", configuration, "-f", 0, "-tr", trainer, "-p", PLANS),
        *("-i", source, "-o", target, "-device", "cpu", "-npp", 1, "-nps", 1),
        log=f"predict_{method}",
    )
    validation = work.model(HIPPOCAMPUS, trainer, PLANS, configuration) / "fold_0" / "validation"
    scans = {}
    for name in names:
        made, file = target / f"{name}.nii.gz", source / f"{name}_0000.nii.gz"
        require_same_geometry(file, made)
        labels, expected = read_labels(made), read_labels(validation / f"{name}.nii.gz")
        truth = read_labels(work.data / HIPPOCAMPUS / "labelsTr" / f"{name}.nii.gz")
        scans[name] = {
            "differing_voxels": int((labels != expected).sum()),
            "voxels": int(labels.size),
            **confusion(truth, labels),
        }
    return {**ran, "trainer": trainer, "configuration": configuration, "scans": scans}


# ------------------------------------------------------------------------------------------------------- the scan


def position_totalseg(work: Work) -> Record:
    """Orientation and coordinates of the CT's structures; left must be left and up must be up."""
    source = link_raw(work, TOTALSEG)
    labels = json.loads((source / "dataset.json").read_text())["labels"]
    scan = Scan(next((source / "labelsTr").glob("*.nii.gz")))
    centres = positions(scan, labels)
    return {
        "orientation": scan.orientation,
        "size_xyz": list(scan.array.shape[::-1]),
        "spacing_xyz": scan.spacing_xyz,
        "extent_ras": np.round(scan.frame.extent, 1).tolist(),
        "structures": len(centres),
        "pairs": check_sides(centres),
        "spine": check_spine(centres),
        "centres": centres,
    }


def train_phantom(work: Work) -> Record:
    """A tiny located model, to have one that can be asked about a CT."""
    from nnunet_locctx.datasets.phantom import make_phantom
    from nnunet_locctx.nnunet.planning import plan_configuration

    for old in (work.raw, work.preprocessed, work.results):
        shutil.rmtree(old / PHANTOM, ignore_errors=True)
    make_phantom(work.raw, 902, cases=PHANTOMS, test_cases=0, size=48, spacing=3.0, progress=True)
    words = ("nnUNetv2_plan_and_preprocess", "-d", 902, "-c", "3d_fullres", "-npfp", 1, "-np", 1)
    prepared = work.command(*words, log="preprocess_902")
    plan_configuration(
        work.preprocessed / PHANTOM,
        "nnUNetPlans",
        "3d_fullres",
        "patch24",
        own_plans_name=PLANS,
        patch_size=[24] * 3,
        batch_size=2,
        architecture=NETWORK,
    )
    trained = work.command(
        *("nnUNetv2_train", 902, "patch24", 0, "-tr", PHANTOM_TRAINER, "-p", PLANS, "-device", "cpu"),
        log="train_902",
    )
    return {"preprocess": prepared, "train": trained, "trainer": PHANTOM_TRAINER, "cases": PHANTOMS}


def predict_totalseg(work: Work) -> Record:
    """The phantom's model on the CT, and the coordinates that its network was given for left and right."""
    source = link_raw(work, TOTALSEG)
    image = next((source / "imagesTr").glob("*_0000.nii.gz"))
    given, target = work.folder / "predict_in" / "203", work.folder / "predict_out" / "203"
    shutil.rmtree(target, ignore_errors=True)
    given.mkdir(parents=True, exist_ok=True)
    _copy(image, given)
    ran = work.command(
        *("nnUNetv2_predict", "-d", 902, "-c", "patch24", "-f", 0, "-tr", PHANTOM_TRAINER, "-p", PLANS),
        *("-i", given, "-o", target, "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta"),
        log="predict_203",
    )
    made = target / image.name.replace("_0000.nii.gz", ".nii.gz")
    require_same_geometry(image, made)
    labels = read_labels(made)
    allowed = set(json.loads((work.raw / PHANTOM / "dataset.json").read_text())["labels"].values())
    if not set(np.unique(labels).tolist()) <= allowed:
        raise StepError(
            f"the prediction holds labels {np.unique(labels).tolist()}, the phantom's are {sorted(allowed)}"
        )
    return {
        **ran,
        "size_xyz": list(labels.shape[::-1]),
        "labels": np.unique(labels).tolist(),
        "given": given_location(work, source, image),
    }


def given_location(work: Work, source: Path, image: Path) -> Record:
    """Mean of the location channels over each structure, after the preprocessing of nnUNetv2_predict (source voxel).

    Raises:
        StepError: A left structure does not lie left of its right one.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_locctx.nnunet.configuration import locate

    labels = json.loads((source / "dataset.json").read_text())["labels"]
    segmentation = source / "labelsTr" / image.name.replace("_0000.nii.gz", ".nii.gz")
    plans = PlansManager(str(work.preprocessed / PHANTOM / f"{PLANS}.json"))
    configuration = locate(plans.get_configuration("patch24"))
    preprocessor = configuration.preprocessor_class(verbose=False)
    description = json.loads((source / "dataset.json").read_text())
    data, seg, _ = preprocessor.run_case([str(image)], str(segmentation), plans, configuration, description)
    centres = {}
    for name, label in labels.items():
        mask = seg[0] == label
        if label and mask.any():
            centres[name] = {"fraction": [round(float(channel[mask].mean()), 4) for channel in data[-3:]]}
    pairs = check_sides(centres)
    return {"shape": list(data.shape), "pairs": len(pairs), "centres": centres}


def show_totalseg(work: Work) -> Record:
    """`locctx show`: slices with labels and the coordinate maps, beside the results."""
    source = link_raw(work, TOTALSEG)
    image = next((source / "imagesTr").glob("*_0000.nii.gz"))
    picture = work.out / "totalseg_location.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    label = source / "labelsTr" / image.name.replace("_0000.nii.gz", ".nii.gz")
    ran = work.command(
        *("locctx", "show", image, "--label", label, "--patch", "32", "32", "32", "--output", picture),
        log="show_203",
    )
    return {**ran, "picture": picture.name}


def _copy(file: Path, folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / file.name).unlink()
    shutil.copy(file, folder / file.name)


# ----------------------------------------------------------------------------------------------------------- main


def describe_machine() -> Record:
    """The machine and the versions, for the documents."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
    packages = ("nnunetv2", "torch", "batchgeneratorsv2", "numpy", "SimpleITK")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def run_steps(work: Work, steps: Sequence[Step], chosen: str) -> bool:
    """Runs the steps that are chosen and not done.

    Returns:
        Whether all steps, chosen or not, are done now.
    """
    done = 0
    for number, step in enumerate(steps, start=1):
        depends = json.loads(json.dumps(step.depends))
        record = work.records.get(step.name)
        fresh = record is not None and record.get("depends") == depends
        title = f"[{number}/{len(steps)}] {step.name}"
        if fresh:
            print(f"{title}: done before")
        elif not fnmatch.fnmatch(step.name, chosen):
            print(f"{title}: not chosen")
            continue
        else:
            print(f"{title}", flush=True)
            work.save(step.name, {**step.run(work), "depends": depends})
        done += 1
    return done == len(steps)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=REPOSITORY.parent / "shared" / "data", help="folder of the raw datasets"
    )
    parser.add_argument(
        "--folder", type=Path, default=REPOSITORY / "real_data", help="working folder (default: real_data)"
    )
    parser.add_argument("--out", type=Path, help=OUT_HELP)
    parser.add_argument(
        "--epochs", type=int, choices=tuple(LONGER), default=5, help="length of each training (default: 5)"
    )
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="run only steps that match, such as 'train:*:plain'"
    )
    parser.add_argument("--list", action="store_true", help="print the steps and end")
    parser.add_argument(
        "--report", action="store_true", help="write the documents from what there is and end"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    steps = make_steps(options.epochs)
    if options.list:
        print("\n".join(step.name for step in steps))
        return 0
    if not any(fnmatch.fnmatch(step.name, options.only) for step in steps):
        print(f"error: no step matches {options.only!r}; --list prints them", file=sys.stderr)
        return 2
    if not options.report and not options.data.is_dir():
        print(
            f"error: no folder {options.data}; give the folder of the raw datasets with --data",
            file=sys.stderr,
        )
        return 2
    out, page = destinations(options.out, __file__, "results.md")
    work = Work(options.folder.resolve(), options.data.resolve(), out.resolve(), options.epochs)
    try:
        if not options.report:
            work.save("machine", describe_machine())
            complete = run_steps(work, steps, options.only)
        if options.report or complete:
            write_documents(work.records, out, page)
            print(f"written: {page}, {out / 'results.json'}")
    except StepError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
