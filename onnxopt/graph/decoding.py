"""Which nodes make numbers of what a file holds in fewer bits: half floats, small integers, rows looked up by codes.

They read constants only, so that a runtime evaluates them once, when it loads; evaluated before, the file is larger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx

from onnxopt.graph.ir import Node, Tensor, is_constant


def is_decoding(node: Node) -> bool:
    """Does it begin with a constant and make a wider type of it? Not of bools, which masks are. Rows that a Gather
    looks up by indices as they are do not count: such indices are no smaller than floats."""
    if node.op != "Cast" or not node.is_standard or not is_constant(node.inputs[0]) or node.inputs[0].dtype == bool:
        return False
    made = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attrs["to"]))
    return made.kind != "O" and bool(node.inputs[0].dtype.itemsize < made.itemsize)


def chains(nodes: Collection[Node]) -> Iterator[tuple[Node, set[Node]]]:
    """Those of the nodes with which decoding begins, each with all of the nodes that read what comes of it."""
    inside = set(nodes)
    for node in nodes:
        if is_decoding(node):
            found: set[Node] = set()
            waiting = {node}
            while waiting:
                found |= waiting
                waiting = {n for w in waiting for t in w.outputs for n in t.outputs if n in inside} - found
            yield node, found


def stored(tensor: Tensor) -> str:
    """How a tensor is stored that nodes make of constants alone: codes, or a type such as float16; else empty."""
    nodes = []
    for node in _made_by(tensor):
        if not all(is_constant(t) or t.is_empty() or t.inputs for t in node.inputs):
            return ""
        nodes.append(node)
    if any(n.op == "Gather" and n.is_standard for n in nodes):
        return "codes"
    return next((str(n.inputs[0].dtype) for n in nodes if is_decoding(n)), "")


def already(tensor: Tensor) -> str:
    """That a weight is stored so, and what to do, to be read after "weights"; empty if it is not."""
    how = stored(tensor)
    return f"stored as {how} already: fold-constants:decode makes floats of them" if how else ""


def _made_by(tensor: Tensor) -> Iterator[Node]:
    """The nodes that a tensor is made by, the last one first."""
    seen: set[Node] = set()
    waiting = list(tensor.inputs)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [maker for t in node.inputs if not is_constant(t) for maker in t.inputs]
