"""``location.json`` beside predictions: for each scan, along which axes its location was known, and why not.

nnU-Net's export runs in workers, which get the scan's properties and the plans; the plans say who writes a prediction.
Changing the class of the plans, as of the configuration (:mod:`.preprocessing`), is enough to write one more file.
"""

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_locctx.files import write_atomically
from nnunet_locctx.location import AXES, LocationField, LocationSource
from nnunet_locctx.locks import one_at_a_time

LOCATION_FILE = "location.json"

RECORD = "location_record"
"""Key of nnU-Net's properties: a scan's entry in :data:`LOCATION_FILE`."""


def make_record(source: LocationSource, field: LocationField) -> dict[str, Any]:
    """A scan's entry: name of the source, names of the known axes, and for each other axis why it is unknown."""
    known = [axis for axis in AXES if axis not in field.unknown]
    return {"source": source.name, "known": known, "unknown": field.unknown}


def describe(name: str, record: dict[str, Any]) -> str:
    """The line that says along which axes a scan's location is known, and what to do where it is not along any."""
    axes: dict[str, list[str]] = {}
    for axis, reason in record["unknown"].items():
        axes.setdefault(reason, []).append(axis)
    known = [f"{', '.join(record['known'])} known"] if record["known"] else []
    unknown = [f"{', '.join(names)} unknown: {reason}" for reason, names in axes.items()]
    advice = [] if record["known"] else ["a plain model may do better where nothing is known"]
    return f"location of {name} ({record['source']}): " + "; ".join([*known, *unknown, *advice])


def read_records(folder: Path) -> dict[str, Any]:
    """Case -> what :func:`make_record` made of it, in the folder's :data:`LOCATION_FILE`; nothing of a broken file."""
    try:
        records = json.loads((folder / LOCATION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return records if isinstance(records, dict) else {}


def add_record(folder: Path, case: str, record: dict[str, Any]) -> None:
    """Adds a case to the folder's :data:`LOCATION_FILE` or replaces its entry.

    The file is replaced as a whole, by one process at a time: several workers, or several machines that share the work
    on a folder, write to it. What is there and no such file is replaced.
    """
    file = folder / LOCATION_FILE
    with contextlib.ExitStack() as stack:
        # a lock of another user who predicts into the folder cannot be taken; the prediction matters more
        with contextlib.suppress(PermissionError):
            stack.enter_context(one_at_a_time(folder / f".{LOCATION_FILE}.lock", seconds=0.02))
        content = dict(sorted({**read_records(folder), case: record}.items()))
        write_atomically(file, (json.dumps(content, indent=2) + "\n").encode())


class LocatedPlans(PlansManager):
    """Plans whose writer of predictions also writes :data:`LOCATION_FILE`."""

    @property
    def image_reader_writer_class(self) -> type[BaseReaderWriter]:
        """The dataset's own reader and writer, extended."""
        return located_writer(super().image_reader_writer_class)


class LocationWriterMixin(BaseReaderWriter):
    """Extends a writer: the record comes first, so that where there is a prediction there is a record of it."""

    base: type[BaseReaderWriter]

    def write_seg(self, seg: Any, output_fname: str, properties: dict[str, Any]) -> None:
        """As the writer's own."""
        if RECORD in properties:
            file = Path(output_fname)
            endings = [end for end in self.supported_file_endings if file.name.lower().endswith(end.lower())]
            ending = max(map(len, endings), default=0)
            add_record(file.parent, file.name[: len(file.name) - ending], properties[RECORD])
        super().write_seg(seg, output_fname, properties)

    def __reduce__(self) -> tuple[Any, ...]:  # nnU-Net pickles writers to its workers
        return _make_writer, (self.base,)


@functools.cache
def located_writer(base: Any) -> type[BaseReaderWriter]:
    """The reader and writer class `base`, extended."""
    return type(
        f"Located{base.__name__}", (LocationWriterMixin, base), {"__module__": __name__, "base": base}
    )


def _make_writer(base: Any) -> BaseReaderWriter:
    return located_writer(base)()
