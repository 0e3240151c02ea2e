"""`locctx sources`: which location tells the classes of a dataset apart."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_locctx.commands.common import CLEAN, add_command, add_processes, print_next
from nnunet_locctx.nnunet.data.paths import dataset_folder

if TYPE_CHECKING:
    from nnunet_locctx.nnunet.plans.sources import Candidate

PICTURE = "locctx_sources.png"

SMALLER = "patch32"
"""Preset that is proposed where the planned patch sees so much that location adds nothing."""


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "sources",
        run,
        "compare location sources on a dataset, and recommend one",
        """Measures for each source of location, from what nnU-Net keeps of the preprocessed cases, how much a class's
        place scatters between cases and how far the classes lie apart, along each axis; recommends a source, its axes
        and jitter, and says whether location can be expected to help at the planned patch. The source `body` is
        measured in the raw scans the first time, fitted sources where they were fitted.""",
        """
        locctx sources -d 3
        locctx sources -d 3 -p nnUNetPlans_locctx -c 3d_small
        """,
    )
    parser.add_argument(
        "-d", "--dataset", required=True, metavar="ID", help="id or name of a dataset in nnUNet_preprocessed"
    )
    parser.add_argument(
        "-p", "--plans", default="nnUNetPlans", metavar="PLANS", help="plans (default: nnUNetPlans)"
    )
    parser.add_argument(
        "-c",
        "--configuration",
        default="3d_fullres",
        metavar="NAME",
        help="configuration whose patch is planned (default: 3d_fullres)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="do not read raw scans: leave out `body` where it was never measured",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help=f"picture to write, .png (default: {PICTURE} in the dataset's folder in nnUNet_preprocessed)",
    )
    add_processes(parser)


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    folder = dataset_folder("nnUNet_preprocessed", options.dataset)
    output = options.output or folder / PICTURE
    if output.suffix.lower() != ".png" or not output.resolve().parent.is_dir():
        raise ValueError(f"--output must be a .png file in a folder that exists, got {output}")
    candidates, helps = compare_sources(
        folder, options.plans, options.configuration, quick=options.quick, processes=options.processes
    )
    from nnunet_locctx.nnunet.plans.sources import recommend
    from nnunet_locctx.show.sources import draw_sources

    draw_sources({one.name: one.places for one in candidates}, output)
    print(f"picture: {output}")
    best = recommend(candidates)
    if best is not None:
        base = f"locctx plan -d {int(folder.name[7:10])} -p {options.plans} -c {options.configuration}"
        print_next([f"{base} {_options_of_plan(best, options.configuration, helps)}"])
    return CLEAN


def _options_of_plan(best: "Candidate", configuration: str, helps: bool) -> str:
    """Options for `locctx plan`: the recommended source, or a smaller patch where location adds nothing."""
    source = best.location["source"]
    what = f"--name {configuration}_{source}" if helps else f"--preset {SMALLER}"
    absolute = " --absolute" if best.location.get("absolute") else ""
    axes = f" --axes {' '.join(best.axes)}" if len(best.axes) < 3 else ""
    return f"{what} --source {source}{absolute}{axes} --jitter auto"


def compare_sources(
    folder: Path,
    plans_name: str,
    configuration_name: str,
    planned: Mapping[str, Any] | None = None,
    **options: Any,
) -> "tuple[list[Candidate], bool]":
    """Measures the sources on a dataset and prints what they are worth.

    Args:
        folder: The dataset's folder in nnUNet_preprocessed.
        plans_name: The plans.
        configuration_name: Whose data is looked at.
        planned: What differs in the configuration that is planned.
        **options: Of :func:`~nnunet_locctx.nnunet.plans.sources.measure_sources`.

    Returns:
        The sources, and whether the recommended one can be expected to help at the planned patch.

    Raises:
        ValueError: No such plans or configuration, or nothing was preprocessed.
    """
    from nnunet_locctx.nnunet.plans.planning import read_plans, resolve

    plans = read_plans(folder / f"{plans_name}.json")
    configuration = resolve(plans, configuration_name)

    from nnunet_locctx.nnunet.plans.sources import (
        measure_sources,
        patch_places,
        recommend,
        report_recommendation,
        report_sources,
    )

    cases, candidates = measure_sources(folder, plans, configuration, **options)
    planned = {**configuration, **(planned or {})}
    print("\n".join([*report_sources(candidates), *report_recommendation(candidates, cases, planned)]))
    best = recommend(candidates)
    return candidates, best is not None and bool(patch_places(cases, planned, best).gaining)
