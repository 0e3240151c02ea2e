"""The fitted regressor, which measures a scan's map of anatomical coordinates."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from nnunet_locctx.geometry import PATIENT_FROM_LPS, Array, Frame
from nnunet_locctx.location import AnatomicalMap
from nnunet_locctx.regression.anatomical.network import EmbeddingNetwork, body_nodes, embed_views
from nnunet_locctx.regression.anatomical.options import AnatomicalOptions
from nnunet_locctx.regression.canonical import to_canonical
from nnunet_locctx.regression.intensity import body_mask
from nnunet_locctx.regression.regressor import Regressor

PERCENTILES = (1.0, 99.0)
"""Percentiles of the training bodies' embeddings along each axis that become -0.5 and 0.5."""


@dataclass(frozen=True)
class Gauge:
    """Turns embeddings into coordinates along (R, A, S), about -0.5 to 0.5 over the bodies of the training scans.

    Attributes:
        matrix: (3, 3): an orthogonal matrix with scaled rows.
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
    """Fits one orthogonal matrix (rotation or reflection) for all scans, and a range for each axis.

    Embeddings and positions are relative to their means in each scan, because the scan's place in the body is not
    known; the matrix is the orthogonal Procrustes solution (Schönemann 1966).

    Args:
        scans: For each scan, embeddings (N, 3) and positions (N, 3) in mm along (R, A, S) of the same places in the
            body.

    Raises:
        ValueError: There is no scan, or the embeddings do not change along an axis.
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


PRIOR_LENGTH = 20.0
"""Millimetres. Along an axis on which the body's cells spread (standard deviation) less than this, the slope is taken
from the training scans rather than from the cells."""

SMOOTHING = 1.0
"""Nodes. Standard deviation of the smoothing outside the body."""


def linear_fit(coordinates: Array, positions: Array, typical: Array) -> tuple[Array, Array]:
    """The linear map ``slopes @ position + offset`` nearest to coordinates, by least squares.

    A slab of a few slices does not determine a slope across it: there `typical` replaces it, with a weight that depends
    on :data:`PRIOR_LENGTH`.

    Args:
        coordinates: (N, 3).
        positions: (N, 3) mm.
        typical: (3, 3) slopes: change of the coordinate (row) per mm along an axis (column).

    Returns:
        slopes (3, 3) and offset (3,).
    """
    place, value = positions.mean(0), coordinates.mean(0)
    relative = positions - place
    spread = relative.T @ relative / len(relative)
    covariance = (coordinates - value).T @ relative / len(relative)
    # the prior's weight falls from 1 to nothing as the body spreads beyond PRIOR_LENGTH along an axis
    variances, axes = np.linalg.eigh(spread)
    variances = np.maximum(variances, 1e-9)
    weight = 1 / (1 + (variances / PRIOR_LENGTH**2) ** 2)
    free = covariance @ axes / variances
    slopes = (free * (1 - weight) + (typical @ axes) * weight) @ axes.T
    return slopes, value - slopes @ place


def continue_outside(
    coordinates: npt.NDArray[np.floating], linear: npt.NDArray[np.floating], body: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Replaces a map's coordinates outside the body by the linear map plus the smoothed deviation of the nearest body
    node.

    Air, table and blankets look the same everywhere, so the network's output there is noise.

    Args:
        coordinates: (3, a, b, c).
        linear: (3, a, b, c) coordinates of the linear map.
        body: (a, b, c), at least one of them true.
    """
    nearest = ndimage.distance_transform_edt(~body, return_distances=False, return_indices=True)
    deviation = np.asarray(coordinates - linear, dtype=np.float64)[(slice(None), *nearest)]
    smoothed = ndimage.gaussian_filter(deviation, (0, *[SMOOTHING] * 3), mode="nearest")
    return np.asarray(linear + np.where(body, deviation, smoothed), dtype=np.float64)


SMALLEST_BODY_NODES = 64
"""Smallest number of body nodes in a usable scan."""

PLAUSIBLE_SLOPES = (0.4, 2.5)
"""Multiples of the typical slope along each axis between which the slopes of a usable scan lie."""


class AnatomicalRegressor(Regressor):
    """Measures a map of coordinates along the patient's axes; a place of the body has the same coordinates in every
    scan.

    Source: Goncharov et al., "Anatomical Positional Embeddings", MICCAI 2024 (arXiv:2409.10291).

    Args:
        options: Options of the fit.
        network: The fitted network.
        gauge: Map from its embeddings to coordinates.
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
        """Measures a scan's map with a node per 2 canonical voxels; :func:`continue_outside` fills the air around the
        body.

        Args:
            image: (i, j, k) intensities of channel :attr:`channel` as stored (CT: HU), any orientation and voxel size.
            frame: Frame of the array.

        Returns:
            The map. It is unusable, with the reason, for a single slice, a scan without enough body, and coordinates
            that do not rise along the patient's axes as in the training scans.
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
        embeddings, affine = embed_views(self.network, scan, self.options.modality, self.options.window)
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
        """A sentence if a scan's slopes (3, 3) along (R, A, S) are implausible; otherwise empty."""
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
        # interned strings and new lists: object identity must not change the bytes
        options = {
            name: sys.intern(value)
            if isinstance(value, str)
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in asdict(self.options).items()
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
    """A sentence if a scan with these body nodes (a, b, c) cannot be measured; otherwise empty."""
    if nodes.sum() >= SMALLEST_BODY_NODES:
        return ""
    return f"{int(nodes.sum())} nodes of body were found, at least {SMALLEST_BODY_NODES} are needed"


def node_positions(affine: Array, nodes: tuple[int, ...]) -> Array:
    """(*nodes, 3) places of nodes in mm along (R, A, S)."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in nodes], indexing="ij"), axis=-1)
    return np.asarray((index @ affine[:3, :3].T + affine[:3, 3]) @ PATIENT_FROM_LPS)
