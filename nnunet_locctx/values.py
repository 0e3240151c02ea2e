"""Checks of options, which come from a caller, a command line, plans or a stored file."""

import math
from collections.abc import Iterable
from typing import Any

HIGHEST_SEED = 2**63 - 1
"""Highest seed that torch's generators take."""


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float; a bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_integer(name: str, value: Any, lowest: int, highest: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer in the range, both ends allowed."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < lowest or (highest is not None and value > highest):
        allowed = (
            f"an integer from {lowest} to {highest}" if highest is not None else f"an integer >= {lowest}"
        )
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_number(name: str, value: Any, lowest: float, highest: float | None = None) -> None:
    """Raises ValueError unless `value` is a finite number in the range, both ends allowed."""
    if not is_number(value) or value < lowest or (highest is not None and value > highest):
        allowed = f"a number from {lowest} to {highest}" if highest is not None else f"a number >= {lowest}"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a finite number above 0."""
    if not is_number(value) or value <= 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def check_share(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is a number from 0 up to, but not including, 1."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number from 0 up to, but not including, 1; got {value!r}")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of the names."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def check_range(name: str, value: Any, lowest: float = -math.inf, highest: float = math.inf) -> None:
    """Raises ValueError unless `value` is two rising numbers within the limits."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
    if not pair or not lowest <= value[0] < value[1] <= highest:
        limits = f" from {lowest:g} to {highest:g}" if math.isfinite(lowest) else ""
        raise ValueError(f"{name} must be two rising numbers{limits}, got {value!r}")
