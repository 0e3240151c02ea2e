"""Checks of a fit's options, which may come from a command line or a stored file."""

import math
from collections.abc import Callable
from typing import Any


def require(options: object, fits: Callable[[Any], bool], allowed: str, *names: str) -> None:
    """Checks attributes.

    Args:
        options: Whose.
        fits: Whether a value is allowed.
        allowed: What is allowed, in words.
        names: The attributes.

    Raises:
        ValueError: A value is not allowed.
    """
    for name in names:
        if not fits(value := getattr(options, name)):
            raise ValueError(f"{name} must be {allowed}, got {value!r}")


def is_number(value: Any) -> bool:
    """A finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_positive(value: Any) -> bool:
    """A finite number above 0."""
    return is_number(value) and value > 0


def is_whole(value: Any, least: int = 0) -> bool:
    """A whole number that fits 64 bits, not below the least."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def rises(value: Any, lowest: float = -math.inf, highest: float = math.inf) -> bool:
    """Two numbers within a range, the second larger."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_number, value))
    return pair and lowest <= value[0] < value[1] <= highest
