"""ACDC: short-axis cine MR of the heart at end diastole and end systole.

Release: https://humanheart-project.creatis.insa-lyon.fr/database, folder `database`: 100 training patients and 50
test patients (numbers 101-150; with labels in the release made after the challenge). Labels: 1 right ventricle,
2 myocardium, 3 left ventricle.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np

from nnunet_locctx.datasets.nnunet_converters import (
    convert_view,
    converted_description,
    converter,
    describe,
    move_files,
)
from nnunet_locctx.datasets.release import (
    FOLDS,
    Copy,
    Listing,
    Release,
    SourceCase,
    Split,
    below,
    one_fold,
    ranges,
    superfluous,
    training_names,
)
from nnunet_locctx.files import link

PATIENTS = {"training": range(1, 101), "testing": range(101, 151)}

NNFORMER_VALIDATION = (89, 90, 91, 93, 94, 96, 97, 98, 99, 100)
NNFORMER_TEST = (2, 3, 8, 9, 12, 14, 17, 24, 42, 48, 49, 53, 55, 64, 67, 79, 81, 88, 92, 95)
"""Patients of nnFormer's split of the 100 training patients (70 others train), which LightMedSeg follows too; from the
case lists in nnFormer's change_plan_swin.py."""

CONVERTER = ("Dataset027_ACDC", "convert_acdc")

WINDOW = (0.5, 99.5)
"""Percentiles between which LightMedSeg clips a scan."""


@dataclass(frozen=True)
class Acdc(Release):
    """ACDC.

    Attributes:
        split: ``folds``: nnU-Net's five folds, in which the two frames of a patient stay together; the release's test
            patients are the test cases. ``nnformer``: one fold with 70 training and 10 validation patients; nnFormer's
            20 test patients become the test cases, the release's own test patients are left out.
        window: Clip each scan to its own 0.5th and 99.5th percentile, and name the channel so that nnU-Net then scales
            each scan to 0..1, as LightMedSeg (Tyagi, Rathi and Goyal, arXiv 2603.07228, 2026). A model trained on
            clipped scans needs clipped scans for prediction.
    """

    split: str = "folds"
    window: bool = False

    key = "acdc"
    title = "ACDC"
    values = frozenset(range(4))

    def root(self, source: Path) -> Path:
        """See :class:`Release`."""
        layout = "training/patient001/Info.cfg, patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz, ..., testing/"
        return below(source, ("", "database", "ACDC/database"), ("training",), layout)

    def find(self, root: Path, listing: Listing) -> None:
        """See :class:`Release`."""
        for part, numbers in PATIENTS.items():
            if part == "testing" and (self.split == "nnformer" or not (root / part).is_dir()):
                if self.split != "nnformer":
                    listing.notes.append("no folder testing: the dataset gets no test scans")
                continue
            known = {f"patient{number:03d}": number for number in numbers}
            present = {path.name for path in (root / part).glob("patient*") if path.is_dir()}
            listing.problems += [
                f"not part of the release: {root / part / name}" for name in sorted(present - set(known))
            ]
            absent = [number for name, number in known.items() if name not in present]
            if absent:
                self.absent(listing, f"{len(absent)} patients of {part}: {ranges(absent)}")
            for name in sorted(present & set(known)):
                test = part == "testing" or (self.split == "nnformer" and known[name] in NNFORMER_TEST)
                self._find_patient(root / part / name, listing, test, labelled=part == "training")

    def _find_patient(self, folder: Path, listing: Listing, test: bool, labelled: bool) -> None:
        name = folder.name
        frames = _frames(folder / "Info.cfg", listing.problems)
        if not frames:
            return
        expected = [folder / f"{name}_4d.nii.gz"]
        for frame in frames:
            image, label = (folder / f"{name}_frame{frame:02d}{end}.nii.gz" for end in ("", "_gt"))
            expected += [image, label]
            truth = label if labelled or label.is_file() else None
            self.add(listing, f"{name}_frame{frame:02d}", [image], truth, test=test)
        superfluous(listing, folder, expected)

    def write(self, case: SourceCase, folder: Path, copy: Copy) -> None:
        """Runs nnU-Net's converter on one frame. The converter leaves out labels of test patients; this copies them."""
        with TemporaryDirectory(dir=folder) as work:
            view = _view(Path(work), "testing" if case.test else "training")
            for file in case.files:
                link(file, view / file.name)
            move_files(convert_view(*CONVERTER, Path(work) / "view", Path(work) / "raw", copy), folder)
        if case.test and case.label is not None:
            copy(case.label, folder / case.outputs(1)[-1])
        if self.window:
            image = folder / case.outputs(1)[0]
            image.unlink()  # may be a link to the release
            clip_to_percentiles(case.images[0], image, *WINDOW)

    def description(self, root: Path, training: int) -> dict[str, Any]:
        """See :class:`Release`."""
        with TemporaryDirectory() as work:
            _view(Path(work), "training")
            content = converted_description(*CONVERTER, Path(work) / "view")
        if self.window:
            content["channel_names"] = {"0": "rescale_to_0_1"}
        reference = "https://humanheart-project.creatis.insa-lyon.fr/database"
        return describe(content, training, name=self.title, reference=reference, licence="see reference")

    def settings(self) -> dict[str, Any]:
        """See :class:`Release`. Without a window the option is left out, as in records of versions that had none."""
        options = super().settings()
        return options if self.window else {key: value for key, value in options.items() if key != "window"}

    def splits(self, cases: Sequence[SourceCase]) -> list[Split]:
        """See :class:`Release`. Uses nnU-Net's function for ACDC, which keeps a patient's frames in one fold."""
        names = training_names(cases)
        if self.split == "nnformer":
            patients = {f"patient{number:03d}" for number in NNFORMER_VALIDATION}
            return one_fold(cases, [name for name in names if name[:10] in patients])
        if len({name[:10] for name in names}) < FOLDS:
            raise ValueError(f"{FOLDS} folds need at least {FOLDS} patients")
        with TemporaryDirectory() as folder:
            for name in names:  # the function takes the names from a folder of labels
                (Path(folder) / f"{name}.nii.gz").touch()
            splits: list[Split] = converter(CONVERTER[0]).create_ACDC_split(folder)
        return splits


def _frames(file: Path, problems: list[str]) -> list[int]:
    """Numbers of the end-diastolic and end-systolic frames."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        problems.append(f"{file.parent.name}: missing: {file}")
        return []
    frames = [re.search(rf"^{phase}:\s*(\d+)\s*$", text, re.MULTILINE) for phase in ("ED", "ES")]
    if None in frames:
        problems.append(f"{file.parent.name}: gives no frames (ED: 1, ES: 12): {file}")
        return []
    return sorted({int(frame[1]) for frame in frames if frame is not None})


def _view(work: Path, part: str) -> Path:
    """Makes folders in the release's layout; returns the one patient's folder."""
    for name in ("training", "testing"):
        (work / "view" / name).mkdir(parents=True)
    folder = work / "view" / part / "patient"
    folder.mkdir()
    return folder


def clip_to_percentiles(source: Path, target: Path, lower: float, upper: float) -> None:
    """Writes a scan as float32, clipped to two percentiles (0 to 100) of its own voxels; the geometry stays."""
    image: Any = nibabel.load(source)
    values = np.asanyarray(image.dataobj).astype(np.float32)
    low, high = np.percentile(values, (lower, upper))
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values.clip(low, high), image.affine, header), target)
