"""The job that preprocesses: ``python -m nnunet_locctx.study.preprocess WORK CONFIGURATION``, by nnUNetv2_preprocess.

Data that is there and whole is not made again. Beside it a file says whether it is whole: nnU-Net itself leaves no sign
of a run that was interrupted.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_locctx.locks import wait_for_lock
from nnunet_locctx.nnunet.commands import executable
from nnunet_locctx.study.plan import PLAN
from nnunet_locctx.study.runs import digest
from nnunet_locctx.study.splits import raw_cases
from nnunet_locctx.study.steps import exit_status
from nnunet_locctx.study.work_folder import read_json, write_json

ENDINGS = (".b2nd", ".npz", ".npy")
"""Of nnU-Net's preprocessed images."""


def preprocess(request: Mapping[str, Any], configuration: str) -> None:
    """Preprocesses every training case for a configuration, unless it is done.

    Raises:
        ValueError: The plans have no such configuration.
        subprocess.CalledProcessError: nnU-Net's command failed.
    """
    from nnunet_locctx.nnunet.plans.identifiers import DECISIVE
    from nnunet_locctx.nnunet.plans.planning import read_plans, resolve

    preprocessed = Path(request["preprocessed"])
    plans = read_plans(preprocessed / f"{request['plans']}.json")
    resolved = resolve(plans, configuration)
    folder = preprocessed / str(resolved["data_identifier"])
    wanted = {key: resolved.get(key) for key in DECISIVE}
    wanted["transpose"] = plans["transpose_forward"]
    wanted["intensities"] = plans.get("foreground_intensity_properties_per_channel")
    fingerprint = digest(wanted)
    sign = folder.with_name(f"{folder.name}.locctx.json")
    with wait_for_lock(
        sign.with_suffix(".lock"), lambda held: print(f"waiting for {held}", flush=True), inherited=True
    ):
        said = read_json(sign)
        missing = missing_cases(folder, raw_cases(Path(request["raw"])))
        if (
            not missing
            and said.get("state") != "begun"
            and said.get("fingerprint", fingerprint) == fingerprint
        ):
            print(f"{folder} is whole" + ("" if said else ", made before by nnU-Net"))
            return
        write_json(sign, {"state": "begun", "fingerprint": fingerprint})
        number = str(int(request["dataset"][7:10]))
        command = [executable("nnUNetv2_preprocess"), "-d", number, "-plans_name", request["plans"]]
        command += ["-c", configuration, "-np", str(request["processes"])]
        subprocess.run(command, check=True, close_fds=False)  # it holds the locks too
        missing = missing_cases(folder, raw_cases(Path(request["raw"])))
        if missing:
            raise ValueError(f"nnUNetv2_preprocess ended well, but {folder} lacks {', '.join(missing[:5])}")
        write_json(sign, {"state": "done", "fingerprint": fingerprint})


def missing_cases(folder: Path, cases: list[str]) -> list[str]:
    """The cases that a folder of preprocessed data lacks."""
    there = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return [
        case
        for case in cases
        if f"{case}.pkl" not in there or not any(f"{case}{end}" in there for end in ENDINGS)
    ]


def main(work: str, configuration: str) -> int:
    """Entry point."""
    return exit_status(lambda: preprocess(read_json(Path(work) / PLAN), configuration))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
