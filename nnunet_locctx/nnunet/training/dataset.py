"""Preprocessed cases whose slices come with their location.

nnU-Net's data loader crops a patch out of a case and pads it where it reaches over the border. A located
case answers the crop with the stored image channels and, behind them, the location of just that box, and
continues the location when the crop is padded. Nothing is stored on disk and no whole volume of coordinates
is held in memory.

For the loader even the box is too much: augmentation computes the location when the patch is final, so a case can
write a key to its location in place of the location (:mod:`.augmentation`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_locctx.geometry import Frame
from nnunet_locctx.location import LOCATION_CHANNELS, LocationField, Locator
from nnunet_locctx.nnunet.data.fitted import CaseMeasurements
from nnunet_locctx.nnunet.predicting.location_file import RECORD, make_record
from nnunet_locctx.nnunet.predicting.preprocessing import LocatedConfiguration
from nnunet_locctx.nnunet.training.augmentation import write_key


class LocatedCrop(np.ndarray):
    """A crop (C + 3, *box) float32 that knows where it lies, so that padding continues its location.

    Whatever is computed from it is a plain array again.
    """

    location: LocationField | None
    lower: tuple[int, ...]
    keyed: bool

    def __array_finalize__(self, parent: Any) -> None:
        # only LocatedArray knows where an array lies: views and results of arithmetic do not
        self.location, self.lower, self.keyed = None, (), False

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        plain = [a.view(np.ndarray) if isinstance(a, LocatedCrop) else a for a in args]
        if func is np.pad and self.location is not None and args and args[0] is self:
            return self._pad(plain[0], *plain[1:], **kwargs)
        return super().__array_function__(func, types, args, kwargs)

    def _pad(self, data: np.ndarray, pad_width: Any, mode: Any = "constant", **kwargs: Any) -> np.ndarray:
        """np.pad for the image channels, the true location for the others."""
        widths = np.broadcast_to(np.asarray(pad_width), (data.ndim, 2))
        if widths[0].any():
            raise ValueError(
                f"the channels of a located crop cannot be padded, got pad widths {widths.tolist()}"
            )
        assert self.location is not None
        channels = data.shape[0] - LOCATION_CHANNELS
        size = [n + int(below + above) for n, (below, above) in zip(data.shape, widths, strict=True)]
        padded = np.empty(size, dtype=data.dtype)
        if mode == "constant" and np.isscalar(kwargs.get("constant_values", 0)):
            # np.pad's result would be copied once more
            inside = [
                slice(int(below), int(below) + n) for n, (below, _) in zip(data.shape, widths, strict=True)
            ]
            padded[:channels] = kwargs.get("constant_values", 0)
            padded[(slice(channels), *inside[1:])] = data[:channels]
        else:
            padded[:channels] = np.pad(data[:channels], widths, mode=mode, **kwargs)
        lower = [at - int(below) for at, (below, _) in zip(self.lower, widths[1:], strict=True)]
        _write(self.location, lower, padded[channels:], self.keyed)
        return padded


class LocatedArray:
    """A stored array (C, *shape) read as (C + 3, *shape): image channels, then location (R, A, S).

    Args:
        stored: The preprocessed image, anything that can be sliced (numpy memory map, blosc2 array).
        location: The scan's location field.
        keyed: Crops (slices along all spatial axes) carry the key to their location (:func:`~.augmentation.write_key`)
            instead of the location.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, stored: Any, location: LocationField, keyed: bool = False) -> None:
        if tuple(stored.shape[1:]) != location.shape:
            raise ValueError(
                f"the image has {tuple(stored.shape[1:])} voxels, its location field {location.shape}"
            )
        self.stored = stored
        self.location = location
        self.keyed = keyed
        self.shape = (stored.shape[0] + LOCATION_CHANNELS, *stored.shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Slices like an array; only slices of step 1 and integers along the spatial axes."""
        keys = key if isinstance(key, tuple) else (key,)
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys = (*keys[:at], *[slice(None)] * (self.ndim - len(keys) + 1), *keys[at + 1 :])
        if len(keys) > self.ndim:
            raise IndexError(f"a located array has {self.ndim} axes, got {len(keys)} indices")
        keys = (*keys, *[slice(None)] * (self.ndim - len(keys)))
        channels, spatial = keys[0], keys[1:]
        bounds = [_bounds(k, n) for k, n in zip(spatial, self.shape[1:], strict=True)]
        size = [stop - start for start, stop in bounds]
        count = self.stored.shape[0]
        crop = np.empty((self.shape[0], *size), dtype=self.dtype)
        crop[:count] = self.stored[(slice(None), *[slice(start, stop) for start, stop in bounds])]
        lower = tuple(start for start, _ in bounds)
        squeezed = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in spatial)
        is_box = channels == slice(None) and 0 not in squeezed
        if not is_box:
            self.location.fill(lower, crop[count:])
            return np.asarray(crop[(channels, *squeezed)])
        _write(self.location, lower, crop[count:], self.keyed)
        located = crop.view(LocatedCrop)
        located.location, located.lower, located.keyed = self.location, lower, self.keyed
        return located

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].view(np.ndarray).astype(dtype or self.dtype, copy=False)


def _write(location: LocationField, lower: Sequence[int], out: np.ndarray, keyed: bool) -> None:
    """Writes the location of the box (3, *box) whose first voxel has the index `lower`, or the key to it."""
    if keyed:
        write_key(location, lower, out)
    else:
        location.fill(lower, out)


def _bounds(key: Any, n: int) -> tuple[int, int]:
    if isinstance(key, int | np.integer):
        if not -n <= key < n:
            raise IndexError(f"index {key} is out of range for an axis of {n} voxels")
        start = int(key) % n
        return start, start + 1
    if isinstance(key, slice):
        start, stop, step = key.indices(n)
        if step == 1:
            return start, max(start, stop)
    raise IndexError(f"located arrays take slices of step 1 and integers, got {key!r}")


class LocatedDataset:
    """nnU-Net's dataset class with location: called and used like the class it wraps.

    nnU-Net keeps a dataset *class*, makes datasets from it and calls its static methods; this object does
    both and, unlike a class made at run time, can be pickled.

    Args:
        base: ``nnUNetDatasetBlosc2`` or another dataset class of nnU-Net.
        configuration: Says which location a case has; datasets ask it when they are made.
        transpose_forward: The plans' axis permutation.
        measurements: What the fitted model found in each case; needed where the source is fitted.
    """

    def __init__(
        self,
        base: type[nnUNetBaseDataset],
        configuration: LocatedConfiguration,
        transpose_forward: Sequence[int],
        measurements: CaseMeasurements | None = None,
    ) -> None:
        self.base = base
        self.configuration = configuration
        self.transpose_forward = tuple(transpose_forward)
        self.measurements = measurements

    def __call__(
        self,
        folder: str,
        identifiers: list[str] | None = None,
        folder_with_segs_from_previous_stage: str | None = None,
    ) -> nnUNetBaseDataset:
        """The dataset in ``folder``; its ``load_case`` gives the image as a :class:`LocatedArray`."""
        dataset = self.base(folder, identifiers, folder_with_segs_from_previous_stage)
        dataset.load_case = _LoadLocatedCase(
            dataset.load_case, self.configuration.locator, self.transpose_forward, self.measurements
        )
        return dataset

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "base":  # unpickling asks before there is a base
            raise AttributeError(name)
        return getattr(self.base, name)


class _LoadLocatedCase:
    """Wraps a dataset's ``load_case``; an object, so that datasets can be pickled to workers."""

    def __init__(
        self,
        load_case: Callable[[str], tuple[Any, ...]],
        locator: Locator,
        transpose: Sequence[int],
        measurements: CaseMeasurements | None = None,
    ) -> None:
        self.load_case = load_case
        self.locator = locator
        self.transpose = transpose
        self.measurements = measurements
        self.keyed = False

    def __call__(self, identifier: str) -> tuple[Any, ...]:
        data, *rest = self.load_case(identifier)
        properties = rest[-1]
        try:
            frame = Frame.from_properties(properties, data.shape[1:], self.transpose)
        except ValueError as error:
            raise ValueError(f"case {identifier}: {error}") from error
        measured = None if self.measurements is None else self.measurements.read(identifier)
        field = self.locator.field(frame, measured)
        properties[RECORD] = make_record(self.locator.source, field)
        return (LocatedArray(data, field, self.keyed), *rest)
