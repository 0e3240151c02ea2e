"""The report's sections, in their order."""

import math
from collections.abc import Callable, Sequence

from nnunet_locctx.report.about_sections import computed, repeat, settings
from nnunet_locctx.report.comparison import Comparison, compare
from nnunet_locctx.report.document import (
    Block,
    Document,
    Listing,
    Section,
    Text,
    count,
    p_value,
    percent,
    slug,
)
from nnunet_locctx.report.error_tables import error_table, postprocessing_table
from nnunet_locctx.report.figures.classes import draw_classes
from nnunet_locctx.report.figures.coverage import draw_coverage
from nnunet_locctx.report.figures.curves import draw_training
from nnunet_locctx.report.figures.location import draw_location, location_points
from nnunet_locctx.report.figures.overlays import draw_overlays
from nnunet_locctx.report.model import Study
from nnunet_locctx.report.paper_tables import paper_table
from nnunet_locctx.report.papers import paper_names
from nnunet_locctx.report.result_tables import (
    class_table,
    comparison_table,
    overview,
)
from nnunet_locctx.report.study_tables import (
    failure_table,
    fairness_table,
    location_table,
    missing_table,
    training_table,
)

Step = Callable[[str], object]


def build_document(study: Study, step: Step = lambda name: None) -> Document:
    """Computes everything that the report shows.

    Args:
        study: What was found.
        step: Called with the name of each part before it is made.
    """
    step("cross-validation")
    rows = compare(study, study.validation)
    step("test cases")
    test = compare(study, study.test)
    makers: list[tuple[str, str, Callable[[], Sequence[Block]]]] = [
        ("summary", "Summary", lambda: summary(study, rows)),
        ("validation", "Cross-validation", lambda: validation(study, rows)),
        ("test", "Test cases", lambda: test_cases(study, test)),
        ("postprocessing", "Postprocessing", lambda: _some(postprocessing_table(study))),
        ("papers", "Beside the papers", lambda: beside_papers(study)),
        ("location", "Wrong locations", lambda: wrong_locations(study)),
        ("training", "Training", lambda: [*draw_training(study), *_some(training_table(study))]),
        ("cases", "Cases", lambda: cases(study, rows)),
        ("fairness", "Fairness", lambda: _some(fairness_table(study))),
        ("settings", "Settings", lambda: settings(study)),
        ("computed", "How it was computed", lambda: computed(study)),
        (
            "missing",
            "Failed and missing",
            lambda: [*_some(failure_table(study)), *_some(missing_table(study))],
        ),
        ("repeat", "To repeat it", lambda: repeat(study)),
    ]
    sections = []
    for key, title, make in makers:
        step(title.lower())
        blocks = list(make())
        if blocks:
            sections.append(Section(key, title, blocks))
    title = str(study.settings.get("title") or study.settings["name"])
    return Document(title, f"Study {study.settings['name']} on {study.dataset}", sections)


def summary(study: Study, rows: Sequence[Comparison]) -> list[Block]:
    """What was compared, what came out, what is missing."""
    cases = len({key[1] for scores in study.validation.values() for key in scores.keys})
    blocks: list[Block] = [
        Text(
            f"{count(len(study.methods), 'method')} at {count(len(study.presets), 'preset')}, "
            f"{count(len(study.folds), 'fold')}, {count(cases, 'validation case')} with results"
            + (
                f", {count(int(study.settings['epochs']), 'epoch')} of "
                f"{study.settings.get('iterations_per_epoch', 250)} iterations"
                if study.settings.get("epochs")
                else ""
            )
            + f". Baseline: {study.baselines}."
        )
    ]
    if study.failures or study.missing:
        blocks.append(
            Text(
                f"The study is not complete: {count(len(study.failures), 'failed job')}, "
                f"{count(len(study.missing), 'missing result')} (section “Failed and missing”). "
                "The tables below hold what there is.",
                warning=True,
            )
        )
    broken = [entry for entry in study.settings.get("fairness") or () if not entry.get("holds")]
    if broken:
        blocks.append(
            Text(
                "Not the same for all methods: " + "; ".join(str(entry.get("what")) for entry in broken),
                warning=True,
            )
        )
    points = [_best_words(study, rows, preset.name) for preset in study.presets]
    points = [point for point in points if point]
    return [*blocks, Listing(points)] if points else blocks


def validation(study: Study, rows: Sequence[Comparison]) -> list[Block]:
    """The cross-validated results."""
    if not rows:
        return []
    cases = (
        f"validation cases of {count(len(study.folds), 'fold')} pooled"
        if len(study.folds) > 1
        else (f"validation cases of fold {study.folds[0]}")
    )
    blocks: list[Block] = [
        overview(study, rows, "overview", cases),
        comparison_table(study, rows, "comparison", cases),
        *_some(draw_coverage(study, rows)),
        error_table(study, rows, "errors", cases),
    ]
    for preset in dict.fromkeys(row.preset for row in rows):
        blocks += _some(draw_classes(study, rows, preset))
        blocks.append(class_table(study, rows, preset, f"classes_{slug(preset)}", cases))
    return blocks


def test_cases(study: Study, rows: Sequence[Comparison]) -> list[Block]:
    """The results on the test cases."""
    if not rows:
        return []
    cases = "test cases, ensemble of the folds"
    return [
        overview(study, rows, "test_overview", cases),
        comparison_table(study, rows, "test_comparison", cases),
        error_table(study, rows, "test_errors", cases),
        *(
            class_table(study, rows, preset, f"test_classes_{slug(preset)}", cases)
            for preset in dict.fromkeys(row.preset for row in rows)
        ),
    ]


def beside_papers(study: Study) -> list[Block]:
    """The tables of the papers that the study names."""
    blocks: list[Block] = []
    for name in study.settings.get("papers") or ():
        if name in paper_names():
            blocks.append(paper_table(study, name))
        else:
            known = ", ".join(paper_names())
            blocks.append(Text(f"There is no paper's table {name!r}; known are {known}.", warning=True))
    return blocks


def wrong_locations(study: Study) -> list[Block]:
    """Dice under a wrong location."""
    points = location_points(study)
    return [*_some(draw_location(study, points)), *_some(location_table(points))]


def cases(study: Study, rows: Sequence[Comparison]) -> list[Block]:
    """Best and worst cases."""
    blocks: list[Block] = []
    problems: list[str] = []
    for preset in dict.fromkeys(row.preset for row in rows):
        figure, found = draw_overlays(study, rows, preset)
        blocks += _some(figure)
        problems += found
    if problems:
        blocks += [Text("Could not be drawn:", warning=True), Listing(list(dict.fromkeys(problems)))]
    return blocks


def _best_words(study: Study, rows: Sequence[Comparison], preset: str) -> str:
    chosen = [row for row in rows if row.preset == preset and math.isfinite(row.mean)]
    if not chosen:
        return ""
    best = max(chosen, key=lambda row: row.mean)
    named = study.baseline_of(best.method)
    base = next((row for row in chosen if row.method == named), None)
    text = f"{preset}: highest mean foreground Dice {percent(best.mean)}% ({best.method}, {count(best.cases, 'case')})"
    if base is None:
        return text + f"; {named} is missing"
    if best is base:
        return text + "; no method is above the baseline" if len(chosen) > 1 else text
    text += f", {percent(best.gain, sign=True)} points over {named}"
    if best.test is not None and best.test.reason:
        return f"{text}, {best.test.reason}"
    return f"{text}, p {_equals(p_value(best.corrected))} (Holm)"


def _equals(text: str) -> str:
    return text if text.startswith("<") else f"= {text}"


def _some(block: Block | None) -> list[Block]:
    return [] if block is None else [block]
