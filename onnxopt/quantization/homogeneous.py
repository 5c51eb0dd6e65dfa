"""Where a channel may be scaled without changing what a model computes: f(c x) = c f(x), c > 0, channel by channel.

Relu, pooling, sums and data movement hand a factor on; layers with constant weights take one in and give another out.
The rules are those of ``graph.coupling``: labels that are equal share one factor, label 0 has the factor 1, and an
element of a tensor has the product of its labels' factors. A constant that is not taken up anywhere keeps its values,
and so its labels stay.
"""

from __future__ import annotations

import numpy as np

from onnxopt.graph import coupling_moves
from onnxopt.graph import layer as layers
from onnxopt.graph.coupling_rules import pool, reduction
from onnxopt.graph.labels import Operand, Rule, Rules, Site
from onnxopt.quantization.eligible import clamp_limits, pads_with_zeros

# Operators whose constants take up the factors of what they make.
CARRY = ("Add", "LayerNormalization", "Max", "Mul", "Sub", "Sum")
# What makes a gate: no factor of its input comes through, so what it is multiplied with hands on its own.
_GATES = ("HardSigmoid", "Sigmoid", "Softmax", "Tanh")

rules = Rules()


def _with_constants_as_they_are(rule: Rule) -> Rule:
    def both(site: Site) -> None:
        rule(site)
        for x in site.operands():
            for k in range(x.rank if x.constant else 0):
                site.freeze(x[k], "reads a constant")

    return both


# Expand makes many of one, which must have one factor; ConstantOfShape computes with nothing that could have one.
rules.update(
    {
        op: _with_constants_as_they_are(rule)
        for op, rule in coupling_moves.rules.items()
        if op not in ("ConstantOfShape", "Expand", "Pad")
    }
)
rules.on("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")(_with_constants_as_they_are(pool))
rules.on("ReduceMax", "ReduceMean", "ReduceSum")(_with_constants_as_they_are(reduction))


@rules.on("Pad")
@_with_constants_as_they_are
def pad(site: Site) -> None:
    """Zeros stay zero."""
    if pads_with_zeros(site.node):
        coupling_moves.pad(site)


@rules.on("Conv", "ConvTranspose", "Gemm", "MatMul")
def layer(site: Site) -> None:
    """The weights take up a factor on either side. A product of two computed tensors hands on that of its columns."""
    x, w = site.operands()[:2]
    if layers.fault(site.node):
        if site.node.op == "MatMul" and not w.constant and w.rank > 1 and x.rank > 1:
            site.equal(w[-1], site.y[-1])
        return
    if site.attr("transA", 0) or x.constant:
        return
    channels = 1 if "Conv" in site.node.op else -1
    _free(x, channels)
    _free(site.y, channels)
    for constant in site.operands()[1:]:
        _free(constant, *range(constant.rank))
    if site.node.op == "MatMul":
        site.pass_on(x, site.y, range(x.rank - 1))


@rules.on("LayerNormalization")
def normalization(site: Site) -> None:
    """Scale and bias take up the factor of what is made; what is read has none, or it would be divided out."""
    x, *parameters = site.operands()
    if (
        len(site.outputs) == 1
        and not x.constant
        and all(p.constant and p.shape == site.y.shape[-1:] for p in parameters)
    ):
        for operand in (site.y, *parameters):
            _free(operand, -1)


@rules.on("Clip", "Dropout", "Identity", "LeakyRelu", "Relu")
@_with_constants_as_they_are
def unary(site: Site) -> None:
    """Clip only from zero on; what it cuts off above must not be reached: see ``equalization``."""
    lo, hi = clamp_limits(site.node) if site.node.op == "Clip" else (0.0, 1.0)
    if lo == 0 < hi and len(site.outputs) == 1:
        site.pass_on(site.operands()[0], site.y, range(site.y.rank))


@rules.on("PRelu")
@_with_constants_as_they_are
def prelu(site: Site) -> None:
    """The slope is a ratio."""
    x, slope = site.operands()
    if slope.constant:
        site.pass_on(x, site.y, range(x.rank))


@rules.on("Add", "Max", "Sub", "Sum")
def meeting(site: Site) -> None:
    """All that meets has one factor; constants are scaled where they have a number for each channel."""
    for x in site.operands() if _real(site) else ():
        for k in range(1, site.y.rank + 1):
            if k <= x.rank and x.shape[-k] == site.y.shape[-k]:
                site.equal(x[-k], site.y[-k])
            else:
                site.freeze(site.y[-k], "stretches one of its inputs")


@rules.on("Mul")
def scaling(site: Site) -> None:
    """A constant with a number for each channel takes up a factor on either side; a gate lets one through."""
    gates = [x for x in site.operands() if x.tensor.inputs and x.tensor.inputs[0].op in _GATES]
    others = [x for x in site.operands() if x.constant] or gates
    x = next((x for x in site.operands() if x not in others), None)
    if x is None or len(others) != 1 or x.shape != site.y.shape or not _real(site):
        return
    taken = others[0]
    for k in range(1, x.rank + 1):
        if taken.constant and k <= taken.rank and taken.shape[-k] == x.shape[-k]:
            _free(x, -k)
            _free(site.y, -k)
            _free(taken, -k)
        else:
            site.equal(x[-k], site.y[-k])


def _free(operand: Operand, *axes: int) -> None:
    """Speak for axes without tying them to anything."""
    for k in axes:
        _ = operand[k]


def _real(site: Site) -> bool:
    """Can its constants be scaled?"""
    return all(np.issubdtype(x.tensor.dtype, np.floating) for x in site.operands() if x.constant)
