"""What a pass that removes channels has to tell, as values, and how to find it among the figures of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# Names that one cell of a table holds.
_NAMED = 3
# What each budget saves.
_SAVED = {"macs": "MACs", "params": "parameters", "size": "bytes", "latency": "time"}


@dataclass(frozen=True)
class Kept:
    """Output channels of one layer: ``after`` of ``before`` are left."""

    layer: str
    before: int
    after: int


@dataclass(frozen=True)
class Tied:
    """Layers that make the same channels, and the nodes that sum over them.

    The ``channels`` can go in ``classes`` parts; ``kept`` of them stay (None: nothing was cut yet). ``why`` all do.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int
    classes: int
    why: str = ""
    kept: int | None = None


@dataclass(frozen=True)
class Stays:
    """What one reason costs: the ``layers`` of which channels stay for it, and the weights that make these."""

    why: str
    layers: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Cut:
    """``curve``: (share saved of what ``saved`` names, predicted relative error of the outputs), the least first.

    What a step does not tell is empty.
    """

    channels: tuple[Kept, ...] = ()
    curve: tuple[tuple[float, float], ...] = ()
    groups: tuple[Tied, ...] = ()
    frozen: tuple[Stays, ...] = ()
    saved: str = "MACs"

    @property
    def names(self) -> set[str]:
        """The figures that it holds."""
        return {name for name in ("channels", "curve", "groups", "frozen") if getattr(self, name)}


def cut(figures: Mapping[str, Any]) -> Cut:
    """The figures of a step that tell of removed channels. One of another form is left out: it is another pass's."""
    return Cut(
        channels=_read(_channels, figures.get("channels")),
        curve=_read(_curve, figures.get("curve")),
        groups=_read(_groups, figures.get("groups")),
        frozen=_read(_frozen, figures.get("frozen")),
        saved=_SAVED.get(str(figures.get("budget")), "MACs"),
    )


def few(names: Sequence[str], everyone: bool = False) -> str:
    """``a, b, c + 5 more``, or all of them."""
    shown = names if everyone or len(names) <= _NAMED else names[:_NAMED]
    return ", ".join(shown) + (f" + {len(names) - len(shown)} more" if len(shown) < len(names) else "")


def _read(parse: Callable[[Any], tuple[T, ...]], value: Any) -> tuple[T, ...]:
    try:
        return parse(value)
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()


def _channels(value: Any) -> tuple[Kept, ...]:
    found = tuple(Kept(str(name), int(before), int(after)) for name, (before, after) in value.items())
    return found if all(0 <= k.after <= k.before > 0 for k in found) else ()


def _curve(value: Any) -> tuple[tuple[float, float], ...]:
    points = tuple((float(saved), float(error)) for saved, error in value)
    # Where channels are given back in the end, the last point saves less than the one before.
    return tuple(sorted(p for p in points if all(map(math.isfinite, p))))


def _groups(value: Any) -> tuple[Tied, ...]:
    return tuple(
        Tied(
            tuple(map(str, g["makers"])),
            tuple(map(str, g["readers"])),
            int(g["channels"]),
            int(g["classes"]),
            str(g.get("why", "")),
            None if g.get("kept") is None else int(g["kept"]),
        )
        for g in value
    )


def _frozen(value: Any) -> tuple[Stays, ...]:
    return tuple(Stays(str(f["why"]), tuple(map(str, f["layers"])), int(f["parameters"])) for f in value)
