"""Weights stored as codes are the same weights, for every number of levels, and are floats once the model is loaded."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from scipy.stats import entropy

from onnxopt.graph.codes import Coded, few_tables, per_byte, store, table_bytes
from onnxopt.runtime.session import Session


def coded(shape: tuple[int, ...], levels: int, *, scale: bool = False, dtype: type = np.float32) -> Coded:
    rng = np.random.default_rng(levels)
    codes = rng.integers(0, levels, shape).astype(np.uint8)
    factor = rng.uniform(0.5, 2, (shape[0], *(1 for _ in shape[1:]))).astype(dtype) if scale else None
    return Coded(codes, np.sort(rng.standard_normal(levels)).astype(dtype), factor)


@pytest.mark.parametrize(("levels", "count"), [(1, 1), (2, 8), (3, 5), (4, 4), (6, 3), (7, 2), (16, 2), (17, 1)])
def test_a_byte_holds_as_many_codes_as_fit(levels, count) -> None:
    assert per_byte(levels) == count


@pytest.mark.parametrize("opset", [7, 13, 21])
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 16, 17, 256])
@pytest.mark.parametrize("scale", [False, True])
def test_what_is_made_of_codes_are_the_values(build, levels, scale, opset) -> None:
    model = build("y = MatMul(x, w)", "float[7,11] w", "float[3,7] x", opset=opset)
    given = coded((7, 11), levels, scale=scale)
    constant = next(c for c in model.constants() if c.name == "w")
    store(model, {constant: given})
    onnx.checker.check_model(model.to_proto(), full_check=True)
    for optimize in (False, True):
        made = Session(model, optimize=optimize).run({"x": np.eye(3, 7, dtype=np.float32)})["y"]
        np.testing.assert_array_equal(made, given.values[:3])


@pytest.mark.parametrize(("levels", "opset", "ops"), [(7, 21, 3), (16, 21, 3), (16, 20, 6), (6, 21, 8), (17, 21, 3)])
def test_two_in_a_byte_are_uint4_where_there_is_such_a_type(build, levels, opset, ops) -> None:
    model = build("y = MatMul(x, w)", "float[64,64] w", "float[1,64] x", opset=opset)
    before = len(model.to_proto().SerializeToString())
    given = coded((64, 64), levels, scale=True)
    store(model, {model.constants()[0]: given})
    kinds = {t.data_type for t in model.to_proto().graph.initializer}
    assert (onnx.TensorProto.UINT4 in kinds) is (opset >= 21 and per_byte(levels) == 2)
    assert len([n for n in model.nodes() if n.op != "MatMul"]) == ops
    table = table_bytes(levels) + 50 if "digits_" in str(model.to_proto()) else 0
    assert before - len(model.to_proto().SerializeToString()) >= 4 * 64 * 64 - given.nbytes("w") - table


def test_half_floats_and_doubles_keep_their_type(build) -> None:
    model = build("y = Mul(x, w)", "double[4,4] w", "double[4,4] x", y="double[] y")
    store(model, {model.constants()[0]: coded((4, 4), 5, dtype=np.float64)})
    assert Session(model).run({"x": np.ones((4, 4))})["y"].dtype == np.float64


def test_the_runtime_makes_floats_of_them_when_it_loads(build, tmp_path: Path) -> None:
    weights = "float[16,8,3,3] w, float[16,16,3,3] v"
    model = build("a = Conv(x, w) r = Relu(a) y = Conv(r, v)", weights)
    names = {c.name: c for c in model.constants()}
    store(model, {names["w"]: coded((16, 8, 3, 3), 16, scale=True), names["v"]: coded((16, 16, 3, 3), 3)})
    assert sum(n.op == "Gather" for n in model.nodes()) == 4
    assert {c.name for c in model.constants()} >= {"digits_16", "digits_3", "w.codes", "w.levels", "w.scale"}
    saved = tmp_path / "as_run.onnx"
    Session(model, save_optimized=saved)
    ops = {n.op_type for n in onnx.load(saved).graph.node}
    assert not ops & {"Gather", "Cast", "Mul", "Slice"}
    assert "Conv" in ops


def test_sizes_are_those_of_the_file_and_of_the_best_code(build) -> None:
    model = build("y = MatMul(x, w)", "float[256,256] w", "float[1,256] x")
    before = len(model.to_proto().SerializeToString())
    even = Coded(np.resize(np.arange(16, dtype=np.uint8), (256, 256)), np.linspace(-1, 1, 16, dtype=np.float32))
    store(model, {model.constants()[0]: even})
    saved = before - len(model.to_proto().SerializeToString())
    shared = 256 * 2
    assert abs(4 * 256 * 256 - even.nbytes("w") - shared - saved) < 300
    assert even.entropy_bytes == 256 * 256 / 2 + 16 * 4
    assert Coded(np.zeros((4, 4), np.uint8), np.ones(1, np.float32)).entropy_bytes == 4


@pytest.mark.parametrize("levels", [2, 3, 16, 256])
def test_entropy_is_that_of_scipy(levels) -> None:
    codes = np.random.default_rng(0).binomial(levels - 1, 0.3, (40, 33)).astype(np.uint8)
    found = Coded(codes, np.zeros(levels, np.float32), np.zeros((40, 1), np.float32)).entropy_bytes
    bits = entropy(np.unique(codes, return_counts=True)[1], base=2)
    assert found == pytest.approx(bits * codes.size / 8 + 4 * levels + 160)


@pytest.mark.parametrize("opset", [7, 13])
@pytest.mark.parametrize("levels", [2, 3, 16, 256])
def test_channels_have_levels_of_their_own(build, levels, opset) -> None:
    model = build("y = MatMul(x, w)", "float[7,11] w", "float[7,7] x", opset=opset)
    one = coded((7, 11), levels, scale=True)
    book = np.array([0, 0, 0, 1, 1, 1, 2])[:, None]
    given = Coded(one.codes, np.stack([one.levels, one.levels + 1, one.levels * 2]), one.scale, book)
    np.testing.assert_array_equal(given.values[:3], one.values[:3])
    np.testing.assert_array_equal(given.values[6], 2 * one.values[6])
    assert given.nbytes("w") == pytest.approx(one.nbytes("w") + 8 * levels + 4 * 7 + 90.5, abs=1)
    store(model, {next(c for c in model.constants() if c.name == "w"): given})
    onnx.checker.check_model(model.to_proto(), full_check=True)
    made = Session(model, optimize=False).run({"x": np.eye(7, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(made, given.values)


@pytest.mark.parametrize("name", ["w", "a_name_of_24_letters_only", "n" * 60])
@pytest.mark.parametrize("levels", [3, 16, 256])
def test_bytes_are_those_at_most_that_the_file_takes(build, name, levels) -> None:
    model = build(f"y = MatMul(x, {name})", f"float[71,43] {name}", "float[3,71] x")
    before = len(model.to_proto().SerializeToString())
    given, constant = coded((71, 43), levels, scale=True), model.constants()[0]
    store(model, {constant: given})
    taken = len(model.to_proto().SerializeToString()) - before + 4 * 71 * 43
    assert 0 <= given.nbytes(name) + table_bytes(levels) - taken < 400


def test_weights_of_few_levels_have_a_table_where_it_pays(build) -> None:
    model = build("a = MatMul(x, w) y = MatMul(a, v)", "float[50,50] w, float[50,50] v", "float[50,50] x")
    w, v = model.constants()
    few, many = coded((50, 50), 3), coded((50, 50), 16)
    found = few_tables({w: few, v: many}, 16)
    assert (found[w].count, found[v].count) == (16, 16)  # 750 bytes less as codes of 3 levels, 1215 for a table
    np.testing.assert_array_equal(found[w].values, few.values)
    assert few_tables({w: coded((200, 50), 3), v: many}, 16)[w].count == 3
    assert few_tables({w: coded((50, 50), 1)}, 16)[w].count == 16
