"""The methods side by side: what each trainer does, where it is from, what it costs and what it was seen to bring."""

from nnunet_locctx.methods.description import Method, describe, list_methods
from nnunet_locctx.methods.measured import MEASURED_FILE, Measured, read_measured
from nnunet_locctx.methods.table import FORMATS, format_methods

__all__ = [
    "FORMATS",
    "MEASURED_FILE",
    "Measured",
    "Method",
    "describe",
    "format_methods",
    "list_methods",
    "read_measured",
]
