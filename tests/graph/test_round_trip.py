"""What goes in comes out: everything that ONNX can say survives loading and saving."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxopt.graph.io import load, save
from onnxopt.graph.model import Model


def rich_proto() -> onnx.ModelProto:
    """A model with one of everything that an edit buffer likes to lose."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4], doc_string="the input")
    x.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    hidden = helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 4], doc_string="hidden")
    hidden.metadata_props.add(key="k", value="v")
    w = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    w.doc_string = "weights"
    w.metadata_props.add(key="trained", value="yes")
    unused = numpy_helper.from_array(np.float32([7]), "unused")
    default = numpy_helper.from_array(np.float32([1, 2, 3, 4]), "d")
    d = helper.make_tensor_value_info("d", TensorProto.FLOAT, [4])
    add = helper.make_node("Add", ["x", "w"], ["h"], name="add", doc_string="adds")
    add.metadata_props.add(key="layer", value="1")
    constant = helper.make_node("Constant", [], ["c"], name="const", value_floats=[1.0, 2.0, 3.0, 4.0])
    tensor = helper.make_node("Constant", [], ["c2"], value=numpy_helper.from_array(np.float32([1] * 4), "inner"))
    custom = helper.make_node("Odd", ["h", "c", "", "c2"], ["o", ""], domain="acme", empty=[1], ratio=1.0, word="é")
    del custom.attribute[0].ints[:]
    custom.attribute.append(
        AttributeProto(name="type", type=AttributeProto.TYPE_PROTO, tp=helper.make_tensor_type_proto(1, [2]))
    )
    custom.attribute.append(AttributeProto(name="tensors", type=AttributeProto.TENSORS, tensors=[w]))
    custom.attribute.append(AttributeProto(name="raw", type=AttributeProto.STRING, s=b"\xff\xfe"))
    last = helper.make_node("Add", ["o", "d"], ["y"])
    graph = helper.make_graph(
        [constant, tensor, add, custom, last], "g", [x, d], [y], [w, unused, default], "the graph", [hidden]
    )
    graph.metadata_props.add(key="graph", value="meta")
    graph.quantization_annotation.add(tensor_name="h").quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("acme", 3)], functions=[function]
    )
    model.doc_string, model.producer_name, model.model_version, model.domain = "doc", "me", 5, "org"
    model.metadata_props.add(key="author", value="us")
    return model


def test_nothing_is_lost() -> None:
    proto = rich_proto()
    assert Model.from_proto(proto).to_proto() == proto


def test_clone_is_equal_and_independent() -> None:
    model = Model.from_proto(rich_proto())
    clone = model.clone()
    assert clone.to_proto() == model.to_proto()
    clone.graph.nodes[0].attrs["new"] = 1
    clone.graph.nodes[0].name = "renamed"
    assert model.graph.nodes[0].name == "add"


def test_file_round_trip(tmp_path) -> None:
    proto = rich_proto()
    onnx.save(proto, tmp_path / "a.onnx")
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()


@pytest.mark.parametrize(
    "dtype",
    ["INT4", "UINT4", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT16", "DOUBLE", "INT8", "BOOL", "COMPLEX64", "UINT64"],
)
def test_every_element_type(dtype: str, tmp_path) -> None:
    data_type = getattr(TensorProto, dtype)
    values = np.array([[1, 0, 1], [0, 1, 1]]).astype(helper.tensor_dtype_to_np_dtype(data_type))
    tensor = numpy_helper.from_array(values, "w")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", data_type, [2, 3])],
        [tensor],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model = Model.from_proto(proto)
    assert model.to_proto() == proto
    constant = model.constants()[0]
    np.testing.assert_array_equal(constant.values.astype(complex), values.astype(complex))
    # Reading the values must not change what is written.
    assert numpy_helper.to_array(model.to_proto().graph.initializer[0]).dtype == values.dtype
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    save(load(tmp_path / "m.onnx"), tmp_path / "n.onnx")
    again = onnx.load(tmp_path / "n.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(again.graph.initializer[0]), values)


def test_string_constants_survive() -> None:
    tensor = helper.make_tensor("w", TensorProto.STRING, [2], [b"one", "zwö".encode()])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [2])],
        [tensor],
    )
    proto = helper.make_model(graph)
    model = Model.from_proto(proto)
    assert model.to_proto() == proto
    assert list(model.constants()[0].values) in ([b"one", "zwö".encode()], ["one", "zwö"])
    assert model.to_proto().graph.initializer[0].string_data == tensor.string_data


def test_sparse_initializers_survive_and_can_be_read() -> None:
    sparse = onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.float32([5, 6]), "s"),
        indices=numpy_helper.from_array(np.int64([1, 3])),
        dims=[4],
    )
    graph = helper.make_graph(
        [helper.make_node("Identity", ["s"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        sparse_initializer=[sparse],
    )
    proto = helper.make_model(graph)
    model = Model.from_proto(proto)
    assert model.to_proto() == proto
    np.testing.assert_array_equal(model.constants()[0].values, [0, 5, 0, 6])


def old_ir_proto() -> onnx.ModelProto:
    w = numpy_helper.from_array(np.ones(3, np.float32), "w")
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in ("w", "x")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        infos,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [w],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3)


def test_old_files_list_weights_among_inputs() -> None:
    """Below IR version 4 every initializer is an input too: weights to us, listed again when written."""
    proto = old_ir_proto()
    model = Model.from_proto(proto)
    assert [i.name for i in model.inputs] == ["x"]
    assert model.to_proto() == proto


def test_a_newer_initializer_that_is_an_input_is_no_constant() -> None:
    proto = old_ir_proto()
    proto.ir_version = 8
    model = Model.from_proto(proto)
    assert model.constants() == [model.graph.defaults["w"]]
    assert model.graph.nodes[0].inputs[1] is model.graph.inputs[0]
    assert model.to_proto() == proto


def body(tensor: str, name: str = "inner") -> onnx.GraphProto:
    weights = numpy_helper.from_array(np.float32([2, 2]), "w")
    return helper.make_graph(
        [helper.make_node("Mul", [tensor, "w"], [name])],
        "body",
        [],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])],
        [weights],
    )


def if_proto() -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("If", ["c"], ["y"], then_branch=body("r"), else_branch=body("x")),
        ],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", 1, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_bodies_capture_and_keep_their_own_weights() -> None:
    model = Model.from_proto(if_proto())
    relu, branch = model.graph.nodes
    assert branch.attrs["then_branch"].nodes[0].inputs[0] is relu.outputs[0]
    names = [c.name for c in model.constants()]
    assert len(names) == len(set(names)) == 2
    again = model.to_proto()
    assert [len(b.initializer) for a in again.graph.node[1].attribute for b in [a.g]] == [1, 1]
    onnx.checker.check_model(again, full_check=True)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_random_graphs(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    nodes, names, weights = [], ["x"], []
    for i in range(count):
        op = rng.choice(["Add", "Relu", "Concat", "Constant", "MatMul"])
        if op == "Constant":
            nodes.append(helper.make_node(op, [], [f"t{i}"], value_float=float(rng.standard_normal())))
        elif op == "MatMul":
            weights.append(numpy_helper.from_array(rng.standard_normal((2, 2)).astype(np.float32), f"w{i}"))
            nodes.append(helper.make_node(op, [str(rng.choice(names)), f"w{i}"], [f"t{i}"], name=f"n{i}"))
        else:
            inputs = [str(rng.choice(names)) for _ in range(1 if op == "Relu" else 2)]
            nodes.append(helper.make_node(op, inputs, [f"t{i}"], **({"axis": 0} if op == "Concat" else {})))
        names.append(f"t{i}")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, None)],
        [helper.make_tensor_value_info(names[-1], 1, None)],
        weights,
    )
    proto = helper.make_model(graph)
    model = Model.from_proto(proto)
    result = model.clone().to_proto()
    key = lambda node: node.SerializeToString(deterministic=True)  # noqa: E731  # a sort key
    assert sorted(map(key, result.graph.node)) == sorted(map(key, proto.graph.node))
    assert list(result.graph.initializer) == weights
    assert model.digest() == Model.from_proto(result).digest()
