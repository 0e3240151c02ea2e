"""AMOS22: abdominal CT and MR with 15 organs.

Release: Zenodo record 7262581, archive amos22.zip. Its readme counts 240 training scans (200 CT, 40 MR), 120 validation
scans (100 CT, 20 MR) and test scans without labels, and says that numbers up to 500 are CT, the others MR.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunet_locctx.datasets.nnunet_converters import convert_view, converted_description, describe, move_files
from nnunet_locctx.datasets.release import (
    Copy,
    Listing,
    Release,
    SourceCase,
    Split,
    below,
    one_fold,
    superfluous,
)
from nnunet_locctx.files import link

LAST_CT = 500
"""Scans with this number or below are CT (nnU-Net's converter draws the line at the same place)."""

PARTS = (("training", "Tr"), ("validation", "Va"), ("test", "Ts"))
"""Lists of dataset.json and the endings of their folders."""

CT_CONVERTER = ("Dataset218_Amos2022_task1", "convert_amos_task1")
BOTH_CONVERTER = ("Dataset219_Amos2022_task2", "convert_amos_task2")


@dataclass(frozen=True)
class Amos22(Release):
    """AMOS22. The training cases are the release's training and validation scans, as in nnU-Net's converter.

    Attributes:
        with_mr: Convert MR scans too (task 2); otherwise CT only, as in the LocBAM paper.
        split: ``folds``: five folds over all; ``official``: one fold, imagesTr train, imagesVa validate.
    """

    with_mr: bool = False
    split: str = "folds"

    key = "amos22"
    title = "AMOS22"
    values = frozenset(range(16))

    def root(self, source: Path) -> Path:
        """See :class:`Release`."""
        layout = "dataset.json, imagesTr, labelsTr, imagesVa, labelsVa, imagesTs"
        return below(source, ("", "amos22"), ("dataset.json", "imagesTr", "labelsTr"), layout)

    def find(self, root: Path, listing: Listing) -> None:
        """See :class:`Release`."""
        content = _read(root)
        expected: dict[str, set[Path]] = {}
        for part, ending in PARTS:
            images, labels = root / f"images{ending}", root / f"labels{ending}"
            expected[f"images{ending}"], expected[f"labels{ending}"] = set(), set()
            for entry in content[part]:
                name = _name(entry)
                match = re.fullmatch(r"amos_(\d{4})", name)
                if match is None:
                    listing.problems.append(
                        f"dataset.json: {name!r} is no case of the release (amos_0001 ...)"
                    )
                    continue
                image, label = images / f"{name}.nii.gz", labels / f"{name}.nii.gz"
                expected[images.name].add(image)
                expected[labels.name].add(label)
                if int(match[1]) > LAST_CT and not self.with_mr:
                    continue
                test = part == "test"
                if test and not images.is_dir():
                    continue
                self.add(listing, name, [image], None if test and not label.is_file() else label, test=test)
        if content["test"] and not (root / "imagesTs").is_dir():
            listing.notes.append("no folder imagesTs: the dataset gets no test scans")
        for folder, files in expected.items():
            superfluous(listing, root / folder, files)

    def write(self, case: SourceCase, folder: Path, copy: Copy) -> None:
        """Runs nnU-Net's converter for CT and MR on one case; its converter for CT skips some case numbers."""
        part = "test" if case.test else "training"
        with TemporaryDirectory(dir=folder) as work:
            view = Path(work) / "view"
            _view(view, {part: [{"image": f"./images/{case.name}.nii.gz"}]})
            ending = "Ts" if case.test else "Tr"
            for kind, file in (("images", case.images[0]), ("labels", case.label)):
                (view / f"{kind}{ending}").mkdir()
                if file is not None:
                    link(file, view / f"{kind}{ending}" / f"{case.name}.nii.gz")
            move_files(convert_view(*BOTH_CONVERTER, view, Path(work) / "raw", copy), folder)
        if case.test and case.label is not None:
            copy(case.label, folder / case.outputs(1)[-1])

    def description(self, root: Path, training: int) -> dict[str, Any]:
        """See :class:`Release`. The release spells one organ "arota"."""
        with TemporaryDirectory() as work:
            view = Path(work) / "view"
            _view(view, {"labels": _read(root)["labels"]})
            content = converted_description(*(BOTH_CONVERTER if self.with_mr else CT_CONVERTER), view)
        labels = {"aorta" if name == "arota" else name: value for name, value in content["labels"].items()}
        licence = "see reference"
        return describe(
            content, training, labels=labels, name=self.title, licence=licence, description=self._about()
        )

    def _about(self) -> str:
        return f"AMOS22, {'CT and MR' if self.with_mr else 'CT only'}; imagesTr and imagesVa of the release"

    def splits(self, cases: Sequence[SourceCase]) -> list[Split]:
        """See :class:`Release`."""
        if self.split == "official":
            return one_fold(cases, [case.name for case in cases if case.images[0].parent.name == "imagesVa"])
        return super().splits(cases)


def _read(root: Path) -> dict[str, Any]:
    file = root / "dataset.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    missing = [key for key in ("labels", *(part for part, _ in PARTS)) if key not in content]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}")
    if sorted(map(int, content["labels"])) != list(range(16)):
        raise ValueError(f"{file}: labels must be 0 to 15, got {', '.join(content['labels'])}")
    return dict(content)


def _name(entry: Any) -> str:
    """Name of a case. An entry is {"image": path}; for test scans it is the path."""
    path = str(entry["image"] if isinstance(entry, dict) else entry)
    return path.rsplit("/", 1)[-1].removesuffix(".nii.gz")


def _view(view: Path, content: dict[str, Any]) -> None:
    view.mkdir()
    lists: dict[str, Any] = {part: [] for part, _ in PARTS}
    (view / "dataset.json").write_text(json.dumps({"labels": {}, **lists, **content}))
