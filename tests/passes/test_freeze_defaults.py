"""Weights that are listed as inputs become weights."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxopt.passes.freeze_defaults import FreezeDefaults


def listed() -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in ("x", "w", "unread")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        infos,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [numpy_helper.from_array(np.full(3, v, np.float32), n) for n, v in (("w", 2), ("unread", 1))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_defaults_become_constants(check_pass) -> None:
    outcome = check_pass(FreezeDefaults(), listed(), ops="Add", changed=2)
    assert [t.name for t in outcome.model.graph.inputs] == ["x"]
    assert [c.name for c in outcome.model.constants()] == ["w"]
    np.testing.assert_array_equal(outcome.constant("w"), [2, 2, 2])


def test_chosen_defaults_stay_unless_told(check_pass) -> None:
    proto = listed()
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "fixed"))
    proto.graph.node[0].output[0] = "sum"
    proto.graph.node.append(helper.make_node("Mul", ["sum", "fixed"], ["y"]))
    del proto.graph.input[2]
    check_pass(FreezeDefaults(), proto, changed=0, skipped=["somebody chose"])
    check_pass(FreezeDefaults(all=True), proto, changed=1)


def test_a_model_without_defaults_is_left_alone(check_pass, parse) -> None:
    check_pass(FreezeDefaults(), parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), changed=0)


def test_weights_in_constant_nodes_count_as_weights(check_pass, parse) -> None:
    proto = parse(
        "g (float[2] x, float[2] t) => (float[2] y)"
        "{ k = Constant<value_floats = [1.0, 2.0]>() s = Add(x, k) y = Mul(s, t) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "t"))
    check_pass(FreezeDefaults(), proto, changed=0, skipped=["somebody chose"])


def test_a_few_constants_beside_listed_weights_do_not_count(check_pass, parse) -> None:
    """Exporters that list all weights still write factors and sizes as Constant nodes."""
    proto = parse(
        "g (float[3] x, float[3] w) => (float[3] y){ k = Constant<value_float = 2.0>() s = Mul(x, k) y = Add(s, w) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    check_pass(FreezeDefaults(), proto, changed=1)
