"""`locctx fit`: location sources that are learned from the user's own unlabelled scans."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_locctx.commands.common import (
    CLEAN,
    FINDINGS,
    add_command,
    add_processes,
    assignments,
    print_next,
    warn,
)
from nnunet_locctx.nnunet.data.paths import dataset_folder
from nnunet_locctx.values import check_integer, check_positive

if TYPE_CHECKING:
    from nnunet_locctx.nnunet.data.fitting import FittedDataset

FEW = 0.9
"""Share of the scans that should be measured; with fewer there is a warning."""

SOURCES = {"body": "body", "body-part": "body_part", "ape": "anatomical"}
"""Name of a source on the command line -> name of the location source in plans."""


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "fit",
        run,
        "fit a location source on the training scans (body part scores, anatomical embeddings)",
        """Fits a small network on the unlabelled training scans of a dataset that tells where in the body a slice
        (body-part) or a voxel (ape) lies, whatever the field of view, and measures every training scan with it. Both
        are kept in nnUNet_preprocessed; the network travels in the checkpoints of models trained with the source, so
        that prediction needs nothing else. Run again, an interrupted fit is taken up where it stopped, and scans that
        changed since are measured again. Exit status 1: no scan could be measured.""",
        """
        locctx fit body-part -d 3
        locctx fit body-part -d 3 --lowest femur_left --highest skull
        locctx fit ape -d 3 -p nnUNetPlans -c 3d_fullres
        locctx fit body-part -d 3 --from-json bpreg_scores
        """,
    )
    parser.add_argument(
        "what",
        choices=sorted(SOURCES),
        help="body-part: scores along the body; ape: anatomical embeddings; body: no fit, only the body's box in each "
        "scan (training does it by itself)",
    )
    parser.add_argument(
        "-d", "--dataset", required=True, metavar="ID", help="id or name of a dataset in nnUNet_raw"
    )
    parser.add_argument(
        "--again", action="store_true", help="replace a regressor that was fitted with other options"
    )
    parser.add_argument("--channel", type=int, default=0, metavar="N", help="image channel (default: 0)")
    parser.add_argument(
        "--modality",
        choices=("ct", "mr"),
        help="ct: intensities are HU; mr: everything else (default: as dataset.json says)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything random (default: 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps at most")
    parser.add_argument("--spacing", type=float, metavar="MM", help="voxel size the scans are looked at")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of the fit (repeatable; a wrong name lists them)",
    )
    add_processes(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    scale = parser.add_argument_group("body-part: what the scores 0 and 100 are")
    scale.add_argument("--lowest", metavar="LABEL", help="class whose lowest slice gets the score 0")
    scale.add_argument("--highest", metavar="LABEL", help="class whose highest slice gets the score 100")
    scale.add_argument(
        "--from-json",
        type=Path,
        metavar="FOLDER",
        help="take over the scores that bpreg wrote (CASE.json); new scans are scored by a network fitted to them",
    )
    plans = parser.add_argument_group("also add a configuration with this source (as `locctx plan` does)")
    plans.add_argument(
        "-p", "--plans", metavar="PLANS", help="plans to start from (with -c; default: nnUNetPlans)"
    )
    plans.add_argument("-c", "--configuration", metavar="NAME", help="configuration to inherit from")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if (options.lowest is None) != (options.highest is None):
        raise ValueError("--lowest and --highest go together")
    if options.plans and not options.configuration:
        raise ValueError("--plans needs a configuration: -c")
    for name, lowest in (("channel", 0), ("seed", 0), ("steps", 1)):
        if getattr(options, name) is not None:
            check_integer(name, getattr(options, name), lowest)
    if options.spacing is not None:
        check_positive("spacing", options.spacing)
    further = assignments(options.option, "--option")
    for name in {"channel", "modality", "seed", "steps", "spacing"} & set(further):
        raise ValueError(f"--option {name}: it has an option of its own, --{name}")
    dataset_folder("nnUNet_raw", options.dataset)
    if options.from_json is not None and not options.from_json.is_dir():
        raise ValueError(f"--from-json: {options.from_json} is not a folder")
    source = SOURCES[options.what]
    if options.configuration:
        _configuration(options, source, dry=True)  # not after hours of fitting

    from nnunet_locctx.files import write_atomically
    from nnunet_locctx.nnunet.data.fitting import Anchors, fit_source

    # the box of a body has no seed: nothing in it is random
    names = ("steps", "spacing") if source == "body" else ("seed", "steps", "spacing")
    given = {name: getattr(options, name) for name in names}
    fitted = fit_source(
        options.dataset,
        source,
        channel=options.channel,
        modality=options.modality,
        anchors=None if options.lowest is None else Anchors(options.lowest, options.highest),
        imported=options.from_json,
        again=options.again,
        processes=options.processes,
        progress=not options.quiet,
        **{name: value for name, value in given.items() if value is not None},
        **further,
    )
    from nnunet_locctx.show.fitted import draw_fitted, report_fitted

    report = report_fitted(fitted)
    write_atomically(fitted.folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    print(f"{'fitted' if fitted.fitted_now else 'unchanged:'} {fitted.folder}")
    for line in [*report["summary"], *_about_changes(fitted)]:
        print(line)
    for name, problem in fitted.problems.items():
        warn(f"{name}: {problem}; its location is unknown")
    picture, usable = fitted.folder / "report.png", len(fitted.measured) - len(fitted.problems)
    if not usable:
        picture.unlink(missing_ok=True)  # of an earlier fit
        print("no scan could be measured: training with this source would be training without location")
        return FINDINGS
    draw_fitted(fitted, picture)
    if usable < FEW * len(fitted.measured):
        warn(
            f"only {usable} of {len(fitted.measured)} scans could be measured; for the others a coordinate "
            "means another thing, which can make a model worse than without location"
        )
    print(f"picture: {picture}")
    if options.configuration:
        _configuration(options, source, dry=False)
    else:
        dataset = int(dataset_folder("nnUNet_raw", options.dataset).name[7:10])
        print_next([f"locctx plan -d {dataset} --name 3d_fullres_{source} --source {source}"])
    return CLEAN


def _about_changes(fitted: "FittedDataset") -> list[str]:
    """Sentences about scans that changed since they were measured, preprocessed or fitted on."""
    from nnunet_locctx.names import named

    lines = []
    if fitted.changed:
        lines.append(f"measured again, because the scan changed: {named(fitted.changed)}")
    if fitted.stale:
        lines.append(
            f"warning: the preprocessed data in {', '.join(folder.name for folder in fitted.stale)} is still that of "
            "the scans before they changed; run nnUNetv2_preprocess (nnUNetv2_plan_and_preprocess if voxel sizes "
            "changed) before training"
        )
    if fitted.fitted_on_others:
        lines.append(
            f"note: the regressor was fitted before these scans changed: {named(fitted.fitted_on_others)}. It is kept, "
            "because models trained with it need it; --again fits anew"
        )
    return lines


def _configuration(options: argparse.Namespace, source: str, *, dry: bool) -> None:
    """Adds CONFIGURATION_SOURCE and prints it as `locctx plan` does; dry: only refuses what cannot be added."""
    from nnunet_locctx.commands.plan_report import print_configurations
    from nnunet_locctx.nnunet.plans.planning import plan_configurations

    name = f"{options.configuration}_{source}"
    folder = dataset_folder("nnUNet_preprocessed", options.dataset)
    changes = {name: {"location": {"source": source}}}
    plans, changed = plan_configurations(
        folder, options.plans or "nnUNetPlans", options.configuration, changes, dry=dry
    )
    if not dry:
        print_configurations(folder, plans, {name: None}, changed)
