"""What every operator says about channels: one short rule each. An axis that a rule does not speak for is frozen.

A rule may speak for an axis only when removing an index along it, together with all that is tied to that index,
changes nothing but to take the index away: the results that stay are those of the whole model in which the index'
values are zero wherever they are summed over.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxopt.graph import parameters
from onnxopt.graph.labels import Operand, Rules, Site

rules = Rules()

_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu",
    "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round",
    "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
    "ThresholdedRelu", "com.microsoft.Gelu", "com.microsoft.QuickGelu",
)  # fmt: skip
_BROADCAST = (
    "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Where", "Xor",
    "com.microsoft.BiasGelu", "com.microsoft.FastGelu",
)  # fmt: skip
_POOLS = (
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
)  # fmt: skip
_REDUCTIONS = ("ArgMax", "ArgMin", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd")
_SUMS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceMean", "ReduceSum", "ReduceSumSquare")
_ALONG = (
    "Compress", "CumProd", "CumSum", "Hardmax", "LogSoftmax", "ReverseSequence", "Softmax", "TopK", "Trilu",
)  # fmt: skip


@rules.on(*_UNARY)
def elementwise(site: Site) -> None:
    """Index by index; further inputs are scalars, further outputs (Dropout's mask) are alike."""
    x = site.inputs[0]
    for y in site.outputs:
        spread(site, x, y)


@rules.on(*_BROADCAST)
def broadcast(site: Site) -> None:
    """Numpy broadcasting: an axis of length 1 against a longer one stays."""
    for x in site.operands():
        spread(site, x, site.y)


@rules.on("Add", "Mean", "Sub", "Sum")
def add(site: Site) -> None:
    """As above; where two computed tensors meet along an axis, it is shared as in a residual stream."""
    broadcast(site)
    join(site, site.operands())


def join(site: Site, operands: Iterable[Operand]) -> None:
    """Note the axes along which several computed tensors are added."""
    computed = [x for x in operands if not x.constant]
    for k in range(1, site.y.rank + 1):
        if sum(x.rank >= k and x.shape[-k] == site.y.shape[-k] for x in computed) > 1:
            site.statements.joins.append(site.y[-k])


@rules.on(*_ALONG)
def along_axis(site: Site) -> None:
    """Values along some axes depend on each other, in old operator sets along all that follow; the others pass."""
    x = site.operands()[0]
    given = _own_axes(site)
    if given is not None:
        axes = {range(x.rank)[k] for k in given}
        kept = range(min(axes)) if _folds(site) else [k for k in range(x.rank) if k not in axes]
        for y in site.outputs:
            site.pass_on(x, y, kept)


def _own_axes(site: Site) -> list[int] | None:
    """The axes that an operator works along; None where that is computed, or where it is all."""
    if site.node.op in ("CumProd", "CumSum"):
        return parameters.read(site.node, 1, "axis")
    if site.node.op == "Compress":
        return parameters.read(site.node, len(site.node.inputs), "axis")
    if site.node.op == "ReverseSequence":
        return [int(site.attr("time_axis", 0)), int(site.attr("batch_axis", 1))]
    if site.node.op == "Trilu":
        return [-2, -1]
    return [int(site.attr("axis", 1 if _folds(site) else -1))]


def _folds(site: Site) -> bool:
    return site.opset < 13 and "max" in site.node.op


@rules.on(*_POOLS)
def pool(site: Site) -> None:
    """Channel by channel; MaxPool's second output counts through all channels, so with it nothing may go."""
    if len(site.outputs) == 1:
        site.pass_on(site.operands()[0], site.y, [0, 1])


@rules.on(*_REDUCTIONS)
def reduction(site: Site) -> None:
    """The axes that are reduced stay, the others pass."""
    x, y = site.operands()[0], site.y
    gone = _reduced(site)
    if gone is None:
        return
    kept = [k for k in range(x.rank) if k not in gone]
    if site.attr("keepdims", 1):
        site.pass_on(x, y, kept)
    else:
        for at, k in enumerate(kept):
            site.equal(x[k], y[at])


@rules.on(*_SUMS)
def summation(site: Site) -> None:
    """Zeros add nothing to a sum: channels end here. A mean goes on dividing by as many as there were."""
    reduction(site)
    x = site.operands()[0]
    if site.node.op == "ReduceMean" and x.tensor.dtype is not None and np.issubdtype(x.tensor.dtype, np.integer):
        return  # it rounds
    for k in _reduced(site) or ():
        _ = x[k]
        site.ends(x, k)


def _reduced(site: Site) -> set[int] | None:
    """The axes that a reduction takes away; None where they are computed."""
    rank = site.operands()[0].rank
    if "Arg" in site.node.op:
        given: list[int] | None = [int(site.attr("axis", 0))]
    else:
        given = parameters.read(site.node, 1, "axes")
        if given == [] or not parameters.is_given(site.node, 1, "axes"):
            given = [] if site.attr("noop_with_empty_axes", 0) else list(range(rank))
    return None if given is None else {range(rank)[k] for k in given}


def spread(site: Site, x: Operand | None, y: Operand) -> None:
    """Numpy broadcasting of one operand: axes of the output's length go with it."""
    if x is None:
        return
    for k in range(1, x.rank + 1):
        if x.shape[-k] == y.shape[-k]:
            site.equal(x[-k], y[-k])
