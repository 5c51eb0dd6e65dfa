"""What every operator says about channels: one short rule each. An axis that a rule does not speak for is frozen.

A rule may speak for an axis only when removing an index along it, together with all that is tied to that index,
changes nothing but to take the index away: the results that stay are those of the whole model in which the index'
values are zero wherever they are summed over.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnxopt.graph import parameters
from onnxopt.graph.labels import Operand, Rules, Site

rules = Rules()

_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike", "Ceil", "Celu",
    "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round",
    "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
    "ThresholdedRelu",
)  # fmt: skip
_BROADCAST = (
    "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Where", "Xor",
)  # fmt: skip
_POOLS = (
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
)  # fmt: skip
_REDUCTIONS = (
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_ALONG = (
    "CumSum", "Hardmax", "LayerNormalization", "LogSoftmax", "LpNormalization", "RMSNormalization", "Softmax",
    "TopK",
)  # fmt: skip


@rules.on(*_UNARY)
def elementwise(site: Site) -> None:
    """Index by index; further inputs are scalars, further outputs (Dropout's mask) are alike."""
    x = site.inputs[0]
    for y in site.outputs:
        _broadcast(site, x, y)


@rules.on(*_BROADCAST)
def broadcast(site: Site) -> None:
    """Numpy broadcasting: an axis of length 1 against a longer one stays."""
    for x in site.operands():
        _broadcast(site, x, site.y)


@rules.on("Add", "Mean", "Sub", "Sum")
def add(site: Site) -> None:
    """As above; where two computed tensors meet along an axis, it is shared as in a residual stream."""
    broadcast(site)
    computed = [x for x in site.operands() if not x.constant]
    for k in range(1, site.y.rank + 1):
        if sum(x.rank >= k and x.shape[-k] == site.y.shape[-k] for x in computed) > 1:
            site.statements.joins.append(site.y[-k])


@rules.on("Conv", "ConvTranspose")
def convolution(site: Site) -> None:
    """y (N, out, ...) from x (N, in, ...) and b (out); w (out, in / group, ...), transposed (in, out / group, ...)."""
    x, w, *bias = site.operands()
    y, groups = site.y, int(site.attr("group", 1))
    site.pass_on(x, y, [0])
    for b in bias:
        site.equal(b[0], y[1])
    across, within = (y, x) if site.node.op == "Conv" else (x, y)
    site.equal(w[0], across[1])
    if groups == 1:
        site.equal(w[1], within[1])
        site.ends(x, 1)
        return
    by_group = [side[1].reshape(groups, -1) for side in (x, y)]
    if groups >= max(x.shape[1], y.shape[1]) // groups:
        # Many small groups: a group goes whole, its inputs with its outputs.
        for side in by_group:
            site.equal(side.ravel(), np.repeat(by_group[0][:, 0], side.shape[1]))
    else:
        # Few large groups: the same places of every group go, so that groups stay equally large.
        for side in by_group:
            site.equal(side.ravel(), np.tile(side[0], groups))
        site.equal(w[1], within[1].reshape(groups, -1)[0])
        site.ends(x, 1)


@rules.on("Gemm")
def gemm(site: Site) -> None:
    """y (M, N) = a (M, K) b (K, N) + c, a and b maybe transposed, c broadcast."""
    a, b, *c = site.operands()
    row, inner_a = (1, 0) if site.attr("transA", 0) else (0, 1)
    inner_b, column = (1, 0) if site.attr("transB", 0) else (0, 1)
    site.equal(a[row], site.y[0])
    site.equal(b[column], site.y[1])
    site.contract(a, inner_a, b, inner_b)
    for x in c:
        _broadcast(site, x, site.y)


@rules.on("MatMul")
def matmul(site: Site) -> None:
    """y (..., M, N) = a (..., M, K) b (..., K, N), batch axes broadcast; a vector has no M, or no N."""
    a, b = site.operands()
    y = site.y
    site.contract(a, -1, b, -2 if b.rank > 1 else -1)
    matrix_axes = (a.rank > 1) + (b.rank > 1)
    if a.rank > 1:
        site.equal(a[-2], y[-matrix_axes])
    if b.rank > 1:
        site.equal(b[-1], y[-1])
    for x in (a, b):
        for k in range(3, x.rank + 1):
            at = k - 2 + matrix_axes
            if x.shape[-k] == y.shape[-at]:
                site.equal(x[-k], y[-at])


@rules.on("Einsum")
def einsum(site: Site) -> None:
    """Letters name axes. A letter that is summed within one operand, or an ellipsis, is left frozen."""
    left, _, right = str(site.attr("equation")).replace(" ", "").partition("->")
    terms = left.split(",")
    if not right or "." in left:
        return
    for letter in set(left) - {","}:
        places = [
            (x, k) for x, term in zip(site.operands(), terms, strict=True) for k, c in enumerate(term) if c == letter
        ]
        if len({x.shape[k] for x, k in places}) > 1 or any(t.count(letter) > 1 for t in terms):
            continue
        if letter in right:
            for x, k in places:
                site.equal(x[k], site.y[right.index(letter)])
        elif len(places) == 2:
            (a, i), (b, j) = places
            site.contract(a, i, b, j)


@rules.on("BatchNormalization", "InstanceNormalization")
def normalization(site: Site) -> None:
    """Each channel by itself; training outputs are not known here."""
    x, *parameters = site.operands()
    if len(site.outputs) > 1:
        return
    site.pass_on(x, site.y, [0, 1] if site.node.op == "InstanceNormalization" else range(x.rank))
    for p in parameters:
        site.equal(p[0], x[1])


@rules.on(*_ALONG)
def along_axis(site: Site) -> None:
    """Values along an axis depend on each other; a whole tail of axes does in LayerNormalization and in old Softmax."""
    x = site.operands()[0]
    tail = "LayerN" in site.node.op or "RMS" in site.node.op
    old = site.opset < 13 and "max" in site.node.op
    given: list[int] | None = [int(site.attr("axis", 1 if old else -1))]
    if site.node.op == "CumSum":
        given = parameters.read(site.node, 1, "axis")
    if given is not None:
        axis = range(x.rank)[given[0]]
        frozen = range(axis, x.rank) if tail or old else [axis]
        for y in site.outputs:
            _pass_on_but(site, x, y, frozen)


def _pass_on_but(site: Site, x: Operand, y: Operand, frozen: Collection[int]) -> None:
    if y.rank == x.rank:
        site.pass_on(x, y, [k for k in range(x.rank) if k not in frozen])


@rules.on(*_POOLS)
def pool(site: Site) -> None:
    """Channel by channel; MaxPool's second output counts through all channels, so with it nothing may go."""
    if len(site.outputs) == 1:
        site.pass_on(site.operands()[0], site.y, [0, 1])


@rules.on(*_REDUCTIONS)
def reduction(site: Site) -> None:
    """The axes that are reduced stay, the others pass."""
    x, y = site.operands()[0], site.y
    if "Arg" in site.node.op:
        given: list[int] | None = [int(site.attr("axis", 0))]
    else:
        given = parameters.read(site.node, 1, "axes")
        if given == [] or not parameters.is_given(site.node, 1, "axes"):
            given = [] if site.attr("noop_with_empty_axes", 0) else list(range(x.rank))
    if given is None:
        return
    gone = {range(x.rank)[k] for k in given}
    kept = [k for k in range(x.rank) if k not in gone]
    if site.attr("keepdims", 1):
        site.pass_on(x, y, kept)
    else:
        for at, k in enumerate(kept):
            site.equal(x[k], y[at])


@rules.on("QuantizeLinear", "DequantizeLinear")
def quantization(site: Site) -> None:
    """One scale for all, or one for each index of an axis; scales in blocks stay unspoken for."""
    x, *parameters = site.operands()
    if any(p.rank > 1 for p in parameters):
        return
    site.pass_on(x, site.y, range(x.rank))
    for p in parameters:
        if p.rank == 1 and p.shape[0] > 1:
            site.equal(p[0], x[int(site.attr("axis", 1))])


@rules.on("RNN", "GRU", "LSTM")
def recurrent(site: Site) -> None:
    """Only what comes in can go: x (length, batch, in), w (directions, gates, in)."""
    x, w = site.operands()[:2]
    site.contract(x, 2, w, 2)


def _broadcast(site: Site, x: Operand | None, y: Operand) -> None:
    if x is None:
        return
    for k in range(1, x.rank + 1):
        if x.shape[-k] == y.shape[-k]:
            site.equal(x[-k], y[-k])
