"""What is not installed is named by a sentence that says how to install it."""

import argparse
import importlib.util

EXTRAS = {"study": ("snakemake", "jinja2", "yaml", "pydantic")}
"""Extra of pyproject.toml -> the modules that commands need of it."""


def require(extra: str) -> None:
    """Refuses to begin what would stop at its end.

    Raises:
        ValueError: A module of the extra is not installed.
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        names = f"{', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed"
        raise ValueError(f"this command needs {names}: pip install 'nnunet-locctx[{extra}]'")


def run(options: argparse.Namespace) -> int:
    """Runs a command; returns its exit status.

    Raises:
        ValueError: Among others, a module of another package is missing.
    """
    try:
        status: int = options.run(options)
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        if package == "nnunet_locctx":
            raise
        raise ValueError(
            f"this command needs {package}, which is not installed. Install nnunet_locctx again with pip, which brings "
            "what it needs"
        ) from error
    return status
