"""What a pruned model may cost: ``-30%`` of what it costs now, or a number with a unit."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Quantity = Literal["macs", "params", "size", "latency"]
_UNITS: dict[Quantity, dict[str, float]] = {
    "macs": {"": 1, "K": 1e3, "M": 1e6, "G": 1e9},
    "params": {"": 1, "K": 1e3, "M": 1e6, "G": 1e9},
    "size": {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}
    | {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30},
    "latency": {"MS": 1e-3, "US": 1e-6, "S": 1.0},
}
_EXAMPLES: dict[Quantity, str] = {
    "macs": "-30% or 40M", "params": "-40% or 250K", "size": "-40% or 1.5MB", "latency": "-25% or 3ms",
}  # fmt: skip


class Budget(NamedTuple):
    """``value`` of the quantity, in its own unit (bytes, seconds); with ``relative`` the share that may be left."""

    quantity: Quantity
    value: float
    relative: bool

    def limit(self, now: float) -> float:
        """The most that it may be, where it is ``now``."""
        return self.value * now if self.relative else self.value


def parse(quantity: Quantity, text: str) -> Budget:
    """``-30%`` is a cut by so much, ``1.5MB`` a size. Raises ValueError for anything else."""
    found = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(%|[a-zA-Z]*)\s*", text)
    if found:
        number, unit = float(found[1]), found[2].upper()
        if unit == "%" and -100 < number < 0:
            return Budget(quantity, 1 + number / 100, relative=True)
        if number > 0 and unit in _UNITS[quantity]:
            return Budget(quantity, number * _UNITS[quantity][unit], relative=False)
    raise ValueError(f"{quantity} is '{text}'; write for example {_EXAMPLES[quantity]}")
