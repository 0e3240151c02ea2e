"""Names for the array shapes of the public interface, spelled the same everywhere.

The axis names: ``batch``, ``channels`` (image or feature channels), ``ras=3`` (the location's three channels, along the
patient's right, anterior and superior), ``*size`` (two or three spatial axes in array order). They are documentation
and types for the type checker; shapes are checked only where a runtime checker is switched on.

Importing this module loads neither torch nor nnU-Net.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # jaxtyping then takes whatever has a shape and a dtype, and torch need not be loaded

# torch
Features: TypeAlias = Float[Tensor, "batch channels *size"]
Location: TypeAlias = Float[Tensor, "batch ras=3 *size"]
Known: TypeAlias = Bool[Tensor, "batch ras=3"]
NetworkInput: TypeAlias = Float[Tensor, "batch channels_with_location *size"]
Logits: TypeAlias = Float[Tensor, "batch classes *size"]

# numpy
LocationArray: TypeAlias = Float32[np.ndarray, "ras=3 *size"]
Points: TypeAlias = Float64[np.ndarray, "*points ras=3"]
Affine: TypeAlias = Float64[np.ndarray, "4 4"]
