"""The section of docs/explanation/results.md and the picture that `run.py` writes."""

from pathlib import Path
from typing import Any

from scripts.benchmarks.harness import Record
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
    lines = [
        intro,
        "",
        f"| source | R | A | S | 3D | S, at most {SMALL:.0%} of the body | held-out scans not measured |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = {f"`{name}`": one for name, one in location["sources"].items()}
    for name, one in {**rows, "best line": location["line"]}.items():
        cells = [_error(one["errors"][axis]) for axis in (*AXES, "3D")]
        cells.append(_error(one["errors_small"]["S"]) if "errors_small" in one else "-")
        lost = str(len(one["not_measured"]["held_out"])) if "not_measured" in one else "-"
        lines.append(f"| {name} | {' | '.join(cells)} | {lost} |")
    fits = [
        f"`{name}` in {one['seconds'] / 60:.1f} minutes ({one['parameters']:,} parameters)"
        for name, one in record.get("fits", {}).items()
    ]
    if fits:
        lines += ["", f"Fitted on {settings['threads']} thread(s): {', '.join(fits)}."]
    caption = "Distribution of the errors along the body and in 3D; estimated against true height"
    return "\n".join([*lines, "", f"![{caption}](../scripts/experiments/anatomy/location_error.png)"])


def _error(found: Record) -> str:
    return f"{found['median']:.1f} ({found['p90']:.1f})"


def _invariance(record: Record) -> str:
    found = record.get("invariance", {})
    if not found:
        return ""
    intro = (
        f"The same places in two scans of one patient ({record['settings']['patients']} patients): difference of the "
        "coordinates in points, 100 being one unit, median (largest); in mm, the median. Slices are compared with "
        "those of 4 mm."
    )
    lines = [intro, "", "| source | scans | S | S in mm | R | A | pairs |", "|---|---|---|---|---|---|---|"]
    for source, pairs in found.items():
        for what, one in pairs.items():
            if "points" not in one:
                lines.append(f"| `{source}` | {what} | - | - | - | - | 0 of {one['pairs']} |")
                continue
            right, front, up = (
                f"{one['points'][axis]['median']:.2f} ({one['points'][axis]['max']:.2f})" for axis in AXES
            )
            cells = (up, f"{one['mm']['S']:.1f}", right, front)
            count = f"{one['pairs'] - one['not_measured']} of {one['pairs']}"
            lines.append(f"| `{source}` | {what} | {' | '.join(cells)} | {count} |")
    rank = "raw values against true height, Spearman, median (least)"
    lines += [
        "",
        f"| source | held-out scans measured | height rises after cleaning | {rank} | raw steps that rise |",
        "|---|---|---|---|---|",
    ]
    for source, one in record.get("monotonicity", {}).items():
        lines.append(
            f"| `{source}` | {one['measured']} of {one['scans']} | {one['rising']} | {one['spearman_median']:.3f} "
            f"({one['spearman_min']:.3f}) | {one['raw_steps_up']:.0%} |"
        )
    return "\n".join(lines)


def draw(record: Record, path: Path) -> None:
    """Distribution of the errors along S and in 3D; estimated against true height of every held-out scan."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sources = record["location"]["sources"]
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.5), layout="constrained")
    for panel, axis in zip(axes, ("S", "3D"), strict=False):
        for name, one in sources.items():
            panel.plot(one["errors"][axis]["quantiles"], QUANTILES, color=COLOURS[name], label=name)
        panel.plot(
            record["location"]["line"]["errors"][axis]["quantiles"],
            QUANTILES,
            "--",
            color="black",
            label="best line per scan",
        )
        panel.set(xscale="symlog", xlim=(0, None), ylim=(0, 100), ylabel="places in the body, %")
        panel.set_xscale("symlog", linthresh=10)
        panel.set_xlabel(f"error {'along the body (S)' if axis == 'S' else 'in 3D'}, mm")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    drawn: dict[str, Any] = {name: one for name, one in sources.items() if name != "scanner"}
    for name, one in drawn.items():
        for scan, (truth, found) in enumerate(one["heights"]):
            axes[2].plot(
                truth, found, color=COLOURS[name], lw=1, alpha=0.7, label=name if scan == 0 else None
            )
    axes[2].axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
    axes[2].set(xlabel="true height in the atlas, mm", ylabel="estimated height, mm")
    axes[2].grid(alpha=0.3)
    axes[2].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=100)
    plt.close(figure)
    temporary.replace(path)
