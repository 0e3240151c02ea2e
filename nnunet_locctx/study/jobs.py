"""One job of a study, and what all that make jobs know."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_locctx.nnunet.data.paths import training_labels
from nnunet_locctx.study.definition import Study
from nnunet_locctx.study.runs import Run, configurations_of, runs_of
from nnunet_locctx.study.splits import find_splits

PYTHON = sys.executable


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        name: ``KIND.WHAT``; names its files.
        kind: A name of :data:`~nnunet_locctx.study.study_file.KINDS`.
        title: For the terminal.
        commands: Run one after the other.
        identity: What its result depends on, besides the jobs of `needs`.
        needs: Jobs whose results it uses: it is run again when theirs change.
        after: Jobs that must be done before, whose changes that matter are part of `identity`.
        run: The run it belongs to, if any.
        fold: Its fold, if any.
        fresh: Folder -> folder that the commands write to instead; takes its place when all have ended well.
        outputs: Files that must be there for it to count as done.
        gpus: GPUs it works on.
    """

    name: str
    kind: str
    title: str
    commands: Sequence[Sequence[str]]
    identity: Mapping[str, Any]
    needs: Sequence[str] = ()
    after: Sequence[str] = ()
    run: str | None = None
    fold: int | None = None
    fresh: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    gpus: int = 0

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


class JobMaker:
    """What is asked and what follows from it.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.runs = runs_of(study)
        self.work = study.work
        self.gpu = int(study.device != "cpu")
        splits = find_splits(study)
        self.splits = {fold: None if splits is None else splits[fold] for fold in study.folds}
        self.configurations = {one.name: one for one in configurations_of(study)}
        self.number = str(int(study.dataset[7:10]))
        self.labels = {"Tr": training_labels(study.raw, study.preprocessed), "Ts": study.raw / "labelsTs"}
        self.np = ("-np", str(study.processes))

    def folder(self, run: Run, fold: int) -> Path:
        return self.work / "runs" / run.slug / f"fold_{fold}"

    def name(self, kind: str, run: Run, fold: int | None = None) -> str:
        return f"{kind}.{run.slug}" + ("" if fold is None else f".fold_{fold}")


def partial(folder: Path) -> Path:
    """Where a folder's content is written before it is whole."""
    return folder.with_name(f"{folder.name}.partial")
