"""Evaluate now what every run would evaluate to the same: nodes that read only constants, and sizes that are fixed.

ONNX Runtime does the arithmetic, on a model of just those nodes. Left alone are random operators, operators of other
domains, control flow, QuantizeLinear and DequantizeLinear (evaluating those would undo a quantization), whatever makes
an output of a graph, what would make the file notably bigger, and what makes numbers of weights that are stored in
fewer bits, as half floats or codes, if the file would become any bigger.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from onnxopt.core.pass_ import Pass, PassResult, Skip, label, option
from onnxopt.errors import ExecutionError
from onnxopt.graph import decoding, shapes
from onnxopt.graph.ir import Constant, Node, Tensor, Variable, detach, is_constant, replace_uses
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array, Feed, TensorSpec
from onnxopt.graph.sizes import Specs, sizes_read
from onnxopt.runtime.session import Session

if TYPE_CHECKING:
    from onnxopt.core.context import Context

_RANDOM = {
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
}  # fmt: skip
# Not places to fold: constants themselves, quantization, and what hands on without arithmetic or makes no tensors.
_OTHERS = {
    "Constant", "Identity", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "If", "Loop", "Scan",
    "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength",
    "SplitToSequence", "ConcatFromSequence", "SequenceMap", "Optional", "OptionalHasElement", "OptionalGetElement",
}  # fmt: skip

_GROWTH_BYTES = 2**20
_ROUND_BYTES = 2**28
# Bytes of a node in a file.
_NODE_BYTES = 90
_FED_BYTES = 2**16


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Replaces nodes whose results are the same in every run by those results; exact."""

    name: ClassVar[str] = "fold-constants"
    exact: ClassVar[bool] = True
    prepare: ClassVar[tuple[str, ...]] = ("freeze-defaults",)

    decode: bool = option(False, "make floats of weights that are stored in fewer bits, as other passes need them")

    def run(self, model: Model, context: Context) -> PassResult:
        kept: dict[Node, str] = {}
        changed = 0
        while True:
            before = changed
            for step in (_hand_on, _fold_sizes, partial(_fold_values, kept=kept, decode=self.decode)):
                if folded := step(model):
                    changed += folded
                    model.tidy()
            model.release()
            if changed == before:
                break
        at_hand = {n for n in model.nodes() if all(is_constant(t) or t.is_empty() for t in n.inputs)}
        skips = [Skip(label(n), why) for n, why in kept.items() if n in at_hand]
        why = "it is an input with a default, which a feed may replace: freeze-defaults:all fixes it"
        skips += [Skip(name, why) for name in model.graph.defaults]
        return PassResult(changed, tuple(skips))


def _hand_on(model: Model) -> int:
    """Let readers of an Identity of a constant read the constant; returns how many such nodes went."""
    found = [n for n in _read_nodes(model) if n.op == "Identity" and n.is_standard and is_constant(n.inputs[0])]
    for node in found:
        replace_uses(node.outputs[0], node.inputs[0])
        detach(node)
    return len(found)


def _read_nodes(model: Model) -> list[Node]:
    """Nodes whose first output is read, and is no output of its graph."""
    boundary = _boundary(model)
    return [n for n in model.nodes() if n.outputs and n.outputs[0].outputs and id(n.outputs[0]) not in boundary]


def _fold_sizes(model: Model) -> int:
    """Make constants of the sizes that are known; returns how many nodes went."""
    specs = shapes.proven(model)
    found = [(n, sizes_read(n, specs)) for n in _read_nodes(model)]
    known = [(n, value) for n, value in found if value is not None]
    for node, value in known:
        _settle({node.outputs[0]: value})
        detach(node)
    return len(known)


def _fold_values(model: Model, kept: dict[Node, str], *, decode: bool) -> int:
    """Make constants of what nodes compute; returns how many nodes went. ``kept`` gains those that stay, and why."""
    specs = shapes.proven(model)
    while candidates := _candidates(model, specs, kept, decode):
        nodes = _first(candidates, specs)
        wanted = _read_elsewhere(nodes)
        values = _evaluate(model, nodes, kept)
        if values is None:
            continue
        known = {name: TensorSpec(name, v.dtype, v.shape) for name, v in values.items()}
        unfit = _growing(candidates, {**specs, **known}, decode) | _texts(nodes, values)
        if unfit:
            kept.update(unfit)
            continue
        _settle({t: values[t.name] for t in wanted})
        for node in nodes:
            detach(node)
        return len(nodes)
    return 0


def _candidates(model: Model, specs: Specs, kept: dict[Node, str], decode: bool) -> list[Node]:
    """Nodes that depend on constants only, in an order in which they can run."""
    boundary = _boundary(model)
    while True:
        known: set[int] = set()
        found: list[Node] = []
        for node in model.nodes():
            if node in kept or node.op in _OTHERS or not any(t.outputs or id(t) in boundary for t in node.outputs):
                continue
            if not all(is_constant(t) or t.is_empty() or id(t) in known for t in node.inputs):
                continue
            if why := _unfit(node, boundary):
                kept[node] = why
                continue
            found.append(node)
            known.update(id(t) for t in node.outputs)
        growing = _growing(found, specs, decode)
        if not growing:
            return found
        kept.update(growing)


def _first(nodes: Sequence[Node], specs: Specs) -> list[Node]:
    """As many as make up to a round's amount of bytes, and one at least."""
    sizes = itertools.accumulate(sum(_bytes(t, specs) for t in n.outputs) for n in nodes)
    return [n for i, (n, size) in enumerate(zip(nodes, sizes, strict=True)) if i == 0 or size <= _ROUND_BYTES]


def _unfit(node: Node, boundary: set[int]) -> str:
    """Why a node that reads only constants is left alone; empty if it is not."""
    if not node.is_standard:
        return f"operators of the domain {node.domain} may do more than compute"
    if node.op in _RANDOM or (node.op == "Dropout" and len(node.inputs) > 2):
        return "its result is random"
    if any(id(t) in boundary for t in node.outputs):
        return "it makes an output of its graph"
    return ""


def _growing(nodes: Sequence[Node], specs: Specs, decode: bool) -> dict[Node, str]:
    """Nodes whose result is notably bigger than the constants that nobody would need any more, and those with which
    begins what makes bigger numbers of stored ones, unless it is to be decoded."""
    inside = set(nodes)
    begun = {node: (chain, _decoded(chain, specs)) for node, chain in decoding.chains(nodes)}
    if not decode and (stay := {node: why for node, (_, why) in begun.items() if why}):
        return stay
    decoded = set().union(*(chain for chain, why in begun.values() if why))
    found = {}
    for node in nodes:
        if node in decoded:
            continue
        made = sum(_bytes(t, specs) for t in node.outputs)
        freed = sum(_bytes(t, specs) / len(t.outputs) for t in node.inputs if inside.issuperset(t.outputs))
        if made - freed > _GROWTH_BYTES:
            found[node] = f"its result would make the file {(made - freed) / 2**20:.1f} MB bigger"
    return found


def _decoded(chain: set[Node], specs: Specs) -> str:
    """How the file stores what a chain of nodes makes, if in fewer bytes; else empty."""
    results = _read_elsewhere(chain)
    made = sum(_bytes(t, specs) for t in results)
    read = {t for n in chain for t in n.inputs if is_constant(t)}
    freed = sum(t.nbytes for t in read if chain.issuperset(t.outputs)) + _NODE_BYTES * len(chain)
    if made <= freed:
        return ""
    return f"stored as {decoding.stored(results[0])} already, {made - freed} bytes less: decode=true makes floats of it"


def _texts(nodes: Iterable[Node], values: Mapping[str, Array]) -> dict[Node, str]:
    return {
        n: f"its result is of type {values[t.name].dtype}"
        for n in nodes
        for t in n.outputs
        if t.name in values and values[t.name].dtype.kind not in "fiub"
    }


def _bytes(tensor: Tensor, specs: Specs) -> int:
    """Bytes of a tensor; 0 where they are not known before it is computed."""
    if isinstance(tensor, Constant):
        return tensor.nbytes
    spec = specs.get(tensor.name)
    if spec is None or spec.shape is None or not all(isinstance(d, int) for d in spec.shape):
        return 0
    return math.prod(d for d in spec.shape if isinstance(d, int)) * spec.dtype.itemsize


def _boundary(model: Model) -> set[int]:
    return {id(t) for graph in model.graphs() for t in graph.outputs}


def _read_elsewhere(nodes: Collection[Node]) -> list[Variable]:
    inside = set(nodes)
    return [t for n in nodes for t in n.outputs if not inside.issuperset(t.outputs)]


def _evaluate(model: Model, nodes: Sequence[Node], kept: dict[Node, str]) -> dict[str, Array] | None:
    """What others read of the nodes' results, by name; None where a node cannot be run, which then is in ``kept``."""
    try:
        return _run(model, nodes)
    except ExecutionError as error:
        why = str(error)
    # The first so many nodes need none of the later ones: search for the shortest such list that fails.
    good, bad = 0, len(nodes)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            _run(model, nodes[:middle])
            good = middle
        except ExecutionError as error:
            bad, why = middle, str(error)
    kept[nodes[bad - 1]] = why
    return None


def _run(model: Model, nodes: Sequence[Node]) -> dict[str, Array]:
    """Run nodes by themselves. Large constants are fed, which spares two copies of each."""
    part = model.clone()
    made = {t.name for n in nodes for t in n.outputs if t.name}
    graph = part.graph
    graph.nodes = [n for n in part.nodes() if any(t.name in made for t in n.outputs)]
    graph.inputs, graph.outputs, graph.constants, graph.defaults = [], [], [], {}
    feed: Feed = {}
    for constant in part.constants():
        if constant.nbytes > _FED_BYTES and constant.dtype.kind in "fiub":
            fed = Variable(constant.name, constant.dtype, constant.shape)
            feed[fed.name] = np.asarray(constant.values)
            replace_uses(constant, fed)
            graph.inputs.append(fed)
    return Session(part, outputs=[t.name for t in _read_elsewhere(nodes)], optimize=False).run(feed)


def _settle(values: Mapping[Tensor, Array]) -> None:
    """Let what reads the tensors read constants of the same names."""
    for tensor, value in values.items():
        replace_uses(tensor, Constant(tensor.name, value))
