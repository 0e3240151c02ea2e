"""What location costs: plain nnU-Net against located trainers.

Four parts:

* loader: nnU-Net's augmented training loader, one process and one thread, the same random numbers for every trainer;
* step: ``train_step`` on a fixed batch;
* predict: ``nnUNetv2_predict --disable_tta -step_size 1 -npp 1 -nps 1`` on one scan at the plans' spacing, start and
  imports included; memory is sampled every 0.2 s, with shared pages counted once every 1 s;
* disk: size of the preprocessed data after the trainer drew batches from it, and of its checkpoint.

The trainers alternate within a round and each round starts with another one. Figures are ratios to plain nnU-Net of the
same round. Plain nnU-Net runs twice per round: what the second one differs by is the noise of the machine. CPU time
suffers less from a busy machine than wall time does.

Every measurement is a line of overhead.json beside the script; the same command resumes an interrupted run. Data and
models go to ``benchmark/``. Needs the ``dev`` extra (psutil).

    python -m scripts.benchmarks.overhead      # everything, 7 rounds; writes overhead.md beside the script
"""

import argparse
import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from scripts.benchmarks.harness import (
    PLAIN,
    REPOSITORY,
    Clock,
    MemoryWatch,
    Record,
    Records,
    describe_machine,
    described_parser,
    measured_on,
    rotated,
    run_logged,
    say,
    spread,
    table,
    unet_architecture,
    write_page,
)

DATASET = 900
PLANS = "BenchmarkPlans"
DATA = "nnUNetPlans_3d_fullres"
AGAIN = "plain again"
PARTS = ("loader", "step", "predict", "disk")


@dataclass(frozen=True)
class Settings:
    """What is measured; sizes in voxels, in array order."""

    volume: int = 160  # the training volumes' nominal edge
    cases: int = 6
    batch: int = 2
    features: tuple[int, ...] = (32, 64, 128, 256, 320)
    loader_patch: tuple[int, ...] = (96, 96, 96)
    loader_batches: int = 12
    step_patch: tuple[int, ...] = (48, 48, 48)
    predict_patch: tuple[int, ...] = (128, 128, 128)
    scan: tuple[int, ...] = (256, 256, 200)  # x, y, z


class Measure(NamedTuple):
    """One table: a measured value of a part times `scale` in `unit` (a rate: its inverse), and what is aimed at."""

    part: str
    name: str
    title: str
    unit: str
    scale: float
    aim: str


MEASURES = (
    Measure("loader", "seconds", "Loader: batches per second of wall time", "batches/s", 1, ">= 0.95"),
    Measure("loader", "cpu", "Loader: batches per second of CPU time", "batches/s", 1, ">= 0.95"),
    Measure("step", "seconds", "Training step: wall time", "s", 1, "<= 1.05"),
    Measure("step", "cpu", "Training step: CPU time", "s", 1, "<= 1.05"),
    Measure("predict", "seconds", "`nnUNetv2_predict`: wall time", "s", 1, "<= 1.05"),
    Measure("predict", "cpu", "`nnUNetv2_predict`: CPU time", "s", 1, "<= 1.05"),
    Measure("predict", "rss", "`nnUNetv2_predict`: peak memory, RSS summed", "GiB", 2**-30, "<= 1.10"),
    Measure("predict", "pss", "`nnUNetv2_predict`: peak memory, shared pages once", "GiB", 2**-30, "<= 1.10"),
    Measure("disk", "preprocessed", "Disk: preprocessed data", "MiB", 2**-20, "1.00"),
    Measure("disk", "checkpoint", "Disk: checkpoint", "MiB", 2**-20, "1.00"),
)


# ------------------------------------------------------------------------------------------------------- measuring


class Bench:
    """Folder of data and models, trainers and records of one benchmark; `rounds` is the number of rounds of a part."""

    def __init__(
        self,
        folder: Path,
        records: Path,
        trainers: Sequence[str],
        rounds: int,
        device: str,
        threads: int,
        settings: Settings | None = None,
    ) -> None:
        self.folder = folder
        self.records = Records(records)
        self.trainers = {"plain": PLAIN, **{name: name for name in trainers}, AGAIN: PLAIN}
        self.rounds, self.device, self.threads = rounds, device, threads
        self.settings = settings or Settings()
        self.machine = describe_machine(device)
        self._made: dict[tuple[str, str], Any] = {}

    # -- data

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed" / f"Dataset{DATASET:03d}_Phantom"

    def prepare(self) -> None:
        """Phantom, stock planning and preprocessing, the scan to predict (each made once), and our plans."""
        from nnunet_locctx.phantoms.twin_organs import make_phantom

        s = self.settings
        planned, done = self.preprocessed / "nnUNetPlans.json", self.folder / "prepared.json"
        if not done.exists() or json.loads(done.read_text()) != [s.volume, s.cases, *s.scan]:
            say("phantom dataset")
            raw = Path(os.environ["nnUNet_raw"])
            sizes: Record = {"cases": s.cases, "test_cases": 0, "size": s.volume, "spacing": 2.0}
            make_phantom(raw, DATASET, **sizes, overwrite=True, progress=True)
            say("nnUNetv2_plan_and_preprocess")
            command = f"nnUNetv2_plan_and_preprocess -d {DATASET} -c 3d_fullres -np 2 --clean"
            run_logged(command.split(), self.folder / "preprocess.log")
            spacing = json.loads(planned.read_text())["configurations"]["3d_fullres"]["spacing"]
            write_scan(self.folder / "scan" / "scan_0000.nii.gz", s.scan, spacing)
            done.write_text(json.dumps([s.volume, s.cases, *s.scan]))
        plans = json.loads(planned.read_text())
        base = plans["configurations"]["3d_fullres"]
        stages = len(s.features)
        strides = [[1] * 3, *[[2] * 3] * (stages - 1)]
        network = unet_architecture(s.features, strides, [[3] * 3] * stages)
        for part in ("loader", "step", "predict"):
            patch = list(getattr(s, f"{part}_patch"))
            configuration = {**base, "patch_size": patch, "batch_size": s.batch, "architecture": network}
            plans["configurations"][f"3d_{part}"] = configuration
        plans["plans_name"] = PLANS
        (self.preprocessed / f"{PLANS}.json").write_text(json.dumps(plans, indent=2))

    # -- records

    def key(self, part: str) -> Record:
        """Records of other settings or of another machine are left alone and not used."""
        key = {"part": part, **asdict(self.settings), "device": self.device, "threads": self.threads}
        content: Record = json.loads(json.dumps({**key, "machine": self.machine}))
        return content

    def complete(self, part: str) -> pd.DataFrame:
        """The rounds in which every trainer was measured, columns (measure, trainer)."""
        key = self.key(part)
        rows = [
            {"round": record["round"], "trainer": record["trainer"], **record["measures"]}
            for record in self.records.records
            if record["key"] == key and record["trainer"] in self.trainers
        ]
        if {row["trainer"] for row in rows} != set(self.trainers):
            return pd.DataFrame()
        latest = pd.DataFrame(rows).drop_duplicates(["round", "trainer"], keep="last")
        return latest.pivot(index="round", columns="trainer").dropna()

    def measure(self, part: str, method: Callable[[str, int], Record]) -> None:
        """Runs the missing rounds of a part."""
        rounds = range(1 if part == "disk" else self.rounds)
        missing = [number for number in rounds if number not in self.complete(part).index]
        if missing and part in ("loader", "step"):
            for trainer in tqdm(self.trainers, desc=f"{part}: warming up", unit="trainer"):
                method(trainer, 10_000)
        runs = [(trainer, number) for number in missing for trainer in rotated(list(self.trainers), number)]
        for trainer, number in tqdm(runs, desc=part, unit="run"):
            record = {"key": self.key(part), "round": number, "trainer": trainer}
            self.records.add({**record, "measures": method(trainer, number)})
        self._made.clear()

    # -- the parts

    def trainer(self, trainer: str, configuration: str) -> Any:
        """An initialised trainer; plain and plain again are two objects."""
        if (trainer, configuration) not in self._made:
            import torch
            from nnunetv2.run.run_training import get_trainer_from_args

            with contextlib.redirect_stdout(io.StringIO()):
                torch.manual_seed(0)
                name, device = self.trainers[trainer], torch.device(self.device)
                made = get_trainer_from_args(str(DATASET), configuration, 0, name, PLANS, device=device)
                made.initialize()
            self._made[trainer, configuration] = made
        return self._made[trainer, configuration]

    def loader(self, name: str, number: int) -> Record:
        """Seconds per batch, one thread like a worker of nnU-Net's; the same random numbers for every trainer."""
        import torch

        trainer = self.trainer(name, "3d_loader")
        torch.set_num_threads(1)
        if not hasattr(trainer, "benchmark_batches"):
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.benchmark_batches = trainer.get_dataloaders()[0]
        np.random.seed(number)  # noqa: NPY002 - nnU-Net draws from the global state
        torch.manual_seed(number)
        clock = Clock()
        for _ in range(self.settings.loader_batches):
            next(trainer.benchmark_batches)
        return clock.per(self.settings.loader_batches)

    def step(self, name: str, number: int) -> Record:
        """Seconds of a training step on one fixed batch."""
        import torch

        trainer = self.trainer(name, "3d_step")
        torch.set_num_threads(self.threads)
        if not hasattr(trainer, "benchmark_batch"):
            trainer.benchmark_batch = self.fixed_batch(trainer)
            trainer.network.train()
        synchronise = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        synchronise()
        clock = Clock()
        trainer.train_step(trainer.benchmark_batch)
        synchronise()
        return clock.per(1)

    def fixed_batch(self, trainer: Any) -> Record:
        """Noise, the location of a patch that is the whole volume (for located trainers) and random labels at every
        scale."""
        import torch

        from scripts.benchmarks.networks import whole_volume

        batch, patch = self.settings.batch, self.settings.step_patch
        draw = torch.Generator().manual_seed(0)
        data = torch.randn(batch, 1, *patch, generator=draw)
        if type(trainer).__name__ != PLAIN:
            data = torch.cat([data, whole_volume(patch).expand(batch, 3, *patch)], dim=1)
        classes = trainer.label_manager.num_segmentation_heads
        target = []
        for scale in trainer._get_deep_supervision_scales():
            size = [round(n * f) for n, f in zip(patch, scale, strict=True)]
            target.append(torch.randint(0, classes, (batch, 1, *size), generator=draw).float())
        return {"data": data, "target": target}

    def checkpoint(self, name: str) -> Path:
        """The checkpoint in a model folder as training leaves it, with the weights of the first day."""
        trainer = self.trainer(name, "3d_predict")
        base, fold = Path(trainer.output_folder_base), Path(trainer.output_folder)
        checkpoint = fold / "checkpoint_final.pth"
        if not checkpoint.exists():
            fold.mkdir(parents=True, exist_ok=True)
            (base / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
            (base / "dataset.json").write_text(json.dumps(trainer.dataset_json))
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.set_deep_supervision_enabled(True)
                trainer.save_checkpoint(str(fold / "partial.pth"))
            (fold / "partial.pth").replace(checkpoint)
        return checkpoint

    def predict(self, name: str, number: int) -> Record:
        """Wall time and peak memory of the stock command, process start and imports included."""
        self.checkpoint(name)
        command = f"nnUNetv2_predict -d {DATASET} -c 3d_predict -p {PLANS} -tr {self.trainers[name]} -f 0"
        command += f" -npp 1 -nps 1 -device {self.device} --disable_tta"
        command += " -step_size 1"  # a quarter of the windows: 35 runs have to end
        output = self.folder / "predicted" / name.replace(" ", "_")
        folders = ["-i", str(self.folder / "scan"), "-o", str(output)]
        with MemoryWatch() as watch:
            clock = Clock()
            run_logged([*command.split(), *folders], self.folder / "predict.log", watch)
            times = clock.per(1)
        return {**times, "rss": watch.rss, "pss": watch.pss}

    def disk(self, name: str, number: int) -> Record:
        """Bytes of the preprocessed data after this trainer has drawn batches from it, and of its checkpoint."""
        self.loader(name, number)
        data = sum(path.stat().st_size for path in (self.preprocessed / DATA).rglob("*") if path.is_file())
        return {"preprocessed": data, "checkpoint": self.checkpoint(name).stat().st_size}


def write_scan(path: Path, size: Sequence[int], spacing: Sequence[float]) -> None:
    """A body in air with noise, of exactly `size` voxels (x, y, z), at the plans' spacing (z, y, x) in mm."""
    import SimpleITK as sitk

    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    inside = (x[None, None] / 0.9) ** 2 + (y[None, :, None] / 0.7) ** 2 + (z[:, None, None] / 1.2) ** 2 < 1
    image = np.where(inside, 40, -1000) + np.random.default_rng(0).integers(-20, 20, inside.shape)
    scan = sitk.GetImageFromArray(image.astype(np.int16))
    scan.SetSpacing([float(mm) for mm in spacing[::-1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(scan, str(path))


# ---------------------------------------------------------------------------------------------------------- report


def measure_table(bench: Bench, measure: Measure) -> str:
    """Values and ratios of the same round, median and range; empty without complete rounds."""
    rounds = bench.complete(measure.part)
    if rounds.empty or not (rounds[measure.name] > 0).all(axis=None):
        return ""
    values = rounds[measure.name] * measure.scale
    if measure.unit == "batches/s":
        values = 1 / values
    ratios = values.div(values["plain"], axis=0)
    rows = []
    for name, trainer in bench.trainers.items():
        title = {"plain": "plain nnU-Net", AGAIN: "plain nnU-Net again (noise)"}.get(name, f"`{name}`")
        ratio = "1" if name == "plain" else spread(ratios[name].tolist(), 3)
        rows.append([title, spread(values[name].tolist(), 2), ratio, "" if trainer == PLAIN else measure.aim])
    heads = ("", f"{measure.unit}: median (range)", "ratio to plain: median (range)", "aim")
    return f"## {measure.title}\n\nRounds: {len(rounds)}\n\n{table(heads, rows)}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each part (default: 7)")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)"
    )
    trainers = "the trainers to compare with plain nnU-Net (default: LocCtxTrainer)"
    parser.add_argument("--trainers", nargs="*", default=["LocCtxTrainer"], help=trainers)
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="for step and predict (default: cpu)"
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores, help="CPU threads of a step (default: all)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what has no record and writes the page."""
    options = parse(arguments)
    folder, file = REPOSITORY / "benchmark", Path(__file__).resolve()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(folder / name)
        (folder / name).mkdir(parents=True, exist_ok=True)
    os.environ["nnUNet_extTrainer"] = str(REPOSITORY / "trainers")
    records = file.with_suffix(".json")
    bench = Bench(folder, records, options.trainers, options.rounds, options.device, options.threads)
    bench.prepare()
    os.environ["nnUNet_n_proc_DA"] = "0"  # no worker processes; planning does not take 0
    for part in options.parts:
        bench.measure(part, getattr(bench, part))
    settings = ", ".join(f"{name} {value}" for name, value in asdict(bench.settings).items())
    notes = f"{measured_on(bench.machine)} Settings: {settings}, {bench.device}, {bench.threads} thread(s)."
    tables = [measure_table(bench, measure) for measure in MEASURES]
    write_page(file.with_suffix(".md"), "What location costs", __doc__, notes, *tables)
    say(f"written: {records} and overhead.md")


if __name__ == "__main__":
    main()
