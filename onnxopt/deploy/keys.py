"""Keys of a policy: each a field of a frozen dataclass that says how its value is read.

A reader takes the value from the file and the folder that paths are relative to. It raises SpecError with what was
expected, to which the caller adds where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, field, fields, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from onnxopt.check.limits import parse_share, parse_size
from onnxopt.errors import SpecError
from onnxopt.spelling import nearest

T = TypeVar("T")
Reader: TypeAlias = Callable[[Any, Path], T]

_MOST = 1000


def key(default: T, read: Reader[Any], meaning: str) -> T:
    """A field of a table: its default, how it is read, what it means."""
    found: T = field(default=default, metadata={"read": read, "meaning": meaning})
    return found


def spelled(one: Field[Any]) -> str:
    """``max_ms`` -> ``max-ms``: as a policy writes it."""
    return one.name.replace("_", "-")


def read_table(base: T, table: object, name: str, folder: Path) -> T:
    """One table of a policy over what holds without it. Raises SpecError for an unknown key or a wrong value."""
    if not isinstance(table, Mapping):
        raise SpecError(f"'{name}' is a table: write [{name}] on a line of its own")
    known = {spelled(f): f for f in fields(base)}  # type: ignore[arg-type]  # base is a dataclass
    values = {}
    for written, value in table.items():
        if written not in known:
            raise SpecError(f"[{name}] has no key '{written}'{nearest(written, known)}")
        try:
            values[known[written].name] = known[written].metadata["read"](value, folder)
        except SpecError as error:
            raise SpecError(f"[{name}] {written}: {error}") from None
    return replace(base, **values)  # type: ignore[type-var]  # as above


def text(value: Any, _: Path) -> str:
    """A string that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"{value!r} is no text; write it in quotes")
    return value.strip()


def named(find: Callable[[str], object]) -> Reader[str]:
    """A text that ``find`` knows: what it raises SpecError for is refused."""

    def read(value: Any, folder: Path) -> str:
        given = text(value, folder)
        find(given)
        return given

    return read


def texts(value: Any, folder: Path) -> tuple[str, ...]:
    """A list of strings, each once."""
    if not isinstance(value, list) or len(value) > _MOST:
        raise SpecError(f'{value!r} is no list of texts; write for example ["a", "b"]')
    return tuple(dict.fromkeys(text(v, folder) for v in value))


def flag(value: Any, _: Path) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise SpecError(f"{value!r} is neither true nor false")
    return value


def path(value: Any, folder: Path) -> Path:
    """A path, relative to the policy's folder."""
    return folder / text(value, folder)


def source(value: Any, folder: Path) -> str:
    """A file or folder of data, relative to the policy's folder, or ``synthetic``. Never code."""
    given = text(value, folder)
    return given if given == "synthetic" else str((folder / given).absolute())


def preset(value: Any, folder: Path) -> str:
    """A preset's name, or a .toml file relative to the policy's folder."""
    given = text(value, folder)
    return str(folder / given) if given.endswith(".toml") else given


def size(value: Any, _: Path) -> int:
    """``"1.5MB"`` or a number of bytes."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SpecError(f'{value!r} is no size; write for example "1.5MB"')
    return parse_size(str(value))


def share(value: Any, _: Path) -> float:
    """``"97%"`` or 0.97."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise SpecError(f'{value!r} is no share; write for example "97%"')
    return parse_share(value if isinstance(value, str) else f"{value:.17f}".rstrip("0"))


def number(low: float = 0.0, high: float = math.inf) -> Reader[float]:
    """A number from ``low`` to ``high``."""

    def read(value: Any, _: Path) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            limit = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise SpecError(f"{value!r} is no number of {limit}")
        return float(value)

    return read


def integer(low: int, high: int) -> Reader[int]:
    """A whole number from ``low`` to ``high``."""

    def read(value: Any, _: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise SpecError(f"{value!r} is no whole number from {low} to {high}")
        return value

    return read


def integers(low: int, high: int) -> Reader[tuple[int, ...]]:
    """A list of whole numbers from ``low`` to ``high``, one at least."""

    def read(value: Any, folder: Path) -> tuple[int, ...]:
        if not isinstance(value, list) or not 1 <= len(value) <= _MOST:
            raise SpecError(f"{value!r} is no list of whole numbers; write for example [1, 2]")
        return tuple(dict.fromkeys(integer(low, high)(v, folder) for v in value))

    return read


def word(*allowed: str) -> Reader[str]:
    """One of a few words."""

    def read(value: Any, folder: Path) -> str:
        given = text(value, folder)
        if given not in allowed:
            raise SpecError(f"'{given}' is none of the words for it{nearest(given, allowed)}")
        return given

    return read


def words(allowed: Collection[str]) -> Reader[tuple[str, ...]]:
    """Some of a few words."""
    return lambda value, folder: tuple(word(*allowed)(v, folder) for v in texts(value, folder))
