"""Results as text: Markdown tables, and JSON that any reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float | None, digits: int = 1) -> str:
    """A share, or nothing where there is none."""
    return "" if value is None else f"{100 * value:.{digits}f} %"


def versions(rows: Iterable[Mapping[str, Any]]) -> str:
    """What each tool ran with, as a Markdown table."""
    found: dict[str, str] = {}
    for row in rows:
        if row.get("versions"):
            found[row["tool"]] = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
    return table(("tool", "versions"), [[k, v] for k, v in found.items()])


def write_json(path: Path, results: Any) -> None:
    """With words for the numbers that JSON has not: inf, -inf, nan."""
    path.write_text(json.dumps(_plain(results), indent=1, allow_nan=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
