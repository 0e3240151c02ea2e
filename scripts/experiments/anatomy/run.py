"""Compares location learned from anatomy with location that follows the field of view, on the whole-body phantom.

Fits body part scores and anatomical embeddings on 20 training phantoms, each a random part (30 to 100 %) of a body in
random orientation and voxel size, and measures on 30 held-out ones: the error of each source's location, its change
with crop, orientation and slice spacing, and whether it rises along the body. The study sources.yaml measures the
effect on the Dice of a trainer.

    python -m scripts.experiments.anatomy.run

Fits are kept in the work folder (--work); the same command resumes an interrupted run. Writes anatomy.json, anatomy.md
and location_error.png beside the script.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from nnunet_locctx.files import write_atomically
from nnunet_locctx.regression.anatomical import AnatomicalOptions, fit_anatomical
from nnunet_locctx.regression.body_part import BodyPartOptions, fit_body_part
from nnunet_locctx.regression.registry import load_regressor
from nnunet_locctx.regression.regressor import Regressor
from scripts.benchmarks.harness import (
    Record,
    describe_machine,
    described_parser,
    measured_on,
    save_figure,
    say,
    table,
    write_json,
    write_page,
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

FITS: dict[str, tuple[Callable[..., Any], Callable[..., Regressor]]] = {
    "body_part": (BodyPartOptions, fit_body_part),
    "anatomical": (AnatomicalOptions, fit_anatomical),
}
"""Source -> options and function of its fit."""

COLOURS = {"voxel": "#cc6677", "scanner": "#ddaa33", "body_part": "#4477aa", "anatomical": "#228833"}
TRAINING, HELD_OUT, PATIENTS = range(20), range(20, 50), range(20, 26)
SEED = 0


# ------------------------------------------------------------------------------------------------------- measuring


def fitted(
    name: str, options: Any, fit: Callable[..., Regressor], training: Sequence[int], work: Path
) -> tuple[Regressor, Record]:
    """The regressor of a source and the record of its fit; fitted anew if the work folder has none of these options and
    scans."""
    file, note = work / f"{name}.pt", work / f"{name}.json"
    made_with = {"options": repr(options), "training": list(training), "seed": SEED}
    if note.exists() and json.loads(note.read_text())["made_with"] == made_with:
        return load_regressor(file.read_bytes()), json.loads(note.read_text())
    folder = work / f"{name}_training"
    folder.mkdir(parents=True, exist_ok=True)
    say(f"fitting {name} on {len(training)} scans")
    start = time.perf_counter()
    regressor = fit(PhantomScans(training, SEED, options.spacing), options, folder)
    seconds = round(time.perf_counter() - start, 1)
    network = getattr(regressor, "network", torch.nn.Identity())
    record = {
        "made_with": made_with,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    write_atomically(file, regressor.to_bytes())
    write_json(note, record)
    shutil.rmtree(folder)
    return regressor, record


def measure(sources: Sequence[str], steps: int | None, work: Path) -> Record:
    """Fits, errors, invariance and monotonicity of the sources."""
    regressors: dict[str, Regressor] = {}
    fits: Record = {}
    for name in (name for name in FITS if name in sources):
        make_options, fit = FITS[name]
        options = make_options(seed=SEED, **({"steps": steps} if steps else {}))
        regressors[name], fits[name] = fitted(name, options, fit, TRAINING, work)
    locators = {name: locator(name, regressors.get(name)) for name in COLOURS if name in sources}
    location = location_errors(locators, TRAINING, HELD_OUT, SEED)
    slopes = {name: location["sources"][name]["slopes_mm"] for name in regressors}
    settings = {
        "training": len(TRAINING),
        "held_out": len(HELD_OUT),
        "patients": len(PATIENTS),
        "points": POINTS,
    }
    return {
        "machine": describe_machine("cpu"),
        "settings": {**settings, "seed": SEED, "threads": 1},
        "fits": fits,
        "location": location,
        "invariance": invariance({name: locators[name] for name in regressors}, slopes, PATIENTS, SEED),
        "monotonicity": {name: monotonicity(each, HELD_OUT, SEED) for name, each in regressors.items()},
    }


# --------------------------------------------------------------------------------------------------------- documents


def error_table(record: Record) -> str:
    """Median (90th percentile) of the errors in mm."""
    heads = ("source", *AXES, "3D", f"S, at most {SMALL:.0%} of the body", "held-out scans not measured")
    named = {f"`{name}`": source for name, source in record["location"]["sources"].items()}
    rows: list[list[object]] = []
    for name, source in {**named, "best line": record["location"]["line"]}.items():
        errors = [source["errors"][axis] for axis in (*AXES, "3D")]
        errors += [source["errors_small"]["S"]] if "errors_small" in source else []
        cells = [f"{error['median']:.1f} ({error['p90']:.1f})" for error in errors]
        lost = len(source["not_measured"]["held_out"]) if "not_measured" in source else "-"
        rows.append([name, *cells, *["-"] * (5 - len(cells)), lost])
    return table(heads, rows)


def invariance_table(record: Record) -> str:
    """Median (largest) difference in points, and median in mm."""
    rows: list[list[object]] = []
    for source, kinds in record["invariance"].items():
        for what, pairs in kinds.items():
            count = f"{pairs['pairs'] - pairs['not_measured']} of {pairs['pairs']}"
            cells = ["-"] * 4
            if "points" in pairs:
                points = {
                    axis: f"{own['median']:.2f} ({own['max']:.2f})" for axis, own in pairs["points"].items()
                }
                cells = [points["S"], f"{pairs['mm']['S']:.1f}", points["R"], points["A"]]
            rows.append([f"`{source}`", what, *cells, count])
    return table(("source", "scans", "S", "S in mm", "R", "A", "pairs"), rows)


def monotonicity_table(record: Record) -> str:
    """Scans whose height rises, rank correlation of raw values with the true height."""
    rank = "raw values against true height, Spearman, median (least)"
    heads = ("source", "held-out scans measured", "height rises after cleaning", rank, "raw steps that rise")
    rows = []
    for source, rises in record["monotonicity"].items():
        ranks = f"{rises['spearman_median']:.3f} ({rises['spearman_min']:.3f})"
        measured = f"{rises['measured']} of {rises['scans']}"
        rows.append([f"`{source}`", measured, rises["rising"], ranks, f"{rises['raw_steps_up']:.0%}"])
    return table(heads, rows)


def write_report(record: Record, folder: Path) -> None:
    """anatomy.md and location_error.png."""
    minutes = [
        f"`{name}` in {fit['seconds'] / 60:.1f} minutes ({fit['parameters']:,} parameters)"
        for name, fit in record["fits"].items()
    ]
    write_page(
        folder / "anatomy.md",
        "Location learned from anatomy: results",
        f"Written by `python -m scripts.experiments.anatomy.run`. {measured_on(record['machine'], 'one thread')}",
        f"Fitted: {', '.join(minutes)}.",
        "## Errors",
        "mm, median (90th percentile). One slope and offset per axis, fitted on the training scans, turn a source's "
        "coordinates into atlas millimetres. Best line: slope and offset fitted to each held-out scan's own truth, "
        "which no coordinate linear in mm can beat.",
        error_table(record),
        "![Distribution of the errors along the body and in 3D; estimated against true height](location_error.png)",
        "## The same places in two scans of one patient",
        "Difference of the coordinates in points, 100 being one unit, median (largest); in mm, the median. Slices are "
        "compared with those of 4 mm.",
        invariance_table(record),
        "## Rise along the body",
        monotonicity_table(record),
    )
    draw(record, folder / "location_error.png")


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    parser = described_parser(__doc__)
    work = "work folder (default: %(default)s)"
    parser.add_argument("--work", type=Path, default=Path("/tmp/locctx_anatomy"), help=work)
    parser.add_argument("--sources", nargs="+", choices=COLOURS, default=COLOURS, help="sources to measure")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="training steps of the fits (default: their own)"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    record = measure(options.sources, options.steps, options.work.resolve())
    folder = Path(__file__).resolve().parent
    write_json(folder / "anatomy.json", record)
    write_report(record, folder)
    say(f"written: {folder / 'anatomy.json'}, anatomy.md")


if __name__ == "__main__":
    main()
