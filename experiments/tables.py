"""Tables for people: Markdown in files, rich in terminals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with a trailing newline."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def replace_blocks(text: str, blocks: Mapping[str, str], page: str) -> str:
    """The text of a page with what stands between the marks of every named block replaced.

    Marks are lines `<!-- name:begin (anything) -->` and `<!-- name:end -->`. Raises ValueError for a block that the
    page lacks.
    """
    for name, content in blocks.items():
        pattern = re.compile(rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if not pattern.search(text):
            marks = f"<!-- {name}:begin --> ... <!-- {name}:end -->"
            raise ValueError(f"{page} has no block {marks}; put these marks where it belongs")
        text = pattern.sub(lambda m, c=content: m.group(1) + c + m.group(2), text)
    return text


def print_table(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The same rows on a terminal; the first column left, the others right."""
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)
