"""What each lossy pass would save on each layer, and what that costs: frozen values, without behaviour."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Nearer than this to the original's answers, or a pass does harm.
_HARM_DB = 10.0
# Less than this share of a layer is no gain, nor a loss; times scatter more than sizes.
_BYTES, _TIME = 0.02, 0.05
_CLOCK_MS = 1e-3


@dataclass(frozen=True)
class Costs:
    """``bytes`` of the weights, ``macs`` and ``ms`` of one run, None where they are not known; ``packed``: bytes of the
    whole model when zstd packs it."""

    bytes: int
    packed: int
    macs: int | None
    ms: float | None


@dataclass(frozen=True)
class Offer:
    """One pass on one layer, or on all the small ones together: what these take ``before`` and ``after``.

    ``sqnr_db`` is the signal to noise of the worst output when nothing else changes.
    """

    layer: str
    op: str
    spec: str
    before: Costs
    after: Costs
    sqnr_db: float

    @property
    def saved_ms(self) -> float:
        """Milliseconds of a run; 0 where they are not known."""
        a, b = self.before.ms, self.after.ms
        return a - b if a is not None and b is not None else 0.0

    @property
    def saved_bytes(self) -> int:
        """Bytes of the weights."""
        return self.before.bytes - self.after.bytes

    @property
    def pace(self) -> int:
        """1 for quicker, -1 for slower, 0 where the clock tells no difference."""
        least = _TIME * (self.before.ms or 0.0) + _CLOCK_MS
        return (self.saved_ms > least) - (self.saved_ms < -least)

    @property
    def verdict(self) -> str:
        """``pays``, or in a word why not."""
        return verdict(self.before, self.after, self.sqnr_db, self.pace)


@dataclass(frozen=True)
class Whole:
    """One pass on the whole model; ``tried`` of ``pieces`` that it changes were also tried alone.

    ``speedup`` comes with the ends of its 95 % interval. ``why`` says why nothing changed, or why it could not be
    tried; empty if it was. ``skips`` are (node, reason) of what it left alone.
    """

    spec: str
    why: str = ""
    before: Costs | None = None
    after: Costs | None = None
    sqnr_db: float = math.nan
    speedup: tuple[float, float, float] | None = None
    seconds: float = 0.0
    pieces: int = 0
    tried: int = 0
    skips: tuple[tuple[str, str], ...] = ()

    @property
    def pace(self) -> int:
        """1 for quicker, beyond doubt; -1 for slower, perhaps: who wants a pass must show that it does no harm."""
        if self.speedup is None:
            return 0
        found, low, _ = self.speedup
        return (low > 1 + _TIME / 2) - (found < 1 - _TIME / 2)

    @property
    def verdict(self) -> str:
        """``pays``, or in a word why not."""
        if self.before is None or self.after is None:
            return "nothing to do"
        return verdict(self.before, self.after, self.sqnr_db, self.pace)


@dataclass(frozen=True)
class Advice:
    """All that was tried: the offers that pay best come first, those that do not pay last."""

    path: str
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    samples: int
    offers: tuple[Offer, ...]
    passes: tuple[Whole, ...]
    notes: tuple[str, ...] = ()


def verdict(before: Costs, after: Costs, sqnr_db: float, pace: int) -> str:
    """Whether a change pays: it saves bytes or time, loses nothing of the other, and leaves the answers near."""
    smaller, larger = (x < (1 - _BYTES) * y for x, y in ((after.bytes, before.bytes), (before.bytes, after.bytes)))
    if not sqnr_db >= _HARM_DB:
        return "harms"
    if (smaller and pace >= 0) or (pace > 0 and not larger):
        return "pays"
    if smaller or pace > 0:
        return "smaller, slower" if smaller else "quicker, larger"
    if pace < 0 or larger:
        return "slower" if pace < 0 else "larger"
    return "smaller packed" if before.packed - after.packed > _BYTES * before.bytes else "no gain"
