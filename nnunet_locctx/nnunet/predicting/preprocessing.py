"""Location at prediction: nnU-Net's own preprocessing, with three location channels behind the image channels.

nnU-Net looks preprocessors up inside its own package only. Prediction makes one call into a trainer's class,
``build_network_architecture``, and afterwards pickles the configuration to its spawned preprocessing workers. Changing
the class of that object there is enough: it takes the preprocessor with it.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_locctx.geometry import Frame
from nnunet_locctx.image_files import check_whole
from nnunet_locctx.location import LOCATION_CHANNELS, LocationField, Locator, Measurement
from nnunet_locctx.nnunet.options import LocationOptions
from nnunet_locctx.nnunet.predicting.carried import Carried, RegressorBuffer, TrainingRangeRecord
from nnunet_locctx.nnunet.predicting.location_file import RECORD, LocatedPlans, describe, make_record

MEASUREMENT = "location_measurement"
"""Key of nnU-Net's properties: the scan's measurement as bytes, where the source is fitted."""


class LocatedConfiguration(ConfigurationManager):
    """A configuration whose preprocessor appends the location channels at prediction.

    Attributes:
        carried: What the model needs to locate scans, as far as it was loaded.
    """

    carried: Carried

    @property
    def preprocessor_class(self) -> type[DefaultPreprocessor]:
        """The configuration's own preprocessor, extended by location."""
        return located_preprocessor(super().preprocessor_class)

    @property
    def location(self) -> LocationOptions:
        """The checked ``location`` key, without the defaults of a block."""
        return LocationOptions.from_configuration(self.configuration)

    @property
    def locator(self) -> Locator:
        """Gives a preprocessed scan its location."""
        options = self.location
        return Locator(options.make_source(), options.axes, self.carried.training)


def locate(configuration: ConfigurationManager, carried: Carried | None = None) -> LocatedConfiguration:
    """Turns nnU-Net's configuration, in place, into one that brings location to prediction.

    Args:
        configuration: The plans' configuration.
        carried: What the model needs to locate scans; None: what the configuration has already, or is to be loaded.
    """
    manager: Any = configuration
    manager.__class__ = LocatedConfiguration
    manager.carried = carried or getattr(manager, "carried", None) or Carried()
    located: LocatedConfiguration = manager
    return located


def carry(network: nn.Module, plans: PlansManager, configuration: LocatedConfiguration) -> None:
    """Puts among a network's weights what prediction needs to locate scans, or room for what a checkpoint brings, and
    lets the plans write down what is known of each scan."""
    manager: Any = plans
    manager.__class__ = LocatedPlans
    network.add_module("location_range", TrainingRangeRecord(configuration.carried))
    if configuration.locator.source.fitted:
        network.add_module("location_regressor", RegressorBuffer(configuration.carried))


def append_location(data: np.ndarray, field: LocationField) -> np.ndarray:
    """(C, *shape) -> (C + 3, *shape) float32, the location written in place: one new array and no temporary
    volume."""
    channels = data.shape[0]
    located = np.empty((channels + LOCATION_CHANNELS, *data.shape[1:]), dtype=np.float32)
    located[:channels] = data
    field.fill((0, 0, 0), located[channels:])
    return located


class LocationMixin(DefaultPreprocessor):
    """Extends a preprocessor: image channels first, then the location (R, A, S) of every voxel.

    Attributes:
        scan_name: The scan's, for the line that says what is known of its location.
    """

    scan_name = "a scan given as an array"

    def run_case_npy(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: LocatedConfiguration,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Preprocesses one scan, as nnU-Net's method of the same name.

        Returns:
            data (C + 3, *shape) float32, seg (1, *shape), properties.

        Raises:
            ValueError: Broken geometry, non-finite voxels or an empty axis, before the work is done.
        """
        check_scan(data, properties)
        check_resampling(data, properties, plans_manager.transpose_forward, configuration_manager.spacing)
        locator = configuration_manager.locator
        measured = None
        if locator.source.fitted:
            measured = self._measure(data, properties, configuration_manager)
            properties[MEASUREMENT] = measured.to_bytes()
        data, seg, properties = super().run_case_npy(
            data, seg, properties, plans_manager, configuration_manager, dataset_json
        )
        frame = Frame.from_properties(properties, data.shape[1:], plans_manager.transpose_forward)
        field = locator.field(frame, measured)
        properties[RECORD] = make_record(locator.source, field)
        print(describe(self.scan_name, properties[RECORD]), flush=True)
        return append_location(data, field), seg, properties

    def run_case(self, image_files: list[str], seg_file: str | None, *args: Any, **kwargs: Any) -> Any:
        """nnU-Net's method, for whole files only.

        Raises:
            BrokenFileError: A file is missing, not whole, or not what its name says.
            ValueError: As :meth:`run_case_npy`; names the scan's first file.
        """
        for file in [*image_files, *([] if seg_file is None else [seg_file])]:
            check_whole(Path(file))
        self.scan_name = Path(image_files[0]).name.split("_0000.")[0]
        try:
            return super().run_case(image_files, seg_file, *args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{image_files[0]}: {error}") from error

    def _measure(
        self, data: np.ndarray, properties: dict[str, Any], configuration_manager: LocatedConfiguration
    ) -> Measurement:
        """What the model's regressor finds in a scan as read."""
        regressor = configuration_manager.carried.open()
        return regressor.measure(data[regressor.channel], Frame.as_read(properties, data.shape[1:]))


def check_scan(data: np.ndarray, properties: dict[str, Any]) -> None:
    """Refuses scans whose location or intensities cannot be trusted.

    Args:
        data: (C, *shape), as read.
        properties: nnU-Net's properties of the scan.

    Raises:
        ValueError: What is wrong, with the value seen.
    """
    if data.ndim != 4 or 0 in data.shape:
        raise ValueError(
            f"a scan must have the shape (channels, x, y, z) with at least one voxel per axis, got {data.shape}"
        )
    Frame.as_read(properties, data.shape[1:])
    # the sum is finite unless a voxel is not, and needs no mask of the volume
    if not np.isfinite(data.sum(dtype=np.float64)):
        bad = int(data.size - np.isfinite(data).sum())
        raise ValueError(
            f"the scan has {bad} voxels that are NaN or infinite (of {data.size}); all must be finite"
        )


def check_resampling(
    data: np.ndarray,
    properties: dict[str, Any],
    transpose_forward: Sequence[int],
    target: Sequence[float],
) -> None:
    """Refuses scans of which cropping to what is not zero, and then resampling, would leave nothing.

    Args:
        data: (C, *shape), as read.
        properties: nnU-Net's properties of the scan.
        transpose_forward: The plans' axis permutation.
        target: The configuration's spacing in mm, preprocessed axis order; two numbers in 2D.

    Raises:
        ValueError: An axis is thinner than half a voxel of the configuration.
    """
    spacing = [float(properties["spacing"][axis]) for axis in transpose_forward]
    target = [*spacing[: 3 - len(target)], *target]
    if 0 not in compute_new_shape([1, 1, 1], spacing, target):
        return
    filled = [np.flatnonzero((data != 0).any(axis=tuple({0, 1, 2, 3} - {1 + axis}))) for axis in range(3)]
    # a scan of zeros is not cropped
    extent = [int(at[-1] - at[0]) + 1 if len(at) else data.shape[1 + axis] for axis, at in enumerate(filled)]
    shape = [extent[axis] for axis in transpose_forward]
    if 0 in compute_new_shape(shape, spacing, target):
        raise ValueError(
            f"a scan of {shape} voxels (without zeros around) of {spacing} mm has an axis thinner than half a voxel "
            f"of the configuration's spacing {list(target)} mm; resampling would leave nothing of it"
        )


@functools.cache
def located_preprocessor(base: type[DefaultPreprocessor]) -> type[DefaultPreprocessor]:
    """The preprocessor ``base``, extended by location."""
    return type(f"Located{base.__name__}", (LocationMixin, base), {"__module__": __name__})
