"""The report as Markdown: the same sections, tables and captions as the page, pictures as links."""

from nnunet_locctx.report.document import Block, Code, Document, Figure, Listing, Table, Text

SPECIAL = "\\`*_[]<>|#"


def to_markdown(document: Document) -> str:
    """The whole report."""
    parts = [f"# {escape(document.title)}", escape(document.subtitle)]
    for section in document.sections:
        parts.append(f"## {escape(section.title)}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Text that stays what it is: no markup, no line breaks."""
    return "".join(f"\\{sign}" if sign in SPECIAL else sign for sign in " ".join(text.split()))


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"**{escape(block.text)}**" if block.warning else escape(block.text)
    if isinstance(block, Listing):
        return "\n".join(f"- {escape(point)}" for point in block.points)
    if isinstance(block, Code):
        return "\n".join(f"    {line}" for line in block.text.splitlines())
    if isinstance(block, Figure):
        return f"![{escape(block.alternative)}]({block.file})\n\n{escape(block.caption)}"
    return _table(block)


def _table(table: Table) -> str:
    lines = [
        _row(table.columns),
        "|"
        + "|".join("---" if place < table.labels else "---:" for place in range(len(table.columns)))
        + "|",
        *(_row(row) for row in table.rows),
    ]
    notes = "".join(f"\n\n{escape(note)}" for note in table.notes)
    return f"{escape(table.caption)} [CSV]({table.key}.csv)\n\n" + "\n".join(lines) + notes


def _row(cells: object) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"  # type: ignore[attr-defined]
