"""`locctx postprocess`: largest components, atlas masking and repaired sides of a folder of predictions."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command, add_dataset_json, add_processes, dataset_json
from nnunet_locctx.nnunet.data.paths import dataset_folder, training_labels

DESCRIPTION = "largest components, atlas masking and repaired sides of a folder of predictions"


def add(commands: Any) -> None:
    """Adds the parser and those of its actions."""
    parser = add_command(
        commands,
        "postprocess",
        run_largest_component,
        DESCRIPTION,
        """Changes a folder of predictions, of any trainer of nnU-Net, into another one. Names, grids and headers of
        the files stay. Each action has its own --help.""",
        """
        locctx postprocess largest-component PREDICTIONS -o LARGEST -d 3
        locctx postprocess fit-atlas -d 3 --validation MODEL/fold_*/validation -o atlas.npz
        locctx postprocess apply-atlas atlas.npz PREDICTIONS -o MASKED
        locctx postprocess sides PREDICTIONS -d 3 -o REPAIRED
        """,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_largest_component(actions)
    _add_fit_atlas(actions)
    _add_apply_atlas(actions)
    _add_sides(actions)


def _add_largest_component(actions: Any) -> None:
    parser = add_command(
        actions,
        "largest-component",
        run_largest_component,
        "keep the largest component of each class",
        """Keeps the largest connected component of each class (or region), by nnU-Net's own function; removed voxels
        become background. Unlike nnU-Net's nnUNetv2_find_best_configuration it does not ask whether this helps.""",
        "locctx postprocess largest-component PREDICTIONS -o LARGEST --classes liver spleen",
    )
    _add_folders(parser)
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="names in dataset.json (default: every foreground class)",
    )


def _add_fit_atlas(actions: Any) -> None:
    parser = add_command(
        actions,
        "fit-atlas",
        run_fit_atlas,
        "make an atlas from training labels",
        """Brings the training labels to one grid along the patient's axes, averages them, and tunes by how much the
        places of each class must be dilated to mask validation predictions best (mean foreground Dice). Each
        validation folder is masked by an atlas of the cases it does not hold.""",
        """
        locctx postprocess fit-atlas -d 3 --validation MODEL/fold_*/validation -o atlas.npz --fold-atlases
        locctx postprocess fit-atlas --labels labelsTr --radius-mm 20 -o atlas.npz
        """,
    )
    _add_labels(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the atlas, .npz")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--validation",
        type=Path,
        nargs="+",
        metavar="PRED",
        help="folders of validation predictions, one per fold, to tune the dilation on",
    )
    how.add_argument("--radius-mm", type=float, metavar="MM", help="the dilation, without tuning")
    parser.add_argument(
        "--radii",
        type=float,
        nargs="+",
        metavar="MM",
        help="dilations to try (default: 0 5 10 15 20 30 40 60)",
    )
    parser.add_argument(
        "--fold-atlases",
        action="store_true",
        help="also write each validation folder's atlas, as STEM_fold_N.npz, to mask that folder with",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the cases above which a place counts (default: 0)",
    )
    parser.add_argument(
        "--grid",
        type=int,
        nargs=3,
        metavar="N",
        help="cells along R, A and S (default: the scans' median size)",
    )
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="training cases (default: all)")
    _add_common(parser)


def _add_apply_atlas(actions: Any) -> None:
    parser = add_command(
        actions,
        "apply-atlas",
        run_apply_atlas,
        "mask predictions with an atlas",
        """Makes predicted voxels background where, by the atlas, their class does not occur.""",
        "locctx postprocess apply-atlas atlas.npz PREDICTIONS -o MASKED",
    )
    parser.add_argument("atlas", type=Path, metavar="ATLAS", help="file of fit-atlas")
    _add_folders(parser)


def _add_sides(actions: Any) -> None:
    parser = add_command(
        actions,
        "sides",
        run_sides,
        "give voxels on the wrong side of the body to the other side's class",
        """Learns from training labels how far each left and right class (as the names say) reaches over the mid-plane.
        Predicted voxels beyond that become the twin's. Training cases that are among the predictions are left out.
        Comes before largest-component, which would delete them.""",
        """
        locctx postprocess sides PREDICTIONS -d 3 -o REPAIRED
        locctx postprocess sides MODEL/fold_0/validation --labels labelsTr -o REPAIRED
        """,
    )
    _add_folders(parser)
    _add_labels(parser)


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FOLDER",
        help="folder of training labels, CASE.ENDING (default: those of -d)",
    )


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("predictions", type=Path, metavar="PRED", help="folder of predictions, CASE.ENDING")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to write")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_dataset_json(parser, "the one in or above the folders")
    add_processes(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run_largest_component(options: argparse.Namespace) -> int:
    """Runs the action; returns the exit status."""
    from nnunet_locctx.evaluation.postprocessing import largest_component

    files = largest_component(
        options.predictions, options.output, classes=options.classes, **_common_options(options)
    )
    return _say_written(files, options.output)


def run_apply_atlas(options: argparse.Namespace) -> int:
    """Runs the action; returns the exit status."""
    from nnunet_locctx.evaluation.postprocessing import apply_atlas

    files = apply_atlas(options.atlas, options.predictions, options.output, **_common_options(options))
    return _say_written(files, options.output)


def run_sides(options: argparse.Namespace) -> int:
    """Runs the action; returns the exit status."""
    from nnunet_locctx.evaluation.postprocessing import repair_sides

    labels = _training_labels(options)
    files = repair_sides(labels, options.predictions, options.output, **_common_options(options))
    return _say_written(files, options.output)


def run_fit_atlas(options: argparse.Namespace) -> int:
    """Runs the action; returns the exit status."""
    from nnunet_locctx.evaluation.atlas_fit import RADII, fit_atlas

    atlas = fit_atlas(
        _training_labels(options),
        options.output,
        validation=options.validation or (),
        cases=options.cases,
        radius_mm=options.radius_mm,
        radii=options.radii or RADII,
        threshold=options.threshold,
        grid=options.grid,
        fold_atlases=options.fold_atlases,
        **_common_options(options),
    )
    size = " x ".join(map(str, atlas.grid.shape))
    spacing = " x ".join(f"{length:.2f}" for length in atlas.grid.spacing)
    print(f"{len(atlas.cases)} cases on a grid of {size} cells of {spacing} mm (R, A, S)")
    tuning = atlas.history.get("tuning")
    if tuning:
        print(f"mean foreground Dice of {tuning['cases']} validation cases:")
        for radius, dice in tuning["foreground_dice"].items():
            chosen = " *" if float(radius) == atlas.radius_mm else ""
            print(f"  {radius:>5} mm  {_shown(dice)}{chosen}")
        print(f"  no mask   {_shown(tuning['foreground_dice_without_mask'])}")
    print(f"radius {atlas.radius_mm:g} mm")
    print(f"wrote {options.output}")
    return CLEAN


def _training_labels(options: argparse.Namespace) -> Path:
    if options.labels is None and options.dataset is None:
        raise ValueError("which training labels? Give a dataset (-d) or a folder (--labels)")
    return options.labels or training_labels(dataset_folder("nnUNet_raw", options.dataset))


def _common_options(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "dataset_json": dataset_json(options),
        "processes": options.processes,
        "progress": not options.quiet,
    }


def _say_written(files: list[Path], output: Path) -> int:
    print(f"wrote {len(files)} segmentations to {output}")
    return CLEAN


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
