"""A zoo of awkward little graphs, each with one thing in it that makes channels hard to follow; ARM in emulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.graph.model import Model
from onnxopt.runtime.target import TARGETS
from onnxopt.targets.emulated import find_emulator
from onnxopt.targets.folders import arm64_folder
from onnxopt.targets.way import Unavailable

Build = Callable[[], onnx.ModelProto]


class Net:
    """Writes a graph down: each method adds nodes with seeded weights and returns the name of what they make."""

    def __init__(self, *shape: int | str, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.within = 0  # nodes that were moved into bodies
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ("N", 3, 8, 8))

    def op(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; a tuple of names where it has more than one output."""
        number = len(self.nodes) + self.within
        names = [f"{op.lower()}{number}_{i}" if outputs > 1 else f"{op.lower()}{number}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}{number}", **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """A weight with these values."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        """A vector of integers."""
        return self.constant(values, np.int64)

    def normal(self, *shape: int) -> str:
        """A weight that keeps the variance of what it multiplies, its channels of different strength."""
        spread = self.rng.uniform(0.3, 2.0, (shape[0], *(1 for _ in shape[1:])))
        return self.constant(self.rng.standard_normal(shape) * spread / np.sqrt(max(1, np.prod(shape[1:]))))

    def conv(self, x: str, into: int, out: int, kernel: int = 3, *, stride: int = 1, group: int = 1) -> str:
        """Conv with a bias, padded to keep the size."""
        weight, bias = (
            self.normal(out, into // group, kernel, kernel),
            self.constant(self.rng.standard_normal(out) * 0.3),
        )
        pads = [kernel // 2] * 4
        made: str = self.op("Conv", x, weight, bias, pads=pads, strides=[stride] * 2, group=group)
        return made

    def relu(self, x: str) -> str:
        made: str = self.op("Relu", x)
        return made

    def norm(self, x: str, n: int) -> str:
        """BatchNormalization with everything different by channel."""
        scale, variance = (self.constant(self.rng.uniform(0.5, 1.5, n)) for _ in range(2))
        shift, mean = (self.constant(self.rng.standard_normal(n) * 0.2) for _ in range(2))
        made: str = self.op("BatchNormalization", x, scale, shift, mean, variance)
        return made

    def dense(self, x: str, into: int, out: int) -> str:
        made: str = self.op("Gemm", x, self.normal(out, into), self.constant(np.zeros(out)), transB=1)
        return made

    def head(self, x: str, into: int, *, classes: int = 5) -> onnx.ModelProto:
        """Global average pool, then one dense layer; the model."""
        return self.model(self.dense(self.op("Flatten", self.op("GlobalAveragePool", x)), into, classes))

    def model(self, y: str, opset: int = 17) -> onnx.ModelProto:
        """The model that gives ``y``, its shape inferred."""
        output = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "zoo", [self.input], [output], self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        del proto.graph.value_info[:]
        onnx.checker.check_model(proto, full_check=True)
        return proto


def plain() -> onnx.ModelProto:
    """Convolutions in a row, with pooling."""
    net = Net()
    x = net.relu(net.conv("x", 3, 16))
    x = net.op("MaxPool", net.relu(net.conv(x, 16, 32)), kernel_shape=[2, 2], strides=[2, 2])
    return net.head(net.relu(net.conv(x, 32, 32)), 32)


def residual() -> onnx.ModelProto:
    """Two stages of residual blocks with normalisation; the second begins with a projection."""
    net = Net()
    x, n = net.relu(net.norm(net.conv("x", 3, 16), 16)), 16
    for out, stride in ((16, 1), (16, 1), (32, 2), (32, 1)):
        y = net.relu(net.norm(net.conv(x, n, out, stride=stride), out))
        y = net.norm(net.conv(y, out, out), out)
        short = x if stride == 1 else net.conv(x, n, out, 1, stride=stride)
        x, n = net.relu(net.op("Add", y, short)), out
    return net.head(x, n)


def padded_shortcut() -> onnx.ModelProto:
    """A residual block that halves the size: every second pixel, and channels of zeros before and behind."""
    net = Net()
    x = net.relu(net.conv("x", 3, 16))
    y = net.conv(net.relu(net.conv(x, 16, 32, stride=2)), 32, 32)
    every, far = net.ints(0, 0), net.ints(2**62, 2**62)
    short = net.op("Slice", x, every, far, net.ints(2, 3), net.ints(2, 2))
    short = net.op("Pad", short, net.ints(0, 8, 0, 0, 0, 8, 0, 0), net.constant(0.0))
    return net.head(net.relu(net.op("Add", y, short)), 32)


def inverted() -> onnx.ModelProto:
    """Expand, depthwise, project, with a bound of 6 and a residual addition."""
    net = Net()
    zero, six = net.constant(0.0), net.constant(6.0)
    x = net.op("Clip", net.conv("x", 3, 16), zero, six)
    for _ in range(2):
        y = net.op("Clip", net.conv(x, 16, 64, 1), zero, six)
        y = net.op("Clip", net.conv(y, 64, 64, group=64), zero, six)
        x = net.op("Add", x, net.conv(y, 64, 16, 1))
    return net.head(x, 16)


def gated() -> onnx.ModelProto:
    """Squeeze and excite: a gate for each channel, made from the mean of all."""
    net = Net()
    x = net.relu(net.conv("x", 3, 32))
    gate = net.relu(net.conv(net.op("GlobalAveragePool", x), 32, 16, 1))
    x = net.op("Mul", x, net.op("Sigmoid", net.conv(gate, 16, 32, 1)))
    return net.head(net.relu(net.conv(x, 32, 32)), 32)


def densely_connected() -> onnx.ModelProto:
    """Every layer reads all before it, by Concat."""
    net = Net()
    x, n = net.relu(net.conv("x", 3, 16)), 16
    for _ in range(3):
        y = net.conv(net.relu(net.conv(net.norm(x, n), n, 32, 1)), 32, 16)
        x, n = net.op("Concat", x, y, axis=1), n + 16
    return net.head(net.relu(net.conv(x, n, 32, 1)), 32)


def split_and_joined() -> onnx.ModelProto:
    """Half of the channels take a way of their own, with a residual addition; then all three parts together."""
    net = Net()
    x = net.conv("x", 3, 32)
    x = net.op("Mul", x, net.op("Sigmoid", x))
    a, b = net.op("Split", x, net.ints(16, 16), outputs=2, axis=1)
    c = net.op("Add", b, net.conv(net.relu(net.conv(b, 16, 16)), 16, 16))
    return net.head(net.relu(net.conv(net.op("Concat", a, b, c, axis=1), 48, 32, 1)), 32)


def shuffled() -> onnx.ModelProto:
    """Channels dealt out like cards: Reshape, Transpose, Reshape back."""
    net = Net(1, 3, 8, 8)
    x = net.relu(net.conv("x", 3, 32))
    a, b = net.op("Split", x, net.ints(16, 16), outputs=2, axis=1)
    b = net.relu(net.conv(net.conv(net.relu(net.conv(b, 16, 16, 1)), 16, 16, group=16), 16, 16, 1))
    x = net.op("Reshape", net.op("Concat", a, b, axis=1), net.ints(1, 2, 16, 8, 8))
    x = net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 1, 3, 4]), net.ints(1, 32, 8, 8))
    return net.head(net.relu(net.conv(x, 32, 32, 1)), 32)


def grouped() -> onnx.ModelProto:
    """Many small groups, then two large ones, then a depthwise layer with two outputs for each input."""
    net = Net()
    x = net.relu(net.conv("x", 3, 32))
    x = net.relu(net.conv(net.relu(net.conv(x, 32, 32, group=8)), 32, 32, 1))
    x = net.relu(net.conv(net.relu(net.conv(x, 32, 64, group=2)), 64, 16, 1))
    return net.head(net.relu(net.conv(x, 16, 32, group=16)), 32)


def flattened() -> onnx.ModelProto:
    """Pixels and channels folded into one axis by Flatten; a dense layer; and folded back by Reshape."""
    net = Net()
    x = net.op("Flatten", net.relu(net.conv("x", 3, 16, stride=4)))
    x = net.relu(net.dense(net.relu(net.dense(x, 64, 32)), 32, 64))
    x = net.relu(net.conv(net.op("Reshape", x, net.ints(-1, 16, 2, 2)), 16, 16))
    return net.model(net.dense(net.op("Reshape", x, net.ints(0, -1)), 64, 5))


def hourglass() -> onnx.ModelProto:
    """Down and up again, by Resize, by ConvTranspose and by DepthToSpace, with connections across."""
    net = Net()
    a = net.relu(net.conv("x", 3, 16))
    b = net.relu(net.conv(a, 16, 32, stride=2))
    c = net.op("Resize", b, "", net.constant([1, 1, 2, 2]), mode="nearest")
    d = net.relu(net.conv(net.op("Concat", c, a, axis=1), 48, 16))
    up = net.op("ConvTranspose", b, net.normal(32, 16, 2, 2), net.constant(np.zeros(16)), strides=[2, 2])
    deep = net.op("DepthToSpace", net.relu(net.conv(b, 32, 64)), blocksize=2)
    x = net.op("Concat", d, net.relu(up), net.op("PRelu", deep, net.constant(np.full((16, 1, 1), 0.1))), axis=1)
    return net.model(net.conv(x, 48, 1, 1))


def attention() -> onnx.ModelProto:
    """One block of a transformer: heads by Reshape and Transpose, and a hidden layer with Gelu written out."""
    net = Net("N", 6, 16)

    def linear(x: str, into: int, out: int) -> str:
        made: str = net.op(
            "Add", net.op("MatMul", x, net.normal(into, out)), net.constant(net.rng.standard_normal(out))
        )
        return made

    def normalised(x: str) -> str:
        made: str = net.op("LayerNormalization", x, net.constant(np.ones(32)), net.constant(np.zeros(32)))
        return made

    x = linear("x", 16, 32)
    y = normalised(x)
    q, k, v = (net.op("Reshape", linear(y, 32, 32), net.ints(0, 0, 2, 16)) for _ in range(3))
    q, v = (net.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    scores = net.op("Mul", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 3, 1])), net.constant(0.25))
    y = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores), v), perm=[0, 2, 1, 3])
    x = net.op("Add", x, linear(net.op("Reshape", y, net.ints(0, 0, 32)), 32, 32))
    y = linear(normalised(x), 32, 64)
    bell = net.op("Add", net.op("Erf", net.op("Div", y, net.constant(2**0.5))), net.constant(1.0))
    y = net.op("Mul", net.op("Mul", y, bell), net.constant(0.5))
    x = net.op("Add", x, linear(y, 64, 32))
    return net.model(linear(net.op("ReduceMean", x, axes=[1], keepdims=0), 32, 5))


def branching() -> onnx.ModelProto:
    """An If whose bodies read a tensor from outside."""
    net = Net()
    x = net.relu(net.conv(net.relu(net.conv("x", 3, 16)), 16, 16))
    condition = net.op("Greater", net.op("ReduceMean", x, keepdims=0), net.constant(0.3))
    bodies = []
    for name, op in (("then", "Relu"), ("else", "Neg")):
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        bodies.append(helper.make_graph([helper.make_node(op, [x], [name], name=name)], name, [], [made]))
    y = net.op("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    return net.head(net.relu(net.conv(net.relu(net.conv(y, 16, 16)), 16, 16)), 16)


def measured() -> onnx.ModelProto:
    """Shapes computed from shapes, as exporters do for a free batch."""
    net = Net()
    x = net.relu(net.conv(net.relu(net.conv("x", 3, 16)), 16, 16, stride=4))
    batch = net.op("Unsqueeze", net.op("Gather", net.op("Shape", x), net.constant(0, np.int64)), net.ints(0))
    x = net.op("Reshape", x, net.op("Concat", batch, net.ints(-1), axis=0))
    return net.model(net.dense(net.relu(net.dense(x, 64, 32)), 32, 5))


ZOO: dict[str, Build] = {
    build.__name__: build
    for build in (
        plain, residual, padded_shortcut, inverted, gated, densely_connected, split_and_joined, shuffled, grouped,
        flattened, hourglass, attention, branching, measured,
    )
}  # fmt: skip


@pytest.fixture(params=ZOO)
def zoo_model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """Each graph of the zoo in turn."""
    return ZOO[request.param]()


@pytest.fixture(scope="session")
def zoo() -> dict[str, Build]:
    """The graphs of the zoo by name: functions that build them."""
    return ZOO


@pytest.fixture(scope="session")
def net() -> type[Net]:
    """The writer of small graphs."""
    return Net


@pytest.fixture(scope="session")
def arm64() -> Path:
    """The folder of the ARM system that ``onnxopt targets setup arm64`` made; without one the test is skipped."""
    found = find_emulator(TARGETS["arm64-cortex-a53"])
    if isinstance(found, Unavailable):
        pytest.skip(f"ARM cannot be emulated: {found}")
    return arm64_folder()


@pytest.fixture
def build() -> Callable[..., Model]:
    """A model from its nodes: the weights that ``weights`` declares are drawn, types and sizes inferred."""
    return _build


def _build(
    nodes: str, weights: str = "", x: str = "float[1,8,16,16] x", y: str = "float[] y", opset: int = 17
) -> Model:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y}) <{weights}> {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for value in list(proto.graph.value_info):
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        array = rng.standard_normal([d.dim_value for d in tensor.shape.dim]).astype(dtype)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.value_info.remove(value)
    for value in proto.graph.output:
        value.ClearField("type")
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto))
