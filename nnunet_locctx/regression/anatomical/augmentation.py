"""Changes of a crop's intensities: no flips and no rotations, which would break the frame."""

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from nnunet_locctx.regression.anatomical.network import STRIDE

Crop = npt.NDArray[np.float32]


def augment(crop: Crop, chance: float, masked: float, generator: np.random.Generator) -> None:
    """Changes a crop (2, a, b, c) in place: intensity from -1 to 1 (0 where nothing is known), and 1 where something is
    known.

    Args:
        crop: The crop.
        chance: Of each of blur, gain, shift, gamma and noise.
        masked: Chance that blocks are hidden, as if they lay outside the scan.
        generator: The numbers' source.
    """
    image, known = crop
    if generator.random() < chance:
        image[...] = gaussian_filter(image, generator.uniform(0.3, 1.0), mode="nearest", truncate=2.5)
    if generator.random() < chance:
        image *= generator.uniform(0.8, 1.2)
    if generator.random() < chance:
        image += generator.uniform(-0.1, 0.1)
    np.clip(image, -1, 1, out=image)
    if generator.random() < chance:
        image[...] = 2 * ((image + 1) / 2) ** generator.uniform(0.7, 1.4) - 1
    if generator.random() < chance:
        noise = generator.standard_normal(image.shape, dtype=np.float32)
        image += np.float32(generator.uniform(0.0, 0.15)) * noise
    if generator.random() < masked:
        _hide_blocks(known, generator.uniform(0.1, 0.5), generator)
    image *= known


def _hide_blocks(known: npt.NDArray[np.float32], share: float, generator: np.random.Generator) -> None:
    """Sets blocks of a random size, whole output cells, to unknown."""
    size = [STRIDE * int(generator.integers(1, 1 + max(1, n // (4 * STRIDE)))) for n in known.shape]
    kept = generator.random([-(-n // s) for n, s in zip(known.shape, size, strict=True)]) >= share
    for axis, length in enumerate(size):
        kept = np.repeat(kept, length, axis=axis)
    a, b, c = known.shape
    known *= kept[:a, :b, :c]
