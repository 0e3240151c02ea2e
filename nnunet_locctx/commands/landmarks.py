"""`locctx landmarks`: the voxel of one scan that corresponds to a voxel of another."""

import argparse
import json
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command, add_regressor, check_file, check_output


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "landmarks",
        run,
        "find the voxels of one scan that correspond to voxels of another",
        """Looks up the anatomical coordinates of voxels of one scan and finds the places of another scan that have the
        same. Voxel indices are those of the files (x, y, z, from 0), millimetres are LPS. `distance` is by how much the
        coordinates of the two places differ, in mm: large where the other scan has no such place. Writes nothing (but
        --json).""",
        """
        locctx landmarks -d 3 --from a_0000.nii.gz --to b_0000.nii.gz --at 120 140 60 --at 80 150 66
        locctx landmarks --regressor regressor.pt --from a.nii.gz --to b.nii.gz --at 120 140 60 --json found.json
        """,
    )
    add_regressor(parser)
    parser.add_argument(
        "--from", dest="first", type=Path, required=True, metavar="SCAN", help="scan with known places"
    )
    parser.add_argument(
        "--to", dest="second", type=Path, required=True, metavar="SCAN", help="scan to search"
    )
    parser.add_argument(
        "--at",
        type=float,
        nargs=3,
        action="append",
        required=True,
        metavar=("X", "Y", "Z"),
        help="voxel of the first scan; may be repeated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the landmarks to this file as well")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    check_output("--json", options.json)
    for file in (options.regressor, options.first, options.second):
        check_file(file)

    import numpy as np

    from nnunet_locctx.anatomy import find_landmarks
    from nnunet_locctx.anatomy.scans import load_anatomical, measure_scan
    from nnunet_locctx.files import write_atomically
    from nnunet_locctx.image_files import check_whole

    regressor = load_anatomical(options.regressor, options.dataset)
    check_whole(options.second)  # before the first one is measured
    first, frame = measure_scan(options.first, regressor)
    index = np.array(options.at)[:, ::-1]  # files are z, y, x as arrays
    size = frame.shape[::-1]
    for at in options.at:
        if not all(-0.5 <= value <= n - 0.5 for value, n in zip(at, size, strict=True)):
            raise ValueError(f"--at {at} is not in {options.first}, which has {size} voxels (x, y, z)")
    second, other = measure_scan(options.second, regressor)
    for file, measured in ((options.first, first), (options.second, second)):
        if measured.problem:
            raise ValueError(f"{file} could not be measured: {measured.problem}")
    places = frame.millimetres(index)
    landmarks = find_landmarks(first, second, places, other)
    voxels = other.index_from_millimetres(landmarks.millimetres)[:, ::-1]
    rows: list[dict[str, Any]] = [
        {
            "from": {"voxel_xyz": at, "millimetres_lps": _rounded(place)},
            "to": {"voxel_xyz": _rounded(voxel), "millimetres_lps": _rounded(target)},
            "distance": round(float(distance), 2),
            "inside": bool(inside),
        }
        for at, place, voxel, target, distance, inside in zip(
            options.at,
            places,
            voxels,
            landmarks.millimetres,
            landmarks.distances,
            landmarks.inside,
            strict=True,
        )
    ]
    print(f"{'from: voxel':<22}{'to: voxel':<22}{'to: mm (LPS)':<26}distance")
    for row in rows:
        outside = "" if row["inside"] else "  outside the scan"
        print(
            f"{_text(row['from']['voxel_xyz']):<22}{_text(row['to']['voxel_xyz']):<22}"
            f"{_text(row['to']['millimetres_lps']):<26}{row['distance']:.1f} mm{outside}"
        )
    if options.json is not None:
        content = {"from": str(options.first), "to": str(options.second), "landmarks": rows}
        write_atomically(options.json, (json.dumps(content, indent=2) + "\n").encode())
    return CLEAN


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 2) for value in values]


def _text(values: list[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values)
