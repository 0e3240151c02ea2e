"""A region kept with the crops that it made, so that new scans are cropped by it later."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_locctx.anatomy.region import Region
from nnunet_locctx.regression.regressor import Regressor


@dataclass(frozen=True)
class StoredRegion:
    """A region and what it was made for.

    Attributes:
        region: The region; its boxes in single labelled scans are not kept.
        labels: Values of each label.
        target: Recall aimed at.
        regressor: :func:`fingerprint` of the regressor whose coordinates it is in.
    """

    region: Region
    labels: Mapping[str, Sequence[int]]
    target: float
    regressor: str

    def to_bytes(self) -> bytes:
        """As the content of an .npz file."""
        about = {
            "labels": {name: list(values) for name, values in self.labels.items()},
            "recall": dict(self.region.recall),
            "target": self.target,
            "regressor": self.regressor,
        }
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            places=self.region.places.astype(np.float32),
            to_millimetres=self.region.to_millimetres,
            width=np.array(self.region.width),
            about=np.array(json.dumps(about)),
        )
        return buffer.getvalue()


def fingerprint(regressor: Regressor) -> str:
    """Differs between regressors."""
    return hashlib.sha256(regressor.to_bytes()).hexdigest()


def read_region(file: Path, regressor: Regressor) -> StoredRegion:
    """Reads a region that ``locctx crop`` has written.

    Raises:
        ValueError: There is no such file, it is no region, or one in the coordinates of another regressor.
    """
    if not file.is_file():
        raise ValueError(f"no file {file}")
    try:
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            region = Region(
                stored["places"].astype(np.float64),
                stored["to_millimetres"],
                float(stored["width"]),
                about["recall"],
            )
        found = StoredRegion(region, about["labels"], about["target"], about["regressor"])
    except Exception as error:  # zip, numpy, JSON and lookup errors, all of which mean the same
        raise ValueError(f"{file} is not a region written by locctx crop, or damaged: {error}") from error
    if found.regressor != fingerprint(regressor):
        raise ValueError(f"{file} is in the coordinates of another regressor than the one given")
    return found
