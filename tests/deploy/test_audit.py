"""Integer kernels as a check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxopt.deploy.audit import check_audit
from onnxopt.deploy.finding import Finding
from onnxopt.deploy.policy import Audit, Policy
from onnxopt.deploy.subject import Subject


def net(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """From x to y, with some constants to choose from."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in ("x", "y")]
    constants = {
        "s": np.float32(0.02),
        "z": np.uint8(128),
        "w": np.full((8, 8), 50, np.int8),
        "ws": np.float32(0.01),
        "each": np.linspace(0.01, 0.02, 8, dtype=np.float32),
        "wf": np.eye(8, dtype=np.float32),
    }
    graph = helper.make_graph(
        list(nodes), "g", ends[:1], ends[1:], [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def pair(x: str, y: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [x, "s", "z"], [f"{y}_q"]),
        helper.make_node("DequantizeLinear", [f"{y}_q", "s", "z"], [y]),
    ]


def weight(scale: str = "ws", axis: int = 1) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", ["w", scale], ["dw"], axis=axis)


PRODUCT = helper.make_node("MatMul", ["a", "dw"], ["m"], name="product")


def found(path: Path, model: onnx.ModelProto, least: float | None = None) -> list[Finding]:
    path.write_bytes(model.SerializeToString())
    return check_audit(Subject(path), Policy(audit=Audit(min_integer_share=least)))


def test_a_product_in_integers_passes(tmp_path: Path) -> None:
    model = net(*pair("x", "a"), weight(), PRODUCT, *pair("m", "y"))
    (finding,) = found(tmp_path / "m.onnx", model, 0.9)
    assert (finding.status, finding.measured, finding.places) == ("passed", 1.0, ())


def test_float_products_are_named_and_held_against_the_least_share(tmp_path: Path) -> None:
    island = helper.make_node("MatMul", ["t", "wf"], ["y"], name="island")
    model = net(*pair("x", "a"), weight(), PRODUCT, *pair("m", "t"), island)
    (passed,) = found(tmp_path / "m.onnx", model, 0.4)
    assert (passed.status, passed.measured, passed.places) == ("passed", 0.5, ("island",))
    (failed,) = found(tmp_path / "m.onnx", model, 0.9)
    assert failed.status == "failed"
    assert "50.0 % of the multiplications" in failed.why
    assert "90.0 % wanted" in failed.why


def test_quantized_for_nothing_fails(tmp_path: Path) -> None:
    product = helper.make_node("MatMul", ["a", "wf"], ["y"], name="product")
    (finding,) = found(tmp_path / "m.onnx", net(*pair("x", "a"), product))
    assert (finding.status, finding.places) == ("failed", ("product",))
    assert "nothing runs in integers" in finding.why


def test_weights_stored_in_integers_are_no_promise_of_speed(tmp_path: Path) -> None:
    product = helper.make_node("MatMul", ["x", "dw"], ["y"], name="product")
    (finding,) = found(tmp_path / "m.onnx", net(weight(), product))
    assert finding.status == "passed"


def test_a_kernel_that_answers_wrong_fails(tmp_path: Path) -> None:
    """Scales of rows, which ONNX Runtime takes for those of columns."""
    findings = found(tmp_path / "m.onnx", net(*pair("x", "a"), weight("each", axis=0), PRODUCT, *pair("m", "y")))
    wrong = [f for f in findings if f.status == "failed"]
    assert [f.places for f in wrong] == [("product",)]
    assert "WRONG" in wrong[0].why


def test_a_float_model_fails_only_where_integers_are_wanted(tmp_path: Path) -> None:
    model = net(helper.make_node("MatMul", ["x", "wf"], ["y"]))
    assert found(tmp_path / "m.onnx", model)[0].status == "passed"
    (finding,) = found(tmp_path / "m.onnx", model, 0.5)
    assert (finding.status, finding.why) == ("failed", "nothing in it is quantized")
