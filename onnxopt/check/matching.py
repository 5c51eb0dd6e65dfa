"""Which nodes of two models belong together.

Equal weights are the surest sign, then names, then names of outputs; what is left is matched by its operators in the
order of the graph, as lines of two texts are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from difflib import SequenceMatcher

import numpy as np

from onnxopt.graph.ir import Constant, Node

Match = tuple[int, int]
# Above so many comparisons, common operators no longer anchor a match.
_PATIENCE = 4_000_000
# What these carry the name of is another node's work.
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


class Digests:
    """SHA-256 of constants, each computed once: type, shape and bytes."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Constant, str]] = {}

    def __call__(self, constant: Constant) -> str:
        if id(constant) not in self._known:
            values = np.asarray(constant.values)
            found = hashlib.sha256(f"{values.dtype}{values.shape}".encode())
            if values.dtype == object:
                found.update(repr(values.tolist()).encode("utf-8", "surrogateescape"))
            else:
                found.update(np.ascontiguousarray(values).tobytes())
            self._known[id(constant)] = constant, found.hexdigest()
        return self._known[id(constant)][1]


def match(a: Sequence[Node], b: Sequence[Node], digest: Digests) -> list[Match]:
    """Indices of nodes that belong together, in the order of ``a``. Those of other operators only if names agree."""
    found = _Matches(a, b)

    def weights(node: Node) -> Hashable:
        held = tuple(digest(t) for t in node.inputs if isinstance(t, Constant) and t.nbytes > 8)
        return (node.kind, held) if held else None

    found.by_key(weights)
    found.by_key(lambda n: (n.kind, n.name) if n.name else None)
    found.by_key(lambda n: (n.kind, n.outputs[0].name) if n.outputs and n.outputs[0].name else None)
    found.by_order(lambda n: (n.kind, weights(n)))
    found.by_order(lambda n: n.kind)
    found.by_key(lambda n: n.name or None if n.op not in _CONVERSIONS else None)
    found.by_key(lambda n: n.outputs[0].name or None if n.outputs and n.op not in _CONVERSIONS else None)
    return sorted(found.pairs)


class _Matches:
    def __init__(self, a: Sequence[Node], b: Sequence[Node]) -> None:
        self._a, self._b = a, b
        self._left, self._right = list(range(len(a))), list(range(len(b)))
        self.pairs: list[Match] = []

    def by_key(self, key: Callable[[Node], Hashable]) -> None:
        """Nodes with the same key, where it is the only such node on both sides; None is no key."""
        left, right = ([key(nodes[i]) for i in side] for nodes, side in ((self._a, self._left), (self._b, self._right)))
        once = {k for k, n in Counter(left).items() if n == 1 and k is not None}
        once &= {k for k, n in Counter(right).items() if n == 1}
        where = {k: j for k, j in zip(right, self._right, strict=True) if k in once}
        self._take([(i, where[k]) for k, i in zip(left, self._left, strict=True) if k in once])

    def by_order(self, key: Callable[[Node], Hashable]) -> None:
        """The longest runs of the same keys."""
        left, right = [key(self._a[i]) for i in self._left], [key(self._b[j]) for j in self._right]
        matcher = SequenceMatcher(None, left, right, autojunk=len(left) * len(right) > _PATIENCE)
        self._take(
            [
                (self._left[block.a + k], self._right[block.b + k])
                for block in matcher.get_matching_blocks()
                for k in range(block.size)
            ]
        )

    def _take(self, pairs: Sequence[Match]) -> None:
        self.pairs += pairs
        left, right = {i for i, _ in pairs}, {j for _, j in pairs}
        self._left = [i for i in self._left if i not in left]
        self._right = [j for j in self._right if j not in right]
