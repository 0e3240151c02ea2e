"""BraTS: gliomas in four MR sequences, with the challenge's nested regions.

Two releases are recognised by their layout:

* BraTS 2021 (Synapse syn25829067): folders BraTS2021_00000 with _t1, _t1ce, _t2, _flair and _seg; 1251 cases. Labels 1
  necrotic core, 2 oedema, 4 enhancing tumour. Channels and labels become those of nnU-Net's Dataset137_BraTS21.
* Task01_BrainTumour of the Medical Segmentation Decathlon (BraTS 2016 and 2017): 484 cases, four channels along the
  fourth axis of a file, labels 1 oedema, 2 non-enhancing, 3 enhancing tumour. The 411/73 cases of LightMedSeg (and
  nnFormer) are these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunet_locctx.datasets.nnunet_converters import converter, describe
from nnunet_locctx.datasets.release import (
    Copy,
    Listing,
    Release,
    SourceCase,
    Split,
    nifti_files,
    one_fold,
    ranges,
    superfluous,
)

CASES_2021 = 1251
CASES_DECATHLON = 484
SEQUENCES_2021 = ("t1", "t1ce", "t2", "flair")
CHANNELS_2021 = ("T1", "T1ce", "T2", "Flair")
CHANNELS_DECATHLON = ("FLAIR", "T1w", "t1gd", "T2w")
"""Channel names in the order of the files; those of BraTS 2021 as in nnU-Net's converter."""

NNFORMER_VALIDATION = tuple(
    int(number)
    for number in re.findall(
        r"\d+",
        """
        11 12 18 20 21 28 29 32 34 36 41 47 49 53 56 57 69 71 89 90 92 95 103 105 106 107 109 118 145 147 156 161
        172 176 181 194 196 198 204 205 209 220 221 227 234 235 245 250 256 257 260 269 270 271 281 282 287 289 291
        292 310 314 323 327 330 333 337 346 350 352 361 382 397
        """,
    )
)
"""Numbers of nnFormer's 73 validation cases of the Decathlon, from the case list in its tumour trainer."""

REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
"""Regions of nnU-Net's Dataset137_BraTS21; the Decathlon's labels 1, 2, 3 have the same meaning."""


@dataclass(frozen=True)
class Brats(Release):
    """BraTS.

    Attributes:
        split: ``folds``: five folds; ``nnformer``: the 411/73 cases of nnFormer and LightMedSeg (Decathlon only).
    """

    split: str = "folds"

    key = "brats"
    title = "BraTS"
    channels = 4
    values = frozenset({0, 1, 2, 3, 4})

    def root(self, source: Path) -> Path:
        """See :class:`Release`."""
        for name in ("", "BraTS2021_Training_Data", "Task01_BrainTumour"):
            folder = source / name
            if any(folder.glob("BraTS2021_*/")) or _decathlon(folder):
                return folder
        raise ValueError(
            f"{source} has not the layout of a release: BraTS2021_00000/BraTS2021_00000_flair.nii.gz, ... or that of "
            "the Decathlon's Task01_BrainTumour (dataset.json, imagesTr, labelsTr)"
        )

    def find(self, root: Path, listing: Listing) -> None:
        """See :class:`Release`."""
        if _decathlon(root):
            self._find_decathlon(root, listing)
            return
        if self.split == "nnformer":
            listing.problems.append("--split nnformer is a split of the Decathlon's Task01_BrainTumour")
        for folder in sorted(path for path in root.glob("BraTS*") if path.is_dir()):
            name = folder.name
            if re.fullmatch(r"BraTS2021_\d{5}", name) is None:
                listing.problems.append(f"not part of the release: {folder}")
                continue
            images = [folder / f"{name}_{sequence}.nii.gz" for sequence in SEQUENCES_2021]
            label = folder / f"{name}_seg.nii.gz"
            self.add(listing, name, images, label)
            superfluous(listing, folder, [*images, label])
        self._count(listing, sum(1 for _ in root.glob("BraTS2021_*/")), CASES_2021)

    def _count(self, listing: Listing, present: int, expected: int) -> None:
        if present < expected:
            self.absent(listing, f"the folder holds {present} of the release's {expected} cases")

    def _find_decathlon(self, root: Path, listing: Listing) -> None:
        numbers = range(1, CASES_DECATHLON + 1)
        absent, images, labels = [], [], []
        for number in numbers:
            file = f"BRATS_{number:03d}.nii.gz"
            images.append(root / "imagesTr" / file)
            labels.append(root / "labelsTr" / file)
            if images[-1].exists() or labels[-1].exists():
                self.add(listing, f"BRATS_{number:03d}", [images[-1]], labels[-1])
            else:
                absent.append(number)
        if absent:
            self.absent(listing, f"{len(absent)} cases: {ranges(absent)}")
        superfluous(listing, root / "imagesTr", images)
        superfluous(listing, root / "labelsTr", labels)
        for test in nifti_files(root / "imagesTs"):
            self.add(listing, test.name.removesuffix(".nii.gz"), [test], None, test=True)

    def allowed(self, case: SourceCase) -> frozenset[int]:
        """Label values of the case's release."""
        return frozenset({0, 1, 2, 3}) if len(case.images) == 1 else frozenset({0, 1, 2, 4})

    def write(self, case: SourceCase, folder: Path, copy: Copy) -> None:
        """Writes the files of a case; nnU-Net's functions change the labels and split the channels of a file.

        nnU-Net has no function for a whole BraTS 2021: its script names a folder of its author's machine.
        """
        outputs = [folder / name for name in case.outputs(self.channels)]
        if len(case.images) == 1:
            self._write_decathlon(case, outputs, copy)
            return
        for source, target in zip(case.images, outputs, strict=False):
            copy(source, target)
        code = converter("Dataset137_BraTS21")
        code.copy_BraTS_segmentation_and_convert_labels_to_nnUNet(str(case.label), str(outputs[-1]))

    def _write_decathlon(self, case: SourceCase, outputs: list[Path], copy: Copy) -> None:
        code = converter("convert_MSD_dataset")
        with TemporaryDirectory(dir=outputs[0].parent) as work:
            code.split_4d_nifti(str(case.images[0]), work)
            for channel, target in enumerate(outputs[: self.channels]):
                (Path(work) / f"{case.name}_{channel:04d}.nii.gz").rename(target)
        if case.label is not None:
            copy(case.label, outputs[-1])

    def description(self, root: Path, training: int) -> dict[str, Any]:
        """See :class:`Release`."""
        decathlon = _decathlon(root)
        names = CHANNELS_DECATHLON if decathlon else CHANNELS_2021
        reference = (
            "http://medicaldecathlon.com" if decathlon else "https://www.synapse.org/#!Synapse:syn25829067"
        )
        content = {
            "channel_names": {str(channel): name for channel, name in enumerate(names)},
            "labels": REGIONS,
            "regions_class_order": [1, 2, 3],
            "file_ending": ".nii.gz",
            "name": self.title,
            "reference": reference,
            "licence": "see reference",
        }
        return describe(content, training)

    def splits(self, cases: Sequence[SourceCase]) -> list[Split]:
        """See :class:`Release`."""
        if self.split == "nnformer":
            return one_fold(cases, [f"BRATS_{number:03d}" for number in NNFORMER_VALIDATION])
        return super().splits(cases)


def _decathlon(folder: Path) -> bool:
    return (folder / "imagesTr").is_dir() and (folder / "labelsTr").is_dir()
