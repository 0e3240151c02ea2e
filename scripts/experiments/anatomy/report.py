"""The section of docs/explanation/results.md and the picture that `run.py` writes."""

from pathlib import Path

from matplotlib.figure import Figure

from scripts.benchmarks.harness import Record, save_figure, table
from scripts.experiments.anatomy.location import AXES, QUANTILES, SMALL

BEGIN, END = "<!-- anatomy: begin -->", "<!-- anatomy: end -->"

COLOURS = {"voxel": "#cc6677", "scanner": "#ddaa33", "body_part": "#4477aa", "anatomical": "#228833"}


def section(record: Record) -> str:
    """Markdown of everything that was measured."""
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
