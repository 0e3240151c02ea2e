"""Reads the results that a study's jobs have written so far, as data frames."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_locctx.evaluation.measures import MEASURES, PAPER_MEASURES
from nnunet_locctx.study.settings import MADE

METRICS = [*MEASURES, *PAPER_MEASURES]
"""Columns of evaluation.json, with their units; Dice, NSD and swap rate are fractions."""

SERIES = ["train_loss", "val_loss", "pseudo_dice"]
"""Series that a training records, with one value per epoch."""

VALIDATION, TEST = "validation", "test"
POSTPROCESSINGS = ("sides", "largest_component", "atlas")
BACKGROUND = "background"
NO_FOLD = -1
"""Fold of test cases, which belong to no fold."""

NEEDED = ("name", "dataset", "baseline", "methods", "presets", "folds", "runs")
RUN_KEYS = ["part", "run", "preset", "method"]
CASE_KEYS = ["fold", "case", "class"]
POINT_KEYS = ["run", "preset", "method", "kind", "axes", "percent"]


@dataclass(frozen=True)
class Results:
    """The results of a study, which may be incomplete.

    Attributes:
        folder: The work folder.
        settings: Content of study.json.
        methods: By name, the baseline first: trainer, source (None: a plain network), options, against (the method it
            is compared with; None: the baseline).
        presets: By name, in the study's order: description, patch_size (voxels), batch_size, spacing (mm), median_size
            (voxels), coverage (patch over median volume, a fraction); axes in array order, None if unknown.
        runs: One method at one preset. By name of the first seed's run, in the order of presets, then methods: method,
            preset, trainer, plans, configuration, model (nnU-Net's folder of the first seed's trained model).
        folds: Numbers of the folds.
        seeds: Seeds of the trainings, in the study's order.
        scores: Results of `locctx evaluate`. A row per part (:data:`VALIDATION`, :data:`TEST`, or one of
            :data:`POSTPROCESSINGS`: the validation cases after it), run, case and class; the columns part, run, preset,
            method, fold, case, class and :data:`METRICS`, NaN where undefined. Every case has every class of its
            evaluation, and the background, which has at most the papers' measures. With several seeds each value is the
            mean over the seeds in which it is defined.
        seed_scores: The same rows of each seed, with the column seed.
        trainings: A row per run, seed and fold: run, seed, fold, seconds, parameters, epochs (their number), device,
            peak_memory (bytes; NaN if not recorded).
        epochs: A row per run, seed, fold and epoch: run, preset, method, seed, fold, epoch and :data:`SERIES`, the
            pseudo Dice as the mean over the classes that have one.
        robustness: Results of `locctx robustness`, with several seeds their mean. A row per run and error of the
            location: run, preset, method, kind, axes, percent (of the axis), dice (NaN if undefined), deviation, cases.
        shifted: Preset -> the cases of `robustness`.
        definitions: Metric -> its definition in the evaluation.
        evaluation: Settings of the evaluation.
        pairs: Left and right classes.
        failures: A row per failed job: job, run, fold, exit_status, message, log; text.
        missing: A row per result that is missing: run, fold, what, why; text.
    """

    folder: Path
    settings: Mapping[str, Any]
    methods: pd.DataFrame
    presets: pd.DataFrame
    runs: pd.DataFrame
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    scores: pd.DataFrame
    seed_scores: pd.DataFrame
    trainings: pd.DataFrame
    epochs: pd.DataFrame
    robustness: pd.DataFrame
    shifted: Mapping[str, Collection[str]]
    definitions: Mapping[str, str]
    evaluation: Mapping[str, Any]
    pairs: Sequence[Sequence[str]]
    failures: pd.DataFrame
    missing: pd.DataFrame

    @property
    def baseline(self) -> str:
        """Name of the study's baseline method."""
        return str(self.settings["baseline"])

    def baseline_of(self, method: str) -> str:
        """Name of the baseline of a method."""
        return str(self.methods["against"].get(method) or self.baseline)

    @property
    def baselines(self) -> str:
        """The baselines of all gains, in words."""
        own = self.methods.index.to_series().groupby(self.methods["against"], sort=False).agg(", ".join)
        others = "; ".join(f"{names} over {base}" for base, names in own.items() if base != self.baseline)
        return f"{self.baseline} ({others})" if others else self.baseline

    @property
    def gain_axis(self) -> str:
        """Label of an axis of gains."""
        return f"gain over {self.baseline if self.baselines == self.baseline else 'its baseline'}, points of Dice"

    @property
    def mean_of_seeds(self) -> str:
        """For captions: names the number of seeds if there are several."""
        return f", mean of {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return str(self.settings["dataset"]["name"])

    def runs_at(self, preset: str) -> pd.DataFrame:
        """The runs of a preset, in the methods' order."""
        return self.runs[self.runs["preset"] == preset]

    def find(self, method: str, preset: str) -> str | None:
        """Name of the run of a method at a preset, if the study has it."""
        runs = self.runs_at(preset)
        return next(iter(runs.index[runs["method"] == method]), None)

    def scores_of(self, run: str | None, part: str = VALIDATION) -> pd.DataFrame:
        """The rows of one run; an empty frame before it is evaluated."""
        return self.scores[(self.scores["run"] == run) & (self.scores["part"] == part)]

    def paired_scores(self, part: str, run: str, base: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The foreground rows of a run and of its baseline, of each fold the mean over the seeds that both have."""
        rows = self.foreground_scores(part, each_seed=True)
        one, other = (rows[rows["run"] == name] for name in (run, base))
        trained = ["seed", "fold"]
        common = one[trained].drop_duplicates().merge(other[trained].drop_duplicates())
        mine, theirs = (_mean_of_seeds(of.merge(common), self.seeds) for of in (one, other))
        return mine, theirs

    def first_scores_of(self, run: str | None) -> pd.DataFrame:
        """The first seed's rows of the validation cases of one run."""
        rows = self.seed_scores
        return rows[(rows["run"] == run) & (rows["part"] == VALIDATION) & (rows["seed"] == self.seeds[0])]

    def foreground_scores(self, *parts: str, each_seed: bool = False) -> pd.DataFrame:
        """The rows of these parts without the background, for each seed or as the mean over the seeds."""
        rows = self.seed_scores if each_seed else self.scores
        return rows[rows["part"].isin(parts) & (rows["class"] != BACKGROUND)]


def read_results(work: Path) -> Results:
    """Reads a study's results.

    Args:
        work: The study's work folder.

    Raises:
        ValueError: The folder has no study.json, or it lacks an entry of :data:`NEEDED`.
    """
    settings = _read_settings(work)
    numbers = ["patch_size", "batch_size", "spacing", "median_size", "coverage"]
    presets = _frame(settings["presets"], ["name", "description", *numbers]).set_index("name")
    methods = _frame(settings["methods"], ["name", "trainer", "source", "options", "against"])
    methods = methods.sort_values("name", key=lambda name: name != settings["baseline"], kind="stable")
    methods = methods.set_index("name")
    seeds = tuple(settings.get("seeds") or [settings.get("seed", "unknown")])
    names = ["run", "method", "preset", "seed", "trainer", "plans", "configuration", "model"]
    every = _frame([{"seed": seeds[0], **run} for run in settings["runs"]], names)
    order = {"preset": presets.index, "method": methods.index}
    every = every.set_index("run", drop=False).sort_values(
        [*order], key=lambda names: names.map(pd.Series(range(len(order[names.name])), order[names.name]))
    )
    every["first"] = every.groupby([*order], sort=False)["run"].transform("first")
    runs = every[every["run"] == every["first"]].drop(columns=["run", "seed", "first"])
    folds = tuple(int(fold) for fold in settings["folds"])
    reader = _Reader(work, settings)
    for run in every.itertuples():
        reader.read_run(run, folds, located=methods["source"].get(run.method) is not None)
    scores = pd.concat(reader.scores[1:] or reader.scores, ignore_index=True)
    points = pd.concat(reader.points[1:] or reader.points, ignore_index=True).groupby(
        POINT_KEYS, sort=False, as_index=False
    )
    evaluation = next(iter(reader.evaluations), {})
    names = ["run", "seed", "fold"]
    return Results(
        folder=work,
        settings=settings,
        methods=methods,
        presets=presets,
        runs=runs,
        folds=folds,
        seeds=seeds,
        scores=_mean_of_seeds(scores, seeds),
        seed_scores=scores,
        trainings=pd.DataFrame(
            reader.trainings,
            columns=[*names, "seconds", "parameters", "epochs", "device", "peak_memory"],
        ),
        epochs=pd.DataFrame(reader.epochs, columns=["preset", "method", *names, "epoch", *SERIES]),
        robustness=points.agg({"dice": "mean", "deviation": "mean", "cases": "max"}),
        shifted=reader.shifted,
        definitions=evaluation.get("definitions", {}),
        evaluation=evaluation.get("settings", {}),
        pairs=evaluation.get("pairs", ()),
        failures=reader.read_failures(),
        missing=pd.DataFrame(reader.missing, columns=["run", "fold", "what", "why"], dtype=object),
    )


class _Reader:
    """Reads result files run by run and lists missing ones."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._made: Mapping[str, str] = settings.get("made", {})
        self.missing: list[tuple[str, str, str, str]] = []
        self.evaluations: list[Mapping[str, Any]] = []
        self.scores = [pd.DataFrame(columns=[*RUN_KEYS, "seed", *CASE_KEYS, *METRICS])]
        self.trainings: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        self.points = [pd.DataFrame(columns=[*POINT_KEYS, "dice", "deviation", "cases"])]
        self.shifted: dict[str, set[str]] = {}
        labels = Path(str(settings["dataset"].get("raw", ""))) / "labelsTs"
        self._tested = bool(settings.get("test_cases")) and labels.is_dir()
        self._postprocessed = settings.get("postprocessing") or ()
        self._robust_at = (settings.get("robustness") or {}).get("presets") or ()
        self._fold_of = {
            case: int(fold)
            for fold, parts in settings.get("cases", {}).items()
            for case in parts.get("val", ())
        }

    def read_run(self, run: Any, folds: Sequence[int], *, located: bool) -> None:
        """Reads all results of one run with one seed; `run.first` is the name of the first seed's run."""
        name, place = run.Index, f"runs/{run.Index}"
        validated: dict[int | None, Mapping[str, Any]] = {}
        for fold in folds:
            training = self._read(f"{place}/fold_{fold}/training.json", name, fold, "training")
            if training:
                self._add_training(run, fold, training)
            file, what = f"fold_{fold}/evaluation/evaluation.json", "evaluation of the validation cases"
            validated[fold] = self._read(f"{place}/{file}", name, fold, what)
        self._add_scores(run, VALIDATION, validated)
        parts = [(TEST, "test", "evaluation of the test cases", self._tested)]
        for kind in POSTPROCESSINGS:
            needed = kind in self._postprocessed
            parts.append((kind, f"postprocessing/{kind}", f"evaluation after {kind}", needed))
        for part, folder, what, needed in parts:
            file = f"{place}/{folder}/evaluation/evaluation.json"
            self._add_scores(run, part, {None: self._read(file, name, "", what, needed=needed)})
        # a plain network has no location to change
        needed = located and run.preset in self._robust_at
        content = self._read(f"{place}/robustness/robustness.json", name, "", "robustness", needed=needed)
        if content:
            points = pd.DataFrame(content.get("points", ()), columns=self.points[0].columns[3:])
            points = points.fillna({"cases": 0}).astype({"dice": float, "deviation": float})
            self.points.append(points.assign(run=run.first, preset=run.preset, method=run.method))
            self.shifted.setdefault(run.preset, set()).update(content.get("cases", ()))

    def read_failures(self) -> pd.DataFrame:
        """The jobs that failed."""
        columns = ["job", "run", "fold", "exit_status", "message", "log"]
        rows = []
        for file in sorted((self.folder / "failures").glob("*.json")):
            content = self._read(f"failures/{file.name}", "", "", f"what failed ({file.stem})")
            row = {key: "" if content.get(key) is None else str(content[key]) for key in columns}
            rows.append({**row, "job": row["job"] or file.stem})
        return pd.DataFrame(rows, columns=columns, dtype=object)

    def _read(self, name: str, run: str, fold: object, what: str, *, needed: bool = True) -> dict[str, Any]:
        """The JSON object of a file; empty without one, or if it is of other settings or data than the study's."""
        try:
            content = _read_object(self.folder / name)
            if not content:
                raise ValueError("it holds nothing")
            made = self.folder / (name + MADE)
            if name in self._made and made.is_file() and made.read_text(encoding="utf-8") != self._made[name]:
                raise ValueError(
                    "it is of other settings or data than the study has now; run the study again"
                )
            return content
        except FileNotFoundError:
            if needed:
                self.missing.append((run, str(fold), what, f"no file {name}"))
        except (OSError, ValueError) as error:
            self.missing.append((run, str(fold), what, f"{name} cannot be used: {error}"))
        return {}

    def _add_scores(self, run: Any, part: str, evaluations: Mapping[int | None, Mapping[str, Any]]) -> None:
        """Adds the evaluations of one part by fold; the key None stands for the fold that validates each case."""
        evaluations = {fold: content for fold, content in evaluations.items() if content}
        if not evaluations:
            return
        self.evaluations += evaluations.values()
        fold_of = self._fold_of if part in POSTPROCESSINGS else {}
        rows = [
            {**row, "fold": fold_of.get(row["case"], NO_FOLD) if fold is None else fold}
            for fold, content in evaluations.items()
            for row in content.get("cases", ())
        ]
        frame = pd.DataFrame(rows, columns=[*CASE_KEYS, *METRICS]).astype({"case": str, "class": str})
        cases = frame[["fold", "case"]].drop_duplicates().sort_values(["fold", "case"])
        classes = dict.fromkeys([*next(iter(evaluations.values())).get("classes", {}), BACKGROUND])
        frame = cases.merge(pd.DataFrame({"class": list(classes)}), how="cross").merge(
            frame.drop_duplicates(CASE_KEYS, keep="last"), how="left", on=CASE_KEYS
        )
        frame[METRICS] = frame[METRICS].apply(_finite)
        names = {"part": part, "run": run.first, "preset": run.preset, "method": run.method, "seed": run.seed}
        self.scores.append(frame.assign(**names)[self.scores[0].columns])

    def _add_training(self, run: Any, fold: int, content: Mapping[str, Any]) -> None:
        epochs = content.get("epochs") or ()
        names = {"run": run.first, "preset": run.preset, "method": run.method, "seed": run.seed, "fold": fold}
        for place, entry in enumerate(epochs):
            values = {name: _known_mean(entry.get(name)) for name in SERIES}
            self.epochs.append({**names, "epoch": int(entry.get("epoch", place)), **values})
        self.trainings.append(
            {
                "run": run.first,
                "seed": run.seed,
                "fold": fold,
                "seconds": _known_mean(content.get("seconds")),
                "parameters": content.get("parameters") or None,
                "epochs": len(epochs),
                "device": str(content.get("gpu") or content.get("device") or "?"),
                "peak_memory": _known_mean(content.get("peak_memory")),
            }
        )


def _mean_of_seeds(scores: pd.DataFrame, seeds: Sequence[int]) -> pd.DataFrame:
    """The mean of each case and class over the seeds in which a measure is defined."""
    if len(seeds) == 1:
        return scores.drop(columns="seed")
    return scores.groupby([*RUN_KEYS, *CASE_KEYS], sort=False, as_index=False)[METRICS].mean()


def _read_settings(work: Path) -> dict[str, Any]:
    file = work / "study.json"
    if not file.is_file():
        raise ValueError(f"{work} is no study's work folder: it has no {file.name}")
    settings = _read_object(file)
    missing = [key for key in NEEDED if key not in settings]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}")
    names = [method.get("name") for method in settings["methods"]]
    for base in (settings["baseline"], *(method.get("against") for method in settings["methods"])):
        if base is not None and base not in names:
            raise ValueError(f"the baselines of {file} must be among {names}, got {base!r}")
    return settings


def _read_object(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold an object, got {type(content).__name__}")
    return content


def _frame(entries: Sequence[Mapping[str, Any]], columns: list[str]) -> pd.DataFrame:
    """A frame of the entries' values, with None for missing ones."""
    frame = pd.DataFrame(list(entries), columns=columns, dtype=object)
    return frame.where(frame.notna(), None)


def _finite(values: pd.Series) -> pd.Series:
    return pd.to_numeric(values, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def _known_mean(entry: Any) -> float:
    """A number, or the mean of the finite numbers in a list; NaN without any."""
    values = entry if isinstance(entry, list | tuple) else [entry]
    known = [float(value) for value in values if isinstance(value, int | float) and np.isfinite(value)]
    return sum(known) / len(known) if known else float("nan")
