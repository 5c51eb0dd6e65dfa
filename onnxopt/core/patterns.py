"""Nodes that a user picks by name or pattern."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from onnxopt.core.pass_ import Skip


def excluded(patterns: str, labels: Iterable[str]) -> dict[str, str]:
    """The labels that a user leaves out, with the reason; ``patterns`` are names, with * or not, joined by +."""
    split = _split(patterns)
    return {name: "excluded" for name in labels if any(fnmatchcase(name, p) for p in split)}


def absent(patterns: str, labels: Iterable[str], option: str = "exclude") -> tuple[Skip, ...]:
    """The patterns, as an option gives them, that none of the labels fits."""
    names = set(labels)
    lost = [p for p in _split(patterns) if not any(fnmatchcase(name, p) for name in names)]
    return tuple(Skip(p, f"{option} names no node: none is called so, or it was folded away") for p in lost)


def _split(patterns: str) -> list[str]:
    return [p for p in patterns.split("+") if p]
