"""Work folders of studies with known results: numbers from a seeded generator, tiny scans."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from nnunet_locctx.evaluation.measures import MEASURES

CLASSES = {"spleen": 1, "right kidney": 2, "left kidney": 3, "gallbladder": 4, "liver": 5}
VOLUMES = {"spleen": 220.0, "right kidney": 150.0, "left kidney": 155.0, "gallbladder": 30.0, "liver": 1500.0}
PAIRS = [["left kidney", "right kidney"]]
PRESETS: dict[str, dict[str, Any]] = {
    "locbam_lowres_small": {"patch_size": [32, 32, 32], "batch_size": 128, "coverage": 0.0026},
    "locbam_lowres_large": {"patch_size": [128, 128, 128], "batch_size": 2, "coverage": 0.1667},
}
ANY_PRESET: dict[str, Any] = {"patch_size": [32, 32, 32], "batch_size": 2, "coverage": 0.01}
ANY_PRESET |= {"spacing": [2.0, 1.5, 1.5], "median_size": [200, 250, 250]}
SHAPE, SPACING = (12, 20, 24), (5.0, 3.0, 3.0)
"""Of the scans: z, y, x and mm."""


@dataclass
class Synthetic:
    """What a study is made of.

    Attributes:
        gains: Method -> gain in Dice over the first one, per preset.
    """

    gains: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: {"Baseline": (0, 0), "CoordConv": (0.02, -0.01), "LocBAM": (0.05, 0.01)}
    )
    presets: Sequence[str] = tuple(PRESETS)
    folds: int = 2
    cases_per_fold: int = 6
    classes: Sequence[str] = tuple(CLASSES)
    pairs: Sequence[Sequence[str]] = tuple(map(tuple, PAIRS))
    name: str = "synthetic"
    title: str = "Synthetic study"
    dataset: str = "Dataset007_BTCV"
    images: bool = False
    epochs: int = 12
    seed: int = 0
    seeds: Sequence[int] = (0,)

    def case_names(self, fold: int) -> list[str]:
        """The validation cases of a fold."""
        return [f"case_{fold * self.cases_per_fold + number:03d}" for number in range(self.cases_per_fold)]

    def write(self, folder: Path) -> Path:
        """Writes the work folder ``folder/work`` (and raw data and models beside); returns it."""
        work = folder / "work"
        rng = np.random.default_rng(self.seed)
        runs = []
        for p, preset in enumerate(self.presets):
            difficulty = {
                case: rng.normal(0, 0.04, len(self.classes))
                for fold in range(self.folds)
                for case in self.case_names(fold)
            }
            for (method, gains), seed in itertools.product(self.gains.items(), self.seeds):
                run = f"{method.replace(' ', '_')}__{preset}" + (f"__seed{seed}" if seed else "")
                model = folder / "results" / run
                names = {"run": run, "method": method, "preset": preset, "trainer": f"{method}Trainer"}
                plans = {"plans": "studyPlans", "configuration": f"3d_{preset}"}
                if len(self.seeds) > 1:
                    names["seed"] = seed
                runs.append({**names, **plans, "model": str(model)})
                for fold in range(self.folds):
                    place = work / "runs" / run / f"fold_{fold}"
                    rows = self._rows(fold, difficulty, gains[p], rng)
                    write_json(place / "evaluation" / "evaluation.json", self._evaluation(rows))
                    write_json(place / "training.json", self._training(gains[p], rng))
                    for case in self.case_names(fold) if self.images else ():
                        _write_prediction(model / f"fold_{fold}" / "validation", case, gains[p], rng)
        write_json(work / "study.json", self._settings(folder, runs))
        return work

    def _settings(self, folder: Path, runs: list[dict[str, Any]]) -> dict[str, Any]:
        raw = folder / "raw" / self.dataset
        if self.images:
            for fold in range(self.folds):
                for number, case in enumerate(self.case_names(fold)):
                    _write_scan(raw, case, number)
            content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **CLASSES}, "numTraining": 1}
            write_json(raw / "dataset.json", {**content, "file_ending": ".nii.gz"})
        return {
            "version": 1,
            "name": self.name,
            "title": self.title,
            "dataset": {"id": 7, "name": self.dataset, "raw": str(raw)},
            "labels": {"background": 0, **{name: CLASSES.get(name, 1) for name in self.classes}},
            "channels": {"0": "CT"},
            "baseline": next(iter(self.gains)),
            "methods": [
                {
                    "name": name,
                    "trainer": f"{name}Trainer",
                    "source": "voxel" if place else None,
                    "options": {},
                }
                for place, name in enumerate(self.gains)
            ],
            "presets": [
                {"name": name, "description": "", **ANY_PRESET, **PRESETS.get(name, {})}
                for name in self.presets
            ],
            "folds": list(range(self.folds)),
            "epochs": self.epochs,
            "iterations_per_epoch": 250,
            **({"seeds": list(self.seeds)} if len(self.seeds) > 1 else {"seed": 0}),
            "device": "cpu",
            "gpus": 1,
            "papers": [],
            "cases": {str(fold): {"train": [], "val": self.case_names(fold)} for fold in range(self.folds)},
            "test_cases": [],
            "runs": runs,
            "fairness": [{"what": "same cases", "holds": True, "detail": "by the splits"}],
            "versions": {"nnunetv2": "2.8.1"},
            "machine": {"cpu": "test"},
        }

    def _rows(self, fold: int, difficulty: Mapping[str, Any], gain: float, rng: Any) -> list[dict[str, Any]]:
        rows = []
        for case in self.case_names(fold):
            for place, name in enumerate(self.classes):
                volume = VOLUMES.get(name, 10.0) * math.exp(difficulty[case][place])
                size_bonus = 0.05 * math.log10(volume / 100)
                dice = float(
                    np.clip(0.8 + size_bonus + difficulty[case][place] + gain + rng.normal(0, 0.01), 0, 1)
                )
                side = any(name in pair for pair in self.pairs)
                numbers = (volume, 0.95 * volume, dice, 30 * (1 - dice), dice, -0.05 * volume, -5.0)
                numbers += (0.02 * (1 - dice) if side else None, 20 * (1 - dice))
                rows.append({"case": case, "class": name, **dict(zip(MEASURES, numbers, strict=True))})
        return rows

    def _evaluation(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "version": 1,
            "definitions": {"dice": "2 TP / (2 TP + FP + FN)"},
            "settings": {"tolerance_mm": 2.0, "off_region_mm": 20.0, "paper": None},
            "classes": {name: CLASSES.get(name, 1) for name in self.classes},
            "pairs": [list(pair) for pair in self.pairs],
            "cases": rows,
            "mean": {},
            "foreground": {},
        }

    def _training(self, gain: float, rng: Any) -> dict[str, Any]:
        epochs = []
        for epoch in range(self.epochs):
            progress = 1 - math.exp(-4 * (epoch + 1) / self.epochs)
            dice = [float(np.clip((0.8 + gain) * progress + rng.normal(0, 0.03), 0, 1)) for _ in self.classes]
            loss = 0.2 - (0.8 + gain) * progress + float(rng.normal(0, 0.02))
            losses = {"train_loss": loss, "val_loss": loss + 0.05}
            epochs.append({"epoch": epoch, **losses, "pseudo_dice": dice, "seconds": 60.0})
        numbers = {"seconds": 60.0 * self.epochs, "iterations": 250 * self.epochs, "parameters": 31_000_000}
        facts = {"seed": 0, "device": "cpu", "gpu": None, "peak_memory": 1_234_000_000}
        return {**numbers, **facts, "epochs": epochs}


def robustness(method: str, cases: Sequence[str], fall: float) -> dict[str, Any]:
    """robustness.json whose Dice falls by `fall` for 100%."""
    shared = {"model": method, "axes": "axial", "deviation": 0.02, "cases": len(cases), "per_class": {}}
    points = [
        {**shared, "kind": kind, "percent": amount, "dice": 0.85 - fall * amount / 100}
        for kind in ("shift", "noise")
        for amount in (0.0, 1.0, 5.0, 25.0, 100.0)
    ]
    return {"models": [{"name": method}], "cases": list(cases), "mirroring": False, "points": points}


def write_json(file: Path, content: Any) -> None:
    """Writes JSON and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def evaluation_file(work: Path, method: str, preset: str, fold: int = 0) -> Path:
    """Where the validation cases of a fold are evaluated."""
    return work / "runs" / f"{method}__{preset}" / f"fold_{fold}" / "evaluation" / "evaluation.json"


def edit_json(file: Path, **changes: Any) -> None:
    """Replaces entries of a JSON file."""
    write_json(file, {**json.loads(file.read_text()), **changes})


def true_labels(number: int) -> np.ndarray:
    """(z, y, x) a few boxes; right is where x grows."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:9, 8:14, 2:6] = CLASSES["spleen"]  # on the patient's left
    labels[3:10, 4:8, 17:20] = CLASSES["right kidney"]
    labels[3:10, 4:8, 5:8] = CLASSES["left kidney"]
    labels[4:5, 12:14, 14:16] = CLASSES["gallbladder"]  # one slice: the fullest
    labels[3 : 9 + number % 3, 9:16, 16:22] = CLASSES["liver"]
    return labels


def _save(file: Path, zyx: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(zyx.T, np.diag([*SPACING[::-1], 1.0])), file)


def _write_scan(raw: Path, case: str, number: int) -> None:
    rng = np.random.default_rng(number)
    labels = true_labels(number)
    image = np.full(SHAPE, -900.0) + rng.normal(0, 20, SHAPE)
    image[:, 2:18, 1:23] = 20 + rng.normal(0, 20, (SHAPE[0], 16, 22))
    image[labels > 0] += 90
    _save(raw / "imagesTr" / f"{case}_0000.nii.gz", image.astype(np.int16))
    _save(raw / "labelsTr" / f"{case}.nii.gz", labels)


def _write_prediction(place: Path, case: str, gain: float, rng: Any) -> None:
    labels = true_labels(int(case[-3:]) % 6)
    wrong = rng.random(SHAPE) < 0.06 - gain
    predicted = np.where(wrong, np.roll(labels, 2, axis=2), labels)
    _save(place / f"{case}.nii.gz", predicted.astype(np.uint8))
