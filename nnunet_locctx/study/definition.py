"""A study as its file defines it; everything is checked before anything is written."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_locctx.study.trainer_names import TrainerName

POSTPROCESSING = ("largest_component", "atlas")
PLANS_PREFIX = "nnUNetPlans_"


@dataclass(frozen=True)
class Folders:
    """nnU-Net's three folders, absolute."""

    raw: Path
    preprocessed: Path
    results: Path


@dataclass(frozen=True)
class Method:
    """One line of a study's tables: a trainer and what it is told about location.

    Attributes:
        name: As in the tables.
        slug: For file names.
        trainer: The trainer.
        source: Location source; None for a trainer without location.
        options: ``location`` keys of the plans.
        network: ``network`` keys of the plans; None: the preset's.
        presets: Presets it runs at.
        against: The method it is compared with; None: the study's baseline.
    """

    name: str
    slug: str
    trainer: TrainerName
    source: str | None
    options: Mapping[str, Any]
    network: Mapping[str, Any] | None
    presets: tuple[str, ...]
    against: str | None = None


@dataclass(frozen=True)
class Preset:
    """A set of changes to the base configuration.

    Attributes:
        name: Also the configuration's.
        description: One line.
        changes: As :func:`~nnunet_locctx.nnunet.plans.planning.add_configuration` takes them.
    """

    name: str
    description: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Robustness:
    """What `locctx robustness` is asked: percent, kinds and axes of the errors, presets, number of cases."""

    amounts: tuple[float, ...]
    changes: tuple[str, ...]
    axes: tuple[str, ...]
    presets: tuple[str, ...]
    cases: int


@dataclass(frozen=True)
class Resources:
    """What a kind of job asks of a cluster; None leaves it to the cluster."""

    memory_gb: float
    hours: float
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    slurm_extra: str | None = None


@dataclass(frozen=True)
class Study:
    """A study file, read and checked; keys as in docs/studies.md.

    Attributes:
        file: Where it was read.
        dataset: Full name of the data set.
        paper_columns: Whose way to count is added to the evaluation, if any.
        splits: File of case lists per fold; None: the data set's, or nnU-Net's own.
        test: Whether there is a test set to predict.
    """

    file: Path
    name: str
    title: str
    dataset: str
    folders: Folders
    work: Path
    base_plans: str
    base_configuration: str
    baseline: str
    methods: tuple[Method, ...]
    presets: tuple[Preset, ...]
    folds: tuple[int, ...]
    splits: Path | None
    epochs: int
    seed: int
    test: bool
    robustness: Robustness | None
    postprocessing: tuple[str, ...]
    tolerance_mm: float
    off_region_mm: float
    paper_columns: str | None
    papers: tuple[str, ...]
    device: str
    gpus: int
    processes: int
    resources: Mapping[str, Resources]

    @property
    def plans(self) -> str:
        """Name of the study's own plans."""
        return f"{PLANS_PREFIX}{self.name}"

    @property
    def raw(self) -> Path:
        """The data set's raw folder."""
        return self.folders.raw / self.dataset

    @property
    def preprocessed(self) -> Path:
        """The data set's folder of plans and preprocessed data."""
        return self.folders.preprocessed / self.dataset

    @property
    def sources(self) -> tuple[str, ...]:
        """Location sources in use."""
        return tuple(dict.fromkeys(method.source for method in self.methods if method.source is not None))

    def preset(self, name: str) -> Preset:
        """The preset of that name."""
        return next(preset for preset in self.presets if preset.name == name)


def slug(name: str) -> str:
    """A name as part of a file's name: ``LocBAM (body_part)`` -> ``LocBAM-body_part``, ``UNETR++`` -> ``UNETRpp``.

    A name without any letter or digit of ASCII becomes a fingerprint.
    """
    found = re.sub(r"[^A-Za-z0-9_.]+", "-", name.replace("+", "p")).strip("-").replace("__", "_")
    if found:
        return found
    return "method-" + hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest()[:8]
