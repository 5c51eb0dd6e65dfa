"""Random graphs out of the whole rule set: what is pruned equals what is masked, and nothing raises.

``ONNXOPT_GRAPHS`` says how many graphs are drawn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
from onnxopt.graph.labels import Fold
from onnxopt.graph.model import Model
from onnxopt.graph.verify import boundary, faults
from onnxopt.numerics.tolerance import EXACT, deviation
from onnxopt.runtime.session import Session

BATCH = 2
FLOAT = TensorProto.FLOAT
OPSETS = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]


class Plant:
    """A graph that grows at its tips. ``pick`` is a number that a step may choose by."""

    def __init__(self, net: Any, seed: int, start: str) -> None:
        self.free = start == "free batch"
        shape = {"image": (3, 8, 8), "rows": (6, 10), "row": (10,), "volume": (3, 4, 4, 4)}.get(start, (3, 8, 8))
        self.n = net("N" if self.free else BATCH, *shape, seed=seed)
        self.n.told = []
        self.shapes: dict[str, tuple[int, ...]] = {"x": (BATCH, *shape)}
        self.tips = ["x"]
        self.pick = 0
        self.x = "x"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.n, name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[self.x]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def axis(self) -> int:
        """An axis behind the batch."""
        return 1 + self.pick % (self.rank - 1)

    def choose(self, *items: Any) -> Any:
        return items[self.pick % len(items)]

    def row(self, axis: int | None = None, low: float = -1.0) -> str:
        """A constant along an axis, or a scalar."""
        axis = self.axis if axis is None else axis
        width = self.shape[axis]
        return str(self.n.constant(np.linspace(low, 1, width).reshape(-1, *[1] * (self.rank - 1 - axis))))

    def tame(self, x: str | None = None) -> str:
        """Between -0.9 and 0.9."""
        return str(self.n.op("Mul", self.n.op("Tanh", x or self.x), self.n.constant(0.9)))

    def positive(self) -> str:
        """Between 1.1 and 2.9."""
        return str(self.n.op("Add", self.tame(), self.n.constant(2.0)))

    def like(self, y: str, sizes: Sequence[int] | None = None) -> str:
        """The same, its shape behind the batch written down: inference does not know what some operators make."""
        shape = [None if self.free else BATCH, *(self.shape[1:] if sizes is None else sizes)]
        self.n.told.append(helper.make_tensor_value_info(y, FLOAT, shape))
        return y

    def partner(self) -> str | None:
        """Another tensor of the same shape."""
        others = [t for t in self.shapes if self.shapes[t] == self.shape and t != self.x]
        return others[self.pick % len(others)] if others else None

    def grow(self, step: str, pick: int, back: int) -> None:
        """Put a step on one of the last tensors, if it fits there."""
        self.pick, self.x = pick, self.tips[-1 - back % min(3, len(self.tips))]
        if min(self.shape) < 1 or self.rank < 2:
            return
        made = STEPS[step](self)
        if made is not None:
            self.shapes = shapes_of(self.n, self.free)
            self.tips.append(made)

    def model(self) -> onnx.ModelProto:
        """Every loose end is summed over along all its axes but the first."""
        read = {name for node in self.n.nodes for name in reads(node)}
        outputs = []
        for tip in [t for t in self.tips[1:] if t not in read] or ["x"]:
            sizes = self.shapes[tip][1:]
            terms = ["nabcd"[: len(sizes) + 1], *(f"{'abcd'[k]}{'ijkl'[k]}" for k in range(len(sizes)))]
            equation = f"{','.join(terms)}->n{'ijkl'[: len(sizes)]}"
            outputs.append(self.n.op("Einsum", tip, *(self.n.normal(size, 2) for size in sizes), equation=equation))
        found = shapes_of(self.n, self.free, symbolic=True)
        infos = [helper.make_tensor_value_info(y, FLOAT, found[y]) for y in outputs]
        return proto_of(self.n, infos)


def reads(node: onnx.NodeProto) -> list[str]:
    inner = [name for a in node.attribute if a.HasField("g") for n in a.g.node for name in reads(n)]
    return [*node.input, *inner]


def proto_of(net: Any, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    graph = helper.make_graph(net.nodes, "g", [net.input], outputs, net.weights, value_info=net.told)
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=10)


def shapes_of(net: Any, free: bool, symbolic: bool = False) -> dict[str, Any]:
    proto = proto_of(net, [])
    if free and not symbolic:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = BATCH
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True, strict_mode=True).graph
    return {
        v.name: tuple(d.dim_value or (d.dim_param or None if symbolic else 0) for d in v.type.tensor_type.shape.dim)
        for v in (*inferred.input, *inferred.value_info)
        if v.type.tensor_type.elem_type == FLOAT and v.type.tensor_type.HasField("shape")
    }


STEPS: dict[str, Callable[[Plant], str | None]] = {}


def step(function: Callable[[Plant], str | None]) -> Callable[[Plant], str | None]:
    STEPS[function.__name__] = function
    return function


def of_rank(*ranks: int) -> Callable[[Callable[[Plant], str | None]], Callable[[Plant], str | None]]:
    """A step that fits tensors of these ranks."""

    def register(function: Callable[[Plant], str | None]) -> Callable[[Plant], str | None]:
        STEPS[function.__name__] = lambda p: function(p) if p.rank in ranks else None
        return function

    return register


UNARY = (
    "Abs", "Asinh", "Atan", "Ceil", "Celu", "Cos", "Dropout", "Elu", "Erf", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
)  # fmt: skip
TAMED = ("Acos", "Asin", "Atanh", "Cosh", "Exp", "Sinh", "Tan")
OF_POSITIVE = ("Acosh", "Log", "Reciprocal", "Sqrt")
Of: TypeAlias = Callable[[Plant, str], str | None]


def _of(function: Of, op: str, p: Plant) -> str | None:
    return function(p, op)


def each(ops: Iterable[str], function: Of, kind: str = "") -> None:
    """The same step with each of these operators."""
    for op in ops:
        STEPS[f"{op}{kind}"] = partial(_of, function, op)


MIXING = ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum")
REDUCING = (
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
each(UNARY, lambda p, op: p.op(op, p.x))
each(TAMED, lambda p, op: p.op(op, p.tame()))
each(OF_POSITIVE, lambda p, op: p.op(op, p.positive()))
each(MIXING, lambda p, op: p.op(op, p.x, p.partner()) if p.partner() else None, " of two")
each(MIXING, lambda p, op: p.op(op, p.row(), p.x), " of a row")
each(REDUCING, lambda p, op: p.op(op, p.x, p.ints(p.axis), keepdims=int(p.rank < 3)))
each(REDUCING, lambda p, op: p.op("Sub", p.x, p.op(op, p.x, p.ints(p.axis))), " spread")
each(
    ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"),
    lambda p, op: p.op("Where", p.op(op, p.x, p.row()), p.x, p.row(1)),
)
each(
    ("And", "Or", "Xor"),
    lambda p, op: p.op("Cast", p.op("Not", p.op(op, p.op("Less", p.x, p.row()), p.op("IsNaN", p.x))), to=FLOAT),
)
each(
    ("BitwiseAnd", "BitwiseOr", "BitwiseXor"),
    lambda p, op: p.op(
        "Cast", p.op("BitwiseNot", p.op(op, p.op("Cast", p.x, to=6), p.constant(5, np.int32))), to=FLOAT
    ),
)
each(("Softmax", "LogSoftmax", "Hardmax"), lambda p, op: p.op(op, p.x, axis=p.axis))


@step
def gate(p: Plant) -> str:
    return str(p.op("Mul", p.x, p.op("Sigmoid", p.op("ReduceMean", p.x, p.ints(p.rank - 1)))))


@step
def divide(p: Plant) -> str:
    return str(p.op("Div", p.x, p.positive() if p.pick % 2 else p.row(low=0.5)))


@step
def power(p: Plant) -> str:
    return str(p.op("Pow", p.positive(), p.row()))


@step
def modulo(p: Plant) -> str:
    return str(p.op("Mod", p.x, p.row(low=0.5), fmod=1))


@step
def prelu(p: Plant) -> str:
    return str(p.op("PRelu", p.x, p.row()))


@step
def clip(p: Plant) -> str:
    return str(p.op("Clip", p.x, p.constant(-1.0), p.constant(0.7)))


@step
def product(p: Plant) -> str:
    return str(p.op("ReduceProd", p.tame(), p.ints(p.axis)))


@step
def arguments(p: Plant) -> str:
    place = p.op(p.choose("ArgMax", "ArgMin"), p.x, axis=p.axis)
    return str(p.op("Cast", place, to=FLOAT) if p.pick % 3 else p.op("Squeeze", p.op("Gather", p.normal(9, 5), p.op(
        "Mod", place, p.constant(9, np.int64))), p.ints(p.axis)))  # fmt: skip


@step
def largest(p: Plant) -> str:
    return str(p.op("TopK", p.x, p.ints(min(2, p.shape[p.axis])), axis=p.axis, outputs=2)[0])


@step
def running_sum(p: Plant) -> str:
    return str(p.op("CumSum", p.x, p.constant(p.axis, np.int64), reverse=p.pick % 2))


@step
def triangle(p: Plant) -> str:
    return str(p.op("Trilu", p.x, upper=p.pick % 2))


# Layers.


@of_rank(3, 4, 5)
def conv(p: Plant) -> str:
    width = p.choose(4, 8, 6)
    y = p.op("Conv", p.x, p.normal(width, p.shape[1], *[1] * (p.rank - 2)), p.constant(p.rng.standard_normal(width)))
    return str(p.relu(y) if p.pick % 2 else y)


@of_rank(4)
def wide_conv(p: Plant) -> str:
    return str(p.conv(p.x, p.shape[1], p.choose(6, 8, p.shape[1]), 3))


@of_rank(3, 4)
def grouped(p: Plant) -> str | None:
    groups = [g for g in range(2, p.shape[1] + 1) if p.shape[1] % g == 0]
    if not groups:
        return None
    g, several = p.choose(*groups), 1 + p.pick % 2
    kernel = [1] * (p.rank - 2)
    if p.pick % 3:
        return str(p.op("Conv", p.x, p.normal(g * several * 2, p.shape[1] // g, *kernel), group=g))
    return str(p.op("ConvTranspose", p.x, p.normal(p.shape[1], several, *kernel), group=g))


@of_rank(3, 4, 5)
def transposed(p: Plant) -> str:
    return str(p.op("ConvTranspose", p.x, p.normal(p.shape[1], 6, *[1] * (p.rank - 2)), p.constant(np.ones(6))))


@of_rank(2)
def gemm(p: Plant) -> str:
    return str(p.relu(p.dense(p.x, p.shape[1], p.choose(8, 6, p.shape[1]))))


@step
def matmul(p: Plant) -> str:
    return str(p.op("MatMul", p.x, p.normal(p.shape[-1], p.choose(8, 4, p.shape[-1]))))


@of_rank(3, 4, 5)
def matmul_from_the_left(p: Plant) -> str:
    return str(p.op("MatMul", p.normal(p.choose(6, 4), p.shape[-2]), p.x))


@of_rank(3)
def einsum(p: Plant) -> str:
    return str(p.op("Einsum", p.x, p.normal(p.shape[2], 2, 3), equation=p.choose("btc,chd->bhtd", "btc,chd->bthd")))


@of_rank(3, 4, 5)
def gram(p: Plant) -> str:
    axes = [*range(p.rank - 2), p.rank - 1, p.rank - 2]
    return str(p.op("MatMul", p.op("Softmax", p.op("MatMul", p.x, p.op("Transpose", p.x, perm=axes))), p.x))


@step
def residual(p: Plant) -> str:
    y = p.relu(p.op("MatMul", p.x, p.normal(p.shape[-1], 7)))
    return str(p.op("Add", p.op("MatMul", y, p.normal(7, p.shape[-1])), p.x))


@of_rank(4)
def residual_of_convolutions(p: Plant) -> str:
    y = p.relu(p.conv(p.x, p.shape[1], 6, 1))
    return str(p.op("Add", p.x, p.conv(y, 6, p.shape[1], 3)))


# Moves.


@step
def concat(p: Plant) -> str:
    others = [
        t
        for t, s in p.shapes.items()
        if len(s) == p.rank and all(a == b for k, (a, b) in enumerate(zip(s, p.shape, strict=True)) if k != p.axis)
    ]
    return str(p.op("Concat", p.x, p.choose(*others), axis=p.axis))


@step
def split(p: Plant) -> str | None:
    size = p.shape[p.axis]
    if size < 3:
        return None
    a, b = p.op("Split", p.x, p.ints(2, size - 2), axis=p.axis, outputs=2)
    return str(b if p.pick % 2 else p.op("Concat", b, a, axis=p.axis))


@step
def split_evenly(p: Plant) -> str | None:
    if p.shape[p.axis] % 2:
        return None
    return str(p.op("Mul", *p.op("Split", p.x, axis=p.axis, outputs=2, num_outputs=2)))


@step
def slice_(p: Plant) -> str | None:
    if p.shape[p.axis] < 4:
        return None
    start, end, stride = p.choose((1, -1, 1), (0, 99, 2), (-1, -99, -1), (-2, 0, -2), (1, 3, 1))
    return str(p.op("Slice", p.x, p.ints(start), p.ints(end), p.ints(p.axis), p.ints(stride)))


@step
def pad(p: Plant) -> str:
    amounts = [0] * (2 * p.rank)
    amounts[p.axis], amounts[p.rank + p.axis] = p.choose((1, 2), (0, 1), (2, 0))
    if p.pick % 4 == 3 and p.shape[p.axis] > 2:
        return str(p.op("Pad", p.x, p.ints(*amounts), mode="reflect"))
    return str(p.op("Pad", p.x, p.ints(*amounts), p.constant(0.5)))


@step
def gather(p: Plant) -> str:
    places = p.rng.integers(-p.shape[p.axis], p.shape[p.axis], p.shape[p.axis] + 1)
    return str(p.op("Gather", p.x, p.ints(*places), axis=p.axis))


@of_rank(3, 4, 5)
def gather_one(p: Plant) -> str:
    return str(p.op("Gather", p.x, p.constant(p.pick % p.shape[p.axis], np.int64), axis=p.axis))


@of_rank(3, 4, 5)
def transpose(p: Plant) -> str:
    return str(p.op("Transpose", p.x, perm=[0, *(1 + (k + 1 + p.pick % 2) % (p.rank - 1) for k in range(p.rank - 1))]))


@step
def fold(p: Plant) -> str | None:
    """An axis into two."""
    n = p.shape[p.axis]
    factors = [f for f in range(2, n) if n % f == 0]
    if p.rank > 4 or not factors:
        return None
    f = factors[p.pick % len(factors)]
    target = [0, *p.shape[1 : p.axis], f, -1, *p.shape[p.axis + 1 :]]
    return str(p.op("Reshape", p.x, p.ints(*target)))


@of_rank(3, 4, 5)
def unfold(p: Plant) -> str:
    """Two axes into one."""
    axis = min(p.axis, p.rank - 2)
    return str(p.op("Reshape", p.x, p.ints(0, *p.shape[1:axis], -1, *p.shape[axis + 2 :])))


@step
def shuffle(p: Plant) -> str | None:
    n = p.shape[p.axis]
    if n % 2 or p.rank > 4:
        return None
    axes = [*range(p.axis), p.axis + 1, p.axis, *range(p.axis + 2, p.rank + 1)]
    y = p.op("Reshape", p.x, p.ints(0, *p.shape[1 : p.axis], 2, n // 2, *p.shape[p.axis + 1 :]))
    return str(p.op("Reshape", p.op("Transpose", y, perm=axes), p.ints(0, *p.shape[1:])))


@step
def flatten(p: Plant) -> str:
    return str(p.op("Flatten", p.x, axis=1))


@of_rank(2)
def unflatten(p: Plant) -> str | None:
    return str(p.op("Reshape", p.x, p.ints(0, -1, 2, 2))) if p.shape[1] % 4 == 0 else None


@of_rank(3, 4, 5)
def measured_reshape(p: Plant) -> str:
    kept = p.op("Slice", p.op("Shape", p.x), p.ints(0), p.ints(p.choose(1, 2)))
    return str(p.op("Reshape", p.x, p.op("Concat", kept, p.ints(-1), axis=0)))


@step
def measured_shape(p: Plant) -> str:
    return str(p.op("Add", p.x, p.op("ConstantOfShape", p.op("Shape", p.x))))


@step
def unsqueeze(p: Plant) -> str | None:
    return str(p.op("Unsqueeze", p.x, p.ints(p.axis))) if p.rank < 5 else None


@of_rank(3, 4, 5)
def squeeze(p: Plant) -> str | None:
    ones = [k for k in range(1, p.rank) if p.shape[k] == 1]
    if not ones or p.rank - len(ones) < 2:
        return None
    return str(p.op("Squeeze", p.x, p.ints(*ones)) if p.pick % 2 or p.free else p.op("Squeeze", p.x))


@step
def expand(p: Plant) -> str:
    mean = p.op("ReduceMean", p.x, p.ints(p.axis))
    shape = p.op("Shape", p.x) if p.free or p.pick % 2 else p.ints(*p.shape)
    return str(p.op("Sub", p.x, p.op("Expand", mean, shape)))


@step
def tile(p: Plant) -> str:
    return str(p.op("Tile", p.x, p.ints(*(2 if k == p.axis else 1 for k in range(p.rank)))))


@of_rank(4)
def resize(p: Plant) -> str:
    if p.pick % 2:
        return str(p.op("Resize", p.x, "", p.constant([1, 1, 2, 0.5]), mode="nearest"))
    kept = p.op("Slice", p.op("Shape", p.x), p.ints(0), p.ints(2))
    return str(p.op("Resize", p.x, "", "", p.op("Concat", kept, p.ints(4, 6), axis=0), mode="linear"))


@of_rank(4)
def depth_to_space(p: Plant) -> str | None:
    return str(p.op("DepthToSpace", p.x, blocksize=2, mode=p.choose("DCR", "CRD"))) if p.shape[1] % 4 == 0 else None


@of_rank(4)
def space_to_depth(p: Plant) -> str | None:
    return None if p.shape[2] % 2 or p.shape[3] % 2 or p.shape[1] > 8 else str(p.op("SpaceToDepth", p.x, blocksize=2))


@of_rank(4)
def grid(p: Plant) -> str:
    return str(p.op("GridSample", p.x, p.op("Expand", p.normal(1, 3, 3, 2), p.op("Concat", p.op(
        "Slice", p.op("Shape", p.x), p.ints(0), p.ints(1)), p.ints(3, 3, 2), axis=0))))  # fmt: skip


# Pools and norms.


@of_rank(4)
def pool(p: Plant) -> str | None:
    if min(p.shape[2:]) < 2:
        return None
    op = p.choose("MaxPool", "AveragePool", "LpPool")
    return str(p.op(op, p.x, kernel_shape=[2, 2], strides=[1 + p.pick % 2] * 2))


@of_rank(3, 4, 5)
def global_pool(p: Plant) -> str:
    return str(p.op(p.choose("GlobalAveragePool", "GlobalMaxPool"), p.x))


def _vectors(p: Plant, number: int, width: int) -> list[str]:
    return [p.constant(p.rng.uniform(0.5, 1.5, width)) for _ in range(number)]


@step
def batch_norm(p: Plant) -> str:
    return str(p.norm(p.x, p.shape[1]))


@step
def batch_norm_unfolded(p: Plant) -> str:
    scale, shift, mean, spread = (p.row(1, low) for low in (0.5, -1, -0.5, 0.6))
    return str(p.op("Add", p.op("Mul", p.op("Div", p.op("Sub", p.x, mean), spread), scale), shift))


@of_rank(3, 4)
def instance_norm(p: Plant) -> str | None:
    return None if max(p.shape[2:]) < 2 else str(p.op("InstanceNormalization", p.x, *_vectors(p, 2, p.shape[1])))


@of_rank(3, 4)
def group_norm(p: Plant) -> str | None:
    if p.shape[1] % 2 or max(p.shape[2:]) < 2:
        return None
    groups = p.choose(2, p.shape[1] // 2)
    return p.like(p.op("GroupNormalization", p.x, *_vectors(p, 2, p.shape[1]), num_groups=groups))


@step
def layer_norm(p: Plant) -> str:
    return str(p.op("LayerNormalization", p.x, *_vectors(p, 2, p.shape[-1]), epsilon=0.1))


@step
def layer_norm_unfolded(p: Plant) -> str:
    y = p.op("Sub", p.x, p.op("ReduceMean", p.x, p.ints(-1)))
    spread = p.op("Sqrt", p.op("Add", p.op("ReduceMean", p.op("Mul", y, y), p.ints(-1)), p.constant(0.1)))
    return str(p.op("Mul", p.op("Div", y, spread), *_vectors(p, 1, p.shape[-1])))


@step
def rms_norm(p: Plant) -> str:
    return str(p.op("RMSNormalization", p.x, *_vectors(p, 1, p.shape[-1]), epsilon=0.1))


@step
def rms_norm_unfolded(p: Plant) -> str:
    spread = p.op("Sqrt", p.op("Add", p.op("ReduceMean", p.op("Mul", p.x, p.x), p.ints(-1)), p.constant(0.1)))
    return str(p.op("Mul", p.op("Div", p.x, spread), *_vectors(p, 1, p.shape[-1])))


@step
def lp_norm(p: Plant) -> str:
    return str(p.op("LpNormalization", p.positive(), axis=p.axis, p=1 + p.pick % 2))


@of_rank(4)
def lrn(p: Plant) -> str:
    return str(p.op("LRN", p.x, size=3))


@of_rank(4)
def variance_norm(p: Plant) -> str | None:
    return str(p.op("MeanVarianceNormalization", p.x, axes=p.choose([2, 3], [1, 2, 3])))


# Quantized.


@step
def quantized(p: Plant) -> str:
    axis = p.axis
    scale = p.constant(0.05) if p.pick % 2 else p.constant(np.linspace(0.02, 0.1, p.shape[axis]))
    zero = p.constant(3, np.int8) if p.pick % 2 else p.constant(np.zeros(p.shape[axis]), np.int8)
    q = p.op("QuantizeLinear", p.x, scale, zero, axis=axis)
    return str(p.op("DequantizeLinear", q, scale, zero, axis=axis))


def _bytes(p: Plant) -> tuple[str, str, str]:
    scale, zero = p.constant(0.03), p.constant(120, np.uint8)
    return str(p.op("QuantizeLinear", p.x, scale, zero)), scale, zero


def _weights(p: Plant, *shape: int) -> str:
    return str(p.constant(p.rng.integers(-60, 60, shape), np.int8))


@of_rank(4)
def integer_conv(p: Plant) -> str:
    q, scale, zero = _bytes(p)
    w = _weights(p, 6, p.shape[1], 3, 3)
    if p.pick % 2:
        return str(p.op("Mul", p.op("Cast", p.op("ConvInteger", q, w, zero), to=FLOAT), p.constant(0.001)))
    rest = (p.constant(0.01), p.constant(0, np.int8), p.constant(0.1), p.constant(100, np.uint8))
    y = p.op("QLinearConv", q, scale, zero, w, *rest, p.constant(np.arange(6), np.int32))
    return str(p.op("DequantizeLinear", y, *rest[2:]))


@step
def integer_matmul(p: Plant) -> str:
    q, scale, zero = _bytes(p)
    w = _weights(p, p.shape[-1], 6)
    if p.pick % 2:
        return str(p.op("Mul", p.op("Cast", p.op("MatMulInteger", q, w, zero), to=FLOAT), p.constant(0.001)))
    rest = (p.constant(0.01), p.constant(0, np.int8), p.constant(0.1), p.constant(100, np.uint8))
    return str(p.op("DequantizeLinear", p.op("QLinearMatMul", q, scale, zero, w, *rest), *rest[2:]))


# Attention and recurrence.


@of_rank(3)
def attention(p: Plant) -> str:
    """Two heads of width 4, keys and values maybe for one head only, written out."""
    width, grouped = p.shape[2], p.pick % 2
    q, k, v = (p.op("MatMul", p.x, p.normal(width, n)) for n in ((8, 8, 8), (8, 4, 4))[grouped])
    q, k, v = (p.op("Reshape", t, p.ints(0, 0, -1, 4)) for t in (q, k, v))
    q, k, v = (p.op("Transpose", t, perm=axes) for t, axes in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])))
    y = p.op("MatMul", p.op("Softmax", p.op("MatMul", q, k)), v)
    y = p.op("Reshape", p.op("Transpose", y, perm=[0, 2, 1, 3]), p.ints(0, 0, 8))
    return str(p.op("MatMul", y, p.normal(8, width)))


@of_rank(3)
def fused_attention(p: Plant) -> str:
    width, grouped = p.shape[2], p.pick % 2
    q, k, v = (p.op("MatMul", p.x, p.normal(width, n)) for n in ((8, 8, 12), (16, 8, 8))[grouped])
    heads = ((2, 2), (4, 2))[grouped]
    return str(p.op("Attention", q, k, v, q_num_heads=heads[0], kv_num_heads=heads[1]))


@of_rank(3)
def recurrent(p: Plant) -> str:
    op, directions, units = p.choose("LSTM", "GRU", "RNN"), 1 + p.pick % 2, 5
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * units
    x = p.op("Transpose", p.x, perm=[1, 0, 2])
    w, r = p.normal(directions, gates, p.shape[2]), p.normal(directions, gates, units)
    bias = p.constant(p.rng.standard_normal((directions, 2 * gates)))
    way = {"direction": ("forward", "bidirectional")[directions - 1], "hidden_size": units}
    y, last = p.op(op, x, w, r, bias, outputs=2, **way)
    if p.pick % 3 == 0:
        return str(p.op("Transpose", last, perm=[1, 0, 2]))
    return str(p.op("Reshape", p.op("Transpose", y, perm=[2, 0, 1, 3]), p.ints(0, 0, -1)))


# Operators that ONNX Runtime fuses.


def _fused(p: Plant, op: str, *inputs: str, **attributes: Any) -> str:
    return str(p.op(op, *inputs, domain="com.microsoft", **attributes))


@step
def fused_activation(p: Plant) -> str:
    if p.pick % 3:
        return p.like(_fused(p, p.choose("QuickGelu", "FastGelu", "Gelu"), p.x))
    return p.like(_fused(p, "BiasGelu", p.x, p.constant(np.linspace(-1, 1, p.shape[-1]))))


@step
def fused_matmul(p: Plant) -> str:
    w = p.normal(6, p.shape[-1]) if p.pick % 2 else p.normal(p.shape[-1], 6)
    return p.like(_fused(p, "FusedMatMul", p.x, w, transB=p.pick % 2, alpha=0.5), (*p.shape[1:-1], 6))


@of_rank(4)
def fused_conv(p: Plant) -> str:
    y = _fused(p, "FusedConv", p.x, p.normal(6, p.shape[1], 1, 1), p.constant(np.ones(6)), activation="Relu")
    return p.like(y, (6, *p.shape[2:]))


@of_rank(3)
def skip_norm(p: Plant) -> str:
    if p.pick % 2:
        return p.like(_fused(p, "SkipLayerNormalization", p.x, _hidden(p, p.x), *_vectors(p, 3, p.shape[2])))
    return p.like(_fused(p, "SkipSimplifiedLayerNormalization", p.x, _hidden(p, p.x), *_vectors(p, 2, p.shape[2])))


@of_rank(3)
def fused_heads(p: Plant) -> str:
    q, k, v = (p.op("MatMul", p.x, p.normal(p.shape[2], n)) for n in (8, 8, 12))
    return p.like(_fused(p, "MultiHeadAttention", q, k, v, num_heads=p.choose(2, 4)), (p.shape[1], 12))


@step
def integers(p: Plant) -> str | None:
    q, scale, zero = _bytes(p)
    pair = (q, scale, zero)
    op = p.choose("QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearConcat")
    if op == "QLinearConcat":
        y, sizes = _fused(p, op, scale, zero, *pair, *pair, axis=p.axis), list(p.shape)
        sizes[p.axis] *= 2
    else:
        y, sizes = _fused(p, op, *pair, *(pair if op in ("QLinearAdd", "QLinearMul") else ()), scale, zero), [*p.shape]
    return p.like(p.op("DequantizeLinear", y, scale, zero), sizes[1:])


@of_rank(4)
def integer_pool(p: Plant) -> str:
    q, scale, zero = _bytes(p)
    y = _fused(p, "QLinearGlobalAveragePool", q, scale, zero, scale, zero)
    return p.like(p.op("DequantizeLinear", y, scale, zero), (p.shape[1], 1, 1))


# Bodies.


def _body(p: Plant, start: int, inputs: list[Any], outputs: list[Any]) -> onnx.GraphProto:
    nodes = p.n.nodes[start:]
    del p.n.nodes[start:]
    p.n.within += len(nodes)
    return helper.make_graph(nodes, "body", inputs, outputs)


def _info(name: str, kind: int = FLOAT, shape: list[Any] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _hidden(p: Plant, x: str) -> str:
    width = p.shape[-1]
    return str(p.op("MatMul", p.relu(p.op("MatMul", x, p.normal(width, 6))), p.normal(6, width)))


@step
def branches(p: Plant) -> str:
    condition = p.op("Greater", p.op("ReduceMean", "x", keepdims=0), p.constant(0.0))
    bodies = []
    for write in (lambda: _hidden(p, p.x), lambda: p.op("Mul", p.x, p.row())):
        start = len(p.n.nodes)
        made = write()
        bodies.append(_body(p, start, [], [_info(made)]))
    return str(p.op("If", condition, then_branch=bodies[p.pick % 2], else_branch=bodies[1 - p.pick % 2]))


@step
def turns(p: Plant) -> str:
    start = len(p.n.nodes)
    number = p.n.within + start
    given = [f"turn{number}", f"go{number}", f"carried{number}"]
    go, made = p.op("Identity", given[1]), p.op("Add", _hidden(p, given[2]), p.x)
    inputs = [_info(given[0], 7, []), _info(given[1], 9, []), _info(given[2])]
    inner = _body(p, start, inputs, [_info(go, 9), _info(made)])
    y = p.op("Loop", p.constant(2, np.int64), "", p.x, body=inner)
    return p.like(y)


@of_rank(3)
def scanned(p: Plant) -> str:
    start = len(p.n.nodes)
    number = p.n.within + start
    given, width = [f"state{number}", f"part{number}"], p.shape[2]
    read = p.op("MatMul", given[1], p.normal(width, 5))
    new = p.op("Tanh", p.op("Add", read, p.op("MatMul", given[0], p.normal(5, 5))))
    stacked = p.op("Identity", new)
    inner = _body(p, start, [_info(name) for name in given], [_info(new), _info(stacked)])
    state = p.op("MatMul", p.op("ReduceMean", p.x, p.ints(1), keepdims=0), p.normal(width, 5))
    ways = {"scan_input_axes": [1], "scan_output_axes": [p.choose(1, 2)], "num_scan_inputs": 1}
    return str(p.op("Scan", state, p.x, body=inner, outputs=2, **ways, scan_input_directions=[p.pick % 2])[1])


def prove(proto: onnx.ModelProto, seed: int) -> int:
    """Remove some of each block, and compare with what is masked. Returns how many classes went.

    A rounding that tips over a step, as in Floor, is no fault: of three feeds, two must agree.
    """
    model = Model.from_proto(proto)
    expected, context = boundary(model), Context(model, open_dataset(None, model.inputs, samples=4))
    fold: tuple[Fold, ...] = ("longest", "outer", "inner")
    coupling = Coupling(model, context.shapes(model), context.free_axes(model), fold=fold[seed % 3])
    rng = np.random.default_rng(seed)
    removed = [rng.permutation(b)[: rng.integers(0, len(b))] for b in coupling.blocks()]
    cut = Cut(coupling, np.concatenate([np.zeros(0, np.intp), *removed]))
    masked = cut.masked(model)
    cut.apply(model)
    model.tidy()
    assert faults(model, expected) == []
    assert faults(masked, expected) == []
    feeds = [
        {s.name: rng.standard_normal([d if isinstance(d, int) else BATCH for d in s.shape or ()]).astype(np.float32)
         for s in model.inputs}
        for _ in range(3)
    ]  # fmt: skip
    whole, small = Session(masked, optimize=False), Session(model, optimize=False)
    wrong = []
    for feed in feeds:
        wanted, got = whole.run(feed), small.run(feed)
        wrong.append(max(deviation(value, got[name]) / EXACT[value.dtype] for name, value in wanted.items()))
    assert sorted(wrong)[1] < 1
    return sum(map(len, removed))


LAYERS = ("conv", "gemm", "grouped", "matmul", "residual", "residual_of_convolutions", "transposed", "wide_conv")
STARTS = {"image": "conv", "free batch": "wide_conv", "rows": "matmul", "row": "gemm", "volume": "conv"}


@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("ONNXOPT_GRAPHS", "100")), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(
    start=st.sampled_from(sorted(STARTS)),
    steps=st.lists(
        st.tuples(
            st.sampled_from(LAYERS) | st.sampled_from(sorted(STEPS)), st.integers(0, 11), st.sampled_from((0, 0, 1, 2))
        ),
        max_size=10,
    ),
    seed=st.integers(0, 2**16),
)
def test_pruned_equals_masked(net: Any, start: str, steps: list[tuple[str, int, int]], seed: int) -> None:
    plant = Plant(net, seed, start)
    for name, pick, back in ((STARTS[start], 1, 0), *steps):
        plant.grow(name, pick, back)
    prove(plant.model(), seed)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_step_fits_somewhere(name: str, net: Any) -> None:
    plants = [Plant(net, 0, start) for start in ("image", "rows", "row")]
    for plant, first in zip(plants, ("global_pool" if name == "squeeze" else "conv", "matmul", "matmul"), strict=True):
        plant.grow(first, 3, 0)
    before = [len(plant.tips) for plant in plants]
    for plant in plants:
        plant.grow(name, 0, 0)
    assert [len(plant.tips) for plant in plants] != before
