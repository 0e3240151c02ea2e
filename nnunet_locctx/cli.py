"""`locctx`: the package's commands. Nothing slow (torch, nnU-Net, matplotlib) is imported before a command needs it."""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunet_locctx import __version__
from nnunet_locctx.nnunet.paths import dataset_folder
from nnunet_locctx.resources import trainers_folder

CLEAN, FINDINGS, FAILED = 0, 1, 2
"""Exit status: done; `locctx check` found something; the input was not usable."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Command line without the program's name; None: that of the process.

    Returns:
        Exit status: 0 done, 1 `locctx check` found something, 2 unusable input.
    """
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"locctx {options.command}: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"locctx {options.command}: interrupted", file=sys.stderr)
        return 130
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="locctx",
        description="Location as input for nnU-Net v2. Training and prediction stay nnU-Net's own commands; "
        "`locctx` prepares and inspects.",
        epilog='Before training or predicting: export nnUNet_extTrainer="$(locctx trainers)"',
    )
    parser.add_argument("--version", action="version", version=f"locctx {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_trainers, _add_demo, _add_check, _add_plan, _add_show):
        add(commands)
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    example: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(" ".join(description.split()), 100),
        epilog="example:\n" + textwrap.indent(textwrap.dedent(example).strip(), "  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    parser.set_defaults(run=run)
    return parser


# ---- trainers ----


def _add_trainers(commands: Any) -> None:
    _command(
        commands,
        "trainers",
        _run_trainers,
        "print the folder that nnUNet_extTrainer must name",
        "Prints the folder in which nnU-Net finds this package's trainers, and nothing else.",
        """
        export nnUNet_extTrainer="$(locctx trainers)"
        nnUNetv2_train 3 3d_fullres 0 -tr PriorHeadTrainer
        """,
    )


def _run_trainers(_: argparse.Namespace) -> int:
    print(trainers_folder())
    return CLEAN


# ---- demo ----


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        _run_demo,
        "train plain and located nnU-Net on a small phantom and compare",
        """Makes a CT phantom with twin organs that only their position tells apart, trains plain nnU-Net and a
        located one on it with the same budget, predicts unseen scans with nnUNetv2_predict and writes results.json
        and figure.png.""",
        "locctx demo --folder demo",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="where everything is written (default: demo)"
    )


def _run_demo(options: argparse.Namespace) -> int:
    from nnunet_locctx.demo import run_demo

    run_demo(options.folder)
    return CLEAN


# ---- check ----


def _add_check(commands: Any) -> None:
    parser = _command(
        commands,
        "check",
        _run_check,
        "look for wrong headers in a raw dataset before training",
        """Reads every scan of a dataset in nnU-Net's raw format and reports orientations, voxel sizes and what looks
        wrong: unusable or default headers, images and labels that do not fit each other, labels far from where they
        lie in other cases, voxels that are not finite, unknown label values, missing and unreadable files. Writes
        nothing (but --json).
        Exit status: 0 clean, 1 something found, 2 no such dataset.""",
        """
        locctx check -d 3
        locctx check /data/nnUNet_raw/Dataset003_Liver --json check.json
        """,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-d", "--dataset", metavar="ID", help="id or name of a dataset in nnUNet_raw")
    where.add_argument(
        "folder", nargs="?", type=Path, metavar="FOLDER", help="the dataset's folder, with dataset.json"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything found to this file as well"
    )
    parser.add_argument(
        "--cases", type=int, default=5, metavar="N", help="cases named per finding (default: 5)"
    )
    parser.add_argument(
        "-np",
        "--processes",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="worker processes",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _run_check(options: argparse.Namespace) -> int:
    from nnunet_locctx.check import check_dataset, format_report

    folder = options.folder or dataset_folder("nnUNet_raw", options.dataset)
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise ValueError(f"--json: there is no folder {options.json.resolve().parent}")
    report = check_dataset(folder, processes=options.processes, progress=not options.quiet)
    print(format_report(report, options.cases))
    if options.json is not None:
        options.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    return CLEAN if report.clean else FINDINGS


# ---- plan ----


def _add_plan(commands: Any) -> None:
    parser = _command(
        commands,
        "plan",
        _run_plan,
        "add a configuration (patch, batch, spacing, location) to plans",
        """Adds a configuration that inherits from a planned one to a plans file of its own beside the original,
        which is never changed. A new patch size or spacing brings the pooling nnU-Net would plan for it. Sizes and
        spacings are in the order of the plans' own (for most datasets slice, row, column).""",
        """
        locctx plan -d 3 --preset patch32
        locctx plan -d 3 -c 3d_fullres --name 3d_small --patch 32 32 32 --batch 8 --source scanner
        nnUNetv2_train 3 3d_small 0 -p nnUNetPlans_locctx -tr LocBAMTrainer
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
        metavar="NAME",
        help="start from a preset (--list) or a .json file; other options go on top",
    )
    size.add_argument("--patch", type=int, nargs="+", metavar="N", help="patch size in voxels")
    size.add_argument("--batch", type=int, metavar="N", help="patches per batch")
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
        help="what a coordinate means: voxel (fraction of the volume) or scanner (millimetres)",
    )
    where.add_argument(
        "--absolute",
        action="store_true",
        default=None,
        help="scanner: the scanner's own millimetres instead of the distance from the volume's centre",
    )
    where.add_argument(
        "--place",
        metavar="NAME",
        help="where location enters the network: input, encoder_first, encoder, bottleneck, decoder, "
        "decoder_last or logits",
    )
    where.add_argument(
        "--jitter",
        type=float,
        metavar="SD",
        help="training: random shift and scale of a patch's location, standard deviation",
    )
    where.add_argument(
        "--dropout", type=float, metavar="P", help="training: probability that a patch's location is withheld"
    )
    where.add_argument(
        "--encoding", metavar="NAME", help="how the block encodes location: identity or frequency"
    )
    where.add_argument("--bands", type=int, metavar="N", help="frequency bands of the encoding")
    where.add_argument(
        "--block",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="another option of the block (repeatable)",
    )


def _run_plan(options: argparse.Namespace) -> int:
    from nnunet_locctx.nnunet.presets import list_presets, read_preset

    if options.list:
        for name, description in list_presets().items():
            print(f"{name:<18}{description}")
        return CLEAN
    if options.dataset is None:
        raise ValueError("which dataset? Give its id or name with -d (or --list for the presets)")
    changes = read_preset(options.preset) if options.preset else {}
    name = options.name
    if name is None and options.preset is None:
        raise ValueError("the new configuration needs a name: --name")
    name = name or f"{options.configuration}_{Path(options.preset).stem}"
    given = {"patch_size": options.patch, "batch_size": options.batch, "spacing": options.spacing}
    changes.update({key: value for key, value in given.items() if value is not None})
    if options.features:
        changes["architecture"] = {**changes.get("architecture", {}), "features_per_stage": options.features}
    location = _location(options, changes.get("location", {}))
    if location:
        changes["location"] = location
    folder = dataset_folder("nnUNet_preprocessed", options.dataset)

    from nnunet_locctx.nnunet.planning import check_location, coverage, plan_configuration, resolve

    plans, changed = plan_configuration(
        folder,
        options.plans,
        options.configuration,
        name,
        own_plans_name=options.plans_name,
        force=options.force,
        keep_topology=options.keep_topology,
        **changes,
    )
    added = plans["configurations"][name]
    full = resolve(plans, name)
    own = plans["plans_name"]
    print(f"{'wrote' if changed else 'unchanged:'} {folder / own}.json, configuration {name}")
    for key in ("inherits_from", "batch_size", "spacing", "data_identifier", "location"):
        if key in added:
            print(f"{key:<16}{added[key]}")
    if "architecture" in added:
        kwargs = added["architecture"]["arch_kwargs"]
        print(f"{'strides':<16}{kwargs.get('strides')}")
        print(f"{'features':<16}{kwargs.get('features_per_stage')}")
    print(coverage(full))
    if "location" in full:
        print(f"{'blocks':<16}{', '.join(check_location(full['location']))} take these location options")
    identifier = full["data_identifier"]
    dataset = int(folder.name[7:10])
    print("next:")
    if not (folder / identifier).is_dir():
        print(f"  nnUNetv2_preprocess -d {dataset} -plans_name {own} -c {name}")
    print(f"  nnUNetv2_train {dataset} {name} 0 -p {own} -tr PriorHeadTrainer")
    return CLEAN


def _location(options: argparse.Namespace, preset: dict[str, Any]) -> dict[str, Any]:
    location = dict(preset)
    for key in ("source", "absolute", "place", "jitter", "dropout"):
        value = getattr(options, key)
        if value is not None:
            location[key] = value
    block = dict(location.get("block", {}))
    for key in ("encoding", "bands"):
        value = getattr(options, key)
        if value is not None:
            block[key] = value
    for text in options.block:
        key, found, value = text.partition("=")
        if not found or not key:
            raise ValueError(f"--block needs OPTION=VALUE, got {text!r}")
        try:
            block[key] = json.loads(value)
        except ValueError:
            block[key] = value  # a bare word is text
    if block:
        location["block"] = block
    return location


# ---- show ----


def _add_show(commands: Any) -> None:
    parser = _command(
        commands,
        "show",
        _run_show,
        "draw a scan with its location, and what a model makes of it",
        """Draws three slices of a scan the way the patient lies, with the location a network is told (three
        channels) and the patches it sees. Given a trained located model, also its prediction with the true location,
        with another one, and where the two differ.""",
        """
        locctx show scan_0000.nii.gz --label scan.nii.gz --patch 32 32 32 -o scan.png
        locctx show scan_0000.nii.gz --model $nnUNet_results/Dataset003_Liver/PriorHeadTrainer__nnUNetPlans__3d_fullres
        """,
    )
    parser.add_argument("image", type=Path, nargs="+", metavar="IMAGE", help="the scan; one file per channel")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="picture to write (default: IMAGE's name, .location.png)",
    )
    parser.add_argument("--label", type=Path, metavar="FILE", help="segmentation to draw on the scan")
    parser.add_argument(
        "--at",
        type=float,
        nargs=3,
        metavar=("R", "A", "S"),
        help="place to show as fractions of the volume, -0.5 to 0.5 (default: amid the labels)",
    )
    parser.add_argument(
        "--patch",
        type=int,
        nargs="+",
        metavar="N",
        help="patch size to draw, in the plans' order (default: the model's)",
    )
    parser.add_argument("--source", metavar="NAME", help="voxel or scanner (default: voxel, or the model's)")
    parser.add_argument("--absolute", action="store_true", help="scanner: the scanner's own millimetres")
    model = parser.add_argument_group("with a model")
    model.add_argument(
        "--model", type=Path, metavar="FOLDER", help="trained model (TRAINER__PLANS__CONFIGURATION)"
    )
    model.add_argument("--fold", metavar="N", help="fold to use (default: the first there)")
    model.add_argument(
        "--shift",
        type=float,
        nargs=3,
        metavar=("R", "A", "S"),
        help="compare with a shifted location instead of a neutral one",
    )
    model.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda if there)")


def _run_show(options: argparse.Namespace) -> int:
    import dataclasses

    output = options.output or Path(_without_ending(options.image[0].name) + ".location.png")
    if options.model is None and (options.fold or options.shift or options.device):
        raise ValueError("--fold, --shift and --device need --model")
    if options.model is not None and (options.source or options.absolute):
        raise ValueError(
            "--source and --absolute are read from the model's plans; leave them out with --model"
        )

    from nnunet_locctx.location import make_source
    from nnunet_locctx.show import check_output, compare_predictions, draw, read_scan
    from nnunet_locctx.show.scan import checked_patch

    check_output(output)  # before a prediction that may take minutes

    if options.model is not None:
        scan = compare_predictions(
            options.image,
            options.model,
            label=options.label,
            fold=options.fold,
            shift=options.shift,
            device=options.device,
        )
    else:
        source = make_source(options.source or "voxel", **({"absolute": True} if options.absolute else {}))
        scan = read_scan(options.image, source, label=options.label)
    if options.patch is not None:
        scan = dataclasses.replace(scan, patch_size=checked_patch(options.patch))
    draw(scan, output, at=None if options.at is None else scan.index_at(options.at))
    if scan.comparison is not None:
        changed = scan.comparison.changed
        foreground = (scan.comparison.located > 0) | (scan.comparison.replaced > 0)
        share = 100 * float(changed.sum()) / max(1, int(foreground.sum()))
        print(
            f"with {scan.comparison.replacement}, {int(changed.sum())} voxels change ({share:.1f}% of the foreground)"
        )
    print(f"wrote {output}")
    return CLEAN


def _without_ending(name: str) -> str:
    for ending in (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif", ".tiff"):
        if name.endswith(ending):
            return name[: -len(ending)]
    return name


if __name__ == "__main__":
    sys.exit(main())
