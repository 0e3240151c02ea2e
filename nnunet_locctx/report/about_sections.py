"""The sections about the study: settings, how it was computed, how to repeat it."""

import json
import math
import shlex

from nnunet_locctx.report.document import Block, Code, Listing, Text, count
from nnunet_locctx.report.model import Study
from nnunet_locctx.report.statistics import FEWEST_CASES, FEWEST_DIFFERENCES, RESAMPLES, SEED
from nnunet_locctx.report.study_tables import duration, method_table, preset_table


def settings(study: Study) -> list[Block]:
    """What was set, and on what it ran."""
    chosen = study.settings
    facts = [
        f"data set: {study.dataset}",
        f"channels: {_words(chosen.get('channels'))}",
        f"labels: {_words(chosen.get('labels'))}",
        f"folds: {', '.join(map(str, study.folds))}",
        f"epochs: {chosen.get('epochs', 'unknown')} of {chosen.get('iterations_per_epoch', 250)} iterations",
        f"seed: {chosen.get('seed', 'unknown')}",
        f"device: {chosen.get('device', 'unknown')}, GPUs per training: {chosen.get('gpus', 'unknown')}",
    ]
    facts += [f"{name} {version}" for name, version in (chosen.get("versions") or {}).items()]
    facts += [f"machine, {name}: {value}" for name, value in (chosen.get("machine") or {}).items()]
    seconds = [
        float(one["seconds"])
        for one in study.training.values()
        if isinstance(one.get("seconds"), int | float)
    ]
    if seconds:
        facts.append(
            f"training, all together: {duration(math.fsum(seconds))} ({count(len(seconds), 'training')})"
        )
    return [preset_table(study), method_table(study), Listing(facts)]


def computed(study: Study) -> list[Block]:
    """Definitions of the measures and the statistics."""
    points = [
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
    points += [f"{name}: {text}" for name, text in study.definitions.items()]
    return [Listing(points)]


def repeat(study: Study) -> list[Block]:
    """Commands."""
    file = study.settings.get("file") or "STUDY.yaml"
    blocks: list[Block] = [
        Code(f"locctx study {shlex.quote(str(file))}\nlocctx report {shlex.quote(str(study.folder))}"),
    ]
    if study.runs:
        number = study.settings["dataset"].get("id", "DATASET")
        lines = [
            shlex.join(
                [
                    "nnUNetv2_train",
                    str(number),
                    run.configuration,
                    "FOLD",
                    "-tr",
                    run.trainer,
                    "-p",
                    run.plans,
                ]
            )
            for run in study.runs
        ]
        blocks += [
            Text("A single training by hand, without the study's seed:"),
            Code('export nnUNet_extTrainer="$(locctx trainers)"\n' + "\n".join(lines)),
        ]
    return blocks


def _words(value: object) -> str:
    return "unknown" if value is None else json.dumps(value, ensure_ascii=False)
