"""How far rounding shifts what a layer reads, on average over the data.

Rounded weights and inputs add an error to a layer's output whose mean is not zero: W E[x] - W' E[x'], with the means of
exact and rounded input per channel. Taken into the bias it costs nothing at run time (Nagel et al., "Data-free
quantization through weight equalization and bias correction", 2019, here with means from data). Every layer is
corrected for its own rounding only, so that corrections do not add up along the net.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnxopt.core.context import Context
from onnxopt.graph.ir import Node, Tensor, Variable
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.numerics.qparams import QParams
from onnxopt.quantization.eligible import Sizes
from onnxopt.quantization.placement import Unit

# Means settle long before ranges do. Few samples at a time keep the tensors in the processor's cache.
SAMPLES = 64
_BATCH = 4


@dataclass(frozen=True)
class Means:
    """Of a layer's input, per channel, float64 (channels,): as it is, and as the layer sees it."""

    exact: Floats
    rounded: Floats


class Read(NamedTuple):
    """A tensor, by name, and the axis of it that a layer takes for its channels: 1 or -1."""

    tensor: str
    axis: int

    @classmethod
    def by(cls, unit: Unit) -> Read:
        return cls(unit.reads[0].name, 1 if unit.node.op == "Conv" else -1)


def measure(model: Model, context: Context, sizes: Sizes, reads: Mapping[Read, QParams]) -> dict[Read, Means]:
    """The means of what layers read; ``reads`` say how each tensor is rounded, ``sizes`` are the tensors' shapes."""
    probe = model.clone()
    variables = probe.variables()
    watched = {read: _watch(probe, variables[read.tensor], read.axis, params) for read, params in reads.items()}
    channels = {t: sizes[read.tensor][read.axis] for read, pair in watched.items() for t in pair}
    sums: dict[str, Floats] = {t: np.zeros(n) for t, n in channels.items()}
    rows = dict.fromkeys(channels, 0)
    for values in context.activations(probe, list(channels), samples=SAMPLES, batch=_BATCH):
        for name, value in values.items():
            table = value.reshape(-1, channels[name])
            sums[name] += table.sum(axis=0, dtype=np.float64)
            rows[name] += len(table)
    return {read: Means(*(sums[t] / max(rows[t], 1) for t in pair)) for read, pair in watched.items()}


def _watch(probe: Model, tensor: Variable, axis: int, params: QParams) -> list[str]:
    """A tensor and its rounded copy, channels last: of images, which are large, the averages over all positions."""
    constants = [probe.constant("probe", p) for p in params]
    integers, rounded = (Variable(probe.fresh_name(f"{tensor.name}_{what}")) for what in ("quantized", "rounded"))
    _append(probe, "QuantizeLinear", [tensor, *constants], integers)
    _append(probe, "DequantizeLinear", [integers, *constants], rounded)
    if axis == -1:
        return [tensor.name, rounded.name]
    means = [Variable(probe.fresh_name(f"{t.name}_mean")) for t in (tensor, rounded)]
    for source, mean in zip((tensor, rounded), means, strict=True):
        _append(probe, "GlobalAveragePool", [source], mean)
    return [m.name for m in means]


def _append(probe: Model, op: str, inputs: Sequence[Tensor], output: Variable) -> None:
    probe.graph.nodes.append(Node(op, probe.fresh_name(output.name), inputs, [output]))
