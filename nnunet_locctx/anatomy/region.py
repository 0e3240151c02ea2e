"""The region of the body in which labels lie, learned from labelled scans, and its box in any scan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from nnunet_locctx.anatomy.blocks import Blocks, Box
from nnunet_locctx.geometry import Array, Frame
from nnunet_locctx.location import AnatomicalMap

SAMPLE = 500
"""Blocks of each label in each labelled scan that the region is made from."""


@dataclass(frozen=True)
class Example:
    """What a labelled scan says about where labels lie.

    Attributes:
        name: Of the case.
        map: Its anatomical map.
        blocks: The scan's.
        labels: Of each label that it has: blocks (N, 3) and the number of its voxels in them (N,).
    """

    name: str
    map: AnatomicalMap
    blocks: Blocks
    labels: Mapping[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]

    @classmethod
    def of(
        cls,
        name: str,
        found: AnatomicalMap,
        frame: Frame,
        segmentation: npt.NDArray[np.integer],
        labels: Mapping[str, Sequence[int]],
    ) -> "Example":
        """From a segmentation (i, j, k) and the values of each label."""
        blocks = Blocks.of(frame)
        masks = {label: np.isin(segmentation, list(values)) for label, values in labels.items()}
        counts = {label: blocks.count(mask) for label, mask in masks.items() if mask.any()}
        return cls(name, found, blocks, counts)

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


@dataclass(frozen=True)
class Profile:
    """How close a scan comes to a region: the least distance in mm in every layer of blocks along each axis."""

    layers: tuple[Array, Array, Array]

    def box(self, width: float) -> Box | None:
        """The box around all blocks within a distance of the region; None without any."""
        near = [np.flatnonzero(layer <= width) for layer in self.layers]
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

    def box(self, found: AnatomicalMap, blocks: Blocks) -> Box | None:
        """The box around the region in a scan; None if the scan does not show it."""
        return profile(self.places @ self.to_millimetres.T, self.to_millimetres, found, blocks).box(
            self.width
        )


def profile(places: Array, to_millimetres: Array, found: AnatomicalMap, blocks: Blocks) -> Profile:
    """How close a scan comes to places (N, 3), given as coordinates in mm."""
    here = blocks.coordinates(found) @ to_millimetres.T
    distances = cKDTree(places).query(here)[0].reshape(blocks.shape)
    first, second, third = (distances.min(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3))
    return Profile((first, second, third))


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
        having = sum(label in example.labels for example in examples)
        if having < 2:
            raise ValueError(
                f"the label {label!r} is in {having} of {len(examples)} labelled scans that could be measured; at "
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
        others = np.concatenate([found for other, found in enumerate(places) if other != number])
        profiles.append(profile(others @ to_millimetres.T, to_millimetres, example.map, example.blocks))

    def recalls(width: float) -> dict[str, float]:
        boxes = [found.box(width) for found in profiles]
        return {
            label: float(
                np.mean(
                    [
                        example.recall(box, label)
                        for example, box in zip(examples, boxes, strict=True)
                        if label in example.labels
                    ]
                )
            )
            for label in labels
        }

    # recall grows with the width, and reaches 1 at the latest where the box is the whole scan
    too_narrow, wide_enough = -1, int(np.ceil(max(layer.max() for p in profiles for layer in p.layers)))
    while wide_enough - too_narrow > 1:
        width = (too_narrow + wide_enough) // 2
        if min(recalls(width).values()) >= recall:
            wide_enough = width
        else:
            too_narrow = width
    left_out = {
        example.name: found.box(wide_enough) for example, found in zip(examples, profiles, strict=True)
    }
    return Region(np.concatenate(places), to_millimetres, float(wide_enough), recalls(wide_enough), left_out)
