"""Reads a study file (YAML) into a :class:`~nnunet_locctx.study.definition.Study`."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_locctx.nnunet.data.paths import dataset_in, nnunet_folder
from nnunet_locctx.study.definition import (
    POSTPROCESSING,
    Folders,
    Resources,
    Robustness,
    Study,
)
from nnunet_locctx.study.reading import Table, check_known, is_whole, read_yaml
from nnunet_locctx.study.study_methods import read_methods, read_presets
from nnunet_locctx.study.trainer_names import NNUNET_EPOCHS
from nnunet_locctx.study.work_folder import WorkFolder, read_json

KEYS = (
    *(
        "name",
        "title",
        "dataset",
        "folders",
        "work",
        "plans",
        "configuration",
        "baseline",
        "methods",
        "sources",
    ),
    *(
        "presets",
        "folds",
        "splits",
        "epochs",
        "seed",
        "test",
        "robustness",
        "postprocessing",
        "evaluation",
        "papers",
    ),
    *("device", "gpus", "processes", "resources"),
)
KINDS = ("plan", "fit", "preprocess", "train", "evaluate", "predict", "postprocess", "robustness")
"""Kinds of jobs, in the order a run goes through them."""

USUAL = {"train": (48.0, 24.0), "predict": (32.0, 4.0), "default": (16.0, 4.0)}
"""Memory in GB and hours that a job asks for unless the study says otherwise."""


def find_study(name: str) -> Path:
    """The file of a study: a path, or the name of one that comes with the package.

    Raises:
        ValueError: Neither; lists those that come with the package.
    """
    file = Path(name)
    if file.is_file() or file.suffix in (".yaml", ".yml"):
        return file
    from nnunet_locctx import resources

    try:
        folder = resources.studies_folder()
    except FileNotFoundError:
        folder = Path()
    there = {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder != Path() else {}
    check_known([name], there, "study (and no file of that name)", "locctx study")
    return there[name]


def read_study(file: Path) -> Study:
    """Reads and checks a study; nothing is written.

    Raises:
        ValueError: Anything that is not allowed, with what is.
    """
    file = file.resolve()
    table = Table(read_yaml(file), file.name, KEYS)
    folders = _folders(table, file.parent)
    dataset = dataset_in(folders.raw, table.required("dataset"), f"{file.name}: the raw data").name
    presets = read_presets(table, file.parent)
    names = tuple(preset.name for preset in presets)
    methods = read_methods(table, presets)
    baseline = table.text("baseline")
    check_known([baseline], [method.name for method in methods], "method (baseline)", file.name)
    name = table.text("name", pattern=r"[A-Za-z0-9](?:[A-Za-z0-9-]|_(?!_))*")
    work = file.parent / table.text("work") if "work" in table else Path.cwd() / name
    raw = folders.raw / dataset
    evaluation = table.table("evaluation", ("tolerance_mm", "off_region_mm", "paper"))
    device = table.text("device", "cuda")
    check_known([device], ("cuda", "cpu", "mps"), "device", file.name)
    gpus = table.whole("gpus", 1, 1)
    if gpus > 1 and device != "cuda":
        raise ValueError(f"{file.name}: gpus is {gpus}, which needs the device cuda, got {device!r}")
    folds = table.many("folds", range(5), is_whole, "fold numbers, counted from 0")
    splits = file.parent / table.text("splits") if "splits" in table else None
    study = Study(
        file=file,
        name=name,
        title=table.text("title", name),
        dataset=dataset,
        folders=folders,
        work=work.resolve(),
        base_plans=table.text("plans", "nnUNetPlans"),
        base_configuration=table.text("configuration", "3d_fullres"),
        baseline=baseline,
        methods=methods,
        presets=presets,
        folds=folds,
        splits=None if splits is None else splits.resolve(),
        epochs=table.whole("epochs", NNUNET_EPOCHS, 1),
        seed=table.whole("seed", 0, 0),
        test=table.flag("test", True) and (raw / "imagesTs").is_dir() and any((raw / "imagesTs").iterdir()),
        robustness=_robustness(table, names),
        postprocessing=_postprocessing(table),
        tolerance_mm=evaluation.number("tolerance_mm", 2.0),
        off_region_mm=evaluation.number("off_region_mm", 20.0),
        paper_columns=_paper_columns(evaluation),
        papers=_papers(table),
        device=device,
        gpus=gpus,
        processes=table.whole("processes", 2, 1),
        resources=_resources(table),
    )
    if not folds:
        raise ValueError(f"{file.name}: folds must name at least one fold")
    _check_runs(study)
    _check_work(study)
    from nnunet_locctx.study.splits import check_splits

    check_splits(study)
    return study


def _folders(table: Table, beside: Path) -> Folders:
    given = table.table("folders", ("raw", "preprocessed", "results"))

    def folder(key: str) -> Path:
        if key in given:
            path = (beside / Path(given.text(key)).expanduser()).resolve()
            if key == "raw" and not path.is_dir():
                raise ValueError(f"{given.where}: raw is {path}, which is not a folder")
            return path
        return nnunet_folder(f"nnUNet_{key}").resolve()

    return Folders(folder("raw"), folder("preprocessed"), folder("results"))


def _robustness(table: Table, presets: tuple[str, ...]) -> Robustness | None:
    if "robustness" not in table:
        return None
    one = table.table("robustness", ("amounts", "changes", "axes", "presets", "cases"))
    found = Robustness(
        amounts=one.many(
            "amounts",
            (0, 1, 5, 10, 25, 50, 100),
            lambda p: isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 100,
            "percentages from 0 to 100",
        ),
        changes=one.names("changes", ["shift"]),
        axes=one.names("axes", ["axial"]),
        presets=tuple(
            Path(name).stem if name.endswith(".json") else name for name in one.names("presets", presets)
        ),
        cases=one.whole("cases", 5, 1),
    )
    check_known(found.changes, ("shift", "noise"), "change", one.where)
    check_known(found.axes, ("axial", "all"), "axes", one.where)
    check_known(found.presets, presets, "preset", one.where)
    return found


def _postprocessing(table: Table) -> tuple[str, ...]:
    found = table.names("postprocessing")
    check_known(found, POSTPROCESSING, "postprocessing", table.where)
    return found


def _paper_columns(table: Table) -> str | None:
    given = table.content.get("paper", False)
    if given not in (True, False, "locbam", "gpe"):
        raise table.error("paper", "true (as locbam), false, locbam or gpe")
    return {True: "locbam", False: None}.get(given, given)


def _papers(table: Table) -> tuple[str, ...]:
    found = table.names("papers")
    there = [file.stem for file in sorted((Path(__file__).parent / "papers").glob("*.json"))]
    check_known(found, there, "paper's table", table.where)
    return found


def _resources(table: Table) -> dict[str, Resources]:
    given = table.table("resources", (*KINDS, "default"))
    keys = ("memory_gb", "hours", "partition", "account", "qos", "constraint", "slurm_extra")
    shared = given.table("default", keys)
    found = {}
    for kind in KINDS:
        memory, hours = USUAL.get(kind, USUAL["default"])
        if kind not in USUAL:
            memory, hours = shared.number("memory_gb", memory), shared.number("hours", hours)
        one = given.table(kind, keys)
        words = {key: {**shared.content, **one.content}.get(key) for key in keys[2:]}
        for key, value in words.items():
            if value is not None:
                words[key] = _for_a_shell(key, value, f"{given.where}: {kind}")
        found[kind] = Resources(one.number("memory_gb", memory), one.number("hours", hours), **words)
    return found


def _for_a_shell(key: str, value: Any, where: str) -> str:
    """A request as it can stand in the command line of ``sbatch``, which Snakemake's executor hands to a shell.

    Raises:
        ValueError: Not of the form that a partition, an account and so on have; or words that are no options.
    """
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} must be a text, got {value!r}")
    if key != "slurm_extra":
        allowed = "letters, digits and _ . , : @ % / + = | & * ! ( ) [ ] -"
        if not re.fullmatch(r"[\w.,:@%/+=|&*!()\[\]-]*", value):
            raise ValueError(f"{where}: {key} must be made of {allowed}, got {value!r}")
        return value
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"{where}: {key} is {value!r}: {error}") from error
    # sbatch takes what an option's name begins with for the option; --wrap is a command to run
    wrong = [word for word in words if not re.match(r"--[A-Za-z]", word) or word.startswith("--wr")]
    if wrong:
        raise ValueError(
            f"{where}: {key} must be options of sbatch that begin with -- (--NAME or --NAME=VALUE; not --wrap), "
            f"got {', '.join(map(repr, wrong))}"
        )
    return shlex.join(words)


def _check_work(study: Study) -> None:
    """Refuses a work folder that holds something else: the runner deletes there what is not part of the study."""
    work, where = study.work, study.file.name
    if not work.exists():
        return
    if not work.is_dir():
        raise ValueError(f"{where}: work is {work}, which is not a folder")
    file = WorkFolder(work).study
    if file.exists():
        said = read_json(file)
        dataset = said.get("dataset")
        name = dataset.get("name") if isinstance(dataset, Mapping) else None
        if (said.get("name"), name) != (study.name, study.dataset):
            raise ValueError(
                f"{where}: work is {work}, the work folder of another study ({said.get('name')!r}, data set "
                f"{name!r}); name another folder"
            )
        return
    # what is there before a study has written study.json
    others = sorted({path.name for path in work.iterdir() if not path.name.startswith(".")} - {"locks"})
    if others:
        raise ValueError(
            f"{where}: work is {work}, which holds {', '.join(others[:3])} and no {file.name}, so it is not this "
            "study's work folder; name a new or an empty one"
        )


def _check_runs(study: Study) -> None:
    """Refuses two runs that are the same, or would be written to the same place."""
    from nnunet_locctx.nnunet.plans.plans_file import check_name
    from nnunet_locctx.study.runs import runs_of

    where = study.file.name
    check_name(study.plans, f"name of the plans of {where}")
    slugs = [method.slug.lower() for method in study.methods]
    for method in study.methods:
        if slugs.count(method.slug.lower()) > 1:
            raise ValueError(
                f"{where}: two methods would be written as {method.slug!r}; choose names that differ in more"
            )
        for preset in map(study.preset, method.presets):
            fixed = preset.changes.get("location", {}).get("source")
            if method.source is not None and fixed not in (None, method.source):
                raise ValueError(
                    f"{where}: the preset {preset.name} is for the source {fixed}, but {method.name} has "
                    f"{method.source}; set its sources: [{fixed}], or other presets"
                )
    seen: dict[Path, str] = {}
    for run in runs_of(study):
        if run.model in seen:
            raise ValueError(
                f"{where}: duplicate runs: {seen[run.model]} and {run.method.name} are the same training at "
                f"{run.preset.name} ({run.method.trainer.name})"
            )
        seen[run.model] = run.method.name
        check_name(run.configuration, f"name of a configuration of {where}")
        longest = max(run.slug, run.model.name, key=len)
        if len(longest) > 200:  # 255 for a file system, with room for what is put before and behind
            raise ValueError(
                f"{where}: the name of a folder, {longest[:40]}..., would have {len(longest)} letters, 200 are "
                "allowed; choose shorter names of methods and presets"
            )
