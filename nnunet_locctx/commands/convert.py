"""`locctx convert`: public datasets to nnU-Net's raw format."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_locctx.commands.common import CLEAN, add_command, add_processes, print_next

RELEASES = ("synapse", "btcv", "amos22", "kits23", "acdc", "brats")

OWN_OPTIONS = {
    "all_labels": ("synapse",),
    "with_mr": ("amos22",),
    "split": ("amos22", "acdc", "brats"),
    "keep_excluded": ("kits23",),
    "regions": ("kits23",),
    "window": ("acdc",),
}
"""Options that only some releases have."""

SPLITS = {"amos22": ("folds", "official"), "acdc": ("folds", "nnformer"), "brats": ("folds", "nnformer")}
"""Splits of a release; the first is the default."""


def add(commands: Any) -> None:
    """Adds the parser."""
    parser = add_command(
        commands,
        "convert",
        run,
        "convert a public dataset to nnU-Net's raw format, with its split",
        """Reads a public dataset in the folder layout in which it is published and writes it to nnUNet_raw, and its
        split to nnUNet_preprocessed. All files are read first: missing, superfluous and corrupt ones are listed, and
        nothing is written. Started again after a stop it goes on; started again after the end it verifies the dataset
        and does nothing. Layouts and splits: docs/how-to/datasets.md.""",
        """
        locctx convert btcv /data/Abdomen/RawData -d 7
        locctx convert kits23 /data/kits23 -d 220 -np 8 --link
        locctx convert amos22 /data/amos22 -d 218 --split official
        """,
    )
    parser.add_argument("release", choices=RELEASES, help="dataset")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the release, unpacked")
    parser.add_argument(
        "-d", "--dataset", type=int, required=True, metavar="ID", help="number of the new dataset"
    )
    parser.add_argument("--name", help="name after the number (default: the release's)")
    add_processes(parser)
    parser.add_argument(
        "--link", action="store_true", help="symbolic links instead of copies for files that need no change"
    )
    parser.add_argument("--exclude", nargs="+", default=[], metavar="CASE", help="cases to leave out")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="convert the cases of the release that exist, although others are missing",
    )
    parser.add_argument("--no-test", action="store_true", help="leave out test scans without labels")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.5,
        metavar="VOXELS",
        help="by how much the grids of image and label may differ (default: %(default)s)",
    )
    own = parser.add_argument_group("options of some datasets")
    own.add_argument(
        "--all-labels", action="store_true", help="synapse: keep the 13 labels (default: the protocol's 8)"
    )
    own.add_argument("--with-mr", action="store_true", help="amos22: CT and MR (default: CT)")
    own.add_argument(
        "--split",
        choices=("folds", "official", "nnformer"),
        help="five folds (default); amos22: or the official one; acdc, brats: or nnFormer's",
    )
    own.add_argument(
        "--keep-excluded", action="store_true", help="kits23: with the 9 cases the LocBAM paper leaves out"
    )
    own.add_argument(
        "--regions", action="store_true", help="kits23: nested regions (default: kidney, tumor, cyst)"
    )
    own.add_argument(
        "--window",
        action="store_true",
        help="acdc: each scan clipped to its percentiles 0.5 to 99.5 and scaled to 0..1, as the LightMedSeg paper",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    own = _own_options(options)

    from nnunet_locctx.datasets import conversion

    release = conversion.RELEASES[options.release](
        exclude=tuple(sorted(set(options.exclude))), partial=options.partial, test=not options.no_test, **own
    )
    result = conversion.convert(
        release,
        options.source,
        options.dataset,
        options.name,
        processes=options.processes,
        link=options.link,
        tolerance=options.tolerance,
        progress=not options.quiet,
    )
    print("\n".join(_lines(result)))
    print_next([f"locctx check -d {options.dataset}"])
    return CLEAN


def _own_options(options: argparse.Namespace) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for name, releases in OWN_OPTIONS.items():
        value = getattr(options, name)
        if not value:
            continue
        option = "--" + name.replace("_", "-")
        if options.release not in releases:
            raise ValueError(f"{option} is an option of {', '.join(releases)}, not of {options.release}")
        own[name] = value
    allowed = SPLITS.get(options.release, ())
    if options.split and options.split not in allowed:
        raise ValueError(
            f"--split of {options.release} must be one of {', '.join(allowed)}, got {options.split!r}"
        )
    return own


def _lines(result: Any) -> list[str]:
    cases = f"{len(result.training)} training and {len(result.testing)} test cases"
    if result.existed:
        lines = [f"{result.folder} exists and is whole: {cases}; nothing to do"]
    else:
        resumed = f" ({result.resumed} of them written before)" if result.resumed else ""
        lines = [f"wrote {result.folder}: {cases}{resumed}"]
    lines.append(f"split: {result.splits}")
    lines += [f"note: {note}" for note in result.notes]
    for name, reason in sorted(result.left_out.items()):
        seen = "; ".join(result.unusual.get(name, ["nothing unusual in its header"]))
        lines.append(f"left out: {name}: {reason}; {seen}")
    for name, messages in sorted(result.unusual.items()):
        if name not in result.left_out:
            lines.append(f"look at: {name}: {'; '.join(messages)}")
    return lines
