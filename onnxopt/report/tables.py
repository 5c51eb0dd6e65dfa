"""Tables as every report shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from onnxopt.report.rows import Skips, by_reason

Cells = Sequence[RenderableType]

# Rows of a list, and nodes named of the skips with one reason; more with --verbose.
_SHOWN = 8
_NAMED = 3
_BAR = 24


class Bar:
    """A share from 0 to 1 as a bar of characters: empty only at 0, full only at 1."""

    def __init__(self, share: float) -> None:
        inside = min(max(round(share * _BAR), 1), _BAR - 1)
        self._full = 0 if share <= 0 else _BAR if share >= 1 else inside

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        full, empty = "#." if options.ascii_only else "█░"
        yield Segment(full * self._full + empty * (_BAR - self._full))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(_BAR, _BAR)


def table(title: str, columns: Iterable[str], rows: Iterable[Cells]) -> Group:
    """A title and a table: the first column to the left, the others to the right unless their name ends in a space."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        result.add_column(
            column.strip(), justify="left" if i == 0 or column.endswith(" ") else "right", overflow="fold"
        )
    for row in rows:
        result.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return Group(*([Text(title, "bold")] if title else ()), result)


def limited(rows: Sequence[Cells], verbose: bool) -> list[Cells]:
    """The first rows, and how many more there are; ``verbose``: all."""
    shown: list[Cells] = list(rows if verbose else rows[:_SHOWN])
    if len(shown) < len(rows):
        shown.append((f"and {len(rows) - len(shown)} more", *[""] * (len(rows[0]) - 1)))
    return shown


def skips_table(found: Skips, title: str, verbose: bool) -> RenderableType:
    """Places by the reason that they were left alone for, the most common first."""
    rows = []
    for why, nodes in by_reason(found):
        named = nodes if verbose else nodes[:_NAMED]
        more = f", and {len(nodes) - len(named)} more" if len(nodes) > len(named) else ""
        rows.append((str(len(nodes)), why, ", ".join(named) + more))
    return table(title, ("", "why ", "where "), rows)
