"""Dice under a wrong location for each location source, trained with and without jitter and dropout.

As section 3.4 of the LocBAM paper, on the whole-body phantom and with all four sources. Fields of view show most of the
body, as `voxel` and `scanner` locate nothing otherwise. All is done by the commands a user types: `locctx fit`,
`locctx plan`, `nnUNetv2_train` and, for the measurement, `locctx robustness`.

    python -m scripts.experiments.robustness.run                          # everything
    python -m scripts.experiments.robustness.run --sources voxel scanner
    python -m scripts.experiments.robustness.run --report                 # only write the documents again

Everything finished is kept in the work folder (--work); the same command takes an interrupted run up again. Two
processes may measure different sources at once, each in a work folder of its own; `--report --work FIRST SECOND` then
writes the documents from both. Writes
robustness.json and robustness.png beside it, and the part between the marks of docs/results.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_locctx.evaluation.robustness_figure import draw_curves
from nnunet_locctx.evaluation.robustness_report import Point
from nnunet_locctx.files import write_atomically
from nnunet_locctx.nnunet.fitted import COMMANDS
from scripts.benchmarks.harness import OUT_HELP, Record, describe_machine, destinations, replace_section, say
from scripts.experiments.anatomy.dice import PLANS, SMALL_CONFIGURATION, SOURCES, DiceRun, DiceSettings

BEGIN, END = "<!-- robustness: begin -->", "<!-- robustness: end -->"
JITTERED = "_jitter"
KINDS = {
    "shift": "Shifted by a constant towards the right, the front and the head",
    "noise": "A Gaussian error for each slice; the amount is its standard deviation",
}
AXES = {"axial": "along the body", "all": "along all axes"}


@dataclass(frozen=True)
class RobustnessSettings(DiceSettings):
    """What is trained and measured.

    Attributes:
        jitter: Of a jittered training: standard deviation of shift and scale, in units of the source.
        dropout: Of a jittered training: probability that a patch's location is withheld.
    """

    dataset_id: int = 905
    test_cases: int = 2
    epochs: int = 20
    fraction: tuple[float, float] = (0.9, 1.0)
    jitter: float = 0.05
    dropout: float = 0.1

    @property
    def runs(self) -> dict[str, tuple[str, str]]:
        trainer = f"{self.located}_{self.epochs}epochs"
        names = [f"{source}{suffix}" for source in SOURCES for suffix in ("", JITTERED)]
        return {name: (name, trainer) for name in names}


class RobustnessRun(DiceRun):
    """The steps of the measurement; finished ones are not repeated.

    Args:
        folder: Takes nnU-Net's folders, logs and results.
        settings: What to run.
        sources: Location sources.
    """

    def __init__(self, folder: Path, settings: RobustnessSettings, sources: Sequence[str]) -> None:
        runs = [run for run in settings.runs if run.removesuffix(JITTERED) in sources]
        super().__init__(folder, settings, tuple(runs))
        self.robustness = settings
        self.chosen = tuple(sources)

    def run(self) -> None:
        self.steps.run("phantom", "phantom", self.phantom)
        self.steps.run("plan", "nnU-Net plans", self.plan)
        self.steps.run("preprocess", "a small configuration, preprocessed", self.preprocess)
        for source in self.chosen:
            if source in COMMANDS:
                self.steps.run(f"fit_{source}", f"locctx fit: {source}", lambda s=source: self.fit(s))  # type: ignore[misc]
            for run in (source, f"{source}{JITTERED}"):
                for step in (self.configure, self.train):
                    name = step.__name__
                    self.steps.run(f"{name}_{run}", f"{name}: {run}", lambda s=step, r=run: s(r))  # type: ignore[misc]
            self.steps.run(f"measure_{source}", f"measure: {source}", lambda s=source: self.measure(s))  # type: ignore[misc]

    def configure(self, run: str) -> None:
        words = ["locctx", "plan", "-d", self.number, "-p", PLANS, "-c", SMALL_CONFIGURATION, "--name", run]
        words += ["--source", run.removesuffix(JITTERED), "--force"]
        if run.endswith(JITTERED):
            words += ["--jitter", str(self.robustness.jitter), "--dropout", str(self.robustness.dropout)]
        self._run(f"configure_{run}", *words, quiet=False)

    def measure(self, source: str) -> None:
        words = ["locctx", "robustness", "-i", str(self.raw / "imagesTs"), "-l", str(self.raw / "labelsTs")]
        words += ["-o", str(self.results(source)), "--sign", "plus", "--device", "cpu", "--quiet"]
        for run in (source, f"{source}{JITTERED}"):
            configuration, trainer = self.settings.runs[run]
            model = self.nnunet.results / self.name / f"{trainer}__{PLANS}__{configuration}"
            words += ["--model", str(model), "--name", run.replace(JITTERED, ", jitter and dropout")]
        self._run(f"measure_{source}", *words, quiet=False)

    def results(self, source: str) -> Path:
        """The folder that `locctx robustness` writes to."""
        return self.folder / "robustness" / source

    def record(self) -> Record:
        """The curves of the sources that are done, and how they were made."""
        done = [source for source in SOURCES if f"measure_{source}" in self.steps.seconds]
        return {
            "settings": asdict(self.settings),
            "machine": describe_machine("cpu"),
            "seconds": self.steps.seconds,
            "commands": [file.read_text().strip() for file in sorted(self.nnunet.logs.glob("*.command"))],
            "points": [
                point
                for source in done
                for point in json.loads((self.results(source) / "robustness.json").read_text())["points"]
            ],
        }


def together(records: Sequence[Record]) -> Record:
    """One record of work folders that measured different sources; of steps done in several, the first one's time."""
    whole = dict(records[0])
    for record in records[1:]:
        whole["seconds"] = {**record["seconds"], **whole["seconds"]}
        whole["commands"] = list(dict.fromkeys([*whole["commands"], *record["commands"]]))
        known = {point["model"] for point in whole["points"]}
        whole["points"] = [*whole["points"], *(p for p in record["points"] if p["model"] not in known)]
    whole["points"] = sorted(whole["points"], key=lambda point: SOURCES.index(point["model"].split(",")[0]))
    return whole


def section(record: Record) -> str:
    """Markdown: a table for each kind of error, a line per model and axes."""
    settings, points = record["settings"], record["points"]
    organs = ", ".join(name.replace("_", " ") for name in settings["organs"])
    lower, upper = settings["fraction"]
    intro = (
        f"Whole-body phantoms that show {lower:.0%} to {upper:.0%} of the body ({settings['cases']} for training, "
        f"{max(point['cases'] for point in points)} held out; {organs}), {settings['located']} for "
        f"{settings['epochs']} epochs on patches of {settings['patch']}^3 voxels of {settings['spacing']:g} mm, one "
        f"training per line. Jitter {settings['jitter']:g} (units of the source), dropout {settings['dropout']:g}. "
        "Mean foreground Dice on the original grid; amounts in percent of the axis."
    )
    lines = [intro]
    for kind in dict.fromkeys(point["kind"] for point in points):
        amounts = sorted({point["percent"] for point in points if point["kind"] == kind})
        lines += [
            "",
            f"{KINDS[kind]}:",
            "",
            f"| location | error | {' | '.join(f'{a:g} %' for a in amounts)} |",
        ]
        lines.append("|---|---|" + "---:|" * len(amounts))
        for model, axes in dict.fromkeys((p["model"], p["axes"]) for p in points if p["kind"] == kind):
            row = {
                p["percent"]: p["dice"]
                for p in points
                if (p["model"], p["kind"], p["axes"]) == (model, kind, axes)
            }
            values = ["-" if row[amount] is None else f"{row[amount]:.2f}" for amount in amounts]
            lines.append(f"| {model} | {AXES[axes]} | {' | '.join(values)} |")
    picture = "../scripts/experiments/robustness/robustness.png"
    lines += ["", f"![Dice against the size of the location's error]({picture})", ""]
    machine = record["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return "\n".join([*lines, f"Machine: {machine['processor']}; {versions}."]) + "\n"


def write_documents(runs: Sequence[RobustnessRun], out: Path | None = None) -> None:
    """robustness.json, the section of docs/results.md and the picture."""
    record = together([run.record() for run in runs])
    if not record["points"]:
        raise ValueError(f"nothing has been measured in {', '.join(str(run.folder) for run in runs)} yet")
    folder, page = destinations(out, __file__, "results.md")
    write_atomically(folder / "robustness.json", (json.dumps(record, indent=1) + "\n").encode())
    known = [{**p, "dice": float("nan") if p["dice"] is None else p["dice"]} for p in record["points"]]
    write_atomically(folder / "robustness.png", draw_curves([Point(**point) for point in known]))
    replace_section(page, BEGIN, END, section(record))
    say(f"written: {folder / 'robustness.json'}, {page}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=Path,
        nargs="+",
        default=[Path("/tmp/locctx_robustness")],
        help="work folder; several only with --report (default: /tmp/locctx_robustness)",
    )
    parser.add_argument("--out", type=Path, help=OUT_HELP)
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES), help="default: all")
    parser.add_argument(
        "--epochs",
        type=int,
        default=RobustnessSettings.epochs,
        choices=(5, 10, 20, 50),
        help="default: %(default)s",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--report", action="store_true", help="only write the documents from the work folder")
    options = parser.parse_args(arguments)
    if len(options.work) > 1 and not options.report:
        parser.error(f"--work takes one folder unless --report is given, got {len(options.work)}")
    settings = RobustnessSettings(epochs=options.epochs, threads=options.threads)
    runs = [RobustnessRun(work.resolve(), settings, options.sources) for work in options.work]
    if not options.report:
        runs[0].run()
    write_documents(runs, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
