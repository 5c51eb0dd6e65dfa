"""As many things at a time as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def packed(
    items: Iterable[T], size: Callable[[T], float], room: float, most: float = float("inf")
) -> Iterator[list[T]]:
    """Runs of items, in order, ``most`` in one and none larger than ``room`` in all, unless it is one item that is."""
    part: list[T] = []
    taken = 0.0
    for item in items:
        needs = size(item)
        if part and (len(part) == most or taken + needs > room):
            yield part
            part, taken = [], 0.0
        part.append(item)
        taken += needs
    if part:
        yield part
