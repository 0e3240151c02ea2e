"""Location as input for nnU-Net v2.

nnU-Net trains on patches and forgets where each patch came from. This package gives the network the coordinates
back, as three channels behind the image channels, and leaves planning, preprocessing, training and prediction to
nnU-Net's own commands. What it has for pipelines without nnU-Net is named here (docs/how-to/python.md; TorchIO:
:mod:`nnunet_locctx.pipelines.torchio`). Importing the package loads neither torch nor nnU-Net: a name is imported when
it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_locctx.blocks import make_block
    from nnunet_locctx.evaluation.folders import evaluate_folders
    from nnunet_locctx.geometry import Frame
    from nnunet_locctx.location import make_source
    from nnunet_locctx.networks import Fitting, Located, LocatedUNet
    from nnunet_locctx.pipelines.monai import AddLocationd, LocateScand
    from nnunet_locctx.pipelines.scan_location import ScanLocation, coordinates, locate
    from nnunet_locctx.regression.body import BodyFinder
    from nnunet_locctx.scan import Scan

__version__ = "0.1.0"

_HOMES = {
    "AddLocationd": "pipelines.monai",
    "BodyFinder": "regression.body",
    "Fitting": "networks",
    "Frame": "geometry",
    "LocateScand": "pipelines.monai",
    "Located": "networks",
    "LocatedUNet": "networks",
    "Scan": "scan",
    "ScanLocation": "pipelines.scan_location",
    "coordinates": "pipelines.scan_location",
    "evaluate_folders": "evaluation.folders",
    "locate": "pipelines.scan_location",
    "make_block": "blocks",
    "make_source": "location",
}

__all__ = [
    "AddLocationd",
    "BodyFinder",
    "Fitting",
    "Frame",
    "LocateScand",
    "Located",
    "LocatedUNet",
    "Scan",
    "ScanLocation",
    "coordinates",
    "evaluate_folders",
    "locate",
    "make_block",
    "make_source",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
