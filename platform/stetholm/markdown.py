"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], texts: int = 1) -> str:
    """A table; the first ``texts`` columns are set to the left, the others, which are numbers, to the right."""
    lines = [f"| {' | '.join(map(cell, row))} |" for row in (header, *rows)]
    rule = "|" + "---|" * texts + "---:|" * (len(header) - texts)
    return "\n".join([lines[0], rule, *lines[1:]])


def cell(value: Any) -> str:
    """On one line, without what would end the cell or begin a tag."""
    return " ".join(str(value).splitlines()).replace("|", "\\|").replace("<", "&lt;")
