"""Hooks of MkDocs, named in mkdocs.yml: `make docs` adds the help of every command and the pictures of the experiments
to the pages.

Links that leave docs/ lead to the repository if ``[project.urls]`` of pyproject.toml has a ``Repository``; otherwise
their text stays.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from nnunet_locctx.cli import build_parser
from nnunet_locctx.resources import repository_address

REPOSITORY = Path(__file__).resolve().parents[1]
COMMANDS_PAGE = "reference/commands.md"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
COMMANDS = re.compile(r"^## locctx (\w+(?:, \w+)*)\n", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Adds the experiments' pictures to the site."""
    from mkdocs.structure.files import File

    for picture in sorted((REPOSITORY / "scripts").rglob("*.png")):
        name = picture.relative_to(REPOSITORY).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A page with resolved links; the commands' page also gets their help."""
    if page.file.src_uri == COMMANDS_PAGE:
        markdown = with_help(markdown)
    return with_links(markdown, page.file.src_uri, repository_address())


def with_links(markdown: str, page: str, repository: str | None) -> str:
    """The page's text, in which links that leave docs/ point to the repository, or are replaced by their text.

    Args:
        markdown: The page.
        page: Its path below docs.
        repository: Address of the repository, if there is one.
    """
    folder = Path(page).parent.as_posix()

    def lead(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups()
        path = os.path.normpath(f"docs/{folder}/{target}")
        if path.startswith("docs/"):
            return match[0]
        if picture:  # on_files adds it at the same path
            return f"![{text}]({os.path.relpath(path, folder)})"
        return f"[{text}]({repository}/blob/main/{path}{anchor or ''})" if repository else text

    return LINK.sub(lead, markdown)


def with_help(markdown: str) -> str:
    """The page with the commands' own help, folded, below each heading ``## locctx NAME`` (or several names)."""
    os.environ.update(COLUMNS="110", NO_COLOR="1")
    actions = build_parser()._actions
    (commands,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))

    def unfold(match: re.Match[str]) -> str:
        text = match[0]
        for name in match[1].split(", "):
            lines = ["```text", *commands.choices[name].format_help().splitlines(), "```"]
            folded = "\n".join(f"    {line}".rstrip() for line in lines)
            text += f'\n??? note "locctx {name} --help"\n\n{folded}\n'
        return text

    return COMMANDS.sub(unfold, markdown)
