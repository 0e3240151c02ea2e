"""Compares location learned from anatomy with location that follows the field of view, on the whole-body phantom.

Fits body part scores and anatomical embeddings on training phantoms, each a random part of a body in random orientation
and voxel size, and measures on held-out ones: the error of each source's location, its change with crop, orientation
and slice spacing, and whether it rises along the body. The study sources.yaml measures the effect on the Dice of a
trainer.

    python -m scripts.experiments.anatomy.run
    python -m scripts.experiments.anatomy.run --report              # only write the documents again

Fits are kept in the work folder (--work); the same command resumes an interrupted run. Writes anatomy.json and
location_error.png beside the script, and the marked section of docs/explanation/results.md.
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
from matplotlib.figure import Figure

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
    save_figure,
    say,
    table,
)
from scripts.experiments.anatomy.location import (
    AXES,
    POINTS,
    QUANTILES,
    SMALL,
    PhantomScans,
    invariance,
    location_errors,
    locator,
    monotonicity,
)

FITTED = ("body_part", "anatomical")
UNFITTED = ("voxel", "scanner")
COLOURS = {"voxel": "#cc6677", "scanner": "#ddaa33", "body_part": "#4477aa", "anatomical": "#228833"}
BEGIN, END = "<!-- anatomy: begin -->", "<!-- anatomy: end -->"


# ------------------------------------------------------------------------------------------------------- regressors


def fit_functions(steps: dict[str, int | None], seed: int) -> dict[str, tuple[Any, Callable[..., Regressor]]]:
    """Source -> options and function that fit its regressor; the fit's own number of steps where none is named."""
    from nnunet_locctx.regression.anatomical import AnatomicalOptions, fit_anatomical
    from nnunet_locctx.regression.body_part import BodyPartOptions, fit_body_part

    chosen: dict[str, Record] = {
        name: {"seed": seed, **({"steps": count} if count else {})} for name, count in steps.items()
    }
    return {
        "body_part": (BodyPartOptions(**chosen["body_part"]), fit_body_part),
        "anatomical": (AnatomicalOptions(**chosen["anatomical"]), fit_anatomical),
    }


def fitted(
    name: str, options: Any, fit: Callable[..., Regressor], training: Sequence[int], seed: int, work: Path
) -> tuple[Regressor, Record]:
    """The regressor of a source, from the work folder or newly fitted, and the record of its fit.

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


def section(record: Record) -> str:
    """The section of docs/explanation/results.md."""
    parts = [_location(record), _invariance(record)]
    machine = record.get("machine")
    if machine:
        versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        parts.append(f"Machine: {machine['processor']}; {versions}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _location(record: Record) -> str:
    settings, location = record["settings"], record["location"]
    intro = (
        f"{settings['training']} training and {settings['held_out']} held-out whole-body phantoms (seed "
        f"{settings['seed']}), fields of view of 30-100 % of the body, mixed orientation and voxel size. Each source's "
        "coordinates are turned into atlas millimetres by one slope and offset per axis, fitted on the training "
        f"scans; errors at {settings['points']} places in the body of each held-out scan, median (90th percentile) in "
        "mm. Best line: slope and offset fitted to each held-out scan's own truth, which no coordinate linear in mm "
        "can beat."
    )
    heads = ("source", *AXES, "3D", f"S, at most {SMALL:.0%} of the body", "held-out scans not measured")
    rows = []
    named = {f"`{name}`": source for name, source in location["sources"].items()}
    for name, source in {**named, "best line": location["line"]}.items():
        errors = [_error(source["errors"][axis]) for axis in (*AXES, "3D")]
        small = _error(source["errors_small"]["S"]) if "errors_small" in source else "-"
        lost = len(source["not_measured"]["held_out"]) if "not_measured" in source else "-"
        rows.append([name, *errors, small, lost])
    lines = [intro, "", *table(heads, rows)]
    fits = [
        f"`{name}` in {fit['seconds'] / 60:.1f} minutes ({fit['parameters']:,} parameters)"
        for name, fit in record.get("fits", {}).items()
    ]
    if fits:
        lines += [f"Fitted on {settings['threads']} thread(s): {', '.join(fits)}.", ""]
    caption = "Distribution of the errors along the body and in 3D; estimated against true height"
    return "\n".join([*lines, f"![{caption}](../scripts/experiments/anatomy/location_error.png)"])


def _error(error: Record) -> str:
    return f"{error['median']:.1f} ({error['p90']:.1f})"


def _invariance(record: Record) -> str:
    sources = record.get("invariance", {})
    if not sources:
        return ""
    intro = (
        f"The same places in two scans of one patient ({record['settings']['patients']} patients): difference of the "
        "coordinates in points, 100 being one unit, median (largest); in mm, the median. Slices are compared with "
        "those of 4 mm."
    )
    rows = []
    for source, kinds in sources.items():
        for what, pairs in kinds.items():
            if "points" not in pairs:
                rows.append([f"`{source}`", what, *["-"] * 4, f"0 of {pairs['pairs']}"])
                continue
            right, front, up = (
                f"{pairs['points'][axis]['median']:.2f} ({pairs['points'][axis]['max']:.2f})" for axis in AXES
            )
            count = f"{pairs['pairs'] - pairs['not_measured']} of {pairs['pairs']}"
            rows.append([f"`{source}`", what, up, f"{pairs['mm']['S']:.1f}", right, front, count])
    lines = [intro, "", *table(("source", "scans", "S", "S in mm", "R", "A", "pairs"), rows)]
    rank = "raw values against true height, Spearman, median (least)"
    heads = ("source", "held-out scans measured", "height rises after cleaning", rank, "raw steps that rise")
    rows = [
        [
            f"`{source}`",
            f"{rises['measured']} of {rises['scans']}",
            rises["rising"],
            f"{rises['spearman_median']:.3f} ({rises['spearman_min']:.3f})",
            f"{rises['raw_steps_up']:.0%}",
        ]
        for source, rises in record.get("monotonicity", {}).items()
    ]
    return "\n".join([*lines, *table(heads, rows)])


def draw(record: Record, path: Path) -> None:
    """Distribution of the errors along S and in 3D; estimated against true height of every held-out scan."""
    sources = record["location"]["sources"]
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    axes = figure.subplots(1, 3)
    for panel, axis in zip(axes, ("S", "3D"), strict=False):
        for name, source in sources.items():
            panel.plot(source["errors"][axis]["quantiles"], QUANTILES, color=COLOURS[name], label=name)
        straight = record["location"]["line"]["errors"][axis]["quantiles"]
        panel.plot(straight, QUANTILES, "--", color="black", label="best line per scan")
        panel.set(xscale="symlog", xlim=(0, None), ylim=(0, 100), ylabel="places in the body, %")
        panel.set_xscale("symlog", linthresh=10)
        panel.set_xlabel(f"error {'along the body (S)' if axis == 'S' else 'in 3D'}, mm")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    for name in (name for name in sources if name != "scanner"):
        for scan, (truth, estimate) in enumerate(sources[name]["heights"]):
            label = name if scan == 0 else None
            axes[2].plot(truth, estimate, color=COLOURS[name], lw=1, alpha=0.7, label=label)
    axes[2].axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
    axes[2].set(xlabel="true height in the atlas, mm", ylabel="estimated height, mm")
    axes[2].grid(alpha=0.3)
    axes[2].legend(fontsize=8)
    save_figure(figure, path, 100)


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
