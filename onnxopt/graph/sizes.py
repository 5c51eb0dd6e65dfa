"""What nodes say of the sizes of tensors, where those are known without running."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from onnxopt.graph.ir import Node
from onnxopt.graph.needless import integers
from onnxopt.graph.signature import Array, Dim, TensorSpec

Specs = Mapping[str, TensorSpec]
Dims = tuple[Dim, ...]


def sizes_read(node: Node, specs: Specs) -> Array | None:
    """The result of a Shape or a Size, or of a Gather or a Slice behind a Shape, int64; None if it is not certain."""
    if not node.is_standard:
        return None
    if node.op == "Shape":
        return _vector(_shape(node, specs))
    if node.op == "Size":
        whole = _vector(_dims(node, specs))
        return None if whole is None else np.asarray(math.prod(whole.tolist()), np.int64)
    before = node.inputs[0].inputs[0] if node.op in ("Gather", "Slice") and node.inputs[0].inputs else None
    dims = _shape(before, specs) if before is not None and before.op == "Shape" and before.is_standard else None
    if dims is None:
        return None
    if node.op == "Slice":
        return _vector(_slice(node, dims))
    indices = integers(node, "indices", 1)
    if indices is None or any(not -len(dims) <= i < len(dims) for i in indices):
        return None
    picked = _vector(tuple(dims[i] for i in indices))
    return None if picked is None else picked.reshape(node.inputs[1].shape)


def _dims(node: Node, specs: Specs) -> Dims | None:
    spec = specs.get(node.inputs[0].name)
    return None if spec is None else spec.shape


def _shape(node: Node, specs: Specs) -> Dims | None:
    dims = _dims(node, specs)
    return None if dims is None else dims[node.attrs.get("start", 0) : node.attrs.get("end")]


def _slice(node: Node, dims: Dims) -> Dims | None:
    starts, ends, steps = (integers(node, name, i) for name, i in (("starts", 1), ("ends", 2), ("steps", 4)))
    if starts is None or ends is None or (steps is None and len(node.inputs) > 4):
        return None
    return dims[starts[0] : ends[0] : steps[0] if steps else None]


def _vector(dims: Dims | None) -> Array | None:
    return np.asarray(dims, np.int64) if dims is not None and all(isinstance(d, int) for d in dims) else None
