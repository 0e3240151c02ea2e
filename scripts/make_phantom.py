"""Writes the phantom of `studies/phantom.yaml` to nnUNet_raw: CT-like scans whose twin organs only their position tells
apart.

    python scripts/make_phantom.py -d 901
"""

import argparse

from nnunet_locctx.nnunet.data.paths import nnunet_folder
from nnunet_locctx.phantoms.twin_organs import make_phantom


def main() -> None:
    """Writes the dataset unless it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-d", "--dataset", type=int, default=901, metavar="ID", help="its number (default: %(default)s)"
    )
    parser.add_argument(
        "--cases", type=int, default=20, metavar="N", help="training scans (default: %(default)s)"
    )
    parser.add_argument(
        "--test-cases", type=int, default=4, metavar="N", help="test scans (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=40, metavar="N", help="voxels per side (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    raw = nnunet_folder("nnUNet_raw")
    folder = raw / f"Dataset{options.dataset:03d}_Phantom"
    if folder.is_dir():
        print(f"{folder} is there; nothing to do")
        return
    make_phantom(
        raw,
        options.dataset,
        cases=options.cases,
        test_cases=options.test_cases,
        size=options.size,
        spacing=4.0,
        seed=options.seed,
        progress=True,
    )
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
