"""The fitted regressor: a scan's map of anatomical coordinates."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Array, Frame
from nnunet_locctx.location import AnatomicalMap
from nnunet_locctx.regression.anatomical.continuation import continue_outside, linear_fit
from nnunet_locctx.regression.anatomical.gauge import Gauge
from nnunet_locctx.regression.anatomical.network import EmbeddingNetwork
from nnunet_locctx.regression.anatomical.options import AnatomicalOptions
from nnunet_locctx.regression.anatomical.views import body_nodes, embed_views
from nnunet_locctx.regression.canonical import to_canonical
from nnunet_locctx.regression.intensity import body_mask
from nnunet_locctx.regression.regressor import Regressor

SMALLEST_BODY_NODES = 64
"""Nodes of body that a scan needs."""

PLAUSIBLE_SLOPES = (0.4, 2.5)
"""Of the typical slope along each axis: a scan's slopes lie in between, or it is not trusted."""


class AnatomicalRegressor(Regressor):
    """Measures a map of coordinates along the patient's axes, the same place of the body having the same three numbers
    in every scan.

    Source: Goncharov et al., "Anatomical Positional Embeddings", MICCAI 2024 (arXiv:2409.10291).

    Args:
        options: How it was fitted.
        network: The fitted network.
        gauge: From its embeddings to coordinates.
        typical: (3, 3): change of the coordinate (row) per mm along (R, A, S) (column), mean over the training scans.
        history: Losses of the fit: ``step``, ``train`` and ``validation``, lists of numbers of one length.
    """

    kind: ClassVar[str] = "anatomical"

    def __init__(
        self,
        options: AnatomicalOptions,
        network: EmbeddingNetwork,
        gauge: Gauge,
        typical: Array,
        history: Mapping[str, list[float]] | None = None,
    ) -> None:
        self.options = options
        self.channel = options.channel
        self.network = network.eval()
        self.gauge = gauge
        self.typical = np.asarray(typical, dtype=np.float64)
        self.history = {name: list(values) for name, values in (history or {}).items()}

    def measure(self, image: npt.NDArray[np.floating], frame: Frame) -> AnatomicalMap:
        """A scan's map, one value to a node of 2 canonical voxels; see
        :func:`~nnunet_locctx.regression.anatomical.continuation.continue_outside` for the air around the body.

        Args:
            image: (i, j, k) intensities of channel :attr:`channel` as stored (CT: HU), any orientation and voxel size.
            frame: That array's.

        Returns:
            The map; unusable, with the reason, for a single slice, a scan without enough body, and coordinates that do
            not rise along the patient's axes as they do in the training scans.
        """
        if min(frame.shape) < 2:
            return AnatomicalMap.unusable(f"a scan of shape {frame.shape} is a single slice")
        try:
            scan = to_canonical(image, frame, self.options.spacing)
        except ValueError as error:
            return AnatomicalMap.unusable(str(error))
        body = body_nodes(body_mask(scan, self.options.modality))
        problem = too_little_body(body)
        if problem:
            return AnatomicalMap.unusable(problem)
        embeddings, affine = embed_views(self.network, scan, self.options)
        values = np.moveaxis(self.gauge.apply(np.moveaxis(embeddings, 0, -1)), -1, 0)
        if not np.isfinite(values).all():
            return AnatomicalMap.unusable("the network gave coordinates that are not finite")
        positions = node_positions(affine, values.shape[1:])
        slopes, offset = linear_fit(values[:, body].T, positions[body], self.typical)
        problem = self._implausible(slopes)
        if problem:
            return AnatomicalMap.unusable(problem)
        linear = np.moveaxis(positions @ slopes.T + offset, -1, 0)
        values = continue_outside(values, linear, body)
        return AnatomicalMap(values.astype(np.float32), affine, slopes @ PATIENT_FROM_LPS)

    def _implausible(self, slopes: Array) -> str:
        """What is wrong with a scan's slopes (3, 3) along (R, A, S); nothing if they are plausible."""
        ratios = np.diag(slopes) / np.diag(self.typical)
        lowest, highest = PLAUSIBLE_SLOPES
        if (ratios >= lowest).all() and (ratios <= highest).all():
            return ""
        listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        return (
            f"the coordinates rise {listed} times as fast along (R, A, S) as in the training scans ({lowest:g} to "
            f"{highest:g} is plausible): another part of the body than they show, or a wrong orientation in the header"
        )

    def state(self) -> dict[str, Any]:
        # interned, and tuples made anew: whether equal objects are one object must not change the bytes
        options = {
            name: sys.intern(value)
            if isinstance(value, str)
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in dataclasses.asdict(self.options).items()
        }
        weights = self.network.state_dict()
        return {
            "options": options,
            "network": {sys.intern(name): value.detach().clone() for name, value in weights.items()},
            "gauge": self.gauge.state(),
            "typical": torch.from_numpy(self.typical.copy()),
            "history": {sys.intern(name): list(values) for name, values in self.history.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "AnatomicalRegressor":
        options = AnatomicalOptions(**state["options"])
        network = EmbeddingNetwork(options.widths, options.depths)
        network.load_state_dict(state["network"])
        gauge = Gauge.from_state(state["gauge"])
        return cls(options, network, gauge, state["typical"].numpy(), state["history"])


def too_little_body(nodes: npt.NDArray[np.bool_]) -> str:
    """Why a scan with these nodes of body (a, b, c) cannot be measured; empty if it can."""
    if nodes.sum() >= SMALLEST_BODY_NODES:
        return ""
    return f"{int(nodes.sum())} nodes of body were found, at least {SMALLEST_BODY_NODES} are needed"


def node_positions(affine: Array, nodes: tuple[int, ...]) -> Array:
    """(*nodes, 3) places of nodes in mm along (R, A, S)."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in nodes], indexing="ij"), axis=-1)
    return np.asarray((index @ affine[:3, :3].T + affine[:3, 3]) @ PATIENT_FROM_LPS)
