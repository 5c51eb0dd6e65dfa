"""The lint as a check: for which processors it fails, and what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.deploy.policy import Policy, Saturation
from onnxopt.deploy.saturation import check_saturation
from onnxopt.deploy.subject import Subject
from onnxopt.errors import SpecError


def product(path: Path, weight: int) -> Subject:
    """uint8 by int8, all weights the same."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4]),
        helper.make_tensor_value_info("y", TensorProto.INT32, [1, 4]),
    ]
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="product")
    weights = numpy_helper.from_array(np.full((4, 4), weight, np.int8), "w")
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:], [weights]),
        ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )
    path.write_bytes(model.SerializeToString())
    return Subject(path)


def test_large_weights_fail_wherever_the_model_may_run(tmp_path: Path) -> None:
    (finding,) = check_saturation(product(tmp_path / "m.onnx", 100), Policy())
    assert (finding.status, finding.measured, finding.limit, finding.places) == ("failed", 1, 0, ("product",))
    assert "add up to 200, 128 is safe" in finding.why
    for remedy in ("reduce_range", "unsigned weights", "session.x64quantprecision=1"):
        assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("x86-64-avx2", "failed"),
        ("x86-64-avx512", "failed"),
        ("x86-64-avx512vnni", "passed"),
        ("raspberrypi4", "passed"),
    ],
)
def test_it_depends_on_the_processor_that_is_named(target: str, status: str, tmp_path: Path) -> None:
    policy = Policy(saturation=Saturation(target=target))
    (finding,) = check_saturation(product(tmp_path / "m.onnx", 100), policy)
    assert finding.status == status
    assert status == "failed" or "do not overflow" in finding.why


def test_small_weights_pass(tmp_path: Path) -> None:
    (finding,) = check_saturation(product(tmp_path / "m.onnx", 64), Policy())
    assert (finding.status, finding.measured) == ("passed", 0)


def test_a_processor_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no target is named"):
        check_saturation(product(tmp_path / "m.onnx", 64), Policy(saturation=Saturation(target="x86-64-avx3")))
