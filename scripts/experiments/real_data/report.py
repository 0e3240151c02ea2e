"""Figures of run.py from its records: nnU-Net's summaries, averages, the pages."""

import json
import os
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from scripts.experiments.real_data.positions import StepError

FOREGROUND = ("anterior", "posterior")
"""Parts of the hippocampus, labels 1 and 2."""
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

Record = dict[str, Any]


def read_summary(file: Path) -> dict[str, Record]:
    """Dice per case and part from nnU-Net's summary.json; case names without the file ending."""
    summary = json.loads(file.read_text())
    cases: dict[str, Record] = {}
    for entry in summary["metric_per_case"]:
        name = Path(entry["prediction_file"]).name.removesuffix(".nii.gz")
        metrics = entry["metrics"]
        cases[name] = {
            "dice": {FOREGROUND[int(label) - 1]: values["Dice"] for label, values in metrics.items()}
        }
    return cases


def confusion(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> Record:
    """Dice of all parts taken together, and how often one is taken for another.

    Args:
        truth: Labels, 0 background.
        predicted: Labels of the same shape.

    Returns:
        ``whole_dice``, and ``swapped``: of the voxels that are foreground in both, the share with different labels.
        None where there are no such voxels.

    Raises:
        StepError: The shapes differ.
    """
    if truth.shape != predicted.shape:
        raise StepError(f"the prediction has the shape {predicted.shape}, its reference {truth.shape}")
    both = (truth > 0) & (predicted > 0)
    total = int((truth > 0).sum() + (predicted > 0).sum())
    return {
        "whole_dice": 2 * int(both.sum()) / total if total else None,
        "swapped": float((truth[both] != predicted[both]).mean()) if both.any() else None,
    }


def dice(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> float:
    """Dice of two masks of one shape; nan if both are empty."""
    total = int(truth.sum()) + int(predicted.sum())
    return 2 * int((truth & predicted).sum()) / total if total else float("nan")


def averages(cases: Mapping[str, Record]) -> Record:
    """Means over the validation cases, and the mean Dice of each case."""
    dice = {part: [case["dice"][part] for case in cases.values()] for part in FOREGROUND}
    both = [statistics.fmean(pair) for pair in zip(*dice.values(), strict=True)]
    swapped = [case["swapped"] for case in cases.values() if case["swapped"] is not None]
    return {
        **{part: statistics.fmean(values) for part, values in dice.items()},
        "mean": statistics.fmean(both),
        "per_case": dict(zip(cases, both, strict=True)),
        "whole": statistics.fmean(case["whole_dice"] for case in cases.values()),
        "swapped": statistics.fmean(swapped) if swapped else None,
    }


def paired_difference(located: Mapping[str, float], plain: Mapping[str, float]) -> Record:
    """Located minus plain over the same cases: mean, its standard error, and in how many cases located is better."""
    differences = [located[name] - plain[name] for name in plain]
    return {
        "mean": round(statistics.fmean(differences), 4),
        "standard_error": round(statistics.stdev(differences) / len(differences) ** 0.5, 4),
        "better_cases": sum(value > 0 for value in differences),
    }


def results_of(records: Mapping[str, Record]) -> Record:
    """The content of results.json: the figures, those of single validation cases averaged."""
    trainings: dict[str, Record] = {}
    for name, record in records.items():
        if not name.startswith("train:"):
            continue
        _, configuration, method = name.split(":")
        mean = averages(record["cases"])
        shown = {key: value for key, value in record.items() if key not in ("cases", "depends")}
        shown["dice"] = {part: round(mean[part], 4) for part in (*FOREGROUND, "mean", "whole")}
        shown["swapped"] = None if mean["swapped"] is None else round(mean["swapped"], 4)
        plain = records.get(f"train:{configuration}:plain")
        if plain is not None and method != "plain":
            shown["minus_plain"] = paired_difference(mean["per_case"], averages(plain["cases"])["per_case"])
        trainings.setdefault(configuration, {})[method] = shown
    others = {
        name: {key: value for key, value in record.items() if key != "depends"}
        for name, record in records.items()
        if not name.startswith("train:")
    }
    return {**others, "trainings": trainings}


def report(records: Mapping[str, Record]) -> str:
    """The measured part of docs/results.md. What was not run is left out."""
    sections = [_machine(records), _hippocampus(records), _totalseg(records), _commands(records)]
    return "\n\n".join(section for section in sections if section)


def write_documents(records: Mapping[str, Record], folder: Path, page: Path) -> None:
    """Writes results.json, and the measured part of results.md; what stands around that part is left alone.

    Raises:
        StepError: results.md has lost the lines that enclose the measured part.
    """
    text = page.read_text() if page.exists() else f"# Results on real scans\n\n{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise StepError(f"{page} must hold the lines {BEGIN} and {END} once each, in this order")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_atomically(folder / "results.json", json.dumps(results_of(records), indent=1) + "\n")
    write_atomically(page, f"{before}{BEGIN}\n\n{report(records)}\n\n{END}{after}")


def write_atomically(file: Path, text: str) -> None:
    """A reader sees the old file or the new one, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as draft:
            draft.write(text)
        Path(name).chmod(0o644)  # mkstemp makes it private
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _machine(records: Mapping[str, Record]) -> str:
    machine = records.get("machine")
    if machine is None:
        return ""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"Machine: {machine['cores']} cores ({machine['cpu']}), {machine['system']}; Python {machine['python']}, "
        f"{versions}."
    )


def _hippocampus(records: Mapping[str, Record]) -> str:
    parts = [
        _hippocampus_position(records.get("hippocampus:position")),
        _hippocampus_plan(records.get("hippocampus:preprocess"), records.get("hippocampus:plan")),
        _trainings(records),
        _predictions({name: record for name, record in records.items() if name.startswith("predict:")}),
    ]
    found = [part for part in parts if part]
    return "\n\n".join(["## Hippocampus MR", *found]) if found else ""


def _hippocampus_position(record: Record | None) -> str:
    if record is None:
        return ""
    places = " and ".join(
        f"{record['mean'][part][1]:+.3f} (sd {record['sd'][part][1]:.3f}) for the {part} part"
        for part in FOREGROUND
    )
    return (
        f"{record['cases']} scans, stored {', '.join(record['orientations'])}. Mean posterior-to-anterior coordinate "
        f"(source `voxel`): {places}. The anterior part lies ahead of the posterior one in "
        f"{record['anterior_lies_ahead']} scans."
    )


def _hippocampus_plan(prepared: Record | None, planned: Record | None) -> str:
    if prepared is None or planned is None:
        return ""
    rows = [
        "| configuration | patch | batch | share of the median volume's lengths | window positions |",
        "|---|---|---|---|---|",
    ]
    for name, entry in planned["configurations"].items():
        shares = _times(f"{100 * share:.0f} %" for share in entry["share_of_median"])
        rows.append(
            f"| `{name}` | {_times(entry['patch_size'])} | {entry['batch']} | {shares} | {entry['windows']} |"
        )
    return (
        f"nnU-Net plans a patch of {_times(prepared['planned_patch'])} voxels and batches of "
        f"{prepared['planned_batch']} for a median volume of {_times(prepared['median_shape'])} voxels of "
        f"{_times(prepared['spacing'])} mm: the patch sees the whole scan. The configurations below are smaller on "
        f"purpose; their U-Net has {'-'.join(map(str, planned['network']['features_per_stage']))} features and one "
        "convolution per stage.\n\n" + "\n".join(rows)
    )


def _trainings(records: Mapping[str, Record]) -> str:
    trainings = results_of(records)["trainings"]
    if not trainings:
        return ""
    first = next(iter(next(iter(trainings.values())).values()))
    intro = (
        f"Fold 0 of nnU-Net's own {first['folds']}-fold split: trained on {first['training_cases']} cases, validated "
        f"by nnU-Net on the other {first['validation_cases']} (sliding window, mirroring, original grid). Dice is the "
        "mean over the validation cases, from nnU-Net's summary.json. *Whole*: Dice of both parts taken together. "
        "*Swapped*: of the voxels that are foreground in reference and prediction, the share given to the wrong part. "
        "*Minus plain*: difference of the cases' mean Dice ± its standard error over the cases (which does not "
        "contain what another training run would change). Seconds: whole `nnUNetv2_train`, wall time on a machine "
        "with other work / CPU time."
    )
    columns = (
        "patch",
        "trainer",
        "place",
        "weights",
        *FOREGROUND,
        "mean",
        "whole",
        "swapped",
        "minus plain",
        "seconds",
    )
    rows = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for methods in trainings.values():
        rows += [_training_row(record) for record in methods.values()]
    atlas = records.get("hippocampus:atlas")
    if atlas:
        rows.append(f"| - | location alone | - | - | {_dice_cells(atlas)} | - | - |")
        intro += (
            " *Location alone*: the most frequent label at each place of the volume, counted over the training cases; "
            "the image is not looked at."
        )
    return f"{intro}\n\n" + "\n".join(rows)


def _dice_cells(record: Record) -> str:
    swapped = "-" if record["swapped"] is None else f"{100 * record['swapped']:.1f} %"
    return " | ".join([*(f"{record['dice'][part]:.3f}" for part in (*FOREGROUND, "mean", "whole")), swapped])


def _training_row(record: Record) -> str:
    difference = record.get("minus_plain")
    minus = "-"
    if difference:
        minus = (
            f"{difference['mean']:+.3f} ± {difference['standard_error']:.3f}, better in "
            f"{difference['better_cases']} of {record['validation_cases']} cases"
        )
    cells = [
        f"{record['patch'][0]}^3",
        f"`{record['trainer']}`",
        json.loads(record["location"])["place"] if record["location"] else "-",
        record["parameters"],
        _dice_cells(record),
        minus,
        f"{record['seconds']:.0f} / {record['cpu_seconds']:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _predictions(predictions: Mapping[str, Record]) -> str:
    if not predictions:
        return ""
    first = next(iter(predictions.values()))
    rows = ["| trainer | scan | whole Dice | voxels unlike the validation's |", "|---|---|---|---|"]
    for record in predictions.values():
        for scan, entry in record["scans"].items():
            differing = f"{entry['differing_voxels']} of {entry['voxels']}"
            rows.append(f"| `{record['trainer']}` | {scan} | {entry['whole_dice']:.3f} | {differing} |")
    return (
        f"`nnUNetv2_predict` on {len(first['scans'])} raw validation scans (`{first['configuration']}`). Each "
        "output has its input's size, spacing, origin and direction; it is compared with what nnU-Net's validation "
        "made of the preprocessed case.\n\n" + "\n".join(rows)
    )


def _totalseg(records: Mapping[str, Record]) -> str:
    parts = [
        _totalseg_position(records.get("totalseg:position")),
        _totalseg_prediction(records.get("phantom:train"), records.get("totalseg:predict")),
        _totalseg_picture(records.get("totalseg:show")),
    ]
    found = [part for part in parts if part]
    return "\n\n".join(["## TotalSegmentator CT", *found]) if found else ""


def _totalseg_position(record: Record | None) -> str:
    if record is None:
        return ""
    rows = ["| structure | R | A | S | R mm | A mm | S mm |", "|---|---|---|---|---|---|---|"]
    for name in (
        *("kidney_left", "kidney_right", "hip_left", "hip_right", "femur_left", "femur_right"),
        *("spleen", "liver", "vertebrae_L5", "vertebrae_T12"),
    ):
        if name in record["centres"]:
            centre = record["centres"][name]
            cells = [f"{at:+.3f}" for at in centre["fraction"]] + [f"{at:+.1f}" for at in centre["mm"]]
            rows.append(f"| {name} | {' | '.join(cells)} |")
    spine = record["spine"]
    return (
        f"One scan of {_times(record['size_xyz'])} voxels of {_times(record['spacing_xyz'])} mm (x, y, z), stored "
        f"{record['orientation']} (the directions in which x, y and z grow), {_times(record['extent_ras'])} mm along "
        f"R, A and S. {record['structures']} labelled structures have voxels. In all {len(record['pairs'])} left/right "
        f"pairs the left one has the smaller R coordinate, and the {len(spine)} vertebrae from {spine[0]} to "
        f"{spine[-1]} lie ever higher. The positions in mm equal SimpleITK's to 0.001 mm. Some centroids, as fractions "
        "of the volume (-0.5 to 0.5; R grows to the patient's right) and in mm from its centre:\n\n"
        + "\n".join(rows)
    )


def _totalseg_prediction(trained: Record | None, record: Record | None) -> str:
    if trained is None or record is None:
        return ""
    given = record["given"]
    kidneys = " and ".join(
        f"{given['centres'][name]['fraction'][0]:+.3f} ({name})" for name in ("kidney_left", "kidney_right")
    )
    return (
        f"A model trained on {trained['cases']} phantoms for one epoch (`{trained['trainer']}`) predicts this CT with "
        f"`nnUNetv2_predict` in {record['seconds']:.0f} s: {_times(record['size_xyz'])} voxels with the input's "
        f"spacing, origin and direction, labels {_listed(record['labels'])}. That says that a foreign scan runs "
        "through and nothing about accuracy: the phantom's organs do not exist in a patient. The array its network was "
        f"given has {_times(given['shape'])} entries (image and three location channels); averaged over the kidneys "
        f"its first location channel is {kidneys}, and all {given['pairs']} pairs lie on their sides there too."
    )


def _totalseg_picture(record: Record | None) -> str:
    if record is None:
        return ""
    picture = f"../scripts/experiments/real_data/{Path(record['picture']).name}"
    return f"![Slices of the CT with labels, patch and coordinate maps]({picture})"


def _commands(records: Mapping[str, Record]) -> str:
    lines = [f"{entry['command']}    # {entry['seconds']:.0f} s" for entry in _commands_in(records)]
    return "## The commands that were run\n\n```sh\n" + "\n".join(lines) + "\n```" if lines else ""


def _commands_in(records: Mapping[str, Record]) -> Iterator[Record]:
    for record in records.values():
        for entry in (record, *(value for value in record.values() if isinstance(value, dict))):
            if "command" in entry:
                yield entry


def _times(values: Iterable[object]) -> str:
    return " x ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
