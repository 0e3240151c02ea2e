"""KiTS23: kidneys, tumours and cysts in contrast CT.

Release: github.com/neheller/kits23 after its download script: dataset/case_00000/imaging.nii.gz and
segmentation.nii.gz; 489 cases, numbers 0-299 and 400-588. Labels: 1 kidney, 2 tumour, 3 cyst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunet_locctx.datasets.nnunet_converters import convert_view, converted_description, describe, move_files
from nnunet_locctx.datasets.release import Copy, Listing, Release, SourceCase, ranges
from nnunet_locctx.files import link

NUMBERS = (*range(300), *range(400, 589))

EXCLUDED = (51, 88, 188, 223, 279, 479, 516, 537, 560)
"""The cases that the LocBAM paper leaves out for corrupted orientation or spacing, by number, from the list in its
baseline script. (Its location script leaves out 88, 223, 516 and 560 only.)"""

EXCLUSIVE = {"background": 0, "kidney": 1, "tumor": 2, "cyst": 3}

CONVERTER = ("Dataset220_KiTS2023", "convert_kits2023")


@dataclass(frozen=True)
class Kits23(Release):
    """KiTS23.

    Attributes:
        keep_excluded: Convert also the nine cases that the LocBAM paper leaves out.
        regions: The challenge's nested regions (kidney and masses, masses, tumour), as nnU-Net's converter writes them;
            otherwise three exclusive labels, as in the LocBAM paper.
    """

    keep_excluded: bool = False
    regions: bool = False

    key = "kits23"
    title = "KiTS23"
    values = frozenset(range(4))

    def root(self, source: Path) -> Path:
        """See :class:`Release`."""
        for folder in (source, source / "dataset"):
            if any(folder.glob("case_*")):
                return folder
        raise ValueError(
            f"{source} has not the layout of the release: case_00000/imaging.nii.gz, "
            "case_00000/segmentation.nii.gz, ..."
        )

    def find(self, root: Path, listing: Listing) -> None:
        """See :class:`Release`."""
        numbers = set()
        for folder in sorted(path for path in root.glob("case_*") if path.is_dir()):
            match = re.fullmatch(r"case_(\d{5})", folder.name)
            if match is None or int(match[1]) not in NUMBERS:
                listing.problems.append(f"not part of the release: {folder}")
                continue
            numbers.add(int(match[1]))
            self.add(listing, folder.name, [folder / "imaging.nii.gz"], folder / "segmentation.nii.gz")
        absent = sorted(set(NUMBERS) - numbers)
        if absent:
            self.absent(listing, f"{len(absent)} cases: {ranges(absent)}")
        if any(not case.images[0].is_file() for case in listing.cases):
            listing.notes.append("images are downloaded by the release's own command kits23_download_data")
        if not self.keep_excluded:
            excluded = {f"case_{number:05d}" for number in EXCLUDED}
            reason = "excluded in the LocBAM paper (orientation or spacing)"
            listing.left_out += [(case, reason) for case in listing.cases if case.name in excluded]
            listing.cases[:] = [case for case in listing.cases if case.name not in excluded]

    def write(self, case: SourceCase, folder: Path, copy: Copy) -> None:
        """Runs nnU-Net's converter on one case."""
        assert case.label is not None
        with TemporaryDirectory(dir=folder) as work:
            view = Path(work) / "view" / case.name
            view.mkdir(parents=True)
            link(case.images[0], view / "imaging.nii.gz")
            link(case.label, view / "segmentation.nii.gz")
            move_files(convert_view(*CONVERTER, view.parent, Path(work) / "raw", copy), folder)

    def description(self, root: Path, training: int) -> dict[str, Any]:
        """See :class:`Release`."""
        with TemporaryDirectory() as view:
            content = converted_description(*CONVERTER, Path(view))
        if not self.regions:
            content["labels"] = EXCLUSIVE
            del content["regions_class_order"]
        reference = "https://github.com/neheller/kits23"
        return describe(content, training, name=self.title, reference=reference, licence="see reference")
