"""Writes the report and makes its sections."""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from nnunet_locctx.report import tables
from nnunet_locctx.report.browser import build_browser
from nnunet_locctx.report.cases import read_cases
from nnunet_locctx.report.document import (
    PAGE,
    Block,
    Code,
    Document,
    Listing,
    Section,
    Text,
    check_target,
    count,
    duration,
    slug,
    to_csv,
    write_document,
)
from nnunet_locctx.report.figures import draw_classes, draw_coverage, draw_location, draw_training
from nnunet_locctx.report.papers import paper_names, paper_table
from nnunet_locctx.report.results import CASE_KEYS, METRICS, NO_FOLD, TEST, VALIDATION, Results, read_results
from nnunet_locctx.report.statistics import FEWEST_CASES, FEWEST_DIFFERENCES, RESAMPLES, SEED, compare
from nnunet_locctx.report.verdict import next_steps, verdict


def write_report(work: Path, output: Path | None = None, *, progress: bool = False) -> Path:
    """Writes ``index.html`` (self-contained), ``report.md``, CSV files and ``figures/``.

    There is a CSV file per table, and ``cases.csv`` with every measure of every case and class.

    The new report replaces the old one in one step. The same study gives the same bytes.

    Args:
        work: The study's work folder, finished or not.
        output: Folder of the report, which is replaced; None: ``report`` in the work folder.
        progress: Show a progress bar.

    Returns:
        The page.

    Raises:
        ValueError: `work` holds no study, or `output` is a folder that holds something else than a report.
    """
    target = work / "report" if output is None else output
    check_target(target)
    study = read_results(work)
    document = build_document(study, progress=progress)
    further = {}
    for part, name in ((VALIDATION, "cases.csv"), (TEST, "test_cases.csv")):
        seed = ["seed"] if len(study.seeds) > 1 else []
        rows = study.foreground_scores(part, each_seed=True)
        rows = rows[["preset", "method", *seed, *CASE_KEYS, *METRICS]]
        if len(rows):
            fold = rows["fold"].where(rows["fold"] != NO_FOLD).astype("Int64")
            further[name] = to_csv(rows.assign(fold=fold)).encode()
    write_document(document, target, further)
    return target / PAGE


def build_document(study: Results, *, progress: bool = False) -> Document:
    """Computes the content of the report.

    Args:
        study: The study's results.
        progress: Show a progress bar.
    """
    rows, test = compare(study, VALIDATION), compare(study, TEST)
    # a maker returns None for a block without content
    makers: list[tuple[str, str, Callable[[], Sequence[Block | None]]]] = [
        ("verdict", "Verdict", lambda: summary(study, rows)),
        ("validation", "Cross-validation", lambda: comparison(study, rows)),
        ("test", "Test cases", lambda: comparison(study, test, "test_")),
        ("postprocessing", "Postprocessing", lambda: [tables.postprocessing_table(study)]),
        ("papers", "Comparison with the papers", lambda: with_papers(study)),
        ("location", "Wrong locations", lambda: [draw_location(study), tables.location_table(study)]),
        ("training", "Training", lambda: [*draw_training(study), tables.training_table(study)]),
        ("cases", "Cases", lambda: cases(study, rows)),
        ("fairness", "Fairness", lambda: [tables.fairness_table(study)]),
        ("settings", "Settings", lambda: settings(study)),
        ("computed", "Computation", lambda: computed(study)),
        ("missing", "Failed and missing", lambda: [tables.failure_table(study), tables.missing_table(study)]),
        ("repeat", "Commands to repeat the study", lambda: repeat(study)),
    ]
    sections = []
    for key, title, make in tqdm(makers, desc="report", unit="section", disable=not progress):
        blocks = [block for block in make() if block is not None]
        if blocks:
            sections.append(Section(key, title, blocks))
    title = str(study.settings.get("title") or study.settings["name"])
    subtitle = f"Study {study.settings['name']} on {study.dataset}"
    classes = study.foreground_scores(VALIDATION, TEST)["class"].unique()
    return Document(title, subtitle, sections, list(study.methods.index), list(map(str, classes)))


def summary(study: Results, rows: pd.DataFrame) -> list[Block]:
    """The extent of the study, its results in words, and warnings."""
    validated = study.scores.loc[study.scores["part"] == VALIDATION, "case"].nunique()
    text = (
        f"{count(len(study.methods), 'method')} at {count(len(study.presets), 'preset')}, "
        f"{count(len(study.folds), 'fold')}, {count(len(study.seeds), 'seed')}, "
        f"{count(validated, 'validation case')} with results"
    )
    if study.settings.get("epochs"):
        iterations = study.settings.get("iterations_per_epoch", 250)
        text += f", {count(int(study.settings['epochs']), 'epoch')} of {iterations} iterations"
    blocks: list[Block] = [Text(f"{text}. Baseline: {study.baselines}.")]
    if len(study.failures) or len(study.missing):
        text = (
            f"The study is not complete: {count(len(study.failures), 'failed job')}, "
            f"{count(len(study.missing), 'missing result')} (section “Failed and missing”). "
            "The tables below hold the results so far."
        )
        blocks.append(Text(text, warning=True))
    entries = study.settings.get("fairness") or ()
    broken = [str(entry.get("what")) for entry in entries if not entry.get("holds")]
    if broken:
        blocks.append(Text(f"Not the same for all methods: {'; '.join(broken)}", warning=True))
    if rows.empty:
        return blocks
    blocks += [Listing(points) for points in [verdict(study, rows)] if points]
    steps = next_steps(study, rows)
    return [*blocks, Text("What to do next:"), Listing(steps)] if steps else blocks


def comparison(study: Results, rows: pd.DataFrame, prefix: str = "") -> list[Block | None]:
    """The methods' results and gains on the validation cases, or on the test cases (prefix ``test_``)."""
    if rows.empty:
        return []
    folds = f"{count(len(study.folds), 'fold')} pooled" if len(study.folds) > 1 else f"fold {study.folds[0]}"
    cases = "test cases, ensemble of the folds" if prefix else f"validation cases of {folds}"
    cases += study.mean_of_seeds
    blocks: list[Block | None] = [
        tables.overview(study, rows, f"{prefix}overview", cases),
        tables.comparison_table(study, rows, f"{prefix}comparison", cases),
        None if prefix else draw_coverage(study, rows),
        tables.error_table(study, rows, f"{prefix}errors", cases),
    ]
    for preset in rows["preset"].unique():
        blocks.append(None if prefix else draw_classes(study, rows, preset))
        blocks.append(tables.class_table(study, rows, preset, f"{prefix}classes_{slug(preset)}", cases))
    return blocks


def with_papers(study: Results) -> list[Block]:
    """The tables of the papers that the study names."""
    known = f"known are {', '.join(paper_names())}"
    return [
        paper_table(study, name)
        if name in paper_names()
        else Text(f"There is no paper's table {name!r}; {known}.", warning=True)
        for name in study.settings.get("papers") or ()
    ]


def cases(study: Results, rows: pd.DataFrame) -> list[Block | None]:
    """The case browser, and files that could not be drawn."""
    if rows.empty:
        return []
    read = (read_cases(study, rows, preset) for preset in rows["preset"].unique())
    presets = [cases for cases in read if cases is not None]
    problems = dict.fromkeys(problem for preset in presets for problem in preset.problems)
    blocks: list[Block | None] = [build_browser(study, presets)]
    if problems:
        blocks += [Text("Could not be drawn:", warning=True), Listing(list(problems))]
    return blocks


def settings(study: Results) -> list[Block]:
    """The study's settings and machine."""
    chosen = study.settings
    facts = [
        f"dataset: {study.dataset}",
        f"channels: {_words(chosen.get('channels'))}",
        f"labels: {_words(chosen.get('labels'))}",
        f"folds: {', '.join(map(str, study.folds))}",
        f"epochs: {chosen.get('epochs', 'unknown')} of {chosen.get('iterations_per_epoch', 250)} iterations",
        f"seed{'s' if len(study.seeds) > 1 else ''}: {', '.join(map(str, study.seeds))}",
        f"device: {chosen.get('device', 'unknown')}, GPUs per training: {chosen.get('gpus', 'unknown')}",
    ]
    facts += [f"{name} {version}" for name, version in (chosen.get("versions") or {}).items()]
    facts += [f"machine, {name}: {value}" for name, value in (chosen.get("machine") or {}).items()]
    seconds = study.trainings["seconds"].dropna()
    if len(seconds):
        total = duration(float(seconds.sum()))
        facts.append(f"training, all together: {total} ({count(len(seconds), 'training')})")
    return [tables.preset_table(study), tables.method_table(study), Listing(facts)]


def computed(study: Results) -> list[Block]:
    """Definitions of the measures and the statistics."""
    seeds = (
        f"Seeds: every method is trained with {len(study.seeds)}. A measure of a case and class is its mean over the "
        "seeds in which it is defined; entries without HD95 are counted in all of them. Intervals and tests are over "
        "cases: seeds are not cases, and their number makes no p smaller. Seeds agree where their own gain has the "
        "sign of the mean's."
    )
    points = [
        *([seeds] if len(study.seeds) > 1 else []),
        (
            "Mean foreground Dice: mean over the foreground classes of the class means over the cases (nnU-Net's "
            "foreground_mean). A class that is not defined in a case is left out there. The background does not "
            "count."
        ),
        (
            f"95% interval: bootstrap over cases with all their classes, {RESAMPLES} resamples, seed {SEED}, BCa "
            f"(percentile where BCa is not defined), scipy.stats.bootstrap; none below {FEWEST_CASES} cases. For "
            "a gain both methods keep the same resampled cases. It says how the result may vary with the cases, "
            "not with the random numbers of the training."
        ),
        (
            "p: Wilcoxon signed-rank test, two-sided, scipy.stats.wilcoxon, on the difference of each case's "
            f"mean over the classes; differences of 0 are left out, and fewer than {FEWEST_DIFFERENCES} others "
            "are not tested, as no p below 0.05 could come out. Holm's correction over all comparisons of one "
            "table."
        ),
    ]
    return [Listing([*points, *(f"{name}: {text}" for name, text in study.definitions.items())])]


def repeat(study: Results) -> list[Block]:
    """The commands that repeat the study."""
    file = study.settings.get("file") or "STUDY.yaml"
    commands = Code(f"locctx study {shlex.quote(str(file))}\nlocctx report {shlex.quote(str(study.folder))}")
    if study.runs.empty:
        return [commands]
    number = str(study.settings["dataset"].get("id", "DATASET"))
    lines = [
        shlex.join(["nnUNetv2_train", number, run.configuration, "FOLD", "-tr", run.trainer, "-p", run.plans])
        for run in study.runs.itertuples()
    ]
    export = 'export nnUNet_extTrainer="$(locctx trainers)${nnUNet_extTrainer:+:$nnUNet_extTrainer}"'
    return [
        commands,
        Text(
            "A single training by hand, without the study's seed; nnUNet_extTrainer must already name the folders of "
            "trainers that are neither nnU-Net's nor this package's:"
        ),
        Code("\n".join([export, *lines])),
    ]


def _words(value: object) -> str:
    return "unknown" if value is None else json.dumps(value, ensure_ascii=False)
