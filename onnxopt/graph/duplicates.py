"""Constants that hold the same values, made one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator

from onnxopt.graph.ir import Constant, replace_uses
from onnxopt.graph.model import Model
from onnxopt.graph.proto import data_type, raw_bytes

_BEGINNING = 4096
_PIECE = 64 * 2**20


def merge_duplicates(model: Model) -> tuple[int, int]:
    """Let constants of the same type, shape and bytes be one; returns how many went, and their bytes.

    Whole constants are only read where another one begins the same. What a body stored and others now read as well
    moves to where they all can see it. Outputs of a graph and values of inputs stay apart, and so do texts.
    """
    fixed = {id(c) for g in model.graphs() for c in (*g.defaults.values(), *g.outputs)}
    candidates = [c for c in model.constants() if id(c) not in fixed and c.dtype != object]
    merged = saved = 0
    for alike in _groups(candidates, lambda c: (data_type(c), tuple(c.shape), bytes(raw_bytes(c)[:_BEGINNING]))):
        for same in _groups(alike, lambda c: _digest(c, model)):
            kept, *others = same
            for other in others:
                replace_uses(other, kept)
                merged, saved = merged + 1, saved + other.nbytes
            gone = {id(c) for c in same}
            for graph in model.graphs():
                # Without an entry of its own the one that is kept is stored in the graph that all its readers see.
                graph.constants = [c for c in graph.constants if id(c) not in gone]
    return merged, saved


def _groups(constants: Iterable[Constant], key: Callable[[Constant], Hashable]) -> Iterator[list[Constant]]:
    """Those that have a key in common with another, together."""
    found: dict[Hashable, list[Constant]] = {}
    for constant in constants:
        found.setdefault(key(constant), []).append(constant)
    return (group for group in found.values() if len(group) > 1)


def _digest(constant: Constant, model: Model) -> bytes:
    content, result = raw_bytes(constant), hashlib.sha256()
    for start in range(0, len(content), _PIECE):
        result.update(content[start : start + _PIECE])
        model.release()
    return result.digest()
