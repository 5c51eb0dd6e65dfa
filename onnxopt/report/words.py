"""Numbers as people read them."""

from __future__ import annotations

import math

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def _three(n: float) -> str:
    """Three digits: 1.10, 93.5, 300."""
    return f"{n:#.3g}".rstrip(".")


def size(n: float) -> str:
    """Bytes in powers of 1000: ``1.10 MB``."""
    unit = 0
    while abs(n) >= 999.5 and unit < len(_UNITS) - 1:
        n, unit = n / 1000, unit + 1
    return f"{n:.0f} bytes" if unit == 0 else f"{_three(n)} {_UNITS[unit]}"


def count(n: float | None) -> str:
    """A large number: ``40.8 M``; ``?`` for None."""
    if n is None:
        return "?"
    unit = 0
    while abs(n) >= 999.5 and unit < 4:
        n, unit = n / 1000, unit + 1
    return f"{n:g}" if unit == 0 else f"{_three(n)} {' kMGT'[unit]}"


def many(n: int, what: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def share(x: float | None) -> str:
    """A fraction in percent: ``97.2 %``; ``-`` for None."""
    return "-" if x is None else f"{100 * x:.1f} %"


def decibels(x: float) -> str:
    """``28.4 dB``; ``equal`` where nothing differs."""
    return "equal" if x == math.inf else "?" if math.isnan(x) else f"{x:.1f} dB"


def milliseconds(x: float) -> str:
    """Three digits: ``0.0173 ms``."""
    return f"{_three(x)} ms" if x < 1000 else f"{x:.0f} ms"
