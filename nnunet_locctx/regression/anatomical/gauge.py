"""The frame of an embedding: what the loss leaves free, fixed once after the training."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nnunet_locctx.geometry import Array

PERCENTILES = (1.0, 99.0)
"""Of the embeddings of the training scans' bodies, along each axis; they become -0.5 and 0.5."""


@dataclass(frozen=True)
class Gauge:
    """Turns embeddings into coordinates along (R, A, S), about -0.5 to 0.5 over the bodies of the training scans.

    Attributes:
        matrix: (3, 3): an orthogonal matrix, its rows then scaled.
        shift: (3,).
    """

    matrix: Array
    shift: Array

    def apply(self, embeddings: npt.NDArray[np.floating]) -> Array:
        """Embeddings (..., 3) -> coordinates (..., 3)."""
        return np.asarray(np.asarray(embeddings, dtype=np.float64) @ self.matrix.T + self.shift)

    def state(self) -> dict[str, Any]:
        """As tensors."""
        return {"matrix": torch.from_numpy(self.matrix.copy()), "shift": torch.from_numpy(self.shift.copy())}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Gauge":
        """The inverse of :meth:`state`."""
        return cls(state["matrix"].numpy(), state["shift"].numpy())


def fit_gauge(scans: Iterable[tuple[npt.NDArray[np.floating], Array]]) -> Gauge:
    """Fits one orthogonal matrix (rotation or reflection) to all scans, and one range to each axis.

    Each scan's embeddings and positions are taken relative to their means, because the place of the scan in the
    embedding is not known beforehand; the matrix is the orthogonal Procrustes solution (Schönemann 1966).

    Args:
        scans: Of each scan, embeddings (N, 3) and positions (N, 3) in mm along (R, A, S), of the same places in the
            body.

    Raises:
        ValueError: No scan, or embeddings that do not change along an axis.
    """
    covariance = np.zeros((3, 3))
    embeddings = []
    for embedding, position in scans:
        embeddings.append(np.asarray(embedding, dtype=np.float64))
        centred = embeddings[-1] - embeddings[-1].mean(0)
        covariance += (position - position.mean(0)).T @ centred / len(position)
    if not embeddings:
        raise ValueError("a gauge needs at least one scan with a body, got none")
    left, _, right = np.linalg.svd(covariance)
    matrix = left @ right
    lower, upper = np.percentile(np.concatenate(embeddings) @ matrix.T, PERCENTILES, axis=0)
    if not np.isfinite(upper - lower).all() or (upper - lower <= 1e-3).any():
        raise ValueError(
            f"the embedding of the training scans spans {(upper - lower).tolist()} along (R, A, S); every axis needs "
            "more than 0.001. The fit failed: use more scans, more steps or a lower learning rate."
        )
    return Gauge(matrix / (upper - lower)[:, None], -(lower + upper) / 2 / (upper - lower))
