"""`locctx localize`: boxes around organs, from a few labelled scans."""

import argparse
import json
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import (
    CLEAN,
    add_command,
    add_regressor,
    check_file,
    check_folder,
    check_output,
)


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "localize",
        run,
        "find boxes around organs in scans, from a few labelled ones",
        """Carries the organs of a few labelled scans over to other scans by anatomical coordinates, and reports a box
        around each: voxels of the file (x, y, z; `stop` is the first beyond), millimetres in LPS. Label names are those
        of the dataset.json beside the folder of labelled images; without one they are given by value.""",
        """
        locctx localize new_0000.nii.gz -d 3 --cases liver_003 liver_017 -o boxes.json
        locctx localize new.nii.gz --regressor regressor.pt --labelled imagesTr labelsTr --labels 1 2 -o boxes.json
        """,
    )
    add_regressor(parser)
    parser.add_argument(
        "scans",
        nargs="+",
        type=Path,
        metavar="SCAN",
        help="scan to search: the file of the regressor's channel",
    )
    parser.add_argument(
        "--labelled",
        nargs=2,
        type=Path,
        metavar=("IMAGES", "LABELS"),
        help="folders of labelled scans in nnU-Net's format (default: the training scans of -d)",
    )
    parser.add_argument(
        "--cases", nargs="+", metavar="NAME", help="labelled cases to use (default: all; a few suffice)"
    )
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="labels to look for (default: all)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    check_output("-o", options.output)
    for file in (options.regressor, *options.scans):
        check_file(file)
    for folder in options.labelled or ():
        check_folder("--labelled", folder)
    if options.labelled is None and options.dataset is None:
        raise ValueError("labelled scans are needed: --labelled IMAGES LABELS or -d DATASET")

    from tqdm import tqdm

    from nnunet_locctx.anatomy.localize import localize
    from nnunet_locctx.anatomy.scans import (
        label_values,
        list_scans,
        list_training,
        load_anatomical,
        measure_scan,
        read_labelled,
    )
    from nnunet_locctx.files import write_atomically
    from nnunet_locctx.image_files import check_whole
    from nnunet_locctx.nnunet.data.paths import dataset_folder

    regressor = load_anatomical(options.regressor, options.dataset)
    if options.labelled is None:
        folder = dataset_folder("nnUNet_raw", options.dataset)
        scans = list_training(folder)
    else:
        folder = options.labelled[0].resolve().parent
        scans = list_scans(*options.labelled)
    organs = label_values(folder, options.labels)
    known = {scan.name: scan for scan in scans if scan.label is not None}
    names = list(known) if options.cases is None else options.cases
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(
            f"no labelled case {', '.join(unknown)}; labelled are {', '.join(list(known)[:10]) or 'none'}"
        )
    for scan in options.scans:
        check_whole(scan)

    def bar(items: Any, what: str) -> Any:
        return tqdm(items, desc=what, unit="scan", disable=options.quiet, leave=False)

    labelled = [read_labelled(known[name], regressor, organs) for name in bar(names, "labelled scans")]
    unusable = [f"{scan.name}: {scan.map.problem}" for scan in labelled if scan.map.problem]
    if len(unusable) == len(labelled):
        raise ValueError(f"none of the labelled scans could be measured: {'; '.join(unusable[:5])}")
    results = []
    for file in bar(options.scans, "scans"):
        measured, frame = measure_scan(file, regressor)
        boxes = {} if measured.problem else localize(labelled, measured, frame, list(organs))
        results.append(
            {
                "scan": str(file),
                "size_xyz": list(frame.shape[::-1]),
                "problem": measured.problem,
                "organs": {organ: _entry(box, frame) for organ, box in boxes.items()},
            }
        )
    for problem in unusable:
        print(f"not used, could not be measured: {problem}")
    for result in results:
        print("\n".join(_lines(result, list(organs))))
    write_atomically(
        options.output, (json.dumps({"labelled": names, "scans": results}, indent=2) + "\n").encode()
    )
    print(f"wrote {options.output}")
    return CLEAN


def _entry(box: Any, frame: Any) -> dict[str, Any]:
    voxels = box.voxels(frame)
    lower, upper = box.millimetres(frame)
    return {
        "voxel_xyz": None
        if voxels is None
        else {"first": list(voxels[0][::-1]), "stop": list(voxels[1][::-1])},
        "millimetres_lps": {"lower": lower.round(2).tolist(), "upper": upper.round(2).tolist()},
        "outside": round(box.outside, 4),
        "spread_mm": None if box.spread is None else round(box.spread, 2),
        "labelled_scans": box.scans,
        "cut_in_all": box.cut,
    }


def _lines(result: dict[str, Any], organs: list[str]) -> list[str]:
    lines = [f"{result['scan']}  {' x '.join(map(str, result['size_xyz']))} voxels"]
    if result["problem"]:
        return [*lines, f"  could not be measured: {result['problem']}"]
    width = max(len(organ) for organ in organs)
    for organ in organs:
        entry = result["organs"].get(organ)
        if entry is None:
            lines.append(f"  {organ:<{width}}  in none of the labelled scans")
            continue
        voxels = entry["voxel_xyz"]
        place = "outside the scan"
        if voxels is not None:
            place = "  ".join(
                f"{axis} {first}..{stop - 1}"
                for axis, first, stop in zip("xyz", voxels["first"], voxels["stop"], strict=True)
            )
        notes = [] if entry["outside"] < 0.005 else [f"{entry['outside']:.0%} outside the scan"]
        notes += [] if entry["spread_mm"] is None else [f"spread {entry['spread_mm']:.1f} mm"]
        notes += ["cut off in every labelled scan"] if entry["cut_in_all"] else []
        lines.append(f"  {organ:<{width}}  {place:<32}  {', '.join(notes)}".rstrip())
    return lines
