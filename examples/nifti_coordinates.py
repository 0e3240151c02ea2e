"""Where in the patient the voxels of a scan lie: `python examples/nifti_coordinates.py [ct.nii.gz]`."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from made_up import write_scans

import nnunet_locctx


def main(file: Path) -> dict[str, np.ndarray]:
    """Prints the coordinates of the middle of a scan and of its edge, by three sources; returns those of the middle.

    Args:
        file: A CT that SimpleITK reads.
    """
    scan = nnunet_locctx.Scan.read(file)
    middle = [(n // 2, n // 2 + 1) for n in scan.frame.shape]  # a box of one voxel, along z, y, x
    outside = [(n, n + 1) for n in scan.frame.shape]  # the voxel behind the last corner
    sources = {
        "voxel": "voxel",  # fractions of the scan
        # units of 500 mm, as the header has them
        "scanner": nnunet_locctx.make_source("scanner", absolute=True),
        # fractions of the body, found in the scan; NaN where there is none
        "body": nnunet_locctx.BodyFinder("ct"),
    }
    print(f"{file.name}: {scan.frame.shape} voxels of {np.round(scan.frame.spacing, 2)} mm (z, y, x)")
    coordinates = {}
    for name, source in sources.items():
        coordinates[name] = nnunet_locctx.coordinates(scan, middle, source).ravel()
        edge = nnunet_locctx.coordinates(scan, outside, source).ravel()
        print(
            f"{name:8} middle (R, A, S) {np.round(coordinates[name], 3)}, behind the last corner {np.round(edge, 3)}"
        )
    return coordinates


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(write_scans(Path(folder), 1)[0]["image"])
