"""What the commands that use anatomical coordinates share."""

import argparse
from pathlib import Path


def add_regressor(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name the regressor, one of which is needed."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "-d", "--dataset", metavar="ID", help="dataset on which a regressor was fitted (locctx fit ape)"
    )
    where.add_argument("--regressor", type=Path, metavar="FILE", help="file of a fitted regressor")


def check_output(option: str, file: Path | None) -> None:
    """Raises ValueError if a file cannot be written because its folder is missing or it is a folder itself."""
    if file is None:
        return
    if not file.resolve().parent.is_dir():
        raise ValueError(f"{option}: there is no folder {file.resolve().parent}")
    if file.is_dir():
        raise ValueError(f"{option}: {file} is a folder")
