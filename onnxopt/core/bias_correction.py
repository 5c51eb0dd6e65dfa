"""How far rounding shifts what a layer reads, on average over the data.

Rounded weights and inputs add an error to a layer's output whose mean is not zero: W E[x] - W' E[x'], with the means of
exact and rounded input per channel. Taken into the bias it costs nothing at run time (Nagel et al., "Data-free
quantization through weight equalization and bias correction", 2019, here with means from data). Every layer is
corrected for its own rounding only, so that corrections do not add up along the net.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.placement import Placement
from onnxopt.graph.ir import Node, Tensor, Variable
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.numerics.qparams import QParams

# Means settle long before ranges do. Few samples at a time keep the tensors in the processor's cache.
SAMPLES = 64
_BATCH = 4


@dataclass(frozen=True)
class Means:
    """Of a layer's input, per channel (axis 1), float64 (channels,): as it is, and as the layer sees it."""

    exact: Floats
    rounded: Floats


def measure(model: Model, context: Context, placement: Placement, params: Mapping[str, QParams]) -> dict[str, Means]:
    """The means of what the placement's Conv and Gemm read, by tensor; ``params`` say how each tensor is rounded.

    They are taken inside the graph, so that memory stays small whatever the tensors are.
    """
    probe = model.clone()
    variables = probe.variables()
    read = {u.reads[0].name: u.node.op for u in placement.units if u.node.op in ("Conv", "Gemm")}
    watched = {name: _watch(probe, variables[name], op, params[name]) for name, op in read.items()}
    sums: dict[str, Floats] = {}
    rows: dict[str, int] = {}
    tensors = [tensor for pair in watched.values() for tensor in pair]
    for values in context.activations(probe, tensors, samples=SAMPLES, batch=_BATCH):
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value.reshape(len(value), -1).sum(axis=0, dtype=np.float64)
            rows[name] = rows.get(name, 0) + len(value)
    return {name: Means(*(sums[tensor] / rows[tensor] for tensor in pair)) for name, pair in watched.items()}


def _watch(probe: Model, tensor: Variable, op: str, params: QParams) -> list[str]:
    """A tensor and its rounded copy, for Conv averaged over positions: (rows, channels) or (rows, channels, 1, ...)."""
    constants = [probe.constant("probe", p) for p in params]
    integers, rounded = (Variable(probe.fresh_name(f"{tensor.name}_{what}")) for what in ("quantized", "rounded"))
    _append(probe, "QuantizeLinear", [tensor, *constants], integers)
    _append(probe, "DequantizeLinear", [integers, *constants], rounded)
    if op == "Gemm":
        return [tensor.name, rounded.name]
    means = [Variable(probe.fresh_name(f"{t.name}_mean")) for t in (tensor, rounded)]
    for source, mean in zip((tensor, rounded), means, strict=True):
        _append(probe, "GlobalAveragePool", [source], mean)
    return [m.name for m in means]


def _append(probe: Model, op: str, inputs: Sequence[Tensor], output: Variable) -> None:
    probe.graph.nodes.append(Node(op, probe.fresh_name(output.name), inputs, [output]))
