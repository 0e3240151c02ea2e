"""Reads a study's work folder, whether the study is finished or not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx.report.model import Failure, Method, Missing, Preset, Run, Study
from nnunet_locctx.report.scores import NO_FOLD, Scores, from_rows

POSTPROCESSINGS = ("largest_component", "atlas")
NEEDED = ("name", "dataset", "baseline", "methods", "presets", "folds", "runs")


class _Reader:
    """Reads result files and remembers what is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: list[Missing] = []

    def read(
        self, name: str, run: str, fold: str, what: str, *, needed: bool = True
    ) -> dict[str, Any] | None:
        file = self.folder / name
        try:
            return read_json(file)
        except FileNotFoundError:
            if needed:
                self.missing.append(Missing(run, fold, what, f"no file {name}"))
        except (OSError, ValueError) as error:
            self.missing.append(Missing(run, fold, what, f"{name} cannot be read: {error}"))
        return None


def read_json(file: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is no JSON object.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold an object, got {type(content).__name__}")
    return content


def load_study(work: Path) -> Study:
    """Reads what there is.

    Args:
        work: The study's work folder.

    Raises:
        ValueError: It has no study.json, or one that lacks what every study has.
    """
    settings = _read_settings(work)
    reader = _Reader(work)
    baseline = settings["baseline"]
    methods = sorted(map(_method, settings["methods"]), key=lambda one: one.name != baseline)
    presets = tuple(map(_preset, settings["presets"]))
    order = {
        (preset.name, method.name): (i, j)
        for i, preset in enumerate(presets)
        for j, method in enumerate(methods)
    }
    runs = tuple(
        sorted(
            (_run(one) for one in settings["runs"]),
            key=lambda one: order.get((one.preset, one.method), (len(presets), len(methods))),
        )
    )
    folds = tuple(int(fold) for fold in settings["folds"])
    validation, test, postprocessed, training, robustness = {}, {}, {}, {}, {}
    facts: list[dict[str, Any]] = []  # evaluations, for definitions and settings
    wanted = settings.get("postprocessing") or ()
    shifted = (settings.get("robustness") or {}).get("presets") or ()
    located = {method.name for method in methods if method.source is not None}
    labels = Path(str(settings["dataset"].get("raw", ""))) / "labelsTs"
    tested = bool(settings.get("test_cases")) and labels.is_dir()
    fold_of = {
        case: int(fold) for fold, parts in settings.get("cases", {}).items() for case in parts.get("val", ())
    }
    for run in runs:
        place = f"runs/{run.run}"
        parts: list[tuple[int, dict[str, Any]]] = []
        for fold in folds:
            found = reader.read(f"{place}/fold_{fold}/training.json", run.run, str(fold), "training")
            if found is not None:
                training[run.run, fold] = found
            name = f"{place}/fold_{fold}/evaluation/evaluation.json"
            found = reader.read(name, run.run, str(fold), "evaluation of the validation cases")
            if found is not None:
                parts.append((fold, found))
        if parts:
            validation[run.run] = _pool(parts)
            facts += [found for _, found in parts]
        found = reader.read(
            f"{place}/test/evaluation/evaluation.json",
            run.run,
            "",
            "evaluation of the test cases",
            needed=tested,
        )
        if found is not None:
            test[run.run] = _scores(found, {})
            facts.append(found)
        for kind in POSTPROCESSINGS:
            name = f"{place}/postprocessing/{kind}/evaluation/evaluation.json"
            found = reader.read(name, run.run, "", f"evaluation after {kind}", needed=kind in wanted)
            if found is not None:
                postprocessed[run.run, kind] = _scores(found, fold_of)
        found = reader.read(
            f"{place}/robustness/robustness.json",
            run.run,
            "",
            "robustness",
            # a plain network takes no location
            needed=run.preset in shifted and run.method in located,
        )
        if found is not None:
            robustness[run.run] = found
    first = facts[0] if facts else {}
    return Study(
        folder=work,
        settings=settings,
        methods=tuple(methods),
        presets=presets,
        runs=runs,
        folds=folds,
        validation=validation,
        test=test,
        postprocessed=postprocessed,
        training=training,
        robustness=robustness,
        definitions=first.get("definitions", {}),
        evaluation=first.get("settings", {}),
        pairs=tuple((str(left), str(right)) for left, right in first.get("pairs", ())),
        failures=_failures(reader),
        missing=tuple(reader.missing),
    )


def _read_settings(work: Path) -> dict[str, Any]:
    file = work / "study.json"
    if not file.is_file():
        raise ValueError(f"{work} is no study's work folder: there is no {file.name}")
    settings = read_json(file)
    missing = [key for key in NEEDED if key not in settings]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}")
    names = [one.get("name") for one in settings["methods"]]
    for base in (settings["baseline"], *(one.get("against") for one in settings["methods"])):
        if base is not None and base not in names:
            raise ValueError(f"the baselines of {file} must be among {names}, got {base!r}")
    return settings


def _method(entry: Mapping[str, Any]) -> Method:
    return Method(
        str(entry["name"]),
        str(entry.get("trainer", "")),
        entry.get("source"),
        entry.get("options") or {},
        entry.get("against"),
    )


def _preset(entry: Mapping[str, Any]) -> Preset:
    return Preset(
        name=str(entry["name"]),
        description=str(entry.get("description") or ""),
        patch_size=tuple(entry.get("patch_size") or ()),
        batch_size=entry.get("batch_size"),
        spacing=tuple(entry.get("spacing") or ()),
        median_size=tuple(entry.get("median_size") or ()),
        coverage=entry.get("coverage"),
    )


def _run(entry: Mapping[str, Any]) -> Run:
    names = ("run", "method", "preset", "trainer", "plans", "configuration")
    texts = {name: str(entry.get(name, "")) for name in names}
    return Run(**texts, model=Path(entry.get("model", "")))


def _pool(parts: Sequence[tuple[int, Mapping[str, Any]]]) -> Scores:
    rows = [(fold, row) for fold, content in parts for row in content.get("cases", ())]
    return from_rows(rows, list(parts[0][1].get("classes", {})))


def _scores(content: Mapping[str, Any], fold_of: Mapping[str, int]) -> Scores:
    rows = [(fold_of.get(row["case"], NO_FOLD), row) for row in content.get("cases", ())]
    return from_rows(rows, list(content.get("classes", {})))


def _failures(reader: _Reader) -> tuple[Failure, ...]:
    found = []
    for file in sorted((reader.folder / "failures").glob("*.json")):
        content = reader.read(f"failures/{file.name}", "", "", f"what failed ({file.stem})")
        entry = {key: "" if value is None else str(value) for key, value in (content or {}).items()}
        names = ("run", "fold", "command", "exit_status", "log", "message")
        found.append(Failure(entry.get("job") or file.stem, *(entry.get(name, "") for name in names)))
    return tuple(found)
