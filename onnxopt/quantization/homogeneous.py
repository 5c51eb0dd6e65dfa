"""Where a channel may be scaled without changing what a model computes: f(c x) = c f(x), c > 0, channel by channel.

Relu, pooling, sums and data movement hand a factor on; layers with constant weights take one in and give another out.
The rules are those of ``graph.coupling``: labels that are equal share one factor, label 0 has the factor 1.
"""

from __future__ import annotations

from onnxopt.graph import coupling_moves
from onnxopt.graph import layer as layers
from onnxopt.graph.coupling_rules import pool, reduction
from onnxopt.graph.labels import Operand, Rules, Site
from onnxopt.quantization.eligible import clamp_limits, pads_with_zeros

rules = Rules()
rules.update(coupling_moves.rules)
rules.on("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")(pool)
rules.on("ReduceMax", "ReduceMean", "ReduceSum")(reduction)


@rules.on("Conv", "ConvTranspose", "Gemm", "MatMul")
def layer(site: Site) -> None:
    """The weights take up a factor on either side."""
    if layers.fault(site.node) or site.attr("transA", 0):
        return
    x, *constants = site.operands()
    channels = 1 if "Conv" in site.node.op else -1
    _free(x, channels)
    _free(site.y, channels)
    for constant in constants:
        _free(constant, *range(constant.rank))
    if site.node.op == "MatMul":
        site.pass_on(x, site.y, range(x.rank - 1))


@rules.on("LayerNormalization")
def normalization(site: Site) -> None:
    """Scale and bias take up the factor of what is made."""
    x, *parameters = site.operands()
    if len(site.outputs) == 1 and all(p.constant and p.rank == 1 for p in parameters):
        for operand in (site.y, *parameters):
            _free(operand, -1)
        site.pass_on(x, site.y, range(x.rank - 1))


@rules.on("Clip", "Dropout", "Identity", "LeakyRelu", "Relu")
def unary(site: Site) -> None:
    """Clip only from zero on; what it cuts off above must not be reached: see ``equalization``."""
    lo, hi = clamp_limits(site.node) if site.node.op == "Clip" else (0.0, 1.0)
    if lo == 0 < hi and len(site.outputs) == 1:
        site.pass_on(site.operands()[0], site.y, range(site.y.rank))


@rules.on("PRelu")
def prelu(site: Site) -> None:
    """The slope is a ratio."""
    x, slope = site.operands()
    site.pass_on(x, site.y, range(x.rank))
    _free(slope, *range(slope.rank))


@rules.on("Add", "Max", "Sub", "Sum")
def meeting(site: Site) -> None:
    """All that meets has one factor; constants are scaled where they have a number for each channel."""
    for x in site.operands():
        for k in range(1, site.y.rank + 1):
            if k <= x.rank and x.shape[-k] == site.y.shape[-k]:
                site.equal(x[-k], site.y[-k])
            else:
                site.freeze(site.y[-k], "stretches one of its inputs")


@rules.on("Mul")
def scaling(site: Site) -> None:
    """A constant with a number for each channel takes up a factor on either side."""
    x = next((x for x in site.operands() if not x.constant), None)
    constant = next((x for x in site.operands() if x.constant), None)
    if x is None or constant is None or x.shape != site.y.shape:
        return
    for k in range(1, x.rank + 1):
        if k <= constant.rank and constant.shape[-k] > 1:
            _free(x, -k)
            _free(site.y, -k)
            _free(constant, -k)
        else:
            site.equal(x[-k], site.y[-k])


@rules.on("Pad")
def pad(site: Site) -> None:
    """Zeros stay zero."""
    if pads_with_zeros(site.node):
        coupling_moves.pad(site)


def _free(operand: Operand, *axes: int) -> None:
    """Speak for axes without tying them to anything."""
    for k in axes:
        _ = operand[k]
