"""Run a model over samples bit by bit, so that it may be changed ahead of where the samples are.

Between two stops only the tensors that are still needed are kept, and each node runs once in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from onnxopt.core.context import Context
from onnxopt.graph.ir import Node, Tensor, is_constant, reads
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array, Feed
from onnxopt.runtime.session import Session

_MEMORY = 2**28
_FEWEST = 8


class Stream:
    """Samples on their way through a model, as batches of the tensors made so far that are still to be read.

    ``model`` may be changed wherever the stream has not passed, as long as no tensor changes its name.
    """

    def __init__(self, model: Model, feeds: Iterable[Feed], threads: int = 1) -> None:
        self.model = model
        self._batches: list[Feed] = [dict(feed) for feed in feeds]
        self._threads = threads
        self._done: set[str] = set()

    def advance(self, name: str) -> list[Array]:
        """Values of a tensor, batch by batch; nodes that it does not depend on wait."""
        if name in self._batches[0]:
            return [batch[name] for batch in self._batches]
        nodes = _ahead(self.model, name, self._done)
        self._done.update(map(_made, nodes))
        later = _read_later(self.model, self._done)
        made = {t.name for node in nodes for t in node.outputs} & later
        part = _segment(self.model, self._batches[0], [name, *sorted(made - {name})])
        session, taken = Session(part, threads=self._threads), {spec.name for spec in part.inputs}
        values = []
        for i, batch in enumerate(self._batches):
            results = session.run({k: v for k, v in batch.items() if k in taken})
            values.append(results[name])
            self._batches[i] = {k: v for k, v in (batch | results).items() if k in later}
        return values

    def reaches(self, name: str, without: Sequence[Node]) -> bool:
        """Can the stream advance to a tensor without passing any of these nodes?"""
        return not any(node is n for node in _ahead(self.model, name, self._done) for n in without)


def feeds_that_fit(model: Model, stops: Sequence[str], context: Context, samples: int) -> list[Feed]:
    """The first ``samples`` samples, or as many as a stream through these stops can keep in 256 MiB, at least 8."""
    shapes = context.shapes(model)
    done: set[str] = set()
    most = 1
    for stop in stops:
        done.update(map(_made, _ahead(model, stop, done)))
        later = _read_later(model, done)
        kept = {t.name for node in model.graph.nodes if _made(node) in done for t in node.outputs} & later
        most = max(most, sum(4 * prod(shapes[k]) for k in kept | {stop} if k in shapes))
    return list(context.dataset.batches(context.batch, stop=min(samples, max(_FEWEST, _MEMORY // most))))


def _ahead(model: Model, name: str, done: set[str]) -> list[Node]:
    """The nodes that must run for a tensor, and have not."""
    needed, found = {name}, []
    for node in reversed(model.graph.nodes):
        if needed.intersection(t.name for t in node.outputs) and _made(node) not in done:
            found.append(node)
            needed.update(t.name for t in reads(node) if not is_constant(t))
    return found


def _read_later(model: Model, done: set[str]) -> set[str]:
    return {t.name for node in model.graph.nodes if _made(node) not in done for t in reads(node)}


def _segment(model: Model, known: Mapping[str, Array], wanted: Sequence[str]) -> Model:
    """The part of a model that leads from known tensors to wanted ones."""
    part = model.clone()
    graph, variables = part.graph, part.variables()
    inputs: list[Tensor] = [t for t in graph.inputs if t.name not in known and t.name in graph.defaults]
    for name, value in known.items():
        tensor = variables[name]
        tensor.inputs.clear()
        tensor.dtype, tensor.shape, tensor.origin = value.dtype, [None] * value.ndim, None
        inputs.append(tensor)
    graph.outputs = [variables[name] for name in wanted]
    part.tidy()
    graph.inputs = [t for t in inputs if t.outputs or any(t is o for o in graph.outputs)]
    return part


def _made(node: Node) -> str:
    """What to know a node by: the first tensor that it makes."""
    return next((t.name for t in node.outputs if t.name), "")
