"""Local rewrites: recognise a place at one node, then replace it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Generic, TypeVar

from onnxopt.core.pass_ import Pass, PassResult, Skip
from onnxopt.graph import shapes
from onnxopt.graph.ir import Scope, Tensor

if TYPE_CHECKING:
    from onnxopt.core.context import Context
    from onnxopt.graph.ir import Node
    from onnxopt.graph.model import Model

M = TypeVar("M")


@dataclass(frozen=True, kw_only=True)
class RewritePass(Pass, Generic[M]):
    """A pass that looks at every node, bodies included, until nothing more matches.

    ``match`` only looks: a match, a Skip with its reason, or None where the node has nothing to do with the pass.
    ``rewrite`` only acts: it relinks, and appends new nodes to ``match``'s graph; what nothing uses any more is swept
    after the round, and new nodes are looked at in the next.
    """

    @abstractmethod
    def match(self, node: Node, scope: Scope) -> M | Skip | None:
        """Is there something to do at this node?"""

    @abstractmethod
    def rewrite(self, match: M, model: Model) -> None:
        """Do it."""

    def run(self, model: Model, context: Context) -> PassResult:
        """Rewrite until a whole round changes nothing. Skips are those of the last round."""
        changed = 0
        while True:
            skips: list[Skip] = []
            before = changed
            proven = cache(partial(shapes.proven, model))
            nodes = sum(len(g.nodes) for g in model.graphs())
            for graph in list(model.graphs()):
                scope = Scope(graph, proven)
                for node in context.track(list(graph.nodes), self.name, nodes if graph is model.graph else None):
                    if not scope.holds(node) or (node.outputs and not any(_used(t, scope) for t in node.outputs)):
                        continue
                    found = self.match(node, scope)
                    if isinstance(found, Skip):
                        skips.append(found)
                    elif found is not None:
                        self.rewrite(found, model)
                        model.release()
                        changed += 1
            if changed == before:
                return PassResult(changed, tuple(skips))
            model.tidy()


def _used(tensor: Tensor, scope: Scope) -> bool:
    return bool(tensor.outputs) or scope.is_output(tensor)
