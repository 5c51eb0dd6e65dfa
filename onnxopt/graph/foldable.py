"""Which nodes compute the same in every run, and may be replaced by what they compute.

They depend on constants only. Left alone is what depends on chance, what may do more than compute, quantization, what
makes an output of a graph, and what would make the file notably bigger, or any bigger if it decodes what is stored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

from onnxopt.graph import decoding
from onnxopt.graph.ir import Constant, Node, Tensor, Variable, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.sizes import Specs

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


def candidates(model: Model, specs: Specs, kept: dict[Node, str], decode: bool) -> list[Node]:
    """Nodes that depend on constants only, in an order in which they can run. ``kept`` gains those that stay, and why;
    ``decode``: what decodes stored numbers may go."""
    boundary = boundary_ids(model)
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
        if not (large := growing(found, specs, decode)):
            return found
        kept.update(large)


def first(nodes: Sequence[Node], specs: Specs) -> list[Node]:
    """As many as make up to a round's amount of bytes, and one at least."""
    sizes = itertools.accumulate(sum(_bytes(t, specs) for t in n.outputs) for n in nodes)
    return [n for i, (n, size) in enumerate(zip(nodes, sizes, strict=True)) if i == 0 or size <= _ROUND_BYTES]


def boundary_ids(model: Model) -> set[int]:
    """The ``id`` of each output of a graph, bodies included."""
    return {id(t) for graph in model.graphs() for t in graph.outputs}


def read_elsewhere(nodes: Collection[Node]) -> list[Variable]:
    """What these nodes make that others read."""
    inside = set(nodes)
    return [t for n in nodes for t in n.outputs if not inside.issuperset(t.outputs)]


def growing(nodes: Sequence[Node], specs: Specs, decode: bool) -> dict[Node, str]:
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


def _unfit(node: Node, boundary: set[int]) -> str:
    """Why a node that reads only constants is left alone; empty if it is not."""
    if not node.is_standard:
        return f"operators of the domain {node.domain} may do more than compute"
    if node.op in _RANDOM or (node.op == "Dropout" and len(node.inputs) > 2):
        return "its result is random"
    if any(id(t) in boundary for t in node.outputs):
        return "it makes an output of its graph"
    return ""


def _decoded(chain: set[Node], specs: Specs) -> str:
    """How the file stores what a chain of nodes makes, if in fewer bytes; else empty."""
    results = read_elsewhere(chain)
    made = sum(_bytes(t, specs) for t in results)
    read = {t for n in chain for t in n.inputs if is_constant(t)}
    freed = sum(t.nbytes for t in read if chain.issuperset(t.outputs)) + _NODE_BYTES * len(chain)
    if made <= freed:
        return ""
    return f"stored as {decoding.stored(results[0])} already, {made - freed} bytes less: decode=true makes floats of it"


def _bytes(tensor: Tensor, specs: Specs) -> int:
    """Bytes of a tensor; 0 where they are not known before it is computed."""
    if isinstance(tensor, Constant):
        return tensor.nbytes
    spec = specs.get(tensor.name)
    if spec is None or spec.shape is None or not all(isinstance(d, int) for d in spec.shape):
        return 0
    return math.prod(d for d in spec.shape if isinstance(d, int)) * spec.dtype.itemsize
