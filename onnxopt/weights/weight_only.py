"""Nodes whose weights alone can be integers of few bits: MatMul, Gemm, Conv, and the tables that Gather reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from onnxopt.core import unrolled
from onnxopt.core.pass_ import label
from onnxopt.graph.decoding import already
from onnxopt.graph.ir import Constant, Graph, Node, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.graph.signs import never_negative
from onnxopt.numerics.balancing import balanced
from onnxopt.numerics.blocks import Blocks, Coded, Format, Grid, full_range, half_quadratic, nearest, squared_error
from onnxopt.quantization.dynamic_eligible import is_turned, stored
from onnxopt.runtime.audit import INTEGER_KERNELS

Kind = Literal["product", "conv", "table"]
Rounding = Literal["nearest", "half-quadratic", "balanced"]

# Fewer weights than this are not worth scales and another node.
SMALL = 1024
_NEVER = ("ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "GatherElements", "GatherND")
# Where operators take weights that may have been made integers before, and those that take nothing else.
_WEIGHT = {"MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1, "Gather": 0}
_CODED = INTEGER_KERNELS | {"MatMulNBits", "GatherBlockQuantized"}
# Weights beyond this, or all below its inverse, are no weights of a layer: their squares leave float32.
_LARGEST = 2.0**50
# Weights that are coded at a time: their temporaries stay in the processor's cache.
_PIECE = 2**18


@dataclass(frozen=True)
class Site:
    """A node, the graph that holds it, and the constant that holds its weights, perhaps behind a Transpose."""

    node: Node
    graph: Graph
    weight: Constant
    kind: Kind

    @property
    def factor(self) -> float:
        """What the weights are multiplied by."""
        return float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0

    @property
    def by_row(self) -> bool:
        """Is the weight stored as (outputs, inputs)?"""
        return self.kind != "product" or is_turned(self.node)

    def matrix(self) -> Array:
        """The weights as (outputs, inputs x kernel), a view; of a table (entries, numbers)."""
        values = np.asarray(self.weight.values)
        return values.reshape(len(values), -1) if self.by_row else values.T

    def blocks(self, block: int) -> Blocks:
        """Which columns share a scale; all, where there are fewer inputs than a block holds."""
        return Blocks.along(self.inputs, self.block(block), self.kernel)

    def block(self, block: int) -> int:
        """How many inputs share a scale; 0: all."""
        return block if self.inputs > block else 0

    @property
    def inputs(self) -> int:
        """Columns of the matrix, without the kernel."""
        return int(self.weight.shape[1 if self.by_row else 0])

    @property
    def kernel(self) -> int:
        """Positions of a convolution's kernel."""
        return prod(self.weight.shape[2:]) if self.kind == "conv" else 1


def find(model: Model, left_out: Mapping[str, str]) -> tuple[list[Site], dict[str, str]]:
    """The nodes whose weights can be coded, in order, and the reasons of the others, by label."""
    found: list[Site] = []
    left: dict[str, str] = {}
    for graph in model.graphs():
        for node in graph.nodes:
            if not _is_candidate(node):
                continue
            if why := left_out.get(label(node)) or _fault(node):
                left[label(node)] = why
            else:
                found.append(_site(node, graph))
    outputs = {id(t) for graph in model.graphs() for t in graph.outputs}
    while True:
        sites = {id(site.node) for site in found}
        held = [(site, _other_reader(site, sites, outputs)) for site in found]
        left |= {label(site.node): f"its weights are also read as float by {other}" for site, other in held if other}
        if not any(other for _, other in held):
            return found, left
        found = [site for site, other in held if not other]


def unfit(site: Site) -> str:
    """Why the numbers of a site cannot be coded; empty if they can."""
    values = np.asarray(site.weight.values)
    largest = max(float(values.max()), -float(values.min())) * abs(site.factor)
    if not np.isfinite(largest):
        return "its weights are not all finite"
    if largest > _LARGEST:
        return f"its weights are too large: they reach {largest:.0e}"
    return f"its weights are too small: {largest:.0e} at most" if 0 < largest < 1 / _LARGEST else ""


def encode(site: Site, form: Format, block: int, rounding: Rounding) -> tuple[Coded, float]:
    """The weights as integers, found without data, and their squared error over their squares. A part of the rows at a
    time."""
    matrix, blocks = site.matrix(), site.blocks(block)
    steps = np.empty(matrix.shape, np.int8)
    scale = np.empty((len(matrix), blocks.count), np.float32)
    zero = np.empty(scale.shape, np.int8)
    error = whole = 0.0
    for rows in _pieces(*matrix.shape):
        part = np.ascontiguousarray(matrix[rows], np.float32)
        part = part if site.factor == 1 else part * np.float32(site.factor)
        found = _coded(part, blocks, form, rounding)
        steps[rows], scale[rows], zero[rows] = found.steps, found.grid.scale, found.grid.zero
        error += float(squared_error(part, found).sum(dtype=np.float64))
        whole += float(np.square(part).sum(dtype=np.float64))
    return Coded(steps, Grid(scale, zero), blocks), error / whole if whole else 0.0


def _coded(weight: Array, blocks: Blocks, form: Format, rounding: Rounding) -> Coded:
    if rounding == "half-quadratic":
        return half_quadratic(weight, blocks, form)
    if rounding == "balanced":
        return balanced(weight, blocks, form)
    return nearest(weight, full_range(weight, blocks, form), blocks, form)


def without_data(sites: Sequence[Site]) -> Rounding:
    """How to round what these sites share: behind a Relu and its like so that errors cancel, else block by block."""
    summed = all(s.kind != "table" and never_negative(s.node.inputs[0]) for s in sites)
    return "balanced" if summed else "half-quadratic"


def _pieces(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _PIECE // max(columns, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


def _is_candidate(node: Node) -> bool:
    """Is this an operator with weights?"""
    if node.op in _CODED or _reads_integers(node):
        return True
    if node.op in _NEVER or not node.is_standard:
        return any(is_constant(t) and t.dtype.kind == "f" and len(t.shape) > 1 for t in node.inputs)
    if node.op == "Gather":
        table = node.inputs[0]
        return bool(already(table)) or (is_constant(table) and table.dtype.kind == "f" and len(table.shape) > 1)
    if node.op in ("MatMul", "Gemm"):
        return any(is_constant(stored(t)) or already(t) for t in node.inputs[:2])
    return bool(node.op == "Conv")


def _site(node: Node, graph: Graph) -> Site:
    if node.op in ("MatMul", "Gemm"):
        return Site(node, graph, stored(node.inputs[1]), "product")
    if node.op == "Conv":
        return Site(node, graph, node.inputs[1], "conv")
    return Site(node, graph, node.inputs[0], "table")


def _fault(node: Node) -> str:
    """Why a candidate's weights stay as they are; empty if they need not."""
    if node.op in _CODED or _reads_integers(node):
        return "its weights are integers already"
    if node.op in _NEVER or not node.is_standard:
        return f"no form of few bits for {node.kind}: {'quant-dynamic, ' * (node.op == 'LSTM')}cluster or fp16 may do"
    weight = node.inputs[0] if node.op == "Gather" else stored(node.inputs[1])
    if how := already(weight):
        return f"its weights are {how}"
    if not is_constant(weight):
        return "its weights are computed at run time" if node.op == "Conv" else "its constant is the first factor"
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}, not float32: start from the model in float32"
    if prod(weight.shape) < SMALL:
        return f"it is small: {prod(weight.shape)} weights"
    if node.op != "Conv" and len(weight.shape) != 2:
        return "its weights are not a matrix"
    if node.op == "Gather" and node.attrs.get("axis", 0) not in (0, -2):
        return "it looks up columns, not rows"
    return _gemm_fault(node) if node.op == "Gemm" else ""


def _reads_integers(node: Node) -> bool:
    """Are its weights decoded for it?"""
    at = _WEIGHT.get(node.op) if node.is_standard else None
    maker = None if at is None else next(iter(stored(node.inputs[at]).inputs), None)
    if maker is not None and maker.op == "Transpose":
        maker = next(iter(maker.inputs[0].inputs), None)
    return maker is not None and maker.op == "DequantizeLinear" and is_constant(maker.inputs[0])


def _gemm_fault(node: Node) -> str:
    if node.attrs.get("transA", 0):
        return "it transposes its input"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.is_empty() or is_constant(bias) or node.attrs.get("beta", 1.0) == 1:
        return ""
    return "it scales a bias that is computed"


def _other_reader(site: Site, sites: set[int], outputs: set[int]) -> str:
    """What besides these sites reads the weights as they are; empty if nothing does."""
    tensors = [site.weight]
    for tensor in tensors:
        if id(tensor) in outputs:
            return "the model's caller"
        for node in tensor.outputs:
            if id(node) in sites:
                continue
            if node.op != "Transpose" or not node.is_standard or tensor is not site.weight:
                return f"'{label(node)}'"
            tensors.append(node.outputs[0])
    return ""


def readers(sites: Sequence[Site]) -> dict[int, list[Site]]:
    """The sites that read one constant, by its ``id``."""
    found: defaultdict[int, list[Site]] = defaultdict(list)
    for site in sites:
        found[id(site.weight)].append(site)
    return found


def across_graphs(sites: Sequence[Site]) -> list[Site]:
    """The products whose weights are read in several graphs: the main one and bodies."""
    graphs: defaultdict[int, set[int]] = defaultdict(set)
    for site in sites:
        graphs[id(site.weight)].add(id(site.graph))
    return [s for s in sites if s.kind == "product" and len(graphs[id(s.weight)]) > 1]


def solvable(model: Model, sites: Sequence[Site]) -> list[Site]:
    """The sites of the main graph that can be solved for: all weights their own, and numbers."""
    outer = {id(n) for n in model.graph.nodes}
    alone = {key for key, group in readers(sites).items() if len(group) == 1}
    return [
        s
        for s in sites
        if s.kind != "table"
        and id(s.node) in outer
        and id(s.weight) in alone
        and not unrolled.fault(s.node)
        and not unfit(s)
    ]
