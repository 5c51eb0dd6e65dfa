"""What ONNX Runtime really executes: which products became integer kernels, which stayed float, and why.

The session saves the graph that it made of the model. A kernel there bears the name of a node that it replaces, or of
that node's output, with something appended: nodes and outputs that were given numbers for names can be found again.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx

from onnxopt.graph import shapes
from onnxopt.graph.cost import PRODUCTS, Shape, cost
from onnxopt.graph.ir import Node, Scope, is_constant
from onnxopt.graph.model import Model
from onnxopt.runtime.islands import DEQUANTIZE, QUANTIZE, Obstacle, Rules, flaw, obstacle, only_reader
from onnxopt.runtime.marks import mark, marks
from onnxopt.runtime.session import Session

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
# What changes of layout and shape leave behind; they often give a fused tensor its name.
_MOVES = ("Transpose", "Reshape", "ReorderOutput")
_UNKNOWN = Obstacle("ONNX Runtime has no integer kernel for this combination of types, scales and attributes")
_NONE = Obstacle("")


@dataclass(frozen=True)
class Executed:
    """One node of the model: its name and operator, and the kernel that does its work ("" if none: fused or folded).

    For a float kernel of a product, ``why``, and what would ``mend`` it ("" if nothing would); for an integer kernel,
    both tell why its numbers are wrong, if they are. ``macs`` is None where they are not known.
    """

    node: str
    op: str
    kernel: str
    why: str
    mend: str = ""
    macs: int | None = None

    @property
    def integer(self) -> bool:
        return self.kernel in INTEGER_KERNELS


@dataclass(frozen=True)
class Audit:
    """``every`` is each node of the model, in the order of ``Model.nodes``; ``operators`` counts what the runtime
    executes, by type."""

    every: tuple[Executed, ...]
    operators: Mapping[str, int]

    @property
    def nodes(self) -> tuple[Executed, ...]:
        """The products: convolutions, matrix products, recurrent cells, attention."""
        return tuple(n for n in self.every if n.op in PRODUCTS)

    @property
    def steps(self) -> tuple[Executed, ...]:
        """The model's own steps between float and integer; those without a kernel are part of another one."""
        return tuple(n for n in self.every if n.op in QUANTIZE or n.op == DEQUANTIZE)

    @property
    def integer(self) -> tuple[Executed, ...]:
        """The products that are computed in integers."""
        return tuple(n for n in self.nodes if n.integer)

    @property
    def islands(self) -> tuple[Executed, ...]:
        """The products that are computed in floats."""
        return tuple(n for n in self.nodes if n.kernel and not n.integer)

    @property
    def quantizations(self) -> int:
        """Steps from float to integer that are left."""
        return sum(self.operators.get(op, 0) for op in QUANTIZE)

    @property
    def dequantizations(self) -> int:
        """Steps from integer to float that are left."""
        return self.operators.get(DEQUANTIZE, 0)

    @property
    def conversions(self) -> int:
        """Steps from float to integer and back that are left."""
        return self.quantizations + self.dequantizations

    @property
    def integer_share(self) -> float | None:
        """Share of the multiply-accumulate operations that integer kernels do, of those that are known; None if none
        are."""
        total = sum(n.macs or 0 for n in self.nodes if n.kernel)
        return sum(n.macs or 0 for n in self.integer) / total if total else None


def is_quantized(model: Model) -> bool:
    """Does any node compute in integers, or between float and integer?"""
    marks = {*INTEGER_KERNELS, *QUANTIZE, DEQUANTIZE}
    return any(node.op in marks for node in model.nodes())


def audit(model: Model, *, rules: Rules = "native", shapes_of: Mapping[str, Shape] | None = None) -> Audit:
    """Look at a model as the CPU provider runs it, here or, by its ``rules``, on ARM.

    ``shapes_of`` gives tensors' shapes by name; without it no MACs are counted. Raises ExecutionError when ONNX Runtime
    cannot load the model.
    """
    marked = model.clone()
    proven = cache(lambda: shapes.proven(model))
    places = [(node, scope) for scope in (Scope(g, proven) for g in marked.graphs()) for node in scope.graph.nodes]
    reasons = [_reasons(node, scope, rules) if node.op in PRODUCTS else (_NONE, _NONE) for node, scope in places]
    macs = [n.macs for n in cost(model, shapes_of).nodes] if shapes_of is not None else [None] * len(places)
    names = [_label(node) for node, _ in places]
    number = mark(marked)
    executed = list(_executed(marked, rules))
    named, made = _kernels(executed)
    constant = _constant_nodes(marked)
    every = []
    for (node, scope), (why, wrong), name, work in zip(places, reasons, names, macs, strict=True):
        kernel = named.get(number[id(node)], "")
        if not kernel and node.op in PRODUCTS and id(node) not in constant:
            kernel = _kernel_behind(node, scope, number, named, made)
        said = _NONE if not kernel else wrong if kernel in INTEGER_KERNELS else why
        every.append(Executed(name, node.op, kernel, said.why, said.mend, work if node.op in PRODUCTS else None))
    return Audit(tuple(every), dict(Counter(n.op_type for n in executed)))


def _reasons(node: Node, scope: Scope, rules: Rules) -> tuple[Obstacle, Obstacle]:
    """Why a product would be float, and why its integer kernel would be wrong."""
    return obstacle(node, scope, rules) or _UNKNOWN, flaw(node, scope) or _NONE


def _executed(model: Model, rules: Rules = "native") -> Iterator[onnx.NodeProto]:
    """The nodes of the graph that the session runs, those in bodies included."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        path = Path(folder) / "optimized.onnx"
        Session(model, save_optimized=path, arm_rules=rules == "arm")
        stack = [onnx.load(path, load_external_data=False).graph]
    while stack:
        graph = stack.pop()
        yield from graph.node
        for node in graph.node:
            stack += [a.g for a in node.attribute if a.HasField("g")]


def _kernels(executed: list[onnx.NodeProto]) -> tuple[dict[int, str], dict[int, str]]:
    """Kernels by the number of a node whose name they bear; and those that bear none by the node whose output they
    make."""
    named: dict[int, str] = {}
    made: dict[int, str] = {}
    for node in executed:
        for i in marks(node.name):
            if node.op_type in INTEGER_KERNELS or named.get(i) not in PRODUCTS:
                named[i] = node.op_type
        if not marks(node.name) and node.op_type not in _MOVES:
            made |= {i: node.op_type for name in node.output for i in marks(name)}
    return named, made


def _kernel_behind(
    node: Node, scope: Scope, number: Mapping[int, int], named: Mapping[int, str], made: Mapping[int, str]
) -> str:
    """A fused kernel may be called after the last node in it, or after nothing at all."""
    place: Node | None = node
    while place is not None:
        i = number[id(place)]
        if i in named or i in made:
            kernel = named.get(i) or made[i]
            # A reader that executes as itself reads what was folded into a constant.
            return kernel if kernel != place.op else ""
        place = only_reader(place, scope)
    return ""


def _constant_nodes(model: Model) -> set[int]:
    """The nodes that compute with constants only, by ``id``: they are gone when the model is loaded."""
    found: set[int] = set()
    for node in model.nodes():
        given = [t for t in node.inputs if not t.is_empty()]
        if given and all(is_constant(t) or any(id(p) in found for p in t.inputs) for t in given):
            found.add(id(node))
    return found


def _label(node: Node) -> str:
    return str(node.name or next((t.name for t in node.outputs if t.name), node.op))
