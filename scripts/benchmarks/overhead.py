"""What location costs: plain nnU-Net against each located trainer.

Four parts: ``loader`` (batches per second of the real augmented loader), ``step`` (time of a training step),
``predict`` (wall time and peak memory of the stock command on one scan) and ``disk``. The variants alternate within one
run and start at another one each round, and plain nnU-Net runs twice per round: what the second one differs by is the
noise of the machine. Figures are ratios to plain nnU-Net of the same round.

Every measurement is a line of ``<folder>/records.jsonl``; an interrupted run is taken up again by the same command.
Needs the ``dev`` extra (psutil).

    python -m scripts.benchmarks.overhead                # everything, 7 rounds, writes docs/explanation/benchmarks.md
    python -m scripts.benchmarks.overhead --quick        # small and short, to see that it works; writes below <folder>
"""

import argparse
import datetime
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.benchmarks.harness import (
    PLAIN,
    REPOSITORY,
    Clock,
    MemoryWatch,
    Record,
    Records,
    by,
    command_line,
    describe_machine,
    described_parser,
    quiet,
    replace_section,
    rotated,
    run_logged,
    say,
    spread,
    table,
)

DATASET = 900
PLANS = "BenchmarkPlans"
DATA = "nnUNetPlans_3d_fullres"
AGAIN = "plain again"
LOCATED = ("LocCtxTrainer",)
PARTS = ("loader", "step", "predict", "disk")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Network:
    """Size of a planned PlainConvUNet."""

    features: tuple[int, ...]
    convolutions: int  # per stage

    def __str__(self) -> str:
        widths = "-".join(map(str, self.features))
        return f"PlainConvUNet {widths}, {self.convolutions} convolution(s) per stage"


@dataclass(frozen=True)
class Settings:
    """What is measured; sizes in voxels, in array order."""

    volume: int = 160  # the training volumes' nominal edge
    cases: int = 6
    loader_patch: tuple[int, int, int] = (96, 96, 96)
    loader_batches: int = 12
    step_patch: tuple[int, int, int] = (48, 48, 48)
    step_network: Network = Network((32, 64, 128, 256, 320), 2)
    step_repeats: int = 1
    scan: tuple[int, int, int] = (256, 256, 200)  # x, y, z
    predict_patch: tuple[int, int, int] = (128, 128, 128)
    predict_network: Network = Network((32, 64, 128, 256, 320), 2)
    batch: int = 2

    @classmethod
    def quick(cls) -> "Settings":
        return cls(
            volume=64,
            loader_patch=(32, 32, 32),
            loader_batches=2,
            step_patch=(32, 32, 32),
            step_network=Network((8, 16, 32), 1),
            step_repeats=1,
            scan=(64, 64, 50),
            predict_patch=(32, 32, 32),
            predict_network=Network((8, 16, 32), 1),
        )


CONCERNS = {
    "loader": ("volume", "cases", "batch", "loader_patch", "loader_batches"),
    "step": ("batch", "step_patch", "step_network", "step_repeats"),
    "predict": ("scan", "predict_patch", "predict_network"),
    "disk": ("volume", "cases", "predict_network"),
}
"""The settings a part depends on."""


SCALES = {"batches/s": 1.0, "s": 1.0, "GiB": 2.0**-30, "MiB": 2.0**-20}
"""Unit of a table -> what a measured value is multiplied with; rates are measured as seconds."""


@dataclass(frozen=True)
class Goal:
    """One table of the report: part and measure, a key of :data:`SCALES`, what is aimed at."""

    part: str
    measure: str
    title: str
    unit: str
    aim: str

    def value(self, measures: Record) -> float:
        """A measured value in the table's unit."""
        measured = float(measures[self.measure])
        return 1 / measured if self.unit == "batches/s" else SCALES[self.unit] * measured


GOALS = (
    Goal("loader", "seconds", "Loader: batches per second of wall time", "batches/s", ">= 0.95"),
    Goal("loader", "cpu", "Loader: batches per second of CPU time", "batches/s", ">= 0.95"),
    Goal("step", "seconds", "Training step: wall time", "s", "<= 1.05"),
    Goal("step", "cpu", "Training step: CPU time", "s", "<= 1.05"),
    Goal("predict", "seconds", "`nnUNetv2_predict`: wall time", "s", "<= 1.05"),
    Goal("predict", "cpu", "`nnUNetv2_predict`: CPU time", "s", "<= 1.05"),
    Goal(
        "predict", "rss", "`nnUNetv2_predict`: peak memory, RSS summed over its processes", "GiB", "<= 1.10"
    ),
    Goal("predict", "pss", "`nnUNetv2_predict`: peak memory, shared pages counted once", "GiB", "<= 1.10"),
    Goal("disk", "preprocessed", "Disk: preprocessed data", "MiB", "1.00"),
    Goal("disk", "checkpoint", "Disk: checkpoint of the network of `predict`", "MiB", "1.00"),
)


# ------------------------------------------------------------------------------------------------------- measuring


class Bench:
    """Folders, data, trainers and records of one benchmark."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        trainers: list[str],
        rounds: int,
        device: str,
        threads: int = 0,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.variants = {"plain": PLAIN, **{name: name for name in trainers}, AGAIN: PLAIN}
        self.rounds = rounds
        self.device = device
        self.threads = threads or os.cpu_count() or 1
        self.records = Records(folder / "records.jsonl")
        self.machine = describe_machine(device)
        self._made: dict[tuple[str, str], Any] = {}

    # -- data

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed" / f"Dataset{DATASET:03d}_Phantom"

    def prepare(self) -> None:
        """Phantom, stock planning and preprocessing, the scan to predict (each made once), and our plans."""
        s = self.settings
        done = self.folder / "prepared.json"
        sizes = {"volume": s.volume, "cases": s.cases, "scan": list(s.scan)}
        made = json.loads(done.read_text()) if done.exists() else {}
        if not all(made.get(name) == value for name, value in sizes.items()):
            self._make_data()
            done.write_text(json.dumps(sizes))
        self._write_plans()

    def _make_data(self) -> None:
        from nnunet_locctx.phantoms.twin_organs import make_phantom

        s = self.settings
        say("phantom dataset")
        raw = Path(os.environ["nnUNet_raw"])
        make_phantom(
            raw,
            DATASET,
            cases=s.cases,
            test_cases=0,
            size=s.volume,
            spacing=2.0,
            overwrite=True,
            progress=True,
        )
        say("nnUNetv2_plan_and_preprocess")
        command = f"nnUNetv2_plan_and_preprocess -d {DATASET} -c 3d_fullres -np 2 --clean".split()
        run_logged(command, self.folder / "preprocess.log")
        plans = json.loads((self.preprocessed / "nnUNetPlans.json").read_text())
        spacing = plans["configurations"]["3d_fullres"]["spacing"]
        write_scan(self.folder / "scan" / "scan_0000.nii.gz", s.scan, spacing)

    def _write_plans(self) -> None:
        """One configuration per part, over the same preprocessed data."""
        s = self.settings
        plans = json.loads((self.preprocessed / "nnUNetPlans.json").read_text())
        plans["plans_name"] = PLANS
        base = plans["configurations"]["3d_fullres"]
        for name, patch, network in (
            ("loader", s.loader_patch, s.step_network),
            ("step", s.step_patch, s.step_network),
            ("predict", s.predict_patch, s.predict_network),
        ):
            plans["configurations"][f"3d_{name}"] = {
                **base,
                "patch_size": list(patch),
                "batch_size": s.batch,
                "architecture": architecture(base["architecture"], network),
            }
        (self.preprocessed / f"{PLANS}.json").write_text(json.dumps(plans, indent=2))

    # -- records

    def key(self, part: str) -> str:
        """Records of another key (settings, versions, device) are left alone and not used."""
        settings = {name: getattr(self.settings, name) for name in CONCERNS[part]}
        settings = {name: str(v) if isinstance(v, Network) else v for name, v in settings.items()}
        if part == "step":
            settings["threads"] = self.threads
        return json.dumps(
            {"part": part, "settings": settings, "versions": self.machine["versions"], "device": self.device}
        )

    def load(self, part: str) -> dict[int, dict[str, Record]]:
        """{round: {variant: measures}} of the rounds that are complete."""
        rounds: dict[int, dict[str, Record]] = {}
        for record in self.records.records:
            if record["key"] == self.key(part) and record["variant"] in self.variants:
                rounds.setdefault(record["round"], {})[record["variant"]] = record["measures"]
        return {
            number: values for number, values in sorted(rounds.items()) if set(values) == set(self.variants)
        }

    def measure(self, part: str, method: Callable[[str, int], Record], warm_up: bool) -> None:
        """Runs the missing rounds of a part."""
        rounds = 1 if part == "disk" else self.rounds
        missing = [number for number in range(rounds) if number not in self.load(part)]
        if not missing:
            say(f"{part}: {rounds} round(s) are in {self.records.file}")
            return
        if warm_up:
            for variant in tqdm(self.variants, desc=f"{part}: warming up", unit="variant"):
                method(variant, 10_000)
        with tqdm(total=len(missing) * len(self.variants), desc=part, unit="run") as bar:
            for number in missing:
                for variant in rotated(list(self.variants), number):
                    measures = method(variant, number)
                    record = {"key": self.key(part), "round": number, "variant": variant}
                    self.records.add({**record, "measures": measures})
                    bar.set_postfix_str(f"{variant} {measures.get('seconds', 0):.2f} s")
                    bar.update()

    # -- the parts

    def trainer(self, variant: str, configuration: str) -> Any:
        """An initialised trainer; plain and plain again are two objects."""
        if (variant, configuration) not in self._made:
            import torch
            from nnunetv2.run.run_training import get_trainer_from_args

            with quiet():
                torch.manual_seed(0)
                name, device = self.variants[variant], torch.device(self.device)
                made = get_trainer_from_args(str(DATASET), configuration, 0, name, PLANS, device=device)
                made.initialize()
            self._made[variant, configuration] = made
        return self._made[variant, configuration]

    def loader(self, variant: str, number: int) -> Record:
        """Seconds per batch, one thread like a worker of nnU-Net's; the same random numbers for every variant."""
        import torch

        trainer = self.trainer(variant, "3d_loader")
        torch.set_num_threads(1)
        if not hasattr(trainer, "benchmark_batches"):
            with quiet():
                trainer.benchmark_batches = trainer.get_dataloaders()[0]
        np.random.seed(number)  # noqa: NPY002 - nnU-Net draws from the global state
        torch.manual_seed(number)
        clock = Clock()
        for _ in range(self.settings.loader_batches):
            next(trainer.benchmark_batches)
        return clock.per(self.settings.loader_batches)

    def step(self, variant: str, number: int) -> Record:
        """Seconds per training step on one fixed batch."""
        import torch

        trainer = self.trainer(variant, "3d_step")
        torch.set_num_threads(self.threads)
        if not hasattr(trainer, "benchmark_batch"):
            trainer.benchmark_batch = self.fixed_batch(trainer)
            trainer.network.train()
        synchronise = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        synchronise()
        clock = Clock()
        for _ in range(self.settings.step_repeats):
            trainer.train_step(trainer.benchmark_batch)
        synchronise()
        return clock.per(self.settings.step_repeats)

    def fixed_batch(self, trainer: Any) -> dict[str, Any]:
        """Noise, coordinates of the whole volume (for located trainers) and random labels at every scale."""
        import torch

        s = self.settings
        draw = torch.Generator().manual_seed(0)
        data = torch.randn(s.batch, 1, *s.step_patch, generator=draw)
        if type(trainer).__name__ != PLAIN:
            from scripts.benchmarks.networks import whole_volume

            data = torch.cat([data, whole_volume(s.step_patch).expand(s.batch, 3, *s.step_patch)], dim=1)
        classes = trainer.label_manager.num_segmentation_heads
        target = []
        for scale in trainer._get_deep_supervision_scales():
            size = [round(n * f) for n, f in zip(s.step_patch, scale, strict=True)]
            target.append(torch.randint(0, classes, (s.batch, 1, *size), generator=draw).float())
        return {"data": data, "target": target}

    def model_folder(self, variant: str) -> Path:
        """A model folder as training leaves it, with the weights of the first day."""
        trainer = self.trainer(variant, "3d_predict")
        base, fold = Path(trainer.output_folder_base), Path(trainer.output_folder)
        checkpoint = fold / "checkpoint_final.pth"
        if not checkpoint.exists():
            fold.mkdir(parents=True, exist_ok=True)
            (base / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
            (base / "dataset.json").write_text(json.dumps(trainer.dataset_json))
            with quiet():
                trainer.set_deep_supervision_enabled(True)
                partial = fold / "partial.pth"
                trainer.save_checkpoint(str(partial))
                partial.replace(checkpoint)
        return base

    def predict(self, variant: str, number: int) -> Record:
        """Wall time and peak memory of the stock command, process start and imports included."""
        self.model_folder(variant)
        output = self.folder / "predicted" / variant.replace(" ", "_")
        command = f"nnUNetv2_predict -d {DATASET} -c 3d_predict -p {PLANS} -tr {self.variants[variant]} -f 0"
        command += f" -npp 1 -nps 1 -device {self.device} --disable_tta"
        command += " -step_size 1"  # a quarter of the windows: 35 runs have to end
        folders = ["-i", str(self.folder / "scan"), "-o", str(output)]
        with MemoryWatch() as watch:
            clock = Clock()
            run_logged([*command.split(), *folders], self.folder / "predict.log", watch)
            times = clock.per(1)
        return {**times, "rss": watch.rss, "pss": watch.pss}

    def disk(self, variant: str, number: int) -> Record:
        """Bytes of the preprocessed data after this trainer has drawn batches from it, and of its checkpoint."""
        self.loader(variant, number)
        checkpoint = self.model_folder(variant) / "fold_0" / "checkpoint_final.pth"
        return {
            "preprocessed": bytes_below(self.preprocessed / DATA),
            "checkpoint": checkpoint.stat().st_size,
        }

    def forget(self) -> None:
        """Drops the trainers of a finished part."""
        self._made.clear()


# --------------------------------------------------------------------------------------------------------- helpers


def architecture(planned: dict[str, Any], network: Network) -> dict[str, Any]:
    """A planned PlainConvUNet resized to `network`, isotropic."""
    kwargs = planned["arch_kwargs"]
    stages = len(network.features)
    resized = {
        **kwargs,
        "n_stages": stages,
        "features_per_stage": list(network.features),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [network.convolutions] * stages,
        "n_conv_per_stage_decoder": [network.convolutions] * (stages - 1),
    }
    return {**planned, "arch_kwargs": resized}


def write_scan(path: Path, size: tuple[int, int, int], spacing: list[float]) -> None:
    """A body in air with noise, of exactly `size` voxels (x, y, z), at the plans' spacing (z, y, x) in mm."""
    import SimpleITK as sitk

    draw = np.random.default_rng(0)
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    inside = (x[None, None] / 0.9) ** 2 + (y[None, :, None] / 0.7) ** 2 + (z[:, None, None] / 1.2) ** 2 < 1
    image = np.where(inside, 40, -1000) + draw.integers(-20, 20, inside.shape)
    scan = sitk.GetImageFromArray(image.astype(np.int16))
    scan.SetSpacing([float(mm) for mm in spacing[::-1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(scan, str(path))


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------------- report


def goal_table(bench: Bench, goal: Goal) -> list[str]:
    """Markdown rows of one measure: values and ratios of the same round, median and range."""
    rounds = bench.load(goal.part)
    values = {
        variant: [goal.value(measures[variant]) for measures in rounds.values()]
        for variant in bench.variants
        if all(measures[variant].get(goal.measure) for measures in rounds.values())
    }
    if not rounds or "plain" not in values:
        return []
    rows = []
    for variant, own in values.items():
        ratios = [a / b for a, b in zip(own, values["plain"], strict=True)]
        name = {"plain": "plain nnU-Net", AGAIN: "plain nnU-Net again (noise)"}.get(variant, f"`{variant}`")
        ratio = "1" if variant == "plain" else spread(ratios, 3)
        rows.append([name, spread(own, 2), ratio, "" if bench.variants[variant] == PLAIN else goal.aim])
    heads = ("", f"{goal.unit}: median (range)", "ratio to plain: median (range)", "aim")
    return [f"### {goal.title}", "", *table(heads, rows)]


def report(bench: Bench, command: str, quick: bool) -> str:
    """The measured section of the page."""
    s, machine = bench.settings, bench.machine
    rounds = {part: len(bench.load(part)) for part in PARTS}
    counts = ", ".join(f"{part} {number}" for part, number in rounds.items())
    every = [m for part in PARTS for values in bench.load(part).values() for m in values.values()]
    loads = spread([m["load"] for m in every if "load" in m] or [0.0], 1)
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    pss_interval = MemoryWatch.INTERVAL * MemoryWatch.PSS_EVERY
    notes = f"""
Measured {datetime.date.today().isoformat()} with `{command}`, nnunet_locctx {version("nnunet_locctx")}.

- Machine: {machine["processor"]}; {machine["memory"]}; {machine["system"]}{machine["gpu"]}.
- Versions: {versions}.
- Rounds: {counts}. In a round every variant runs once; each round starts
  with another variant. Ratios are to plain nnU-Net of the same round. Plain nnU-Net runs twice per round; the ratio of
  its second run is the machine's noise.
- Load average (1 min) at the end of the runs: {loads}. CPU time suffers less from a busy machine than
  wall time does.
- Loader: nnU-Net's augmented training loader, one process and one thread, patch {by(s.loader_patch)}, batch {s.batch},
  {s.loader_batches} batches per run, the same random numbers for every variant; phantom of about {s.volume}^3 voxels.
- Step: `train_step` on a fixed batch of {s.batch} x {by(s.step_patch)}, {s.step_network}; device {bench.device},
  {bench.threads} CPU thread(s), {s.step_repeats} step(s) per run.
- Prediction: `nnUNetv2_predict --disable_tta -step_size 1 -npp 1 -nps 1 -device {bench.device}` on one
  scan of {by(s.scan)} voxels at the plans' spacing (nothing is resampled), patch {by(s.predict_patch)},
  {s.predict_network}. Start and imports are part of the time. Memory is sampled every
  {MemoryWatch.INTERVAL} s, with shared pages counted once every {pss_interval:g} s.
- Disk: all trainers read the same preprocessed data; its size is taken after each of them drew batches from it.
"""
    lines = [*notes.strip().splitlines(), ""]
    if quick:
        lines.insert(0, "**Quick run: shows that the script works, says nothing about cost.**\n")
    for goal in GOALS:
        lines += goal_table(bench, goal)
    return "\n".join(lines).rstrip() + "\n"


# ------------------------------------------------------------------------------------------------------------ main


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each part (default: 7)")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which parts to measure"
    )
    parser.add_argument(
        "--trainers", nargs="*", default=list(LOCATED), help="the trainers to compare with plain nnU-Net"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="for steps and prediction (default: cpu)"
    )
    parser.add_argument(
        "--folder", type=Path, default=REPOSITORY / "benchmark", help="data and records (default: benchmark)"
    )
    parser.add_argument(
        "--page", type=Path, help="where the tables go (default: docs/explanation/benchmarks.md)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="CPU threads of a step (default: all); 1 disturbs least on a busy machine",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, 2 rounds")
    parser.add_argument("--fresh", action="store_true", help="drop the records of earlier runs")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write the page from the records"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    folder = (options.folder / "quick" if options.quick else options.folder).resolve()
    page = options.page or (
        folder / "benchmarks.md" if options.quick else REPOSITORY / "docs" / "explanation" / "benchmarks.md"
    )
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(folder / name)
        (folder / name).mkdir(parents=True, exist_ok=True)
    os.environ["nnUNet_extTrainer"] = str(REPOSITORY / "trainers")

    settings = Settings.quick() if options.quick else Settings()
    rounds = min(options.rounds, 2) if options.quick else options.rounds
    bench = Bench(folder, settings, options.trainers, rounds, options.device, options.threads)
    if options.fresh:
        bench.records.file.unlink(missing_ok=True)
    if not options.report:
        bench.prepare()
        os.environ["nnUNet_n_proc_DA"] = "0"  # no worker processes; planning does not take 0
        for part in options.parts:
            bench.measure(part, getattr(bench, part), warm_up=part in ("loader", "step"))
            bench.forget()
    measured = report(bench, command_line("scripts.benchmarks.overhead", arguments), options.quick)
    replace_section(page, BEGIN, END, measured)
    print(measured)
    say(f"written to {page}")


if __name__ == "__main__":
    main()
