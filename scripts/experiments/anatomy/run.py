"""Location learned from anatomy against location that follows the field of view, on the whole-body phantom.

Fits body part scores and anatomical embeddings on training phantoms, each a random part of a body in random
orientation and voxel size, and measures on held-out ones: the error of each source's location against the true place,
what crops, orientations and slice spacings do to it, whether it rises along the body. What it does to the Dice of a
trainer is a study: sources.yaml.

    python -m scripts.experiments.anatomy.run
    python -m scripts.experiments.anatomy.run --report              # only write the documents again

Fits are kept in the work folder (--work); the same command takes an interrupted run up again. Writes
anatomy.json and location_error.png beside it, and the part between the marks of docs/explanation/results.md.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("nnUNet_results", "/nonexistent")  # nnU-Net asks for its folders while it is imported
os.environ.setdefault("nnUNet_raw", "/nonexistent")
os.environ.setdefault("nnUNet_preprocessed", "/nonexistent")

import torch

from nnunet_locctx.files import write_atomically
from nnunet_locctx.regression.registry import load_regressor
from nnunet_locctx.regression.regressor import Regressor
from scripts.benchmarks.harness import (
    OUT_HELP,
    Record,
    describe_machine,
    described_parser,
    destinations,
    replace_section,
    say,
)
from scripts.experiments.anatomy.location import (
    POINTS,
    PhantomScans,
    invariance,
    location_errors,
    locator,
    monotonicity,
)
from scripts.experiments.anatomy.report import BEGIN, END, draw, section

FITTED = ("body_part", "anatomical")
UNFITTED = ("voxel", "scanner")


# ------------------------------------------------------------------------------------------------------- regressors


def fit_functions(steps: dict[str, int | None], seed: int) -> dict[str, tuple[Any, Callable[..., Regressor]]]:
    """Source -> options and function that fit its regressor."""
    from nnunet_locctx.regression.anatomical import AnatomicalOptions, fit_anatomical
    from nnunet_locctx.regression.body_part import BodyPartOptions, fit_body_part

    def options(made: Callable[..., Any], name: str) -> Any:
        count = steps.get(name)
        return made(seed=seed) if count is None else made(seed=seed, steps=count)

    return {
        "body_part": (options(BodyPartOptions, "body_part"), fit_body_part),
        "anatomical": (options(AnatomicalOptions, "anatomical"), fit_anatomical),
    }


def fitted(
    name: str, options: Any, fit: Callable[..., Regressor], training: Sequence[int], seed: int, work: Path
) -> tuple[Regressor, Record]:
    """The regressor of a source from the work folder, or fitted now, and how long it took.

    A regressor that was fitted with other options or scans is fitted anew.
    """
    file, note = work / f"{name}.pt", work / f"{name}.json"
    made_with = {"options": repr(options), "training": list(training), "seed": seed}
    if file.exists() and note.exists():
        record = json.loads(note.read_text())
        if record["made_with"] == made_with:
            return load_regressor(file.read_bytes()), record
    folder = work / f"{name}_training"
    folder.mkdir(parents=True, exist_ok=True)
    say(f"fitting {name} on {len(training)} scans")
    start = time.perf_counter()
    regressor = fit(PhantomScans(training, seed, options.spacing), options, folder)
    seconds = round(time.perf_counter() - start, 1)
    record = {
        "made_with": made_with,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in getattr(regressor, "network", torch.nn.Identity()).parameters()),
    }
    write_atomically(file, regressor.to_bytes())
    write_json(note, record)
    shutil.rmtree(folder)
    return regressor, record


# ------------------------------------------------------------------------------------------------------------- parts


def measure_location(arguments: argparse.Namespace) -> Record:
    """Errors, invariance and monotonicity of all sources."""
    training = range(arguments.training)
    held_out = range(arguments.training, arguments.training + arguments.held_out)
    steps = {"body_part": arguments.steps_body_part, "anatomical": arguments.steps_anatomical}
    regressors: dict[str, Regressor] = {}
    fits: Record = {}
    chosen = [name for name in FITTED if name in arguments.sources]
    for name in chosen:
        options, fit = fit_functions(steps, arguments.seed)[name]
        regressors[name], fits[name] = fitted(name, options, fit, training, arguments.seed, arguments.work)
    sources = [name for name in (*UNFITTED, *FITTED) if name in arguments.sources]
    locators = {name: locator(name, regressors.get(name)) for name in sources}
    say("errors of the location")
    location = location_errors(locators, training, held_out, arguments.seed)
    patients = list(held_out)[: arguments.patients]
    say("invariance and monotonicity")
    slopes = {name: location["sources"][name]["slopes_mm"] for name in regressors}
    rows = invariance({name: locators[name] for name in regressors}, slopes, patients, arguments.seed)
    rising = {name: monotonicity(each, held_out, arguments.seed) for name, each in regressors.items()}
    return {
        "settings": {
            "training": arguments.training,
            "held_out": arguments.held_out,
            "patients": len(patients),
            "seed": arguments.seed,
            "points": POINTS,
            "threads": arguments.threads,
        },
        "fits": fits,
        "location": location,
        "invariance": rows,
        "monotonicity": rising,
    }


# --------------------------------------------------------------------------------------------------------- documents


def write_json(file: Path, record: Record) -> None:
    write_atomically(file, (json.dumps(record, indent=1) + "\n").encode())


def write_documents(work: Path, out: Path | None = None) -> None:
    """anatomy.json, the section of docs/explanation/results.md and the picture."""
    measured = work / "location.json"
    if not measured.exists():
        raise ValueError(f"nothing has been measured in {work} yet")
    record: Record = {
        "command": "python -m scripts.experiments.anatomy.run",
        "machine": describe_machine("cpu"),
        **json.loads(measured.read_text()),
    }
    folder, page = destinations(out, __file__, "explanation/results.md")
    write_json(folder / "anatomy.json", record)
    draw(record, folder / "location_error.png")
    replace_section(page, BEGIN, END, section(record))
    say(f"written: {folder / 'anatomy.json'}, {page}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/locctx_anatomy"), help="work folder (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help=OUT_HELP)
    parser.add_argument(
        "--training", type=int, default=20, metavar="N", help="training phantoms (default: 20)"
    )
    parser.add_argument(
        "--held-out", type=int, default=30, metavar="N", help="held-out phantoms (default: 30)"
    )
    parser.add_argument(
        "--patients", type=int, default=6, metavar="N", help="held-out patients for invariance (default: 6)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the phantoms and the fits (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--sources",
        nargs="+",
        choices=(*UNFITTED, *FITTED),
        default=[*UNFITTED, *FITTED],
        help="sources to measure",
    )
    parser.add_argument(
        "--steps-body-part", type=int, metavar="N", help="training steps (default: the fit's own)"
    )
    parser.add_argument(
        "--steps-anatomical", type=int, metavar="N", help="training steps (default: the fit's own)"
    )
    parser.add_argument("--report", action="store_true", help="only write the documents from the work folder")
    options = parser.parse_args(arguments)
    for name, least in (("training", 2), ("held_out", 1), ("patients", 0), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    options.work = options.work.resolve()
    torch.set_num_threads(options.threads)
    if options.report:
        write_documents(options.work, options.out)
        return 0
    options.work.mkdir(parents=True, exist_ok=True)
    record = measure_location(options)
    write_json(options.work / "location.json", record)
    write_documents(options.work, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
