"""From text to passes and back: ``prune:ratio=0.3,quant``, TOML recipes, and the list of all passes there are."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import pkgutil
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from onnxopt.core.pass_ import Pass
from onnxopt.errors import SpecError
from onnxopt.spelling import nearest

ENTRY_POINTS = "onnxopt.passes"


@dataclass(frozen=True)
class Option:
    """An option as ``onnxopt passes`` shows it."""

    name: str
    type: str
    default: str
    meaning: str


@cache
def known_passes() -> Mapping[str, type[Pass]]:
    """Every pass by name: those of the folder onnxopt/passes, and those that other distributions register."""
    folder = importlib.import_module("onnxopt.passes")
    found: dict[str, type[Pass]] = {}
    for module in pkgutil.iter_modules(folder.__path__, folder.__name__ + "."):
        for value in vars(importlib.import_module(module.name)).values():
            if _is_pass(value) and value.__module__ == module.name:
                found[value.name] = value
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        value = entry.load()
        if not _is_pass(value):
            raise SpecError(f"the entry point '{entry.name}' of {ENTRY_POINTS} is no pass; remove {entry.value}")
        if found.setdefault(value.name, value) is not value:
            raise SpecError(f"two passes are named '{value.name}': remove the distribution that holds {entry.value}")
    return types.MappingProxyType(dict(sorted(found.items())))


def options(pass_type: type[Pass]) -> list[Option]:
    """The options of a pass, read off its dataclass."""
    hints = typing.get_type_hints(pass_type)
    return [
        Option(f.name.replace("_", "-"), _type_name(hints[f.name]), _show(f.default), f.metadata.get("meaning", ""))
        for f in dataclasses.fields(pass_type)
    ]


def parse(spec: str) -> list[Pass]:
    """``"prune:ratio=0.3:align=8,quant"`` -> passes in that order.

    Raises SpecError for an unknown pass or option, with the nearest names, and for a value that does not fit.
    """
    parts = [p.strip() for p in spec.split(",")]
    if not all(parts):
        raise SpecError(f"'{spec}' names no pass in one place; write for example prune:ratio=0.3,quant")
    for before, part in zip(["prune", *parts], parts, strict=False):
        if "=" in part.split(":")[0]:
            raise SpecError(f"'{part}' is an option, not a pass: options follow a colon, as in {before}:{part}")
    return [_parse_one(p) for p in parts]


def read_recipe(path: str | Path) -> list[Pass]:
    """Passes from a TOML file: ``passes = ["fold-bn", {name = "prune", ratio = 0.3}]`` or ``[[passes]]`` tables."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read the recipe {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"the recipe {path} is not TOML: {error}") from None
    if unknown := sorted(set(content) - {"passes"}):
        raise SpecError(f"the recipe {path} has the unknown key '{unknown[0]}'; it takes only 'passes'")
    entries = content.get("passes")
    if not isinstance(entries, list) or not entries:
        raise SpecError(f'the recipe {path} lists no passes; write passes = ["prune:ratio=0.3", "quant"]')
    return [_from_entry(e, path) for e in entries]


def make(name: str, values: Mapping[str, Any]) -> Pass:
    """A pass from its name and the values of its options, as text or as what a recipe holds."""
    known = known_passes()
    if name not in known:
        raise SpecError(f"there is no pass '{name}'{nearest(name, known)}")
    pass_type = known[name]
    hints = typing.get_type_hints(pass_type)
    fields = {f.name.replace("_", "-"): f.name for f in dataclasses.fields(pass_type)}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        key = key.replace("_", "-")
        if key not in fields:
            raise SpecError(f"the pass '{name}' has no option '{key}'{nearest(key, fields)}")
        if fields[key] in arguments:
            raise SpecError(f"the option '{key}' of '{name}' is given twice")
        arguments[fields[key]] = _convert(value, hints[fields[key]], f"{name}:{key}")
    try:
        return pass_type(**arguments)
    except ValueError as error:
        raise SpecError(f"{name}: {error}") from None


def _parse_one(text: str) -> Pass:
    # No option begins with a digit: such a colon belongs to a value, as in pattern=2:4.
    name, *items = re.split(r":(?!\d)", text)
    values: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key:
            raise SpecError(f"'{text}' has an option without a name; write for example {name}:key=value")
        if key in values:
            raise SpecError(f"the option '{key}' of '{name}' is given twice")
        values[key] = value if equals else "true"
    return make(name.strip(), values)


def _from_entry(entry: Any, path: str | Path) -> Pass:
    if isinstance(entry, str):
        return _parse_one(entry)
    if isinstance(entry, dict) and isinstance(entry.get("name"), str):
        return make(entry["name"], {k: v for k, v in entry.items() if k != "name"})
    raise SpecError(f"the recipe {path} has a pass without a name: {str(entry)[:80]}")


def _convert(value: Any, hint: Any, where: str) -> Any:
    """A value of the option's type, from text or from TOML."""
    if _is_union(hint):
        kinds = typing.get_args(hint)
        if type(None) in kinds and value == "none":
            return None
        return _convert(value, next(k for k in kinds if k is not type(None)), where)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise SpecError(f"{where} is '{value}'{nearest(str(value), map(str, choices))}")
        return value
    if hint is bool:
        if value in (True, False, "true", "false"):
            return value in (True, "true")
        raise SpecError(f"{where} is '{value}'; write true or false")
    if isinstance(value, bool) and hint is not str:
        raise SpecError(f"{where} is a {_type_name(hint)}, not true or false")
    try:
        if hint is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        if hint is float and isinstance(value, str) and value.strip().endswith("%"):
            return float(value.strip().removesuffix("%")) / 100
        return hint(value)
    except (TypeError, ValueError, OverflowError):
        raise SpecError(f"{where} is '{value}', which is no {_type_name(hint)}") from None


def _is_pass(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Pass) and not getattr(value, "__abstractmethods__", None)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if _is_union(hint):
        return "|".join("none" if k is type(None) else _type_name(k) for k in typing.get_args(hint))
    return str({int: "integer", float: "number", str: "text", bool: "true|false"}.get(hint, hint))


def _show(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def spell(passes: Sequence[Pass]) -> str:
    """The passes as text that ``parse`` reads back."""
    return ",".join(map(str, passes))
