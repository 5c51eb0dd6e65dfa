"""What ONNX Runtime really executes: which products became integer kernels, which stayed float, and why.

The session saves the graph that it made of the model. A kernel there bears the name of a node that it replaces, or of
that node's output, with something appended: nodes and outputs that were given numbers for names can be found again.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnxopt.graph.ir import Node, Scope, is_constant
from onnxopt.graph.model import Model
from onnxopt.runtime.session import Session

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "QAttention",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
    }
)
_NO_KERNEL = ("ConvTranspose", "LSTM", "GRU", "RNN")
_MARK = re.compile(r"onnxopt\.(\d+)\.")


@dataclass(frozen=True)
class Executed:
    """One node of the model: its name and operator, the kernel that does its work ("" if none: folded away), and, for
    a float kernel, why."""

    node: str
    op: str
    kernel: str
    why: str

    @property
    def integer(self) -> bool:
        return self.kernel in INTEGER_KERNELS


@dataclass(frozen=True)
class Audit:
    """``nodes`` are the products of the model, in order; ``operators`` counts what the runtime executes, by type."""

    nodes: tuple[Executed, ...]
    operators: Mapping[str, int]

    @property
    def integer(self) -> tuple[Executed, ...]:
        """The products that are computed in integers."""
        return tuple(n for n in self.nodes if n.integer)

    @property
    def islands(self) -> tuple[Executed, ...]:
        """The products that are computed in floats."""
        return tuple(n for n in self.nodes if n.kernel and not n.integer)

    @property
    def conversions(self) -> int:
        """Steps from float to integer and back that are left."""
        return self.operators.get("QuantizeLinear", 0) + self.operators.get("DequantizeLinear", 0)


def audit(model: Model) -> Audit:
    """Look at a model as the CPU provider runs it. Raises ExecutionError when it cannot load the model."""
    marked = model.clone()
    scopes = [Scope(graph) for graph in marked.graphs()]
    found = [(n, s) for s in scopes for n in s.graph.nodes if n.op in PRODUCTS or n.op in INTEGER_KERNELS]
    products = [(node, scope, _label(node), _why(node, scope)) for node, scope in found]
    number = _mark(marked)
    executed = list(_executed(marked))
    kernels = {int(m[1]): n.op_type for n in executed for m in _MARK.finditer(n.name)}
    result = []
    for node, scope, name, why in products:
        place: Node | None = node
        while place is not None and number[id(place)] not in kernels:
            place = _only_reader(place, scope)  # a fused kernel may be called after the last node in it
        kernel = kernels[number[id(place)]] if place is not None else ""
        if place is not node and place is not None and kernel == place.op:
            kernel = ""  # the reader executes as itself: what it reads was folded into a constant
        result.append(Executed(name, node.op, kernel, "" if kernel in INTEGER_KERNELS or not kernel else why))
    return Audit(tuple(result), dict(Counter(n.op_type for n in executed)))


def _mark(model: Model) -> dict[int, int]:
    """Give every node and its outputs a number for a name; returns the numbers by ``id``."""
    numbers = {}
    for i, node in enumerate(model.nodes()):
        numbers[id(node)] = i
        node.name = f"onnxopt.{i}."
        for j, tensor in enumerate(node.outputs):
            tensor.name = tensor.name and f"{node.name}{j}"
    return numbers


def _executed(model: Model) -> Iterator[onnx.NodeProto]:
    """The nodes of the graph that the session runs, those in bodies included."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        path = Path(folder) / "optimized.onnx"
        Session(model, save_optimized=path)
        stack = [onnx.load(path, load_external_data=False).graph]
    while stack:
        graph = stack.pop()
        yield from graph.node
        for node in graph.node:
            stack += [a.g for a in node.attribute if a.HasField("g")]


def _only_reader(node: Node, scope: Scope) -> Node | None:
    made = next((t for t in node.outputs if not t.is_empty()), None)
    return made.outputs[0] if made is not None and scope.used_once(made) else None


def _why(node: Node, scope: Scope) -> str:
    """What keeps a node that computes in floats from an integer kernel."""
    if node.op in _NO_KERNEL:
        return f"there is no integer kernel for {node.op} with static scales"
    x, weight = (_dequantized(t) for t in node.inputs[:2])
    if x is None or weight is None:
        what = "input" if x is None else "weight" if is_constant(node.inputs[1]) else "second input"
        return f"its {what} '{node.inputs[0 if x is None else 1].name}' is float"
    if not is_constant(weight.inputs[0]) and node.op != "MatMul":
        return "its weights are computed at run time"
    bias = _dequantized(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if len(node.inputs) > 2 and bias is None and not node.inputs[2].is_empty():
        return f"its bias '{node.inputs[2].name}' is float"
    if bias is not None and not _on_product_scale(x, weight, bias):
        return "the scale of its bias is not that of input times weight"
    reader = _only_reader(node, scope)
    while reader is not None and reader.op in ("Relu", "Clip"):
        reader = _only_reader(reader, scope)
    if node.op == "Conv" and (reader is None or reader.op != "QuantizeLinear"):
        return "its output is read as float, and its integer kernel gives integers only"
    if reader is not None and reader.op == "Add":
        return "the Add behind it is fused with it before integer kernels are looked for"
    return "ONNX Runtime has no integer kernel for this combination of types, scales and attributes"


def _dequantized(tensor: object) -> Node | None:
    """The DequantizeLinear that makes a tensor, if one does."""
    made_by = next(iter(tensor.inputs), None)  # type: ignore[attr-defined]  # a graphsurgeon tensor
    return made_by if made_by is not None and made_by.op == "DequantizeLinear" else None


def _on_product_scale(x: Node, weight: Node, bias: Node) -> bool:
    scales = [n.inputs[1] for n in (x, weight, bias)]
    if not all(map(is_constant, scales)):
        return False
    a, b, c = (np.asarray(s.values, np.float64) for s in scales)
    return bool(np.allclose(a * b, c, rtol=1e-5, atol=0))


def _label(node: Node) -> str:
    return str(node.name or next((t.name for t in node.outputs if t.name), node.op))
