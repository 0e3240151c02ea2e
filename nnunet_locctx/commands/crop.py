"""`locctx crop`: raw scans cropped to the region of chosen labels."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command, check_file, check_folder


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "crop",
        run,
        "crop raw scans to the region of chosen labels",
        """Learns from labelled scans in which region of the body the chosen labels lie, in anatomical coordinates, and
        crops all scans (images and labels) to the box around that region. The region is as narrow as --recall
        allows; recall is measured in labelled scans that are left out in turn. Scans that do not show the region are
        reported and not written. Input files are never changed; OUT must be new or empty.""",
        """
        locctx crop -d 3 --labels liver tumor --recall 0.99 -o /data/nnUNet_raw/Dataset103_LiverCrop
        locctx crop --regressor regressor.pt -i images -l labels --labels 1 2 -o cropped
        locctx crop --regressor regressor.pt -i new --region cropped/region.npz -o new_cropped
        """,
    )
    parser.add_argument(
        "--regressor",
        type=Path,
        metavar="FILE",
        help="fitted anatomical regressor (default: that of the dataset given by -d)",
    )
    parser.add_argument(
        "-d", "--dataset", metavar="ID", help="dataset in nnUNet_raw: its training and test scans are cropped"
    )
    parser.add_argument(
        "-i", "--images", type=Path, metavar="FOLDER", help="images to crop, in nnU-Net's format"
    )
    parser.add_argument(
        "-l", "--segmentations", type=Path, metavar="FOLDER", help="segmentations of some or all of them"
    )
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="labels to keep, by name or value")
    parser.add_argument(
        "--region",
        type=Path,
        metavar="FILE",
        help="crop by the region of earlier crops (their region.npz) instead of learning one: for new scans",
    )
    parser.add_argument(
        "--recall",
        type=float,
        default=0.99,
        metavar="SHARE",
        help="share of each label's voxels to keep, mean over scans left out (default: 0.99)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder to write to")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    if (options.dataset is None) == (options.images is None):
        raise ValueError("give either -d DATASET or -i IMAGES -l LABELS")
    if options.segmentations is not None and options.images is None:
        raise ValueError("-l LABELS needs -i IMAGES")
    if (options.labels is None) == (options.region is None):
        raise ValueError("give either --labels NAME... to learn a region or --region FILE to use one")
    if options.region is None and options.images is not None and options.segmentations is None:
        raise ValueError("-i IMAGES needs -l LABELS, from which a region is learned, or --region FILE")
    if not 0 < options.recall <= 1:
        raise ValueError(f"--recall must be above 0 and at most 1, got {options.recall:g}")
    if options.dataset is None and options.regressor is None:
        raise ValueError("-i IMAGES needs --regressor FILE")
    for file in (options.regressor, options.region):
        check_file(file)
    for option, given in (("-i", options.images), ("-l", options.segmentations)):
        check_folder(option, given)

    from nnunet_locctx.anatomy import ScanGroup, crop_scans, format_report, read_region
    from nnunet_locctx.anatomy.scans import label_values, list_scans, list_training, load_anatomical
    from nnunet_locctx.nnunet.data.dataset_json import read_dataset_json
    from nnunet_locctx.nnunet.data.paths import dataset_folder

    if options.dataset is not None:
        folder = dataset_folder("nnUNet_raw", options.dataset)
        groups = [ScanGroup("imagesTr", "labelsTr", list_training(folder))]
        tests, truth = folder / "imagesTs", folder / "labelsTs"
        if tests.is_dir() and any(not file.name.startswith(".") for file in tests.iterdir()):
            scans = list_scans(tests, truth if truth.is_dir() else None)
            groups.append(ScanGroup(tests.name, truth.name, scans, teaches=False))
    else:
        folder = options.images.resolve().parent
        groups = [ScanGroup("images", "labels", list_scans(options.images, options.segmentations))]
    labels = {} if options.labels is None else label_values(folder, options.labels)
    regressor = load_anatomical(options.regressor, options.dataset)
    region = None if options.region is None else read_region(options.region, regressor)
    report = crop_scans(
        groups,
        regressor,
        labels,
        options.output,
        recall=options.recall,
        region=region,
        dataset=None if options.dataset is None else read_dataset_json(folder),
        progress=not options.quiet,
    )
    print(format_report(report))
    print(f"wrote {options.output}")
    return CLEAN
