"""One form of a model, and what each of its nodes costs: bytes, multiplications, time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxopt.core.context import Context
from onnxopt.core.pass_ import label
from onnxopt.data.dataset import Dataset
from onnxopt.graph.compressed import compressed_bytes
from onnxopt.graph.cost import cost
from onnxopt.graph.ir import Node, is_constant, reads
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Feed
from onnxopt.report.advice import Costs
from onnxopt.runtime.profile import profile

_PROFILE_S = 0.2


@dataclass(frozen=True)
class Form:
    """What nodes cost, by the identity of the node, and take, by label; ``total`` seconds in all."""

    model: Model
    total_macs: int | None
    costs: Mapping[int, tuple[int, int | None]]
    seconds: Mapping[str, float]
    total: float
    bytes: int
    packed: int

    @classmethod
    def measured(cls, model: Model, few: Dataset, feed: Feed, threads: int) -> Form:
        """Raises ExecutionError when it does not run."""
        found = cost(model, Context(model, few).shapes(model))
        rows = zip(model.nodes(), found.nodes, strict=True)
        profiled = profile(model, feed, threads=threads, budget_s=_PROFILE_S)
        return cls(
            model,
            found.total.macs,
            {id(node): (row.weight_bytes, row.macs) for node, row in rows},
            profiled.nodes,
            profiled.total,
            model.constant_bytes(),
            compressed_bytes(model),
        )

    def at(self, total: float) -> Form:
        """The same where a run takes so many seconds in all."""
        pace = total / self.total
        return replace(self, seconds={name: s * pace for name, s in self.seconds.items()}, total=total)

    def of(self, nodes: Iterable[Node]) -> tuple[int, int | None, float]:
        """Bytes, MACs and milliseconds of some nodes."""
        once = list(dict.fromkeys(nodes))
        rows = [self.costs[id(n)] for n in once]
        macs = [m for _, m in rows]
        took = sum(self.seconds.get(label(n), 0.0) for n in once)
        return sum(b for b, _ in rows), None if None in macs else sum(m or 0 for m in macs), 1e3 * took

    def whole(self) -> Costs:
        """All of it."""
        return Costs(self.bytes, self.packed, self.total_macs, 1e3 * self.total)


def executed(nodes: Sequence[Node]) -> list[str]:
    """The operators that run, sorted: what depends on constants alone is computed at loading, but not decoding."""
    fixed: set[int] = set()
    found = []
    for node in nodes:
        if node.op != "DequantizeLinear" and all(is_constant(t) or id(t) in fixed for t in reads(node)):
            fixed.update(map(id, node.outputs))
        else:
            found.append(node.kind)
    return sorted(found)
