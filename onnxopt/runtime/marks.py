"""Numbers for names, by which a model's nodes are found again in what ONNX Runtime makes of them.

A kernel bears the name of a node that it replaces, or of that node's output, with something appended.
"""

from __future__ import annotations

import re

from onnxopt.graph.model import Model

_MARK = re.compile(r"onnxopt\.(\d+)\.")


def mark(model: Model) -> dict[int, int]:
    """Give every node and its outputs a number for a name; returns the numbers by ``id``."""
    numbers = {}
    for i, node in enumerate(model.nodes()):
        numbers[id(node)] = i
        node.name = f"onnxopt.{i}."
        for j, tensor in enumerate(node.outputs):
            tensor.name = tensor.name and f"{node.name}{j}"
    return numbers


def marks(name: str) -> list[int]:
    """The numbers that a name bears."""
    return [int(m) for m in _MARK.findall(name)]
