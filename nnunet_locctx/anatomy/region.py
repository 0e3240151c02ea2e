"""The region of the body in which labels lie: learned from labelled scans, kept in a file, and its box in any scan."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import AnatomicalMap
from nnunet_locctx.regression.regressor import Regressor

SAMPLE = 500
"""Blocks of each label in each labelled scan that the region is made from."""

BLOCK_MM = 6.0
"""Length along each axis of the blocks of whole voxels that a scan is divided into; boxes consist of such blocks."""

Voxel: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Blocks:
    """A scan divided into blocks of whole voxels; the last along an axis may be smaller.

    Attributes:
        frame: The scan's.
        size: Voxels of a block along each array axis.
    """

    frame: Frame
    size: tuple[int, ...]

    @classmethod
    def of(cls, frame: Frame) -> "Blocks":
        """Blocks of about :data:`BLOCK_MM`."""
        return cls(frame, tuple(max(1, round(BLOCK_MM / float(mm))) for mm in frame.spacing))

    @property
    def shape(self) -> tuple[int, ...]:
        """Blocks along each array axis."""
        return tuple(-(-n // size) for n, size in zip(self.frame.shape, self.size, strict=True))

    def coordinates(self, scan_map: AnatomicalMap, block: npt.NDArray[np.integer] | None = None) -> Array:
        """(N, 3) anatomical coordinates of block centres; of all blocks, in C order, or of blocks (N, 3)."""
        if block is None:
            block = np.indices(self.shape).reshape(3, -1).T
        size = np.array(self.size)
        last = np.minimum((block + 1) * size, self.frame.shape) - 1
        return scan_map.at(self.frame.millimetres((block * size + last) / 2))

    def count(self, mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Blocks (N, 3) that hold voxels of a mask, and how many each holds (N,)."""
        index = np.argwhere(mask) // np.array(self.size)
        flat, counts = np.unique(np.ravel_multi_index(tuple(index.T), self.shape), return_counts=True)
        return np.stack(np.unravel_index(flat, self.shape), axis=1).astype(np.int32), counts


@dataclass(frozen=True)
class Box:
    """A box of blocks: the first one along each axis and the one after the last, (3,) each."""

    first: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]

    def voxels(self, blocks: Blocks) -> tuple[Voxel, Voxel]:
        """First voxel and the one after the last along each array axis."""
        first = self.first * np.array(blocks.size)
        stop = np.minimum(self.stop * np.array(blocks.size), blocks.frame.shape)
        return _voxel(first), _voxel(stop)


@dataclass(frozen=True)
class Example:
    """The places of the labels in a labelled scan.

    Attributes:
        name: The case's.
        map: Its anatomical map.
        blocks: The scan's.
        labels: Label -> blocks (N, 3) and the number of its voxels in them (N,); only labels that the case has.
    """

    name: str
    map: AnatomicalMap
    blocks: Blocks
    labels: Mapping[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]

    @classmethod
    def of(
        cls,
        name: str,
        scan_map: AnatomicalMap,
        frame: Frame,
        segmentation: npt.NDArray[np.integer],
        labels: Mapping[str, Sequence[int]],
    ) -> "Example":
        """From a segmentation (i, j, k) and the values of each label."""
        blocks = Blocks.of(frame)
        masks = {label: np.isin(segmentation, list(values)) for label, values in labels.items()}
        counts = {label: blocks.count(mask) for label, mask in masks.items() if mask.any()}
        return cls(name, scan_map, blocks, counts)

    def places(self) -> Array:
        """(N, 3) coordinates of a sample of its labels' blocks."""
        random = np.random.default_rng(0)
        drawn = [
            blocks[random.choice(len(blocks), size=min(SAMPLE, len(blocks)), replace=False)]
            for blocks, _ in self.labels.values()
        ]
        return self.blocks.coordinates(self.map, np.concatenate(drawn))

    def recall(self, box: Box | None, label: str) -> float:
        """Share of a label's voxels in a box."""
        blocks, counts = self.labels[label]
        if box is None:
            return 0.0
        kept = ((blocks >= box.first) & (blocks < box.stop)).all(axis=1)
        return float(counts[kept].sum() / counts.sum())

    def recall_of_all(self, box: Box | None) -> float:
        """Share of the voxels of all labels in a box."""
        sizes = {label: counts.sum() for label, (_, counts) in self.labels.items()}
        return float(
            sum(self.recall(box, label) * size for label, size in sizes.items()) / sum(sizes.values())
        )


Profile: TypeAlias = tuple[Array, Array, Array]
"""The least distance of a scan from a region in mm, in every layer of blocks along each axis."""


def box_within(profile: Profile, width: float) -> Box | None:
    """The box around all blocks within a distance of the region; None without any."""
    near = [np.flatnonzero(layers <= width) for layers in profile]
    if any(len(layers) == 0 for layers in near):
        return None
    return Box(np.array([n[0] for n in near]), np.array([n[-1] + 1 for n in near]))


@dataclass(frozen=True)
class Region:
    """All places whose anatomical coordinates are within a distance of labelled ones.

    Attributes:
        places: (N, 3) coordinates of labelled places.
        to_millimetres: (3, 3): coordinates -> mm, by the mean slopes of the labelled scans.
        width: Distance in mm.
        recall: Of each label: share of its voxels in the box, mean over the labelled scans, each measured with a region
            made from the others.
        left_out: The box in each labelled scan by a region made from the others, by name.
    """

    places: Array
    to_millimetres: Array
    width: float
    recall: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, Box | None] = field(default_factory=dict)

    def box(self, scan_map: AnatomicalMap, blocks: Blocks) -> Box | None:
        """The box around the region in a scan; None if the scan does not show it."""
        places = self.places @ self.to_millimetres.T
        return box_within(profile(places, self.to_millimetres, scan_map, blocks), self.width)


def profile(places: Array, to_millimetres: Array, scan_map: AnatomicalMap, blocks: Blocks) -> Profile:
    """The distance of a scan from places (N, 3), which are coordinates in mm."""
    coordinates = blocks.coordinates(scan_map) @ to_millimetres.T
    distances = cKDTree(places).query(coordinates)[0].reshape(blocks.shape)
    first, second, third = (distances.min(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3))
    return first, second, third


def fit_region(examples: Sequence[Example], labels: Sequence[str], recall: float) -> Region:
    """The narrowest region, in whole mm, that holds enough of every label in scans it was not made from.

    Args:
        examples: Labelled scans that could be measured.
        labels: Labels that the region is for.
        recall: Share of each label's voxels that must be in the box, mean over the scans that have it, each left out in
            turn.

    Raises:
        ValueError: Recall out of range; a label that fewer than two scans have.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be above 0 and at most 1, got {recall}")
    for label in labels:
        count = sum(label in example.labels for example in examples)
        if count < 2:
            raise ValueError(
                f"the label {label!r} is in {count} of {len(examples)} labelled scans that could be measured; at "
                "least 2 are needed, because the recall is measured in scans that the region was not made from"
            )
    examples = [example for example in examples if example.labels]
    slopes = np.mean([example.map.slopes for example in examples], axis=0)
    if not np.linalg.cond(slopes) < 1e3:
        raise ValueError(f"the scans' slopes must tell places apart along every axis, got {slopes.tolist()}")
    to_millimetres = np.linalg.inv(slopes)
    places = [example.places() for example in examples]
    profiles = []
    for number, example in enumerate(examples):
        others = np.concatenate([*places[:number], *places[number + 1 :]])
        profiles.append(profile(others @ to_millimetres.T, to_millimetres, example.map, example.blocks))

    def recalls(width: float) -> dict[str, float]:
        boxes = [(example, box_within(p, width)) for example, p in zip(examples, profiles, strict=True)]
        return {
            label: float(
                np.mean([example.recall(box, label) for example, box in boxes if label in example.labels])
            )
            for label in labels
        }

    # recall grows with the width, and reaches 1 at the latest where the box is the whole scan
    too_narrow, wide_enough = -1, int(np.ceil(max(layers.max() for p in profiles for layers in p)))
    while wide_enough - too_narrow > 1:
        width = (too_narrow + wide_enough) // 2
        if min(recalls(width).values()) >= recall:
            wide_enough = width
        else:
            too_narrow = width
    left_out = {
        example.name: box_within(p, wide_enough) for example, p in zip(examples, profiles, strict=True)
    }
    return Region(np.concatenate(places), to_millimetres, float(wide_enough), recalls(wide_enough), left_out)


@dataclass(frozen=True)
class StoredRegion:
    """A region with its purpose.

    Attributes:
        region: The region; its boxes in single labelled scans are not kept.
        labels: Values of each label.
        target: The recall that it was fitted for.
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
        ValueError: There is no such file, it is no region, or the region is in the coordinates of another regressor.
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
        stored_region = StoredRegion(region, about["labels"], about["target"], about["regressor"])
    except Exception as error:  # zip, numpy, JSON and lookup errors, all of which mean the same
        raise ValueError(f"{file} is not a region written by locctx crop, or damaged: {error}") from error
    if stored_region.regressor != fingerprint(regressor):
        raise ValueError(f"{file} is in the coordinates of another regressor than the one given")
    return stored_region


def _voxel(index: npt.NDArray[np.integer]) -> Voxel:
    first, second, third = (int(n) for n in index)
    return first, second, third
