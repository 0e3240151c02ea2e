"""BTCV ("Beyond the Cranial Vault", abdomen) and the Synapse protocol on the same scans.

Release: Synapse project syn3193805, archive RawData.zip: 30 training CTs (img0001-0010 and img0021-0040) with 13
organs, 20 test CTs (img0061-0080) without published labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from nnunet_locctx.datasets.release import (
    Copy,
    Listing,
    Release,
    SourceCase,
    Split,
    below,
    one_fold,
    ranges,
    superfluous,
)

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal vein and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
"""Labels 1 to 13."""

TRAINING = (*range(1, 11), *range(21, 41))
TESTING = tuple(range(61, 81))
"""Numbers of the release's scans."""

SYNAPSE_ORGANS = (1, 2, 3, 4, 6, 7, 8, 11)
"""The eight organs of the Synapse protocol, as BTCV labels; they become 1 to 8 in this order (spleen, right kidney,
left kidney, gallbladder, liver, stomach, aorta, pancreas). TransUNet's prepared files number the same organs
alphabetically instead."""

SYNAPSE_VALIDATION = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
"""The protocol's 12 validation scans; the other 18 train. Source: training code of GPE (P_network), equal to
nnFormer's."""


@dataclass(frozen=True)
class Btcv(Release):
    """BTCV with its 13 labels and five folds (the LocBAM paper's own folds are not published)."""

    key = "btcv"
    title = "BTCV"
    values = frozenset(range(14))

    def root(self, source: Path) -> Path:
        """See :class:`Release`."""
        layout = "RawData/Training/img/img0001.nii.gz, RawData/Training/label/label0001.nii.gz, RawData/Testing/img/..."
        candidates = ("", "RawData", "Abdomen/RawData")
        return below(source, candidates, ("Training/img", "Training/label"), layout)

    def find(self, root: Path, listing: Listing) -> None:
        """See :class:`Release`."""
        images, labels, tests = root / "Training/img", root / "Training/label", root / "Testing/img"
        absent = []
        for number in TRAINING:
            image, label = images / f"img{number:04d}.nii.gz", labels / f"label{number:04d}.nii.gz"
            if image.exists() or label.exists():
                self.add(listing, f"img{number:04d}", [image], label)
            else:
                absent.append(number)
        if absent:
            self.absent(listing, f"image and label of the training scans {ranges(absent)}")
        superfluous(listing, images, [images / f"img{number:04d}.nii.gz" for number in TRAINING])
        superfluous(listing, labels, [labels / f"label{number:04d}.nii.gz" for number in TRAINING])
        self._find_tests(tests, listing)

    def _find_tests(self, tests: Path, listing: Listing) -> None:
        if not tests.is_dir():
            listing.notes.append("no folder Testing/img: the dataset gets no test scans")
            return
        for number in TESTING:
            self.add(listing, f"img{number:04d}", [tests / f"img{number:04d}.nii.gz"], None, test=True)
        superfluous(listing, tests, [tests / f"img{number:04d}.nii.gz" for number in TESTING])

    def write(self, case: SourceCase, folder: Path, copy: Copy) -> None:
        """See :class:`Release`."""
        image, *label = (folder / name for name in case.outputs(1))
        copy(case.images[0], image)
        if case.label is not None:
            self.write_label(case.label, label[0], copy)

    def write_label(self, source: Path, target: Path, copy: Copy) -> None:
        """Writes the converted segmentation."""
        copy(source, target)

    def organs(self) -> dict[str, int]:
        """Label names and values."""
        return {name: value for value, name in enumerate(ORGANS, start=1)}

    def description(self, root: Path, training: int) -> dict[str, Any]:
        """See :class:`Release`."""
        return {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **self.organs()},
            "numTraining": training,
            "file_ending": ".nii.gz",
            "name": self.title,
            "reference": "https://www.synapse.org/#!Synapse:syn3193805/wiki/89480",
            "licence": "see reference",
            "converted_by": "locctx convert",
        }


@dataclass(frozen=True)
class Synapse(Btcv):
    """BTCV's training scans with the Synapse protocol's 8 organs and its 18/12 split.

    Attributes:
        all_labels: Keep the 13 labels. GPE's code trains on 13 and evaluates the 8.
    """

    all_labels: bool = False

    key = "synapse"
    title = "Synapse"

    def _find_tests(self, tests: Path, listing: Listing) -> None:
        """The protocol does not use the test scans."""

    def write_label(self, source: Path, target: Path, copy: Copy) -> None:
        """See :class:`Btcv`."""
        if self.all_labels:
            copy(source, target)
        else:
            relabel(source, target, {old: new for new, old in enumerate(SYNAPSE_ORGANS, start=1)})

    def organs(self) -> dict[str, int]:
        """See :class:`Btcv`."""
        if self.all_labels:
            return super().organs()
        return {ORGANS[old - 1]: new for new, old in enumerate(SYNAPSE_ORGANS, start=1)}

    def splits(self, cases: Sequence[SourceCase]) -> list[Split]:
        """See :class:`Release`."""
        return one_fold(cases, [f"img{number:04d}" for number in SYNAPSE_VALIDATION])


def relabel(source: Path, target: Path, mapping: dict[int, int]) -> None:
    """Writes a segmentation with mapped label values; labels without a mapping become 0. The geometry stays."""
    image: Any = nibabel.load(source)
    values = np.asanyarray(image.dataobj)
    result = np.zeros(values.shape, dtype=np.uint8)
    for old, new in mapping.items():
        result[values == old] = new
    header = image.header.copy()
    header.set_data_dtype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(result, image.affine, header), target)
