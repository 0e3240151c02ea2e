"""A study as the report sees it: what was planned, what was found, what is missing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_locctx.report.scores import Scores


@dataclass(frozen=True)
class Preset:
    """A patch size and spacing.

    Attributes:
        name: Of the preset.
        description: In words.
        patch_size: Voxels, array axis order.
        batch_size: Patches.
        spacing: mm, array axis order.
        median_size: Voxels of the median volume at this spacing.
        coverage: Patch over median volume, a fraction; None if unknown.
    """

    name: str
    description: str
    patch_size: tuple[int, ...]
    batch_size: int | None
    spacing: tuple[float, ...]
    median_size: tuple[float, ...]
    coverage: float | None


@dataclass(frozen=True)
class Method:
    """What is compared.

    Attributes:
        name: As in the tables.
        trainer: nnU-Net's name of it.
        source: Of its location; None: a plain network.
        options: Of the plans.
        against: The method it is compared with; None: the study's baseline.
    """

    name: str
    trainer: str
    source: str | None
    options: Mapping[str, Any]
    against: str | None = None


@dataclass(frozen=True)
class Run:
    """One method at one preset; ``model`` is nnU-Net's folder of the trained model."""

    run: str
    method: str
    preset: str
    trainer: str
    plans: str
    configuration: str
    model: Path


@dataclass(frozen=True)
class Failure:
    """A job that did not end well."""

    job: str
    run: str
    fold: str
    command: str
    exit_status: str
    log: str
    message: str


@dataclass(frozen=True)
class Missing:
    """A result that is not there: where it should be, and why it is not."""

    run: str
    fold: str
    what: str
    why: str


@dataclass(frozen=True)
class Study:
    """A study as far as it has come.

    Attributes:
        folder: The work folder.
        settings: study.json.
        methods: In the study's order, the baseline first.
        presets: In the study's order.
        runs: In the order of presets, then methods.
        folds: Numbers of the folds.
        validation: Run -> scores of the validation cases of all folds there are.
        test: Run -> scores of the test cases.
        postprocessed: Run and kind -> scores of the validation cases after it.
        training: Run and fold -> training.json.
        robustness: Run -> robustness.json.
        definitions: Metric -> what it is, as the evaluation states it.
        evaluation: Settings of the evaluation.
        pairs: Left and right classes.
        failures: Jobs that failed.
        missing: What is not there.
    """

    folder: Path
    settings: Mapping[str, Any]
    methods: tuple[Method, ...]
    presets: tuple[Preset, ...]
    runs: tuple[Run, ...]
    folds: tuple[int, ...]
    validation: Mapping[str, Scores]
    test: Mapping[str, Scores]
    postprocessed: Mapping[tuple[str, str], Scores]
    training: Mapping[tuple[str, int], Mapping[str, Any]]
    robustness: Mapping[str, Mapping[str, Any]]
    definitions: Mapping[str, str]
    evaluation: Mapping[str, Any]
    pairs: tuple[tuple[str, str], ...]
    failures: tuple[Failure, ...]
    missing: tuple[Missing, ...]

    @property
    def baseline(self) -> str:
        """Name of the method that the others are compared with."""
        return str(self.settings["baseline"])

    def baseline_of(self, method: str) -> str:
        """Name of the method that this one is compared with."""
        own = next((one.against for one in self.methods if one.name == method), None)
        return own or self.baseline

    @property
    def baselines(self) -> str:
        """What gains count from, in words."""
        own: dict[str, list[str]] = {}
        for one in self.methods:
            if one.against not in (None, self.baseline):
                own.setdefault(str(one.against), []).append(one.name)
        others = "; ".join(f"{', '.join(names)} over {base}" for base, names in own.items())
        return f"{self.baseline} ({others})" if others else self.baseline

    @property
    def gain_axis(self) -> str:
        """Label of an axis of gains."""
        return f"gain over {self.baseline if self.baselines == self.baseline else 'its baseline'}, points of Dice"

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.settings["dataset"]["name"])

    def at(self, preset: str) -> list[Run]:
        """The runs of a preset, in the methods' order."""
        return [run for run in self.runs if run.preset == preset]

    def find(self, method: str, preset: str) -> Run | None:
        """The run of a method at a preset, if the study has it."""
        return next((run for run in self.at(preset) if run.method == method), None)
