"""`locctx plan`: another configuration beside those nnU-Net planned."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command, assignments
from nnunet_locctx.commands.sources import compare_sources
from nnunet_locctx.nnunet.data.paths import dataset_folder
from nnunet_locctx.places import ENCODINGS, PLACES
from nnunet_locctx.values import check_integer, check_positive


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "plan",
        run,
        "add a configuration (patch, batch, spacing, location) to plans",
        """Adds a configuration that inherits from a planned one to a plans file of its own beside the original,
        which is never changed. A new patch size or spacing brings the pooling nnU-Net would plan for it. Sizes and
        spacings are in the order of the plans' own (for most datasets slice, row, column).""",
        """
        locctx plan -d 3 --preset patch32
        locctx plan -d 3 --name 3d_located --source auto
        locctx plan -d 7 --preset locbam_lowres_small locbam_lowres_large
        locctx plan -d 3 -c 3d_fullres --name 3d_small --patch 32 32 32 --batch 8 --source scanner
        nnUNetv2_train 3 3d_small 0 -p nnUNetPlans_locctx -tr LocBAMTrainer
        locctx plan -d 3 --name 3d_unetr --patch 96 96 96 --network hidden_size=384
        """,
    )
    parser.add_argument(
        "-d", "--dataset", metavar="ID", help="id or name of a dataset in nnUNet_preprocessed"
    )
    parser.add_argument("--list", action="store_true", help="list the presets and stop")
    base = parser.add_argument_group("which plans")
    base.add_argument(
        "-p",
        "--plans",
        default="nnUNetPlans",
        metavar="PLANS",
        help="plans to start from (default: nnUNetPlans)",
    )
    base.add_argument(
        "-c",
        "--configuration",
        default="3d_fullres",
        metavar="NAME",
        help="configuration to inherit from (default: 3d_fullres)",
    )
    base.add_argument(
        "--name",
        metavar="NAME",
        help="name of the new configuration (with --preset, default: CONFIGURATION_PRESET)",
    )
    base.add_argument("--plans-name", metavar="NAME", help="plans file to write to (default: PLANS_locctx)")
    base.add_argument(
        "--force",
        action="store_true",
        help="replace a configuration of that name that differs; renew plans whose original changed",
    )
    size = parser.add_argument_group("patch and network")
    size.add_argument(
        "--preset",
        nargs="+",
        metavar="NAME",
        help="start from a preset (--list) or a .json file; other options go on top. Several: a configuration each",
    )
    size.add_argument("--patch", type=int, nargs="+", metavar="N", help="patch size in voxels")
    size.add_argument("--batch", type=int, metavar="N", help="patches per batch")
    size.add_argument(
        "--batch-dice",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="Dice loss over the batch's patches together; for small patches that hold few of the classes",
    )
    size.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        metavar="MM",
        help="voxel size in mm; the data must then be preprocessed again",
    )
    size.add_argument(
        "--features", type=int, nargs="+", metavar="N", help="feature maps of each stage of the network"
    )
    size.add_argument(
        "--keep-topology", action="store_true", help="keep the base's pooling whatever the patch size"
    )
    where = parser.add_argument_group(
        "location (the plans' \"location\" key; without any, each trainer's defaults)"
    )
    where.add_argument(
        "--source",
        metavar="NAME",
        help="what a coordinate means: voxel (fraction of the volume), scanner (millimetres), body (fraction of the "
        "body's own box), body_part or anatomical (after `locctx fit`); auto: what `locctx sources` recommends, with "
        "axes and jitter",
    )
    where.add_argument(
        "--absolute",
        action="store_true",
        default=None,
        help="scanner: the scanner's own millimetres instead of the distance from the volume's centre",
    )
    where.add_argument(
        "--cross-section",
        choices=("body", "scan"),
        help="body_part: what the two other coordinates are fractions of (default: body)",
    )
    where.add_argument(
        "--axes",
        nargs="+",
        metavar="AXIS",
        help="axes to use, of R A S (default: all); the location along the others is unknown in every scan",
    )
    where.add_argument(
        "--place",
        metavar="NAME",
        help=f"where location enters the network: {'; '.join(f'{name}: {where}' for name, where in PLACES.items())}",
    )
    where.add_argument(
        "--jitter",
        type=_jitter,
        metavar="SD",
        help="training: random shift and scale of a patch's location, standard deviation; auto: as much as the classes "
        "scatter between the cases",
    )
    where.add_argument(
        "--dropout",
        type=float,
        metavar="P",
        help="training: probability that an axis of a batch's location is made unknown, and that all are",
    )
    where.add_argument(
        "--encoding",
        choices=ENCODINGS,
        metavar="NAME",
        help=f"how the block encodes location: {', '.join(ENCODINGS)} (hash: GPE alone)",
    )
    where.add_argument("--bands", type=int, metavar="N", help="frequency bands of the encoding")
    where.add_argument(
        "--block",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="another option of the block (repeatable)",
    )
    whole = parser.add_argument_group('networks that replace the planned U-Net (the plans\' "network" key)')
    whole.add_argument(
        "--network",
        action="append",
        nargs="?",
        const="",
        metavar="OPTION=VALUE",
        help="an option of the network (repeatable); alone: only lift the planned pooling's limits on the patch size",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from nnunet_locctx.nnunet.plans.presets import MadeFor, list_presets, load_preset

    if options.list:
        presets = list_presets()
        width = max(map(len, presets)) + 2
        for name, description in presets.items():
            print(f"{name:<{width}}{description}")
        return CLEAN
    if options.dataset is None:
        raise ValueError("which dataset? Give its id or name with -d (or --list for the presets)")
    if options.name is None and options.preset is None:
        raise ValueError("the new configuration needs a name: --name")
    if options.name and len(options.preset or []) > 1:
        raise ValueError(f"--name is for one preset, got {', '.join(options.preset)}")
    made_for: dict[str, MadeFor] = {}
    changes: dict[str, dict[str, Any]] = {}
    for preset in map(load_preset, options.preset or []):
        name = options.name or f"{options.configuration}_{preset.name}"
        made_for[name], changes[name] = preset.made_for, _changes(options, dict(preset.changes))
    if options.preset is None:
        changes[options.name] = _changes(options, {})
    _check_numbers(options)
    for given in changes.values():
        _check_location(given.get("location", {}))
    folder = dataset_folder("nnUNet_preprocessed", options.dataset)

    from nnunet_locctx.nnunet.plans.planning import plan_configurations

    for given in changes.values():
        if given.get("location", {}).get("source") == "auto":
            given["location"] = _recommended(options, folder, given)
    plans, changed = plan_configurations(
        folder,
        options.plans,
        options.configuration,
        {name: {**given, "keep_topology": options.keep_topology} for name, given in changes.items()},
        own_plans_name=options.plans_name,
        force=options.force,
    )
    from nnunet_locctx.commands.plan_report import print_configurations

    print_configurations(folder, plans, {name: made_for.get(name) for name in changes}, changed)
    return CLEAN


def _recommended(options: argparse.Namespace, folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The location of a configuration with the recommended source; what else is given goes on top.

    Raises:
        ValueError: Nothing was preprocessed, or no source tells the classes apart.
    """
    from nnunet_locctx.nnunet.plans.sources import location_key, recommend

    planned = {key: given[key] for key in ("patch_size",) if key in given and "spacing" not in given}
    best = recommend(compare_sources(folder, options.plans, options.configuration, planned)[0])
    if best is None:
        raise ValueError(
            "--source auto finds no source that tells the classes apart; train plain nnU-Net, or name a source"
        )
    return {
        **location_key(best),
        **{key: value for key, value in given["location"].items() if key != "source"},
    }


def _check_numbers(options: argparse.Namespace) -> None:
    """Refuses numbers that no plans allow, before torch is loaded."""
    batch = () if options.batch is None else (options.batch,)
    for name, numbers in (
        ("patch_size", options.patch),
        ("batch_size", batch),
        ("features", options.features),
    ):
        for number in numbers or ():
            check_integer(name, number, 1)
    for length in options.spacing or ():
        check_positive("spacing", length)


def _check_location(location: Mapping[str, Any]) -> None:
    """Refuses a location that no block takes, before torch is loaded."""
    from nnunet_locctx.nnunet.options import LocationOptions

    if location.get("source", "auto") == "auto":  # then the base or `locctx sources` say what these belong to
        location = {key: location[key] for key in location.keys() - {"source", "absolute", "cross_section"}}
    LocationOptions.from_configuration({"location": location})


def _jitter(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text!r}") from None


def _changes(options: argparse.Namespace, changes: dict[str, Any]) -> dict[str, Any]:
    """A preset's changes with the command line's on top."""
    given = {"patch_size": options.patch, "batch_size": options.batch, "spacing": options.spacing}
    given["batch_dice"] = options.batch_dice
    changes.update({key: value for key, value in given.items() if value is not None})
    if options.features:
        changes["architecture"] = {**changes.get("architecture", {}), "features_per_stage": options.features}
    location = _location(options, changes.get("location", {}))
    if location:
        changes["location"] = location
    if options.network is not None:
        given_options = assignments([text for text in options.network if text], "--network")
        changes["network"] = {**changes.get("network", {}), **given_options}
    return changes


def _location(options: argparse.Namespace, preset: dict[str, Any]) -> dict[str, Any]:
    location = dict(preset)
    for key in ("source", "absolute", "cross_section", "axes", "place", "jitter", "dropout"):
        value = getattr(options, key)
        if value is not None:
            location[key] = value
    block = dict(location.get("block", {}))
    for key in ("encoding", "bands"):
        value = getattr(options, key)
        if value is not None:
            block[key] = value
    block.update(assignments(options.block, "--block"))
    if block:
        location["block"] = block
    return location
