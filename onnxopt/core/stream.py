"""Run a model over samples part by part, so that it may be changed ahead of where the samples are.

A stream rests at a tensor: it keeps, for all samples, only what is still to be read behind it, and reads on from there.
Where that is too much to keep, it goes on resting where it was, and fewer samples are read further on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import ceil, prod

from onnxopt.core.context import Context
from onnxopt.graph.ir import Constant, Graph, Node, Tensor, Variable, is_constant, reads
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array, Feed
from onnxopt.runtime.session import Session

_MEMORY = 2**28
_FEWEST = 8
_ELEMENTS = 2**24


def feeds(context: Context, samples: int, batch: int | None = None, start: int = 0) -> list[Feed]:
    """The samples of a context from ``start`` to ``samples``, or as many as fit into 256 MiB; ``batch`` instead of its
    own."""
    found: list[Feed] = []
    size = 0
    for feed in context.dataset.batches(batch or context.batch, start, samples):
        size += sum(value.nbytes for value in feed.values())
        if found and size > _MEMORY:
            break
        found.append(feed)
    return found


def modest_batch(context: Context, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many samples to run at once, so that no tensor takes more than 64 MiB; ``shapes`` are those of one."""
    largest = max((prod(shape) for shape in shapes.values()), default=1)
    return max(1, min(context.batch, _ELEMENTS // max(largest, 1)))


class Stream:
    """Feeds on their way through a model, which may be changed wherever the stream does not rest behind, as long as no
    tensor changes its name.

    ``shapes`` are those of the model's tensors for one sample, or larger ones. With ``optimize`` the runtime may fuse
    nodes and, where float weights lie between integers, round them.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Feed],
        shapes: Mapping[str, tuple[int, ...]],
        threads: int = 1,
        *,
        optimize: bool = True,
    ) -> None:
        self.model = model
        self._batches = list(batches)
        self._shapes = shapes
        self._threads = threads
        self._optimize = optimize
        self._done: set[str] = set()
        one = sum(prod(shapes[name]) for name in batches[0]) if batches else 1
        self._scale = sum(value.size for feed in batches for value in feed.values()) / max(one, 1)

    def rest(self, name: str) -> float:
        """Rest where a tensor is made, if what has to be kept there fits into 256 MiB.

        Returns the share of the samples that would fit, from which on it is worth to read: 1 where it rests there.
        """
        nodes = _ahead(self.model, [name], self._done)
        done = self._done.union(map(_made, nodes))
        later = {t.name for node in self.model.graph.nodes if _made(node) not in done for t in reads(node)} | {name}
        made = {t.name for node in self.model.graph.nodes if _made(node) in done for t in node.outputs}
        size = 4 * self._scale * sum(prod(self._shapes.get(k, ())) for k in later & (made | self._batches[0].keys()))
        if size > _MEMORY:
            return max(_MEMORY / size, min(1.0, _FEWEST / len(self._batches)))
        if nodes:
            wanted = sorted({t.name for node in nodes for t in node.outputs} & later)
            results = self.read(wanted)
            for i, (batch, values) in enumerate(zip(self._batches, results, strict=True)):
                known = batch | dict(zip(wanted, values, strict=True))
                self._batches[i] = {k: v for k, v in known.items() if k in later}
            self._done = done
        return 1.0

    def rests(self, name: str) -> bool:
        """Are a tensor's values kept? Where ``rest`` asks to read all samples from further back, they are not."""
        return name in self._batches[0]

    def read(self, names: Sequence[str], share: float = 1.0) -> Iterator[list[Array]]:
        """Values of tensors, batch by batch, for the first ``share`` of the batches. Nothing is kept."""
        missing = [n for n in names if n not in self._batches[0]]
        if missing:
            ahead = _ahead(self.model, missing, self._done)
            part = segment(self.model, ahead, self._batches[0], missing)
            session, taken = self._session(part), {spec.name for spec in part.inputs}
        for batch in self._batches[: ceil(share * len(self._batches))]:
            made = session.run({k: v for k, v in batch.items() if k in taken}) if missing else {}
            yield [batch[n] if n in batch else made[n] for n in names]

    def respond(self, name: str) -> Callable[[Sequence[Array]], Iterator[dict[str, Array]]]:
        """A function that takes other values of a tensor, one array for each batch, and gives the outputs of the model
        that are not made yet, by name; the tensor may be one.

        The stream must rest at the tensor.
        """
        past = {t.name for n in self.model.graph.nodes if _made(n) in self._done for t in n.outputs} - {name}
        wanted = [t.name for t in self.model.graph.outputs if t.name not in past]
        made = [n for n in wanted if n not in self._batches[0]]
        session = None
        if made:
            part = segment(self.model, _ahead(self.model, made, self._done), self._batches[0], made)
            session, taken = self._session(part), {spec.name for spec in part.inputs}

        def answers(values: Sequence[Array]) -> Iterator[dict[str, Array]]:
            for batch, value in zip(self._batches, values, strict=True):
                known = batch | {name: value}
                found = {} if session is None else session.run({k: v for k, v in known.items() if k in taken})
                yield {n: found[n] if n in found else known[n] for n in wanted}

        return answers

    def _session(self, part: Model) -> Session:
        return Session(part, threads=self._threads, optimize=self._optimize)

    def passes(self, name: str, nodes: Sequence[Node]) -> bool:
        """Does any of these nodes lie between where the stream rests and a tensor?"""
        ahead = _ahead(self.model, [name], self._done)
        return any(node is n for node in ahead for n in nodes)


def _ahead(model: Model, names: Iterable[str], done: set[str]) -> list[Node]:
    """The nodes that must run for these tensors, and have not, in order."""
    needed, found = set(names), []
    for node in reversed(model.graph.nodes):
        if needed.intersection(t.name for t in node.outputs) and _made(node) not in done:
            found.append(node)
            needed.update(t.name for t in reads(node) if not is_constant(t))
    return found[::-1]


def segment(model: Model, nodes: Sequence[Node], known: Mapping[str, Array], wanted: Sequence[str]) -> Model:
    """A model of these nodes alone, which lead from known tensors to wanted ones. The original keeps its links."""
    read = [t for node in nodes for t in reads(node)]
    copies: dict[str, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        if tensor.name not in copies or tensor.is_empty():
            values = tensor._values if is_constant(tensor) else None
            copies[tensor.name] = Variable(tensor.name) if values is None else Constant(tensor.name, values)
        return copies[tensor.name]

    parts = [
        Node(n.op, n.name, [copy(t) for t in n.inputs], [copy(t) for t in n.outputs], n.attrs, n.domain, n.origin)
        for n in nodes
    ]
    listed = {id(c) for c in model.graph.constants}
    constants = [copy(t) for t in read if id(t) in listed]
    inputs = [copy(t) for t in {t.name: t for t in read if t.name in known}.values()]
    for tensor in inputs:
        tensor.dtype, tensor.shape = known[tensor.name].dtype, [None] * known[tensor.name].ndim
    names = {t.name for t in read}
    defaults = {k: v for k, v in model.graph.defaults.items() if k in names and k not in known}
    inputs += [copy(t) for t in model.graph.inputs if t.name in defaults]
    graph = Graph("part", parts, inputs, [copies[name] for name in wanted], None, defaults, constants)
    return Model(graph, model.header, set(), model.path, model.mapped)


def _made(node: Node) -> str:
    """What to know a node by: the first tensor that it makes."""
    return next((t.name for t in node.outputs if t.name), "")
