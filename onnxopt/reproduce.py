"""The command that makes a report again, as a line for a shell."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxopt.runtime.target import Target

# Options whose name is not that of their field, and fields that no option sets.
_NAMED = {"dims": "dim", "external_root": "allow-external-root"}
_SILENT = {"held_out", "by_layer"}
_SHARES = {"max_drop", "min_agreement"}


def command(verb: str, *words: object, **options: object) -> str:
    """``onnxopt verb words --option value``, quoted: what was said of ``options``, where it is not the default.

    An option is a single value, None where it was not given, or a frozen dataclass, the fields of which are options.
    """
    flags = [flag for name, value in options.items() for flag in _given(name, value)]
    named = [str(word) for word in words]
    guard = ["--"] if any(word.startswith("-") for word in named) else []
    return shlex.join(["onnxopt", verb, *flags, *guard, *named] if guard else ["onnxopt", verb, *named, *flags])


def _given(name: str, value: Any) -> Iterator[str]:
    if not dataclasses.is_dataclass(value) or isinstance(value, Target):
        if value is not None:
            yield from _flag(name, value)
        return
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if found != field.default and field.name not in _SILENT:
            yield from _flag(field.name, found)


def _flag(name: str, value: Any) -> Iterator[str]:
    option = f"--{_NAMED.get(name, name).replace('_', '-')}"
    if name == "dims":
        for dimension, size in value:
            yield from (option, f"{dimension}={size}")
    elif isinstance(value, bool):
        yield option if value else option.replace("--", "--no-", 1)
    elif name in _SHARES:  # which have no exponent when they are read, and of which 1 may mean 1 %
        yield from (option, "100%" if value == 1 else np.format_float_positional(value, trim="-"))
    else:
        yield from (option, value.name if isinstance(value, Target) else str(value))
