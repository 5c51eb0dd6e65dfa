"""Whole models for processors that add products in pairs: no stored weight can overflow, and only those move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.core.manager import PassManager
from onnxopt.core.pass_ import label
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.io import save
from onnxopt.graph.ir import Node
from onnxopt.graph.model import Model
from onnxopt.numerics.qparams import QParams
from onnxopt.passes.quant import Quant
from onnxopt.quantization.saturation import can_saturate, pairs
from onnxopt.quantization.weights import nearest
from onnxopt.runtime.audit import audit
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.local import run_in_child
from onnxopt.runtime.probe import saturates
from onnxopt.runtime.target import ANY, ARM64, NATIVE, X86_AVX2, X86_AVX512_VNNI, Target

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,8,8] x) => (float[N,5] y) {
    c1 = Conv <pads=[1,1,1,1]> (x, first)
    r1 = Relu (c1)
    c2 = Conv <group=16> (r1, deep)
    r2 = Relu (c2)
    c3 = Conv <group=4> (r2, grouped)
    r3 = Relu (c3)
    p = GlobalAveragePool (r3)
    f = Flatten (p)
    y = Gemm <transB=1> (f, dense)
}"""
WEIGHTS = {"first": (16, 3, 3, 3), "deep": (16, 1, 3, 3), "grouped": (8, 4, 3, 3), "dense": (5, 8)}


def net() -> Model:
    proto = onnx.parser.parse_model(NET)
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        # All of one sign and nearly of one size: every pair is too heavy.
        values = rng.uniform(0.7, 1, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Model.from_proto(proto)


def quantized(target: Target, step: Quant = Quant(measure=False)) -> tuple[Model, object]:  # noqa: B008  # frozen
    model = net()
    data = open_dataset("synthetic", model.inputs, samples=16)
    report = PassManager([step]).run(model, data, target=target)
    return model, report.passes[-1].figures["reduced_channels"]


def stored(model: Model) -> dict[str, tuple[Node, np.ndarray]]:
    """The integer weights of every layer."""
    found = {}
    for node in model.graph.nodes:
        if node.op in ("Conv", "Gemm"):
            (reader,) = node.inputs[1].inputs
            found[label(node)] = node, reader.inputs[0].values
    return found


@pytest.mark.parametrize("per_channel", [True, False])
def test_no_stored_weight_can_overflow(per_channel: bool) -> None:
    model, reduced = quantized(X86_AVX2, Quant(per_channel=per_channel, measure=False))
    layers = stored(model)
    assert len(layers) == 4
    for node, steps in layers.values():
        assert not can_saturate(pairs(node, steps)).any()
    # All but the depthwise layer: 16 + 8 + 5 channels, or three weights.
    assert reduced == (29 if per_channel else 3)
    largest = sorted(int(steps.max()) for _, steps in layers.values())
    assert largest[-1] == 127
    assert all(60 < n < 90 for n in largest[:-1])


def test_where_nothing_overflows_nothing_changes() -> None:
    plain, reduced = quantized(X86_AVX512_VNNI)
    assert reduced == 0
    assert any(can_saturate(pairs(node, steps)).any() for node, steps in stored(plain).values())
    safe, _ = quantized(ANY)
    native, _ = quantized(replace(NATIVE, name="here"))  # by another name, so that no clock has a say
    expected = safe if saturates(NATIVE) else plain
    assert native.digest() == expected.digest() != (plain if saturates(NATIVE) else safe).digest()
    assert quantized(replace(X86_AVX2, saturates=False))[0].digest() == plain.digest()


def test_channels_added_later_are_thought_of() -> None:
    node = next(n for n in net().graph.nodes if n.op == "Conv")
    params = QParams(np.array(0.1, np.float32), np.array(0, np.uint8))
    for added in (0, 1):
        found = nearest(node, params, safe=True, added=added)
        assert not can_saturate(pairs(node, found.steps, added)).any()
        assert found.reduced == 16


def test_arm_gets_signed_activations_all_of_which_its_rules_fuse() -> None:
    model, reduced = quantized(ARM64)
    assert reduced == 0
    zero_points = {n.inputs[2].dtype for n in model.graph.nodes if n.op == "QuantizeLinear"}
    assert zero_points == {np.dtype(np.int8)}
    assert [n.kernel for n in audit(model, rules="arm").nodes] == ["QLinearConv"] * 3 + ["QGemm"]


def test_the_runtime_can_make_the_weights_unsigned_when_it_loads_them(tmp_path: Path) -> None:
    """Each layer has a zero point of its own: with this entry of the session ONNX Runtime changes them one by one."""
    model, _ = quantized(X86_AVX512_VNNI)
    path = tmp_path / "net.onnx"
    save(model, path)
    job = Job(models=(path,), feeds=[{"x": np.random.default_rng(0).random((1, 3, 8, 8), np.float32)}])
    exact = run_in_child(replace(job, settings={"session.x64quantprecision": "1"}))
    if not saturates(NATIVE):
        assert exact.runs[0].sha256 == run_in_child(job).runs[0].sha256
    assert np.isfinite(exact.runs[0].outputs[0]["y"]).all()
