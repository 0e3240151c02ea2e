"""`locctx show`: a scan with its location, and what a model makes of it."""

import argparse
import math
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import (
    CLEAN,
    add_command,
    add_dataset_json,
    check_device,
    check_file,
    check_folder,
    check_model,
    dataset_json,
)


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "show",
        run,
        "draw a scan with its location, and what a model makes of it",
        """Draws three slices of a scan the way the patient lies, with the location that a network gets (three
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
    add_dataset_json(parser, "the one near the scan or its label, or the model's")
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LEVEL", "WIDTH"),
        help="middle and range of the values shown, in HU or the scan's units (default: 40 400 for CT, else all but "
        "the outermost values of the scan)",
    )
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
    parser.add_argument(
        "--source",
        metavar="NAME",
        help="voxel, scanner, body, or after `locctx fit` body_part or anatomical (default: voxel, or the model's)",
    )
    parser.add_argument(
        "--regressor",
        type=Path,
        metavar="FILE",
        help="what `locctx fit` stored (regressor.pt), for its source (default: what was fitted on -d)",
    )
    parser.add_argument("--absolute", action="store_true", help="scanner: the scanner's own millimetres")
    model = parser.add_argument_group("with a model")
    model.add_argument(
        "--model", type=Path, metavar="FOLDER", help="trained model (TRAINER__PLANS__CONFIGURATION)"
    )
    model.add_argument("--fold", metavar="N", help="fold to use (default: the first of the model)")
    model.add_argument(
        "--shift",
        type=float,
        nargs=3,
        metavar=("R", "A", "S"),
        help="compare with a shifted location instead of an unknown one",
    )
    model.add_argument("--device", metavar="NAME", help="cpu, mps or cuda (default: cuda, without a GPU cpu)")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    import dataclasses

    output = options.output or Path(_without_ending(options.image[0].name) + ".location.png")
    if options.model is None and (options.fold or options.shift or options.device):
        raise ValueError("--fold, --shift and --device need --model")
    if options.model is not None and (
        options.source or options.absolute or options.regressor or options.dataset_json or options.dataset
    ):
        raise ValueError(
            "--source, --absolute, --regressor, -d and --dataset-json are read from the model; leave them out with "
            "--model"
        )
    window = None if options.window is None else _window(*options.window)
    if options.patch is not None and (len(options.patch) not in (2, 3) or min(options.patch) < 1):
        raise ValueError(f"--patch needs two or three sizes of at least 1 voxel, got {options.patch}")
    check_device(options.device)

    from nnunet_locctx.location import make_source

    source = make_source(options.source or "voxel", **({"absolute": True} if options.absolute else {}))
    if options.regressor is not None and not source.fitted:
        raise ValueError(f"the source {source.name!r} takes no --regressor")
    if source.needs_fit and options.regressor is None and options.dataset is None:
        raise ValueError(
            f"the source {source.name!r} needs --regressor (regressor.pt, made by `locctx fit`), or the dataset that "
            "it was fitted on: -d"
        )
    for file in (*options.image, options.label, options.regressor):
        check_file(file)
    check_model(options.model)
    check_folder("-o", output.resolve().parent)

    from nnunet_locctx.nnunet.data.fitted import REGRESSOR, fitted_folder
    from nnunet_locctx.nnunet.data.paths import dataset_folder
    from nnunet_locctx.show import check_output, compare_predictions, draw, locate_scan
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
            progress=True,
        )
    else:
        regressor = options.regressor
        if source.fitted and regressor is None and options.dataset is not None:
            stored = (
                fitted_folder(dataset_folder("nnUNet_raw", options.dataset).name, source.name) / REGRESSOR
            )
            regressor = stored if source.needs_fit or stored.is_file() else None
        scan = locate_scan(
            options.image,
            source,
            label=options.label,
            regressor=regressor,
            dataset_json=dataset_json(options),
            progress=True,
        )
    if options.patch is not None:
        scan = dataclasses.replace(scan, patch_size=checked_patch(options.patch))
    draw(scan, output, at=options.at, window=window, progress=True)
    if scan.comparison is not None:
        changed = scan.comparison.changed
        foreground = (scan.comparison.located > 0) | (scan.comparison.replaced > 0)
        share = 100 * float(changed.sum()) / max(1, int(foreground.sum()))
        print(
            f"with {scan.comparison.replacement}, {int(changed.sum())} voxels change ({share:.1f}% of the foreground)"
        )
    print(f"wrote {output}")
    return CLEAN


def _window(level: float, width: float) -> tuple[float, float]:
    """The values drawn black and white."""
    if not (math.isfinite(level) and math.isfinite(width) and width > 0):
        raise ValueError(f"--window needs a level and a width above 0, got {level:g} {width:g}")
    return level - width / 2, level + width / 2


def _without_ending(name: str) -> str:
    for ending in (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif", ".tiff"):
        if name.endswith(ending):
            return name[: -len(ending)]
    return name
