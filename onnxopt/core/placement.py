"""Which nodes should run in integers, and which tensors must be quantized for that.

Layers (Conv, Gemm, MatMul with constant weights) always do. Every other operator that has an integer kernel is a
matter of cost: left float between integer neighbours it needs a dequantization before it and a quantization behind it.
Which of them to take is a minimum cut: nodes on one side run in integers, nodes on the other in floats, and each tensor
that crosses pays for its conversion, once. (Boykov and Jolly, 2001, label pixels so; here the pixels are nodes.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod
from types import MappingProxyType

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from onnxopt.core.kernels import CLAMPS, DEQUANTIZE_PS, FLOAT_LAYERS, KERNELS, NODE_PS, QUANTIZE_PS, Kernel, Kind
from onnxopt.core.pass_ import Skip, label
from onnxopt.graph import layer as layers
from onnxopt.graph.ir import Node, Scope, Tensor, Variable, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import TensorSpec

Sizes = Mapping[str, tuple[int, ...]]
Specs = Mapping[str, TensorSpec]
Reasons = Mapping[str, str]
_NONE: Reasons = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Unit:
    """A node that can run in integers, with the Relu or Clip behind it that its quantized output makes superfluous."""

    node: Node
    kernel: Kernel
    clamp: Node | None = None

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """What it takes as integers, a layer's weights and bias apart; constants may be among them."""
        chosen = self.kernel.activations
        return tuple(self.node.inputs if chosen is None else (self.node.inputs[i] for i in chosen))

    @cached_property
    def reads(self) -> tuple[Variable, ...]:
        """The operands that are computed, each once."""
        return tuple({id(t): t for t in self.operands if isinstance(t, Variable)}.values())

    @property
    def writes(self) -> tuple[Variable, ...]:
        """What it makes."""
        return tuple((self.clamp or self.node).outputs)

    @property
    def moves(self) -> bool:
        """Are its outputs on its input's scale?"""
        return self.kernel.kind is Kind.MOVE


@dataclass(frozen=True)
class Placement:
    """``units`` run in integers, in the order of the graph. ``skips`` are layers that do not, with the reason.

    ``sizes`` are the observed shapes, by tensor.
    """

    units: tuple[Unit, ...]
    skips: tuple[Skip, ...]
    sizes: Sizes

    def readers(self, tensor: Tensor) -> list[Unit]:
        """The units that read a tensor as integers."""
        units = (self._unit_of.get(id(node)) for node in {id(n): n for n in tensor.outputs}.values())
        return [u for u in units if u is not None and any(t is tensor for t in u.reads)]

    @cached_property
    def _unit_of(self) -> dict[int, Unit]:
        return {id(u.node): u for u in self.units}

    @cached_property
    def read(self) -> dict[str, Variable]:
        """The tensors that some unit reads as integers, by name."""
        return {t.name: t for u in self.units for t in u.reads}

    @cached_property
    def made(self) -> dict[str, Variable]:
        """The tensors that are integers as soon as they are made, by name: whoever reads them reads rounded values."""
        return {t.name: t for u in self.units for t in u.writes if not u.kernel.float_output or t.name in self.read}

    @cached_property
    def roots(self) -> dict[str, str]:
        """For each quantized tensor, the one whose scale it shares: where its numbers come from; itself, mostly."""
        found = {name: name for name in (*self.read, *self.made)}
        for unit in self.units:
            if unit.moves:
                found |= {t.name: found[unit.reads[0].name] for t in unit.writes}
        return found


def place(
    model: Model, sizes: Sizes, specs: Specs, *, left_out: Reasons = _NONE, unfit: Reasons = _NONE
) -> Placement:
    """Choose. ``sizes`` are observed shapes, ``specs`` inferred types, both by tensor.

    Nodes named in ``left_out`` stay float, and so do all that would need a tensor named in ``unfit`` quantized.
    """
    scope = Scope(model.graph)
    units: list[Unit] = []
    skips = list(_in_bodies(model))
    for node in model.graph.nodes:
        why = left_out.get(label(node)) or fault(node, sizes, specs, model.opset)
        if not why:
            unit = Unit(node, KERNELS[node.op], _clamp(node, scope))
            needed = unit.reads if unit.kernel.float_output else (*unit.reads, *unit.writes)
            why = next((f"'{t.name}' {unfit[t.name]}" for t in needed if t.name in unfit), "")
        if not why:
            units.append(unit)
        elif is_layer(node):
            skips.append(Skip(label(node), why))
    chosen = _cheapest(units, scope, sizes)
    return Placement(tuple(u for u, taken in zip(units, chosen, strict=True) if taken), tuple(skips), sizes)


def is_layer(node: Node) -> bool:
    """Is most of a model's time spent in operators like this one?"""
    kernel = KERNELS.get(node.op)
    return node.is_standard and (node.op in FLOAT_LAYERS or (kernel is not None and kernel.kind is Kind.LAYER))


def fault(node: Node, sizes: Sizes, specs: Specs, opset: int) -> str:
    """Why a node cannot run in integers; empty if it can."""
    kernel = KERNELS.get(node.op) if node.is_standard else None
    if kernel is None:
        return FLOAT_LAYERS.get(node.op, f"{node.op} has no integer kernel")
    if opset < kernel.since:
        return f"{node.op} takes integers from opset {kernel.since} on"
    for name, allowed in kernel.attributes.items():
        if node.attrs.get(name) not in allowed:
            return f"there is no integer kernel for {name}={node.attrs[name]}"
    unit = Unit(node, kernel)
    if kernel.kind is Kind.LAYER and (why := _layer_fault(node)):
        return why
    if not unit.reads:
        return "its inputs are constant"
    for tensor in (*unit.operands, *node.outputs):
        if why := _tensor_fault(tensor, sizes, specs):
            return f"'{tensor.name}' {why}"
    if node.op == "Pad" and len(node.inputs) > 2 and not _is_zero(node.inputs[2]):
        return "it pads with something else than zero"
    if node.op == "AveragePool" and not node.attrs.get("count_include_pad", 0) and _pads(node):
        return "it does not count what it pads"
    return ""


def column_bias(node: Node) -> layers.Floats | None:
    """A layer's bias as (channels,), zeros where there is none; None where it does not run along the channels."""
    bias, channels = layers.bias(node), layers.layout(node).outputs
    if bias.size != 1 and (bias.size != channels or bias.shape[-1] != channels):
        return None
    return np.broadcast_to(bias.reshape(-1), (channels,))


def output_axis(node: Node) -> int:
    """The axis of a layer's weight that runs along its output channels."""
    return 0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1


def clamp_limits(clamp: Node) -> tuple[float, float]:
    """The range of a Relu's or a Clip's output; NaN where it is computed at run time."""
    if clamp.op == "Relu":
        return 0.0, inf
    if "min" in clamp.attrs or "max" in clamp.attrs:
        return float(clamp.attrs.get("min", -inf)), float(clamp.attrs.get("max", inf))
    given = [None if t.is_empty() else float(t.values.item()) if is_constant(t) else np.nan for t in clamp.inputs[1:3]]
    lo, hi = (*given, None, None)[:2]
    return -inf if lo is None else lo, inf if hi is None else hi


def _layer_fault(node: Node) -> str:
    weight = node.inputs[1]
    if not is_constant(weight):
        return "its weights are computed at run time"
    if weight.dtype != np.float32:
        return f"its weights are {weight.dtype}, not float32"
    if node.op == "MatMul" and len(weight.shape) != 2:
        return f"its weights have {len(weight.shape)} axes, not 2"
    if len(node.inputs) > 2 and not (node.inputs[2].is_empty() or is_constant(node.inputs[2])):
        return "its bias is computed at run time"
    if not np.isfinite(weight.values).all() or not np.isfinite(layers.bias(node)).all():
        return "its weights are not all finite"
    return "its bias is not one number per column" if column_bias(node) is None else ""


def _tensor_fault(tensor: Tensor, sizes: Sizes, specs: Specs) -> str:
    if is_constant(tensor):
        if tensor.dtype != np.float32:
            return f"is {tensor.dtype}, not float32"
        return "" if tensor.values.size and np.isfinite(tensor.values).all() else "is empty or not finite"
    if tensor.name not in specs:
        return "is of unknown type"
    if specs[tensor.name].dtype != np.float32:
        return f"is {specs[tensor.name].dtype}, not float32"
    return "" if prod(sizes.get(tensor.name, (0,))) else "is empty or of unknown size"


def _is_zero(tensor: Tensor) -> bool:
    return tensor.is_empty() or (is_constant(tensor) and not np.any(tensor.values))


def _pads(node: Node) -> bool:
    return any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")


def _clamp(node: Node, scope: Scope) -> Node | None:
    """The Relu or Clip that alone reads the node's output, if zero lies inside its range."""
    if KERNELS[node.op].kind is Kind.MOVE or not scope.used_once(node.outputs[0]):
        return None
    reader = node.outputs[0].outputs[0]
    if reader.op not in CLAMPS or not reader.is_standard or reader.inputs[0] is not node.outputs[0]:
        return None
    lo, hi = clamp_limits(reader)
    return reader if lo <= 0 < hi else None


def _in_bodies(model: Model) -> Iterator[Skip]:
    for graph in model.graphs():
        if graph is not model.graph:
            yield from (Skip(label(n), "it is in the body of an If, Loop or Scan") for n in graph.nodes if is_layer(n))


def _cheapest(units: Sequence[Unit], scope: Scope, sizes: Sizes) -> list[bool]:
    """For each unit, whether it runs in integers when the sum of all times is least."""
    if not units:
        return []
    arcs = _Arcs(len(units))
    unit_of = {id(u.node): i for i, u in enumerate(units)}
    for i, unit in enumerate(units):
        arcs.add(_INTEGER, i, inf if unit.kernel.kind is Kind.LAYER else _time(unit, sizes, unit.kernel.float_ps))
        arcs.add(i, _FLOAT, _time(unit, sizes, unit.kernel.integer_ps))
    made_by = {t.name: i for i, u in enumerate(units) for t in u.writes}
    tensors = {t.name: t for u in units for t in (*u.reads, *u.writes)}
    for tensor in tensors.values():
        readers = [unit_of.get(id(n)) for n in tensor.outputs]
        integer = sorted({i for i in readers if i is not None and any(t is tensor for t in units[i].reads)})
        maker = made_by.get(tensor.name)
        free = maker is None or units[maker].kernel.float_output
        elements = prod(sizes[tensor.name])
        # Paid once if the maker's side is float (or its output is) and any reader's is integer.
        gate = arcs.node()
        arcs.add(gate, _FLOAT if free else maker, NODE_PS + QUANTIZE_PS * elements)
        for i in integer:
            arcs.add(i, gate, inf)
        # Paid once if the maker's side is integer and any reader's is float.
        if not free:
            gate = arcs.node()
            arcs.add(maker, gate, NODE_PS + DEQUANTIZE_PS * elements)
            for i in integer:
                arcs.add(gate, i, inf)
            if len(integer) < len({id(n) for n in tensor.outputs}) or scope.is_output(tensor):
                arcs.add(gate, _FLOAT, inf)
    side = arcs.minimum_cut()
    return [side[i] for i in range(len(units))]


def _time(unit: Unit, sizes: Sizes, picoseconds: int) -> float:
    outputs = sum(prod(sizes[t.name]) for t in unit.node.outputs)
    if unit.kernel.windowed:
        elements: int = outputs * prod(unit.node.attrs.get("kernel_shape", ()))
    else:
        elements = max(outputs, sum(prod(sizes[t.name]) for t in unit.reads))
    return picoseconds * elements


_INTEGER, _FLOAT = -2, -1


class _Arcs:
    """A flow network from the integer side to the float side; nodes are numbered from 0, capacities are times."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._arcs: list[tuple[int, int, float]] = []

    def node(self) -> int:
        self._nodes += 1
        return self._nodes - 1

    def add(self, start: int | None, end: int | None, capacity: float) -> None:
        """An arc is paid for when it leads from the integer side to the float side."""
        assert start is not None
        assert end is not None
        self._arcs.append((start, end, capacity))

    def minimum_cut(self) -> list[bool]:
        """For each node, whether it lies on the integer side; as few as possible do."""
        start, end, capacity = (np.array(column) for column in zip(*self._arcs, strict=True))
        finite = np.isfinite(capacity)
        # scipy counts in int32: scaled so that all finite arcs together stay under the infinite ones.
        unit = max(1.0, float(capacity[finite].sum()) / 2**28)
        capacity = np.where(finite, np.ceil(capacity / unit, where=finite, out=np.zeros_like(capacity)), 2**30)
        size, source, sink = self._nodes + 2, self._nodes + 2 + _INTEGER, self._nodes + 2 + _FLOAT
        network = scipy.sparse.coo_array((capacity.astype(np.int32), (start % size, end % size)), (size, size)).tocsr()
        flow = scipy.sparse.csgraph.maximum_flow(network, source, sink).flow
        residual = network - flow
        residual.data = np.maximum(residual.data, 0)
        residual.eliminate_zeros()
        reached = scipy.sparse.csgraph.breadth_first_order(residual, source, return_predecessors=False)
        side = np.zeros(size, bool)
        side[reached] = True
        return list(map(bool, side[: self._nodes]))
