"""The report as one HTML file: pictures embedded, nothing loaded from elsewhere, no scripts."""

import base64
from pathlib import Path
from typing import Any

from nnunet_locctx.report.document import Document

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def to_html(document: Document) -> str:
    """The whole report.

    Raises:
        ValueError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ValueError("the report's page needs Jinja2: pip install 'nnunet-locctx[study]'") from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["kind"] = _kind
    environment.filters["embedded"] = _embedded
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(document=document) + "\n"


def _kind(block: Any) -> str:
    return type(block).__name__.lower()


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
