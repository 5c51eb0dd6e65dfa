"""The results as one Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from texts import percent, table

_HEAD = ("model", "tool", "SQNR, dB", "bytes of the file", "speed", "seconds")


def document(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each row; a model's name stands once; what failed says why."""
    lines, before = [], None
    for row in rows:
        name = row["model"] if row["model"] != before else ""
        lines.append([name, row["tool"], *_cells(row)])
        before = row["model"]
    return table(_HEAD, lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Error, bytes, speed with where it surely lies, seconds of the tool's own work."""
    seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
    if "sqnr_db" not in row:
        return [f"fails: {row.get('error', '')}".replace("|", "/"), "", "", seconds]
    speed = f"{row['speed']:.2f} ({row['speed_low']:.2f}-{row['speed_high']:.2f})" if "speed" in row else ""
    share = row["bytes"] / row["bytes_float"]
    sqnr = "unchanged" if row["sqnr_db"] == float("inf") else f"{row['sqnr_db']:.1f}"
    return [sqnr, percent(share, 0), speed, seconds]
