"""The job that asks what a wrong location costs: `locctx robustness` on validation cases of one fold.

``python -m nnunet_locctx.study.robustness WORK --model MODEL --fold F --cases N -o OUTPUT ...``; what is not known here
is passed on.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunet_locctx.nnunet.commands import executable
from nnunet_locctx.nnunet.data.dataset_json import read_dataset_json
from nnunet_locctx.nnunet.data.raw_scans import training_cases
from nnunet_locctx.study.plan import PLAN
from nnunet_locctx.study.splits import SPLITS, read_splits
from nnunet_locctx.study.work_folder import read_json


def link_cases(raw: Path, cases: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Folders with just these cases, as links.

    Args:
        raw: The data set's raw folder.
        cases: Training cases.
        folder: Takes ``images`` and ``labels``.

    Returns:
        The two folders.
    """
    ending = read_dataset_json(raw)["file_ending"]
    known = {case.identifier: case for case in training_cases(raw)}
    images, labels = folder / "images", folder / "labels"
    for target in (images, labels):
        target.mkdir(parents=True, exist_ok=True)
        for link in target.iterdir():
            link.unlink()
    for case in cases:
        for channel, scan in enumerate(known[case].images):
            (images / f"{case}_{channel:04d}{ending}").symlink_to(scan.resolve())
        (labels / f"{case}{ending}").symlink_to(known[case].label.resolve())
    return images, labels


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options, rest = parser.parse_known_args(arguments)
    request = read_json(options.work / PLAN)
    cases = sorted(read_splits(Path(request["preprocessed"]) / SPLITS)[options.fold]["val"])[: options.cases]
    options.output.mkdir(parents=True, exist_ok=True)
    images, labels = link_cases(Path(request["raw"]), cases, options.output / "cases")
    command = [executable("locctx"), "robustness", "--model", options.model, "--fold", str(options.fold)]
    command += ["-i", str(images), "-l", str(labels), "-o", str(options.output), "--quiet"]
    # it holds the locks of the job and of its GPU too
    return subprocess.run([*command, *rest], check=False, close_fds=False).returncode


if __name__ == "__main__":
    sys.exit(main())
