"""How large may an integer input be? Read off the tables that it looks things up in."""

from __future__ import annotations

from onnxopt.graph.ir import is_constant
from onnxopt.graph.model import Model

# What an index may pass through and still be the same index.
_CARRY = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Split", "Concat"}


def index_bounds(model: Model) -> dict[str, int]:
    """For each integer input that indexes constant tables (Gather): one more than the largest index they all take."""
    bounds: dict[str, int] = {}
    for source in model.graph.inputs:
        seen: set[int] = set()
        stack = [source]
        while stack:
            tensor = stack.pop()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            for node in tensor.outputs:
                if node.op == "Gather" and len(node.inputs) == 2 and node.inputs[1] is tensor:
                    table = node.inputs[0]
                    if is_constant(table) and table.shape:
                        size = int(table.shape[node.attrs.get("axis", 0)])
                        bounds[source.name] = min(size, bounds.get(source.name, size))
                elif node.op in _CARRY:
                    stack += node.outputs
    return bounds
