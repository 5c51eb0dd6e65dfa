"""Tables as every report shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Skips = Sequence[tuple[str, str]]

# Of the skips with one reason, so many nodes are named.
_NAMED = 3


def table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str | Text]]) -> Group:
    """A title and a table: the first column to the left, the others to the right unless their name ends in a space."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        result.add_column(
            column.strip(), justify="left" if i == 0 or column.endswith(" ") else "right", overflow="fold"
        )
    for row in rows:
        result.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return Group(*([Text(title, "bold")] if title else ()), result)


def skips_table(found: Skips, title: str, verbose: bool) -> RenderableType:
    """Places by the reason that they were left alone for, the most common first."""
    reasons: dict[str, list[str]] = {}
    for node, why in found:
        reasons.setdefault(why, []).append(node)
    rows = []
    for why, nodes in sorted(reasons.items(), key=lambda item: -len(item[1])):
        named = nodes if verbose else nodes[:_NAMED]
        more = f", and {len(nodes) - len(named)} more" if len(nodes) > len(named) else ""
        rows.append((str(len(nodes)), why, ", ".join(named) + more))
    return table(title, ("", "why ", "where "), rows)
