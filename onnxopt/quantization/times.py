"""What nodes and conversions cost, in floats and in integers: measured where they were, by the table where not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, prod
from typing import TYPE_CHECKING

from onnxopt.core.pass_ import label
from onnxopt.graph.ir import Node, Tensor
from onnxopt.quantization.eligible import Sizes
from onnxopt.quantization.kernels import DEQUANTIZE_PS, NODE_PS, QUANTIZE_PS, Kind

if TYPE_CHECKING:
    from onnxopt.quantization.placement import Placement, Unit

# A layer stays integer where it takes this much longer than in floats: the file is smaller for it.
_TIE = 1.03


@dataclass(frozen=True)
class Times:
    """Measured seconds. ``floats`` and ``integers`` of nodes, by label; ``quantize`` and ``dequantize`` of the steps
    from and to floats, by the name of the tensor. What was never measured is missing."""

    floats: Mapping[str, float] = field(default_factory=dict)
    integers: Mapping[str, float] = field(default_factory=dict)
    quantize: Mapping[str, float] = field(default_factory=dict)
    dequantize: Mapping[str, float] = field(default_factory=dict)

    def with_floats(self, nodes: Mapping[str, float]) -> Times:
        """With the times of the nodes of the float model."""
        return Times({**self.floats, **nodes}, self.integers, self.quantize, self.dequantize)

    def with_integers(self, placement: Placement, nodes: Mapping[str, float]) -> Times:
        """With the times of the nodes of an integer model, whose nodes the placement's units are."""
        integers, quantize, dequantize = dict(self.integers), dict(self.quantize), dict(self.dequantize)
        left = dict(nodes)
        for name, tensor in {**placement.read, **placement.made}.items():
            for table, step in ((quantize, "QuantizeLinear"), (dequantize, "DequantizeLinear")):
                steps = {label(n) for n in _around(tensor, name in placement.made) if n.op == step}
                spent = sum(left.pop(s, 0.0) for s in steps)
                if spent:
                    table[name] = spent
        for unit in placement.units:
            integers[label(unit.node)] = left.pop(label(unit.node), 0.0) + sum(
                left.pop(label(n), 0.0) for n in _helpers(unit)
            )
        return Times(self.floats, integers, quantize, dequantize)

    def dearer(self, factor: float) -> Times:
        """As if everything about integers took so many times as long."""
        tables = (self.integers, self.quantize, self.dequantize)
        return Times(self.floats, *({k: factor * v for k, v in t.items()} for t in tables))

    def in_floats(self, unit: Unit, sizes: Sizes) -> float:
        """Seconds of a unit's nodes in floats; infinite for a layer that was not measured in both forms."""
        names = [label(n) for n in (unit.node, unit.clamp) if n is not None]
        measured = sum(self.floats.get(n, 0.0) for n in names)
        if unit.kernel.kind is not Kind.LAYER:
            return measured or _by_table(unit, sizes, unit.kernel.float_ps)
        return measured * _TIE if measured and names[0] in self.integers else inf

    def in_integers(self, unit: Unit, sizes: Sizes) -> float:
        """Seconds of a unit in integers."""
        return self.integers.get(label(unit.node)) or _by_table(unit, sizes, unit.kernel.integer_ps)

    def to_integers(self, tensor: Tensor, sizes: Sizes) -> float:
        """Seconds to quantize a tensor."""
        return self.quantize.get(tensor.name) or (NODE_PS + QUANTIZE_PS * prod(sizes[tensor.name])) * 1e-12

    def to_floats(self, tensor: Tensor, sizes: Sizes) -> float:
        """Seconds to read a tensor back."""
        return self.dequantize.get(tensor.name) or (NODE_PS + DEQUANTIZE_PS * prod(sizes[tensor.name])) * 1e-12

    def against(self, unit: Unit, sizes: Sizes) -> str:
        """Why a layer is float: what it takes in either form, with the steps that it alone would need."""
        steps = sum(self.to_integers(t, sizes) for t in unit.reads)
        if not unit.float_output:
            steps += sum(self.to_floats(t, sizes) for t in unit.writes)
        alone, floats = self.in_integers(unit, sizes), self.in_floats(unit, sizes) / _TIE
        return (
            f"slower in integers: {_ms(alone)} and {_ms(steps)} for the steps to and from them, "
            f"against {_ms(floats)} in floats"
        )


def _around(tensor: Tensor, made: bool) -> list[Node]:
    """The steps that belong to a quantized tensor: those before it if it is made as integers, else those behind it."""
    if made:
        return [*tensor.inputs, *(n for back in tensor.inputs for n in back.inputs[0].inputs)]
    first = [n for n in tensor.outputs if n.op == "QuantizeLinear"]
    return first + [n for f in first for n in f.outputs[0].outputs]


def _helpers(unit: Unit) -> list[Node]:
    """Nodes that a layer's input passes through in integers, for the layer's sake alone."""
    if unit.kernel.kind is not Kind.LAYER:
        return []
    return [n for back in unit.node.inputs[0].inputs for n in back.inputs[0].inputs if n.name.endswith("_wide_Pad")]


def _by_table(unit: Unit, sizes: Sizes, picoseconds: int) -> float:
    outputs = sum(prod(sizes[t.name]) for t in unit.node.outputs)
    if unit.kernel.windowed:
        elements: int = outputs * prod(unit.node.attrs.get("kernel_shape", ()))
    else:
        elements = max(outputs, sum(prod(sizes[t.name]) for t in unit.reads))
    return picoseconds * elements * 1e-12


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"
