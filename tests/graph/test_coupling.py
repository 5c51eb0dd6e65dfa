"""Each rule, by its proof: the model without half of its channels equals the whole one with those channels at zero."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.coupling import Coupling
from onnxopt.graph.cutting import Cut
from onnxopt.graph.model import Model

Halve = Callable[..., Any]


def between(net: Any, op: Callable[[Any, str], str], out: int, opset: int = 17) -> onnx.ModelProto:
    """A convolution that makes 12 channels, what ``op`` does with them, a convolution that reads ``out``."""
    y = op(net, net.conv("x", 3, 12))
    return net.model(net.op("Conv", y, net.normal(3, out, 1, 1)), opset)


def one(name: str, *constants: Any, **attributes: Any) -> Callable[[Any, str], str]:
    """One operator that reads the channels, then these constants."""

    def build(net: Any, x: str) -> str:
        return str(net.op(name, x, *(net.constant(c, np.asarray(c).dtype) for c in constants), **attributes))

    return build


F = np.float32
ROW = np.linspace(-1, 1, 12, dtype=F)
FAR = 2**62

# Operator between two convolutions, channels that it makes of 12, classes that may go.
SAME: dict[str, tuple[Callable[[Any, str], str], int, int]] = {
    **{
        name: (one(name), 12, 12) for name in ("Sigmoid", "LeakyRelu", "HardSwish", "Elu", "Erf", "Identity", "Dropout")
    },
    "Clip": (one("Clip", F(-1), F(1)), 12, 12),
    "Cast": (one("Cast", to=TensorProto.FLOAT), 12, 12),
    "Add scalar": (one("Add", F(0.5)), 12, 12),
    "Add vector": (one("Add", ROW.reshape(12, 1, 1)), 12, 12),
    "Sub": (one("Sub", ROW.reshape(1, 12, 1, 1)), 12, 12),
    "Div": (one("Div", ROW.reshape(12, 1, 1) + 3), 12, 12),
    "Max": (one("Max", ROW.reshape(12, 1, 1)), 12, 12),
    "Pow": (one("Pow", F(2)), 12, 12),
    "PRelu": (one("PRelu", ROW.reshape(12, 1, 1)), 12, 12),
    "row along the width": (one("Mul", np.ones((1, 8), F)), 12, 12),
    "Where": (
        lambda n, x: n.op("Where", n.op("Greater", x, n.constant(0.1)), x, n.constant(ROW[:, None, None])),
        12,
        12,
    ),
    "itself twice": (lambda n, x: n.op("Mul", x, n.op("Sigmoid", x)), 12, 12),
    "two layers added": (lambda n, x: n.op("Add", x, n.conv("x", 3, 12)), 12, 12),
    "one channel spread": (lambda n, x: n.op("Mul", x, n.op("Sigmoid", n.conv(x, 12, 1))), 12, 12),
    "one channel spread by Add": (lambda n, x: n.op("Add", x, n.conv(x, 12, 1)), 12, 12),
    "BatchNormalization": (lambda n, x: n.norm(x, 12), 12, 12),
    "InstanceNormalization": (one("InstanceNormalization", ROW, ROW), 12, 12),
    "LayerNormalization of rows": (one("LayerNormalization", np.ones(8, F), axis=-1), 12, 12),
    "LayerNormalization of all": (one("LayerNormalization", np.ones((12, 8, 8), F), axis=1), 12, 0),
    "Softmax of channels": (one("Softmax", axis=1), 12, 0),
    "Softmax of rows": (one("Softmax", axis=-1), 12, 12),
    "CumSum of channels": (one("CumSum", np.int64(1)), 12, 0),
    "CumSum of rows": (one("CumSum", np.int64(2)), 12, 12),
    "TopK of channels": (lambda n, x: n.op("TopK", x, n.ints(5), outputs=2, axis=1)[0], 5, 0),
    "TopK of rows": (lambda n, x: n.op("TopK", x, n.ints(5), outputs=2)[0], 12, 12),
    "Hardmax of channels": (lambda n, x: n.op("Mul", x, n.op("Hardmax", x, axis=1)), 12, 0),
    "Trilu": (one("Trilu"), 12, 12),
    "Trilu of channels": (
        lambda n, x: n.op("Transpose", n.op("Trilu", n.op("Transpose", x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2]),
        12,
        0,
    ),
    "LpPool": (one("LpPool", kernel_shape=[2, 2]), 12, 12),
    "GatherElements of rows": (one("GatherElements", np.arange(4 * 12 * 64).reshape(4, 12, 8, 8) % 8, axis=3), 12, 12),
    "GatherElements of channels": (one("GatherElements", np.arange(3072).reshape(4, 12, 8, 8) % 12, axis=1), 12, 0),
    "ScatterElements of rows": (
        lambda n, x: n.op(
            "ScatterElements", x, n.constant(np.full((4, 12, 8, 1), 3), int), n.op("ReduceMean", x, axes=[3]), axis=3
        ),
        12,
        12,
    ),
    "GatherND": (one("GatherND", np.array([[2], [0], [1], [3]])), 12, 12),
    "GatherND of channels": (one("GatherND", np.array([[[2], [0], [1]]] * 4), batch_dims=1), 3, 0),
    "ScatterND": (
        lambda n, x: n.op("ScatterND", x, n.constant([[1, 0]], int), n.constant(np.ones((1, 8, 8)))),
        12,
        0,
    ),
    "ScatterND of samples": (
        lambda n, x: n.op(
            "ScatterND", x, n.constant([[1]], int), n.constant(ROW[None, :, None, None] * np.ones((8, 8)))
        ),
        12,
        12,
    ),
    "Compress of rows": (one("Compress", np.arange(8) < 5, axis=2), 12, 12),
    "Compress of all": (
        lambda n, x: n.op("Mul", x, n.op("Slice", n.op("Compress", x, n.constant([1], bool)), n.ints(0), n.ints(1))),
        12,
        0,
    ),
    "ReverseSequence": (
        lambda n, x: n.op(
            "Transpose",
            n.op(
                "ReverseSequence",
                n.op("Transpose", x, perm=[0, 2, 3, 1]),
                n.ints(2, 3, 8, 1),
                time_axis=1,
                batch_axis=0,
            ),
            perm=[0, 3, 1, 2],
        ),
        12,
        12,
    ),
    "Compress of channels": (one("Compress", np.arange(12) < 5, axis=1), 5, 0),
    "AveragePool": (one("AveragePool", kernel_shape=[2, 2]), 12, 12),
    "GlobalMaxPool": (one("GlobalMaxPool"), 12, 12),
    "MaxPool with places": (lambda n, x: n.op("MaxPool", x, outputs=2, kernel_shape=[2, 2])[0], 12, 0),
    "ReduceMean of pixels": (one("ReduceMean", axes=[2, 3]), 12, 12),
    "ReduceMax of rows": (
        lambda n, x: n.op("Unsqueeze", n.op("ReduceMax", x, axes=[3], keepdims=0), n.ints(3)),
        12,
        12,
    ),
    "ReduceSum of channels": (one("ReduceSum", np.array([1])), 1, 12),
    "ReduceMean of all": (one("ReduceMean"), 1, 12),
    "ReduceSum of nothing": (one("ReduceSum", np.zeros(0, int), noop_with_empty_axes=1), 12, 12),
    "ReduceSum of all": (one("ReduceSum", np.zeros(0, int)), 1, 12),
    "Concat of channels": (lambda n, x: n.op("Concat", x, n.conv("x", 3, 6), axis=1), 18, 18),
    "Concat of rows": (lambda n, x: n.op("Concat", x, n.conv("x", 3, 12), axis=2), 12, 12),
    "Concat with the input": (lambda n, x: n.op("Concat", x, "x", axis=1), 15, 12),
    "Split": (lambda n, x: n.op("Mul", *n.op("Split", x, n.ints(6, 6), outputs=2, axis=1)), 6, 6),
    "Split evenly": (lambda n, x: n.op("Concat", *n.op("Split", x, outputs=3, axis=1)[::-1], axis=1), 12, 12),
    "Slice": (one("Slice", np.array([2]), np.array([-2]), np.array([1])), 8, 12),
    "Slice in steps": (one("Slice", np.array([1]), np.array([FAR]), np.array([1]), np.array([3])), 4, 12),
    "Slice backwards": (one("Slice", np.array([-1]), np.array([-FAR]), np.array([-3]), np.array([-1])), 12, 12),
    "Slice of rows": (one("Slice", np.array([0, 0]), np.array([FAR, 3]), np.array([1, 3])), 12, 12),
    "Slice to a computed end": (lambda n, x: n.op("Slice", x, n.ints(0), n.op("Abs", n.ints(9)), n.ints(1)), 9, 0),
    "Pad": (one("Pad", np.array([0, 2, 0, 0, 0, 3, 1, 0]), F(0.5)), 17, 17),
    "Pad by reflection": (one("Pad", np.array([0, 2, 0, 0, 0, 3, 0, 0]), mode="reflect"), 17, 0),
    "Pad of pixels by reflection": (one("Pad", np.array([0, 0, 2, 2, 0, 0, 2, 2]), mode="reflect"), 12, 12),
    "Gather": (one("Gather", np.array([3, 1, 1, -7]), axis=1), 4, 12),
    "Gather of one": (
        lambda n, x: n.op("Mul", x, n.op("Unsqueeze", n.op("Gather", x, n.constant(5, int), axis=1), n.ints(1))),
        12,
        11,
    ),
    "Gather with computed indices": (lambda n, x: n.op("Gather", x, n.op("Abs", n.ints(1, 2)), axis=1), 2, 2),
    "Transpose there and back": (
        lambda n, x: n.op("Transpose", n.op("Relu", n.op("Transpose", x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2]),
        12,
        12,
    ),
    "Reshape there and back": (
        lambda n, x: n.op("Reshape", n.op("Relu", n.op("Reshape", x, n.ints(0, 12, -1))), n.ints(0, 0, 8, 8)),
        12,
        12,
    ),
    "shuffle": (
        lambda n, x: n.op(
            "Reshape",
            n.op("Transpose", n.op("Reshape", x, n.ints(-1, 3, 4, 8, 8)), perm=[0, 2, 1, 3, 4]),
            n.ints(-1, 12, 8, 8),
        ),
        12,
        4,
    ),
    "Reshape across": (lambda n, x: n.op("Reshape", n.op("Reshape", x, n.ints(0, 32, 24)), n.ints(0, 12, 8, 8)), 12, 0),
    "Squeeze and Unsqueeze": (
        lambda n, x: n.op("Unsqueeze", n.op("Squeeze", n.op("GlobalAveragePool", x), n.ints(2, 3)), n.ints(2, 3)),
        12,
        12,
    ),
    "Tile": (one("Tile", np.array([1, 2, 1, 1])), 24, 12),
    "Expand": (lambda n, x: n.op("Expand", n.op("GlobalAveragePool", x), n.ints(1, 12, 2, 2)), 12, 12),
    "Expand of one channel": (
        lambda n, x: n.op("Mul", x, n.op("Expand", n.constant([[[2]]]), n.ints(12, 1, 1))),
        12,
        12,
    ),
    "Resize by scales": (one("Resize", np.zeros(0, F), np.array([1, 1, 2, 2], F), mode="nearest"), 12, 12),
    "Resize by sizes": (
        lambda n, x: n.op("Resize", x, "", "", n.ints(4, 12, 4, 4), mode="linear"),
        12,
        12,
    ),
    "DepthToSpace": (one("DepthToSpace", blocksize=2), 3, 3),
    "DepthToSpace by column": (one("DepthToSpace", blocksize=2, mode="CRD"), 3, 3),
    "SpaceToDepth": (one("SpaceToDepth", blocksize=2), 48, 12),
    "quantized as one": (
        lambda n, x: n.op("DequantizeLinear", n.op("QuantizeLinear", x, n.constant(0.1)), n.constant(0.1)),
        12,
        12,
    ),
    "quantized by channel": (
        lambda n, x: n.op(
            "DequantizeLinear", n.op("QuantizeLinear", x, n.constant(ROW + 2), axis=1), n.constant(ROW + 2), axis=1
        ),
        12,
        12,
    ),
    "depthwise": (lambda n, x: n.conv(x, 12, 12, group=12), 12, 12),
    "depthwise that multiplies": (lambda n, x: n.conv(x, 12, 24, group=12), 24, 12),
    "small groups": (lambda n, x: n.conv(x, 12, 24, group=6), 24, 6),
    "large groups": (lambda n, x: n.conv(x, 12, 24, group=2), 24, 18),
    "ConvTranspose": (lambda n, x: n.op("ConvTranspose", x, n.normal(12, 8, 2, 2), n.constant(ROW[:8])), 8, 20),
    "ConvTranspose depthwise": (lambda n, x: n.op("ConvTranspose", x, n.normal(12, 1, 2, 2), group=12), 12, 12),
    "ConvTranspose in small groups": (lambda n, x: n.op("ConvTranspose", x, n.normal(12, 3, 2, 2), group=6), 18, 6),
    "ConvTranspose in large groups": (lambda n, x: n.op("ConvTranspose", x, n.normal(12, 5, 2, 2), group=2), 10, 11),
    "GridSample": (
        lambda n, x: n.op(
            "GridSample",
            x,
            n.op("Tanh", n.op("Slice", n.op("Transpose", "x", perm=[0, 2, 3, 1]), n.ints(0), n.ints(2), n.ints(3))),
        ),
        12,
        12,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_rule(name: str, net: Any, halve: Halve) -> None:
    op, out, classes = SAME[name]
    opset = 18 if name == "Pad" else 17
    assert halve(between(net(4, 3, 8, 8), op, out, opset)).classes == classes


OLD: dict[str, tuple[Callable[[Any, str], str], int, int, int]] = {
    "Softmax folds what follows": (one("Softmax", axis=2), 12, 12, 11),
    "Softmax of all": (one("Softmax"), 12, 0, 11),
    "Split": (lambda n, x: n.op("Mul", *n.op("Split", x, outputs=2, axis=1, split=[6, 6])), 6, 6, 11),
    "Slice": (one("Slice", starts=[2], ends=[FAR], axes=[1]), 10, 12, 9),
    "Pad": (one("Pad", pads=[0, 1, 0, 0, 0, 1, 0, 0]), 14, 14, 9),
    "Squeeze": (
        lambda n, x: n.op("Unsqueeze", n.op("Squeeze", n.op("GlobalAveragePool", x), axes=[2]), axes=[2]),
        12,
        12,
        11,
    ),
    "Upsample": (one("Upsample", np.array([1, 1, 2, 2], F)), 12, 12, 9),
    "Clip": (one("Clip", min=0.0, max=6.0), 12, 12, 9),
}


@pytest.mark.parametrize("name", OLD)
def test_rule_of_an_older_opset(name: str, net: Any, halve: Halve) -> None:
    op, out, classes, opset = OLD[name]
    assert halve(between(net(4, 3, 8, 8), op, out, opset)).classes == classes


def test_every_graph_of_the_zoo(zoo_model: onnx.ModelProto, halve: Halve) -> None:
    for seed in range(3):
        assert halve(zoo_model, seed).removed > 0


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_one_and_three_dimensions(net: Any, rank: int, halve: Halve) -> None:
    n = net(2, 3, *[4] * rank)
    y = n.op("Conv", "x", n.normal(8, 3, *[3] * rank), pads=[1] * 2 * rank)
    y = n.op("MaxPool", n.relu(y), kernel_shape=[2] * rank)
    assert halve(n.model(n.op("Conv", y, n.normal(4, 8, *[1] * rank)))).classes == 8


GEMMS = {"plain": {}, "transB": {"transB": 1}, "alpha": {"alpha": 0.5, "beta": 2.0}}


@pytest.mark.parametrize("attributes", GEMMS.values(), ids=GEMMS)
@pytest.mark.parametrize("shape", [(10,), (1, 10), (4, 1), (4, 10), ()])
def test_gemm(net: Any, attributes: dict[str, Any], shape: tuple[int, ...], halve: Halve) -> None:
    n = net(4, 6)
    weight = n.normal(10, 6) if "transB" in attributes else n.normal(6, 10)
    y = n.relu(n.op("Gemm", "x", weight, n.constant(n.rng.standard_normal(shape)), **attributes))
    assert halve(n.model(n.dense(y, 10, 3))).classes == 10


def test_gemm_that_transposes_what_it_reads(net: Any, halve: Halve) -> None:
    n = net(4, 6)
    y = n.op("Transpose", n.dense("x", 6, 10), perm=[1, 0])
    assert halve(n.model(n.op("Gemm", y, n.normal(10, 3), transA=1))).classes == 10


def test_matmul_with_constants_on_either_side_and_batches(net: Any, halve: Halve) -> None:
    n = net(2, 5, 6)
    y = n.relu(n.op("MatMul", "x", n.normal(6, 10)))
    y = n.op("MatMul", n.normal(8, 5), y)
    assert halve(n.model(n.op("MatMul", n.normal(3, 8), n.op("MatMul", y, n.normal(10, 4))))).classes == 18


def test_matmul_with_batched_constants(net: Any, halve: Halve) -> None:
    n = net(2, 3, 5, 6)
    y = n.relu(n.op("MatMul", "x", n.normal(3, 6, 10)))
    y = n.op("MatMul", n.normal(1, 8, 5), n.op("Add", y, n.constant(ROW[:10])))
    assert halve(n.model(n.op("MatMul", n.normal(3, 4, 8), n.op("MatMul", y, n.normal(3, 10, 4))))).classes == 18


def test_embeddings(net: Any, halve: Halve) -> None:
    n = net(2, 5)
    places = n.op("Cast", n.op("Clip", "x", n.constant(0.0), n.constant(9.0)), to=TensorProto.INT64)
    y = n.op("Add", n.op("Gather", n.normal(10, 12), places), n.normal(5, 12))
    assert halve(n.model(n.op("MatMul", y, n.normal(12, 3)))).classes == 12


def test_matmul_of_vectors(net: Any, halve: Halve) -> None:
    n = net(6)
    y = n.op("MatMul", "x", n.normal(6, 10))
    assert halve(n.model(n.op("MatMul", n.normal(3, 10), n.relu(y)))).classes == 10


def test_einsum(net: Any, halve: Halve) -> None:
    n = net(2, 5, 6)
    y = n.relu(n.op("Einsum", "x", n.normal(6, 2, 4), equation="btc,chd->bhtd"))
    y = n.op("Einsum", y, y, equation="bhtd,bhsd->bhts")
    assert halve(n.model(n.op("Einsum", y, n.normal(2, 3), equation="bhts,hk->btsk"))).classes == 6


EINSUMS = {
    "sums within one operand": ("bc,b->b", (2,)),
    "sums all": ("bc->", ()),
    "leaves the result to be guessed": ("bc,cd", (10, 3)),
    "ellipsis": ("...c,c...->...", (10, 2)),
    "three operands": ("bc,ck,ck->bk", (10, 3), (10, 3)),
}


@pytest.mark.parametrize("name", EINSUMS)
def test_einsum_that(name: str, net: Any, halve: Halve) -> None:
    equation, *shapes = EINSUMS[name]
    n = net(2, 6)
    weights = [n.normal(*s) if s else n.constant(0.7) for s in shapes if s or "," in equation]
    assert halve(n.model(n.op("Einsum", n.relu(n.dense("x", 6, 10)), *weights, equation=equation))).classes == 10


def test_einsum_of_a_diagonal(net: Any, halve: Halve) -> None:
    n = net(2, 6)
    y = n.op("Einsum", n.dense("x", 6, 8), n.dense("x", 6, 8), equation="bc,bd->bcd")
    y = n.op("Einsum", n.op("Mul", y, n.constant(1.5)), equation="bii->bi")
    assert halve(n.model(n.op("MatMul", y, n.normal(8, 3)))).classes == 8


def test_what_a_recurrent_layer_reads_can_go(net: Any, halve: Halve) -> None:
    n = net(5, 2, 6)
    y = n.relu(n.op("MatMul", "x", n.normal(6, 10)))
    assert (
        halve(n.model(n.op("GRU", y, n.normal(1, 12, 10), n.normal(1, 12, 4), hidden_size=4, outputs=2)[0])).classes
        == 10
    )


def test_sizes_read_at_run_time_adjust_themselves(net: Any, halve: Halve) -> None:
    n = net("N", 3, 8, 8)
    x = n.relu(n.conv("x", 3, 12))
    channels = n.op("Slice", n.op("Shape", x), n.ints(0), n.ints(2))
    y = n.op("Resize", x, "", "", n.op("Concat", channels, n.ints(4, 4), axis=0))
    assert halve(n.model(n.conv(y, 12, 3))).classes == 12


def test_literals_among_measured_sizes_are_corrected(net: Any, halve: Halve) -> None:
    n = net("N", 5, 6)
    x = n.op("MatMul", "x", n.normal(6, 12))
    rows = n.op("Slice", n.op("Shape", x), n.ints(0), n.ints(2))
    y = n.op("Relu", n.op("Reshape", x, n.op("Concat", rows, n.ints(2, 6), axis=0)))
    y = n.op("Reshape", y, n.op("Concat", rows, n.ints(12), axis=0))
    row = n.op("Expand", n.constant(ROW[:1]), n.op("Concat", rows, n.ints(12), axis=0))
    outcome = halve(n.model(n.op("MatMul", n.op("Mul", y, row), n.normal(12, 3))))
    assert outcome.classes == 6
    literals = [m.inputs[1].values.tolist() for m in outcome.cut.graph.nodes if m.op == "Where"]
    assert sorted(literals) == [[0, 0, 2, 3], [0, 0, 6], [0, 0, 6]]


def test_sizes_that_are_computed_with_are_frozen(net: Any) -> None:
    n = net("N", 3, 8, 8)
    x = n.relu(n.conv("x", 3, 12))
    size = n.op("Cast", n.op("Gather", n.op("Shape", x), n.ints(1)), to=TensorProto.FLOAT)
    model = Model.from_proto(n.model(n.conv(n.op("Div", x, n.op("Sqrt", size)), 12, 3)))
    coupling = of(model)
    assert coupling.count == 0
    assert coupling.why_frozen(model.graph.nodes[0], 1) == "Sqrt 'Sqrt5' computes with their number"


def test_a_constant_shape_follows(net: Any, halve: Halve) -> None:
    n = net("N", 3, 8, 8)
    shape = n.op("Shape", n.conv("x", 3, 12))
    filled = n.op("ConstantOfShape", shape)
    assert halve(n.model(n.conv(n.op("Add", n.nodes[0].output[0], filled), 12, 3))).classes == 12


def of(model: Model) -> Coupling:
    context = Context(model, open_dataset(None, model.inputs, samples=2))
    return Coupling(model, context.shapes(model), context.free_axes(model))


WHY: dict[str, tuple[Callable[[Any, str], str], str]] = {
    "no rule": (one("Det"), "Det 'Det1' has no rule"),
    "unknown domain": (lambda n, x: n.op("Soften", x, domain="elsewhere"), "elsewhere.Soften 'Soften1' has no rule"),
    **{name: (one(name), f"{name} '{name}1' has no rule") for name in ("EyeLike", "MaxUnpool", "NonZero", "OneHot")},
    "mean taken away": (
        one("LayerNormalization", ROW, axis=1),
        "LayerNormalization 'LayerNormalization1' needs them all",
    ),
    "mixed": (one("Softmax", axis=1), "Softmax 'Softmax1' needs them all"),
    "output": (one("Relu"), "'relu1' is an output of the model"),
    "picked": (lambda n, x: n.op("Gather", x, n.constant(0, int), axis=1), "Gather 'Gather1' picks one of them"),
}


@pytest.mark.parametrize("name", WHY)
def test_why_something_is_frozen(name: str, net: Any) -> None:
    op, why = WHY[name]
    n = net(4, 3, 8, 8)
    y = op(n, n.conv("x", 3, 12))
    output = helper.make_tensor_value_info(y, TensorProto.FLOAT, [])
    graph = helper.make_graph(n.nodes, "g", [n.input], [output], n.weights)
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    shapes = {"x": (4, 3, 8, 8), "conv0": (4, 12, 8, 8), y: (4, 12, 8, 8) if name != "picked" else (4, 8, 8)}
    assert Coupling(model, shapes, {}).why_frozen(model.graph.nodes[0], 1) == why


def test_a_tensor_without_a_shape_freezes_the_nodes_around_it(net: Any) -> None:
    n = net(4, 3, 8, 8)
    model = Model.from_proto(n.model(n.conv(n.relu(n.conv("x", 3, 12)), 12, 3)))
    coupling = Coupling(model, {"x": (4, 3, 8, 8), "conv0": (4, 12, 8, 8), "conv2": (4, 3, 8, 8)}, {})
    assert coupling.count == 0
    assert coupling.why_frozen(model.graph.nodes[0], 1) == "Relu 'Relu1' has a tensor of unknown shape"


def test_a_form_that_a_rule_does_not_know_is_frozen(net: Any) -> None:
    n = net(4, 3, 8, 8)
    model = Model.from_proto(n.model(n.conv(n.op("Transpose", n.conv("x", 3, 12), perm=[0, 1, 3, 2]), 12, 3)))
    model.graph.nodes[1].attrs["perm"] = [0, 1, 3, 7]
    coupling = Coupling(
        model, {t: (4, 12, 8, 8) for t in ("conv0", "transpose1")} | {"conv2": (4, 3, 8, 8)} | {"x": (4, 3, 8, 8)}, {}
    )
    assert coupling.count == 0
    assert (
        coupling.why_frozen(model.graph.nodes[0], 1) == "Transpose 'Transpose1' has a form that its rule does not know"
    )


def test_free_axes_are_frozen(net: Any) -> None:
    n = net("N", 6, "T")
    model = Model.from_proto(n.model(n.op("MatMul", n.normal(3, 6), n.op("Relu", "x"))))
    assert of(model).count == 0


def test_equal_vectors_stored_once_do_not_tie_layers(net: Any, halve: Halve) -> None:
    n = net(4, 3, 8, 8)
    bias = n.constant(np.zeros(12))
    x = n.relu(n.op("Conv", "x", n.normal(12, 3, 1, 1), bias))
    x = n.relu(n.op("Conv", x, n.normal(12, 12, 1, 1), bias))
    outcome = halve(n.model(n.conv(x, 12, 3)))
    assert outcome.classes == 24
    assert [outcome.node(name).inputs[2].shape for name in ("Conv0", "Conv2")] == [(6,), (6,)]


def test_shared_kernels_stay_shared(net: Any, halve: Halve) -> None:
    n = net(4, 3, 8, 8)
    weight = n.normal(12, 12, 1, 1)
    x = n.relu(n.conv("x", 3, 12))
    x = n.op("Conv", n.relu(n.op("Conv", x, weight)), weight)
    outcome = halve(n.model(n.conv(x, 12, 3)))
    assert outcome.classes == 12
    assert outcome.node("Conv2").inputs[1] is outcome.node("Conv4").inputs[1]


def test_a_slice_in_steps_becomes_a_gather(net: Any, halve: Halve) -> None:
    outcome = halve(between(net(4, 3, 8, 8), SAME["Slice in steps"][0], 4))
    assert [n.op for n in outcome.cut.graph.nodes] == ["Conv", "Gather", "Slice", "Conv"]


def test_a_slice_in_steps_along_two_axes(net: Any, halve: Halve) -> None:
    n = net("N", 4)
    a, b = (n.op("MatMul", "x", n.normal(4, 16)) for _ in range(2))
    outer = n.op("Mul", n.op("Unsqueeze", a, n.ints(2)), n.op("Unsqueeze", b, n.ints(1)))
    bounds = [n.ints(*v) for v in ([0, 0], [16, 16], [1, 2], [2, 2])]
    y = n.op("MatMul", n.op("Slice", outer, *bounds), n.normal(8, 5))
    outcome = halve(n.model(n.op("ReduceSum", y, n.ints(1), keepdims=0)))
    assert [node.op for node in outcome.cut.graph.nodes].count("Gather") == 2


def test_sizes_that_are_spelled_out_are_corrected(zoo: dict[str, Callable[[], onnx.ModelProto]], halve: Halve) -> None:
    cut = halve(zoo["shuffled"]()).cut
    shapes = {n.name: n.inputs[1].values.tolist() for n in cut.graph.nodes if n.op in ("Split", "Reshape")}
    assert shapes == {"Split2": [8, 8], "Reshape9": [1, 2, 8, 8, 8], "Reshape11": [1, 16, 8, 8]}
    grouped = halve(zoo["grouped"]()).cut
    assert [n.attrs["group"] for n in grouped.graph.nodes if n.op == "Conv"] == [1, 4, 1, 2, 1, 8]


def test_blocks_cover_each_axis_once(zoo: dict[str, Callable[[], onnx.ModelProto]]) -> None:
    coupling = of(Model.from_proto(zoo["split_and_joined"]()))
    blocks = coupling.blocks()
    assert sorted(np.concatenate(blocks).tolist()) == list(range(1, coupling.count + 1))
    assert sorted(map(len, blocks)) == [16, 16, 16, 32]


def test_ten_thousand_nodes_take_less_than_five_seconds(net: Any) -> None:
    n = net(1, 3, 2, 2)
    x = n.conv("x", 3, 16, 1)
    weight, bias = n.normal(16, 16, 1, 1), n.constant(np.zeros(16))
    while len(n.nodes) < 10_000:
        y = n.op("Relu", n.op("Conv", x, n.normal(16, 16, 1, 1), bias))
        x = n.op("Relu", n.op("Add", x, n.op("Conv", y, weight if len(n.nodes) % 3 else n.normal(16, 16, 1, 1), bias)))
    graph = helper.make_graph(
        n.nodes, "g", [n.input], [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)], n.weights
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    shapes = {t.name: (1, 16, 2, 2) for node in model.graph.nodes for t in node.outputs} | {"x": (1, 3, 2, 2)}
    started = time.process_time()
    coupling = Coupling(model, shapes, {})
    cut = Cut(coupling, np.concatenate([b[::2] for b in coupling.blocks() if len(b) > 1]))
    cut.masked(model)
    cut.apply(model)
    assert time.process_time() - started < 5
