"""The output of `locctx plan`."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import YELLOW, print_next, styled
from nnunet_locctx.evaluation.classes import find_pairs
from nnunet_locctx.nnunet.plans.memory import expected_memory
from nnunet_locctx.nnunet.plans.misfits import description, misfits, source_to_fit
from nnunet_locctx.nnunet.plans.planning import coverage, resolve
from nnunet_locctx.nnunet.plans.plans_file import Plans
from nnunet_locctx.nnunet.plans.presets import MadeFor
from nnunet_locctx.nnunet.plans.suitability import suitable_trainers
from nnunet_locctx.nnunet.training.trainers import RECOMMENDED, find_trainer

SHOWN = ("inherits_from", "batch_size", "batch_dice", "spacing", "data_identifier", "location", "network")

SIDES = (
    "Classes are sides ({}, {}), and mirroring in training exchanges them: on real heads, in small patches, it cost "
    "14 points of Dice with location and 19 without. Trainers whose names end in _noMirroring leave it out (plain "
    "nnU-Net: nnUNetTrainerNoMirroring)."
)
"""Source: docs/explanation/evidence.md."""


def print_configurations(
    folder: Path, plans: Plans, made_for: Mapping[str, MadeFor | None], changed: bool
) -> None:
    """Prints what was added, where it does not fit the data, and nnU-Net's commands that come next.

    Args:
        folder: The dataset's folder in nnUNet_preprocessed.
        plans: The plans as written.
        made_for: The configurations' names, and what their presets expect of the data.
        changed: Whether the file changed.
    """
    dataset, own = int(folder.name[7:10]), plans["plans_name"]
    pairs = find_pairs(list(description(folder).get("labels", ())))
    fits: dict[str, None] = {}
    to_preprocess: dict[str, str] = {}
    proposed: dict[str, str] = {}
    for name, purpose in made_for.items():
        print(f"{'wrote' if changed else 'unchanged:'} {folder / own}.json, configuration {name}")
        full = resolve(plans, name)
        trainers = _print(folder, plans, plans["configurations"][name], full, purpose)
        if source_to_fit(folder, full):
            fits[f"locctx fit {source_to_fit(folder, full)} -d {dataset}"] = None
        if not (folder / full["data_identifier"]).is_dir():
            line = f"nnUNetv2_preprocess -d {dataset} -plans_name {own} -c {name}"
            to_preprocess.setdefault(full["data_identifier"], line)
        proposed[name] = proposed_trainer(trainers, pairs)
    if pairs:
        print(_wrapped("sides", SIDES.format(*pairs[0])))
    print_next([*fits, *to_preprocess.values(), *from_training_on(folder, own, proposed)])


def from_training_on(folder: Path, plans_name: str, trainers: Mapping[str, str]) -> list[str]:
    """The commands from training to inspected predictions, in the order to type.

    Args:
        folder: The dataset's folder, raw or preprocessed.
        plans_name: The plans.
        trainers: Configuration -> its trainer.
    """
    dataset, trainings, predictions, inspections = int(folder.name[7:10]), [], [], []
    for name, trainer in trainers.items():
        output = "predictions" if len(trainers) == 1 else f"predictions_{name}"
        trainings.append(f"nnUNetv2_train {dataset} {name} 0 -p {plans_name} -tr {trainer}")
        predictions.append(
            f"nnUNetv2_predict -d {dataset} -c {name} -f 0 -p {plans_name} -tr {trainer} "
            f"-i $nnUNet_raw/{folder.name}/imagesTs -o {output}"
        )
        inspections.append(f"locctx inspect {output} -d {dataset}")
    return [*trainings, *predictions, *inspections]


def proposed_trainer(trainers: Sequence[str], pairs: Sequence[tuple[str, str]]) -> str:
    """The trainer that the printed commands name, without mirroring where classes are sides.

    Args:
        trainers: Those that take the configuration.
        pairs: The (left, right) classes.
    """
    preferred = [name for name in (RECOMMENDED, "PriorHeadTrainer") if name in trainers]
    name = (*preferred, *trainers, "TRAINER")[0]
    unmirrored = f"{name}_noMirroring"
    return unmirrored if pairs and find_trainer(unmirrored) else name


def _print(
    folder: Path, plans: Plans, added: Mapping[str, Any], full: Mapping[str, Any], made_for: MadeFor | None
) -> list[str]:
    """Prints one configuration; returns the trainers that take it."""
    for key in SHOWN:
        if key in added:
            print(f"{key:<16}{added[key]}")
    if "architecture" in added:
        kwargs = added["architecture"]["arch_kwargs"]
        print(f"{'strides':<16}{kwargs.get('strides')}")
        print(f"{'features':<16}{kwargs.get('features_per_stage')}")
    print(coverage(full))
    memory = expected_memory(full, len(description(folder).get("labels", "01")))
    if memory is not None:
        estimate = f"about {memory:.2g} GB" if memory >= 1 else "less than 1 GB"
        print(f"{'GPU memory':<16}{estimate} for the planned U-Net, by nnU-Net's planning rule")
    suitable = suitable_trainers(full)
    verb = "takes" if len(suitable.names) == 1 else "take"
    print(_wrapped("trainers", f"{', '.join(suitable.names) or 'none'} {verb} it"))
    for sentence in misfits(folder, plans, full, suitable, made_for):
        print(_wrapped("warning", sentence).replace("warning", styled("warning", YELLOW), 1))
    return suitable.names


def _wrapped(name: str, text: str) -> str:
    return textwrap.fill(f"{name:<16}{text}", 120, subsequent_indent=" " * 16, break_on_hyphens=False)
