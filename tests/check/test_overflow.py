"""The lint against what ONNX Runtime's kernels without VNNI really answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt import load, open_dataset
from onnxopt.check.causes import SATURATION, find_causes
from onnxopt.check.departure import find_departure
from onnxopt.check.overflow import Risk, overflow_risk
from onnxopt.core.manager import PassManager
from onnxopt.core.spec import parse
from onnxopt.graph.model import Model
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.probe import saturates
from onnxopt.runtime.target import NATIVE, X86_AVX2, X86_AVX512_VNNI
from onnxopt.targets.masked import Masked, find_mask
from onnxopt.targets.native import Native

SAMPLES = Path(__file__).parents[2] / "sample_models"
K = 64
STEP = 1 / 255
MICROSOFT = "com.microsoft"


class Net:
    """Writes a graph of quantized layers down. Weights are 127 but where a test says otherwise."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shape: tuple[int, ...] = (4, K)

    def op(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), f"c{len(self.weights)}"))
        return str(self.weights[-1].name)

    def step(self, scale: float, dtype: npt.DTypeLike = np.uint8, zero: int | None = None) -> tuple[str, str]:
        """A scale and a zero point; signed numbers begin where unsigned ones do."""
        first = (-128 if dtype == np.int8 else 0) if zero is None else zero
        return self.constant(scale), self.constant(first, dtype)

    def there_and_back(self, tensor: str, scale: float, dtype: npt.DTypeLike = np.uint8) -> str:
        step = self.step(scale, dtype)
        return str(self.op("DequantizeLinear", self.op("QuantizeLinear", tensor, *step), *step))

    def x(self, dtype: npt.DTypeLike = np.uint8) -> str:
        return self.there_and_back("x", STEP, dtype)

    def y(self, tensor: str) -> str:
        return self.there_and_back(tensor, 0.7)

    def integers(self, *shape: int, value: int = 127, dtype: npt.DTypeLike = np.int8) -> str:
        return self.constant(np.full(shape, value), dtype)

    def floats(self, *shape: int) -> str:
        return self.constant(np.ones(shape))

    def weight(self, *shape: int, value: int = 127, zero: int = 0, dtype: npt.DTypeLike = np.int8) -> str:
        stored = self.integers(*shape, value=value, dtype=dtype)
        return str(self.op("DequantizeLinear", stored, *self.step(1 / 127, dtype, zero)))

    def image(self) -> Net:
        self.shape = (1, 16, 5, 5)
        return self

    def model(self, y: str) -> Model:
        self.nodes.append(helper.make_node("Identity", [y], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [onnx.ValueInfoProto(name="y")],
            self.weights,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
        return Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


Build = Callable[[Net], str]


def dynamic(n: Net, weight: str, op: str = "MatMulInteger") -> str:
    read, scale, zero = n.op("DynamicQuantizeLinear", "x", outputs=3)
    product = n.op(op, read, weight, zero, n.constant(0, np.int8))
    return str(n.op("Mul", n.op("Cast", product, to=TensorProto.FLOAT), scale))


def quantized(n: Net, dtype: npt.DTypeLike) -> str:
    return str(n.op("QuantizeLinear", "x", *n.step(STEP, dtype)))


def qlinear(n: Net, op: str, dtype: npt.DTypeLike, *shape: int) -> str:
    zero = n.step(1 / 127, np.int8, 0)
    x = quantized(n, dtype), *n.step(STEP, dtype)
    return str(n.op(op, *x, n.integers(*shape), *zero, *n.step(0.7, dtype)))


def conv(n: Net, *shape: int, group: int = 1, dtype: npt.DTypeLike = np.uint8) -> str:
    return str(n.op("Conv", n.image().x(dtype), n.weight(*shape), group=group))


def read_twice(n: Net, product: Callable[[str], str]) -> str:
    step = n.step(STEP, np.int8)
    x = n.op("QuantizeLinear", "x", *step)
    return str(
        n.op("Add", product(n.op("DequantizeLinear", x, *step)), n.op("ReduceMean", n.op("DequantizeLinear", x, *step)))
    )


def signed_columns(n: Net) -> str:
    return str(n.op("QuantizeLinear", n.op("Transpose", "x", perm=[1, 0]), *n.step(STEP, np.int8, 0)))


def two_inputs(n: Net, read_twice: bool) -> str:
    """What signed numbers become unsigned for is that one node alone reads them."""
    step = n.step(STEP, np.int8, 0)
    columns = signed_columns(n)
    mean = n.op("ReduceMean", n.op("DequantizeLinear", columns, *step) if read_twice else "x")
    return str(n.op("Add", n.op("MatMul", n.x(), n.op("DequantizeLinear", columns, *step)), mean))


def half(n: Net) -> str:
    """Pairs of 127 and 1."""
    values = np.where(np.arange(K) % 2, 127, 1)[:, None].repeat(8, axis=1)
    return str(n.op("DequantizeLinear", n.constant(values, np.int8), *n.step(1 / 127, np.int8, 0)))


def q_of_floats(n: Net) -> str:
    step = n.step(1 / 127, np.int8, 0)
    return str(n.op("DequantizeLinear", n.op("QuantizeLinear", n.floats(K, 8), *step), *step))


def lstm(n: Net) -> str:
    step = n.constant([0.001]), n.constant([0], np.int8)
    inputs = [n.op("Unsqueeze", "x", n.constant([0], np.int64)), n.integers(1, K, 32), n.integers(1, 8, 32, value=0)]
    return str(n.op("DynamicQuantizeLSTM", *inputs, *[""] * 5, *step, *step, domain=MICROSOFT, hidden_size=8))


def attention(n: Net) -> str:
    x = n.op("Unsqueeze", quantized(n, np.uint8), n.constant([0], np.int64))
    inputs = [x, n.integers(K, 3 * K), n.constant(np.zeros(3 * K)), n.constant(STEP), n.constant(1e-4), ""]
    zeros = n.constant(0, np.uint8), n.constant(0, np.int8)
    return str(n.op("QAttention", *inputs, *zeros, domain=MICROSOFT, num_heads=2))


def gemm(n: Net, dtype: npt.DTypeLike = np.uint8) -> str:
    return str(n.op("Gemm", n.x(dtype), n.weight(8, K), transB=1))


LOUD: dict[str, tuple[Build, tuple[int, int, int]]] = {
    "matmul": (lambda n: n.op("MatMul", n.x(), n.weight(K, 8)), (8, 8, 254)),
    "matmul, integers out": (lambda n: n.y(n.op("MatMul", n.x(), n.weight(K, 8))), (8, 8, 254)),
    "signed inputs": (lambda n: n.op("MatMul", n.x(np.int8), n.weight(K, 8)), (8, 8, 254)),
    "negative weights": (lambda n: n.op("MatMul", n.x(), n.weight(K, 8, value=-127)), (8, 8, 254)),
    "asymmetric": (lambda n: n.op("MatMul", n.x(), n.weight(K, 8, zero=5)), (8, 8, 254)),
    "stack": (lambda n: n.op("MatMul", n.x(), n.weight(3, K, 8)), (24, 24, 254)),
    "vector": (lambda n: n.op("MatMul", n.x(), n.weight(K)), (1, 1, 254)),
    "transposed": (lambda n: n.op("MatMul", n.x(), n.op("Transpose", n.weight(8, K), perm=[1, 0])), (8, 8, 254)),
    "quantized floats": (lambda n: n.op("MatMul", n.x(), q_of_floats(n)), (8, 8, 254)),
    "gemm": (gemm, (8, 8, 254)),
    "gemm of float weights": (lambda n: n.y(n.op("Gemm", n.x(), n.floats(K, 8))), (8, 8, 254)),
    "conv": (lambda n: n.y(conv(n, 8, 16, 3, 3)), (8, 8, 254)),
    "conv, signed": (lambda n: n.there_and_back(conv(n, 8, 16, 3, 3, dtype=np.int8), 0.7, np.int8), (8, 8, 254)),
    "conv, relu": (lambda n: n.y(n.op("Relu", conv(n, 8, 16, 3, 3))), (8, 8, 254)),
    "conv of float weights": (lambda n: n.y(n.op("Conv", n.image().x(), n.floats(8, 16, 3, 3))), (8, 8, 254)),
    "grouped": (lambda n: n.y(conv(n, 8, 8, 3, 3, group=2)), (8, 8, 254)),
    "two outputs by channel": (lambda n: n.there_and_back(conv(n, 32, 1, 3, 3, group=16), 0.04), (32, 32, 254)),
    "two computed factors": (lambda n: two_inputs(n, read_twice=True), (0, 0, 256)),
    "QLinearMatMul": (lambda n: qlinear(n, "QLinearMatMul", np.uint8, K, 8), (8, 8, 254)),
    "QLinearConv": (lambda n: qlinear(n.image(), "QLinearConv", np.uint8, 8, 16, 3, 3), (8, 8, 254)),
    "dynamic": (lambda n: dynamic(n, n.integers(K, 8)), (8, 8, 254)),
    "DynamicQuantizeMatMul": (
        lambda n: n.op("DynamicQuantizeMatMul", "x", n.integers(K, 8), n.constant([1.0]), domain=MICROSOFT),
        (8, 8, 254),
    ),
    "DynamicQuantizeLSTM": (lstm, (32, 32, 254)),
    "QAttention": (attention, (3 * K, 3 * K, 254)),
    "computed": (
lambda n: n.op("MatMulInteger", quantized(n, np.uint8), signed_columns(n)),
        (0, 0, 256),
    ),
}  # fmt: skip

SILENT: dict[str, Build] = {
    "unsigned weights": lambda n: n.op("MatMul", n.x(), n.weight(K, 8, value=255, zero=128, dtype=np.uint8)),
    "7 bits": lambda n: n.op("MatMul", n.x(), n.weight(K, 8, value=64)),
    "127 and 1": lambda n: n.op("MatMul", n.x(), half(n)),
    "weights only": lambda n: n.op("MatMul", "x", n.weight(K, 8)),
    "float weights": lambda n: n.y(n.op("MatMul", n.x(), n.floats(K, 8))),
    "float outputs": lambda n: conv(n, 8, 16, 3, 3),
    "depthwise": lambda n: n.there_and_back(conv(n, 16, 1, 3, 3, group=16), 0.04),
    "ConvTranspose": lambda n: n.y(n.op("ConvTranspose", n.image().x(), n.weight(16, 8, 3, 3))),
    "ConvInteger": lambda n: dynamic(n.image(), n.integers(8, 16, 3, 3), "ConvInteger"),
    "signed QLinearMatMul": lambda n: qlinear(n, "QLinearMatMul", np.int8, K, 8),
    "signed QLinearConv": lambda n: qlinear(n.image(), "QLinearConv", np.int8, 8, 16, 3, 3),
    "signed throughout": lambda n: read_twice(n, lambda x: n.op("Gemm", x, n.weight(8, K), transB=1)),
    "reshaped weights": lambda n: n.op("MatMul", n.x(), n.op("Reshape", n.weight(K * 8), n.constant([K, 8], np.int64))),
    "two inputs": lambda n: two_inputs(n, read_twice=False),
    "without a zero point": lambda n: n.op("Gemm", n.x(), n.op("DequantizeLinear", n.integers(K, 8), n.constant(0.1))),
}


@pytest.fixture(scope="module")
def avx2() -> Masked:
    found = find_mask(X86_AVX2)
    if not isinstance(found, Masked):
        pytest.skip(f"AVX2 cannot be shown: {found}")
    if saturates(NATIVE):
        pytest.skip("this processor adds in pairs itself")
    return found


def both(paths: list[Path], feeds: list[dict[str, Any]], avx2: Masked) -> list[tuple[np.ndarray, np.ndarray]]:
    """What each model gives for all feeds, here and with AVX2."""
    job = Job(models=tuple(paths), feeds=feeds)
    here, there = Native().run(job), avx2.run(job)
    return [
        (np.stack([o["y"] for o in a.outputs]), np.stack([o["y"] for o in b.outputs]))
        for a, b in zip(here.runs, there.runs, strict=True)
    ]


def saved(models: dict[str, Model], folder: Path) -> list[Path]:
    paths = []
    for i, model in enumerate(models.values()):
        paths.append(folder / f"{i}.onnx")
        paths[-1].write_bytes(model.to_proto().SerializeToString())
    return paths


def built(build: Build) -> tuple[Model, tuple[int, ...]]:
    net = Net()
    return net.model(build(net)), net.shape


@pytest.mark.parametrize("name", LOUD)
def test_the_lint_counts_channels_that_can_overflow(name: str) -> None:
    build, expected = LOUD[name]
    (risk,) = overflow_risk(built(build)[0])
    assert (risk.channels, risk.outputs, risk.worst) == expected


@pytest.mark.parametrize("name", SILENT)
def test_the_lint_says_nothing_of_what_is_exact(name: str) -> None:
    assert overflow_risk(built(SILENT[name])[0]) == ()


@pytest.mark.parametrize("shape", [(4, K), (1, 16, 5, 5)])
def test_what_is_loud_overflows_and_what_is_silent_does_not(
    shape: tuple[int, ...], avx2: Masked, tmp_path: Path
) -> None:
    """On the largest inputs, all of them alike but one, which makes dynamic scales begin at zero."""
    builds = {name: build for name, (build, _) in LOUD.items()} | SILENT
    models = {name: model for name, build in builds.items() for model, s in [built(build)] if s == shape}
    largest = np.ones(shape, np.float32)
    largest.flat[0] = 0
    random = np.random.default_rng(0).random(shape, np.float32)
    answers = both(saved(models, tmp_path), [{"x": largest}, {"x": random}], avx2)
    differ = {
        name for name, (here, there) in zip(models, answers, strict=True)
        if np.abs(here.astype(float) - there).max() > 1e-4 * np.abs(here.astype(float)).max()
    }  # fmt: skip
    assert differ == set(LOUD) & set(models)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_silent_layers_are_bit_equal_on_the_worst_inputs(seed: int, avx2: Masked, tmp_path: Path) -> None:
    """A dozen layers whose pairs add up to about 128; on each input that excites one sign of one channel alone."""
    rng = np.random.default_rng(seed)
    models, inputs, loud = {}, [], []
    for i in range(12):
        values = rng.integers(-66, 67, (K, 4)) if i % 2 else rng.integers(-64, 65, (K, 4))
        net = Net()
        stored = net.constant(values, np.int8)
        weight = net.op("DequantizeLinear", stored, *net.step(1 / 127, np.int8, 0))
        models[str(i)] = net.model(net.op("MatMul", net.x(), weight))
        loud.append(bool(overflow_risk(models[str(i)])))
        inputs.append(np.concatenate([(values.T > 0), (values.T < 0)]).astype(np.float32))
    answers = both(saved(models, tmp_path), [{"x": x[:4]} for x in inputs] + [{"x": x[4:]} for x in inputs], avx2)
    differ = [bool((here != there).any()) for here, there in answers]
    assert differ == loud
    assert not any(loud[::2])


def test_weights_that_two_layers_share_are_told_twice() -> None:
    n = Net()
    weight = n.integers(K, 8)
    first, second = dynamic(n, weight), dynamic(n, weight)
    found = overflow_risk(n.model(n.op("Add", first, second)))
    assert [risk.outputs for risk in found] == [8, 8]


def test_a_risk_reads_as_a_line() -> None:
    assert (
        str(Risk("conv", "Conv", 3, 8, 200)) == "Conv 'conv': 3 of 8 channels, pairs of weights add up to 200, not 128"
    )
    assert "its second factor is computed" in str(Risk("conv", "Conv", 0, 0, 256))


def test_a_model_made_for_the_processor_passes_there_and_the_usual_one_does_not(avx2: Masked) -> None:
    """Quantized both ways: by the lint, by what they answer, and by the cause that is named."""
    found = {}
    for target in (X86_AVX512_VNNI, X86_AVX2):
        model = load(SAMPLES / "digits_mlp.onnx")
        data = open_dataset(str(SAMPLES / "digits_calib.npz"), model.inputs, samples=32)
        PassManager(parse("quant:activations=static:effort=fast:measure=false")).run(model, data, target=target)
        departure = find_departure(model, next(data.batches(32)), avx2)
        causes = find_causes(model, X86_AVX2, departure)
        found[target] = bool(overflow_risk(model)), departure is None, [cause.name for cause in causes]
    assert found == {X86_AVX512_VNNI: (True, False, [SATURATION]), X86_AVX2: (False, True, [])}
