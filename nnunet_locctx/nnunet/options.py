"""The ``location`` key of a configuration in nnU-Net's plans; torch is loaded when a block is asked, not before."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nnunet_locctx.location import AXES, SOURCES, LocationSource, make_source
from nnunet_locctx.names import check_known, check_options
from nnunet_locctx.places import PLACES
from nnunet_locctx.values import check_flag, is_number

if TYPE_CHECKING:
    from nnunet_locctx.networks.located_unet import Fitting

KEY = "location"

AUTO = "auto"
"""Jitter as large as what is measured in the training cases."""

UNLOCATED_WEIGHT = 1.0
"""Weight with which this project's own trainers learn to do without location, beside the weight 1 of doing with it;
published methods' trainers do not (docs/explanation/unknown-location.md)."""


@dataclass(frozen=True)
class LocationOptions:
    """What a configuration says about location.

    Attributes:
        source: What a coordinate means, a name of :data:`nnunet_locctx.location.SOURCES`.
        absolute: Source ``scanner`` only: scanner coordinates instead of mm relative to the volume's centre.
        cross_section: Source ``body_part`` only: what R and A are fractions of, ``body`` or ``scan``.
        axes: The axes in use, of R, A and S; the location along the others is unknown in every scan.
        jitter: Training only. Standard deviation of a random shift (units of the source; ``voxel``: fraction
            of the volume) and of a random relative scale of each patch's location, drawn per axis; ``auto``: along each
            axis the scatter of the classes between the training cases.
        dropout: Training only. Probability with which each axis of a batch is made unknown, and with which all of them
            are.
        unlocated_weight: Training only. Weight of the loss of what the network says, in the same step, without
            one or all of the axes. Above 0 only where all blocks are at the places of
            :data:`nnunet_locctx.places.LATE`. None: the trainer's own (:data:`UNLOCATED_WEIGHT` at these places, or 0).
        place: Where in the network location enters, a name of :data:`nnunet_locctx.blocks.PLACES`; None: the
            block's own.
        block: Options of the trainer's block.
    """

    source: str = "voxel"
    absolute: bool = False
    cross_section: str = "body"
    axes: tuple[str, ...] = AXES
    jitter: float | str = 0.0
    dropout: float = 0.0
    unlocated_weight: float | None = None
    place: str | None = None
    block: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_known([self.source], sorted(SOURCES), "location.source")
        check_flag("location.absolute", self.absolute)
        if self.absolute and self.source != "scanner":
            raise ValueError(
                f"location.absolute is an option of the source 'scanner', got source {self.source!r}"
            )
        if self.cross_section != "body" and self.source != "body_part":
            raise ValueError(
                f"location.cross_section is an option of the source 'body_part', got source {self.source!r}"
            )
        self.make_source()
        object.__setattr__(self, "axes", _checked_axes(self.axes))
        for name in ("jitter", "dropout", "unlocated_weight"):
            value = getattr(self, name)
            if (name, value) in (("unlocated_weight", None), ("jitter", AUTO)):
                continue
            if not is_number(value) or not 0 <= value <= 1:
                allowed = "a number from 0 to 1" + (f" or {AUTO!r}" if name == "jitter" else "")
                raise ValueError(f"location.{name} must be {allowed}, got {value!r}")
        if self.place is not None:
            check_known([self.place], PLACES, "place")
        if not isinstance(self.block, Mapping):
            raise ValueError(f"location.block must be a table of options, got {self.block!r}")

    @classmethod
    def from_configuration(
        cls,
        configuration: Mapping[str, Any],
        block: str | None = None,
        block_options: Mapping[str, Any] | None = None,
        place: str | None = None,
    ) -> "LocationOptions":
        """Reads and checks the ``location`` key of a configuration; without the key, the defaults.

        Args:
            configuration: A configuration of the plans, inheritance resolved.
            block: The trainer's block (a name of :data:`nnunet_locctx.blocks.BLOCKS`): fills in its default
                place and options and checks both. None checks only what holds for every block.
            block_options: What the trainer changes of the block's defaults.
            place: The trainer's place, None for the block's default.

        Raises:
            ValueError: An unknown key or a value that is not allowed.
        """
        raw = configuration.get(KEY, {})
        if not isinstance(raw, Mapping):
            raise ValueError(f"the plans' {KEY!r} key must be a table, got {raw!r}")
        check_options(raw, [field.name for field in dataclasses.fields(cls)], f"the plans' {KEY!r} key")
        options = cls(**raw)
        if block is None:
            return options
        from nnunet_locctx.blocks import DEFAULTS, check_block

        default = DEFAULTS[block]
        options = dataclasses.replace(
            options,
            place=options.place or place or default.place,
            block={**default.options, **(block_options or {}), **options.block},
        )
        check_block(block, str(options.place), dict(options.block))
        return options

    def make_source(self) -> LocationSource:
        """The source these options name."""
        return make_source(self.source, **self.source_options())

    def source_options(self) -> dict[str, Any]:
        """The options of the source that differ from its defaults."""
        options: dict[str, Any] = {"absolute": True} if self.absolute else {}
        return options if self.cross_section == "body" else {**options, "cross_section": self.cross_section}

    def meaning(self) -> dict[str, Any]:
        """What a coordinate means, for the signature of a checkpoint."""
        meaning = {"source": self.source, "absolute": self.absolute, **self.source_options()}
        if self.source == "voxel" or self.cross_section == "scan":
            # models from before oblique scans were measured by their bounding box have no such entry and are refused
            meaning["fraction_of"] = "bounding box"
        # models from before axes could be left out do not name them
        return meaning if self.axes == AXES else {**meaning, "axes": list(self.axes)}

    def signature(self, block: str, also: "Sequence[Fitting]" = ()) -> str:
        """What a checkpoint's weights depend on, as JSON: source, place and block, not what is only used in
        training.

        Args:
            block: The trainer's block.
            also: Further blocks of its network.
        """

        from nnunet_locctx.blocks import complete_options
        from nnunet_locctx.blocks.hash_encoding import hash_arithmetic

        def weighed(name: str, place: str, options: Mapping[str, Any]) -> dict[str, Any]:
            complete = complete_options(name, place, options)
            return {**complete, **hash_arithmetic(complete)}

        weighs = {
            **self.meaning(),
            "method": block,
            "place": self.place,
            "block": weighed(block, str(self.place), self.block),
        }
        if also:
            weighs["also"] = [
                [fitting.block, fitting.place, weighed(fitting.block, fitting.place, fitting.options)]
                for fitting in also
            ]
        return json.dumps(weighs, sort_keys=True)

    def default_signature(self, block: str, also: "Sequence[Fitting]" = ()) -> str:
        """The same with all options of the blocks at their defaults."""
        plain = dataclasses.replace(self, block={})
        return plain.signature(block, [dataclasses.replace(fitting, options={}) for fitting in also])


def _checked_axes(axes: Any) -> tuple[str, ...]:
    """The axes in the order R, A, S.

    Raises:
        ValueError: They are no list of different axes, or none is left.
    """
    if not isinstance(axes, list | tuple) or not axes or any(axes.count(axis) > 1 for axis in axes):
        raise ValueError(f"location.axes must list one or more of {', '.join(AXES)}, each once, got {axes!r}")
    strangers = [axis for axis in axes if axis not in AXES]
    if strangers:
        raise ValueError(
            f"location.axes: there is no axis {', '.join(map(repr, strangers))}; allowed: {', '.join(AXES)}"
        )
    return tuple(axis for axis in AXES if axis in axes)
