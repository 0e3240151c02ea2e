"""The site's pages: help that the commands made, links that lead somewhere."""

import argparse
import re

from nnunet_locctx.cli import build_parser
from scripts.docs_site import COMMANDS_PAGE, REPOSITORY, with_help, with_links


def test_every_command_has_its_help_on_the_page() -> None:
    page = with_help((REPOSITORY / "docs" / COMMANDS_PAGE).read_text(encoding="utf-8"))
    (commands,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        assert page.count(f'??? note "locctx {name} --help"') == 1, name
        assert f"    usage: locctx {name}" in page
        options = [action.option_strings[-1] for action in command._actions if action.option_strings]
        assert all(option in page for option in options)


def test_links_out_of_the_pages_lead_to_the_repository_or_are_text() -> None:
    text = "[a](../../README.md#use) ![b](../../scripts/x/y.png) [c](studies.md) [d](https://e.org) [f](#g)"
    kept = "![b](../scripts/x/y.png) [c](studies.md) [d](https://e.org) [f](#g)"
    assert with_links(text, "how-to/page.md", None) == f"a {kept}"
    led = with_links(text, "how-to/page.md", "https://example.org/repository")
    assert led == f"[a](https://example.org/repository/blob/main/README.md#use) {kept}"


def test_every_page_is_in_the_sites_navigation() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    docs = REPOSITORY / "docs"
    pages = [page.relative_to(docs).as_posix() for page in docs.rglob("*.md")]
    assert sorted(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)) == sorted(pages)
