"""Names in messages: the one that was meant, and lists that do not fill the screen."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


def check_known(names: Iterable[Any], allowed: Iterable[str], what: str) -> None:
    """Refuses names that do not exist.

    Args:
        names: The caller's.
        allowed: Those that exist.
        what: What they are names of.

    Raises:
        ValueError: Names the first unknown one, and :func:`instead`.
    """
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            raise ValueError(f"unknown {what} {name!r}{instead(name, allowed)}")


def check_options(options: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Raises ValueError for names of options that `what` does not take, which is the sentence's subject."""
    allowed = list(allowed)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(
            f"{what} does not take {', '.join(unknown)}; allowed: {', '.join(allowed) or 'no options'}"
        )


def instead(name: Any, allowed: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest allowed name, or all of them if none is near."""
    allowed = list(allowed)
    return near_name(name, allowed) or f"; there are {', '.join(allowed) or 'none'}"


def near_name(name: Any, allowed: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest allowed name; empty if none is near."""
    small, known = str(name).lower(), {candidate.lower(): candidate for candidate in allowed}
    begun = [candidate for candidate in known if small and candidate.startswith(small)]
    near = begun if len(begun) == 1 else difflib.get_close_matches(small, known, 1)
    return f" (did you mean {known[near[0]]}?)" if near else ""


def named(cases: Sequence[str], shown: int = 10) -> str:
    """The first names, and how many more there are."""
    more = len(cases) - shown
    return ", ".join(cases[:shown]) + (f" and {more} more" if more > 0 else "")


def summarise(lines: Sequence[str], shown: int = 10) -> str:
    """The first lines, and how many more there are."""
    more = len(lines) - shown
    return "\n".join([*lines[:shown], *([f"and {more} more"] if more > 0 else [])])
