"""How long work reports where it is: the engine calls a ``Track``, the command line draws it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Passes an iterable through unchanged and shows how far it is."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]: ...


def silent(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The Track that shows nothing."""
    yield from items
