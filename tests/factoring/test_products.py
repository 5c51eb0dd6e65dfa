"""Gemm and MatMul of every spelling: factors of full rank say what the layer said, against numpy."""

from itertools import product

import numpy as np
import onnx
import pytest

from onnxopt.factoring.forms import Form
from onnxopt.factoring.site import find
from onnxopt.factoring.split import split
from onnxopt.graph.model import Model
from onnxopt.numerics.low_rank import factorize
from onnxopt.runtime.session import Session

ROWS, INNER, COLUMNS = 72, 80, 64


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(op: str, at: int, shapes: list[tuple[int, ...]], attributes: dict[str, float]) -> Model:
    """Of one layer, its constant input number ``at``; a third input is constant too."""
    constants = [i for i in range(len(shapes)) if i != 1 - at]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, [f"i{i}" for i in range(len(shapes))], ["y"], "layer", **attributes)],
        "g",
        [onnx.helper.make_tensor_value_info(f"i{1 - at}", onnx.TensorProto.FLOAT, shapes[1 - at])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(numbers(*shapes[i], seed=i), f"i{i}") for i in constants],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto))


def in_two(whole: Model, *, shift: bool) -> Model:
    """The layer as two of full rank; with ``shift``, they hold alpha, and the bias is written anew."""
    (site,) = find(whole, [], tables=False)
    weight, bias = site.affine() if shift else (site.matrix(), None)
    split(whole, site, Form("matrix", (*weight.shape, 1, 1)), factorize(weight, min(weight.shape)), bias)
    whole.tidy()
    onnx.checker.check_model(whole.to_proto(), full_check=True)
    return whole


BIASES = [None, (), (1,), (COLUMNS,), (1, COLUMNS), (ROWS, 1), (ROWS, COLUMNS)]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(("trans_a", "trans_b"), list(product((0, 1), repeat=2)))
def test_gemm(at: int, trans_a: int, trans_b: int) -> None:
    a = (INNER, ROWS) if trans_a else (ROWS, INNER)
    b = (COLUMNS, INNER) if trans_b else (INNER, COLUMNS)
    for bias, (alpha, beta) in product(BIASES, [(1.0, 1.0), (0.5, -2.0)]):
        shapes = [a, b] if bias is None else [a, b, bias]
        whole = model("Gemm", at, shapes, {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta})
        left, right, *added = (numbers(*s, seed=i) for i, s in enumerate(shapes))
        wanted = alpha * (left.T if trans_a else left) @ (right.T if trans_b else right)
        wanted = wanted + beta * added[0] if added else wanted
        (site,) = find(whole, [], tables=False)
        of_outputs = [None, (), (1,), *([(ROWS, 1)] if at == 0 else [(COLUMNS,), (1, COLUMNS)])]
        assert site.solvable == (bias in of_outputs)
        x = [left, right][1 - at]
        for shift in (False, True)[: 1 + site.solvable]:
            chain = in_two(whole.clone(), shift=shift)
            assert [n.op for n in chain.graph.nodes] == ["Gemm", "Gemm"]
            (y,) = Session(chain, optimize=False).run({f"i{1 - at}": x}).values()
            np.testing.assert_allclose(y, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("at", "x"),
    [(1, s) for s in [(INNER,), (7, INNER), (2, 7, INNER), (2, 1, 7, INNER)]]
    + [(0, s) for s in [(INNER,), (INNER, 7), (2, INNER, 7), (2, 1, INNER, 7)]],
)
def test_matmul(at: int, x: tuple[int, ...]) -> None:
    shapes = [x, (INNER, COLUMNS)] if at else [(ROWS, INNER), x]
    whole = model("MatMul", at, shapes, {})
    left, right = (numbers(*s, seed=i) for i, s in enumerate(shapes))
    for shift in (False, True):
        chain = in_two(whole.clone(), shift=shift)
        (y,) = Session(chain, optimize=False).run({f"i{1 - at}": [left, right][1 - at]}).values()
        np.testing.assert_allclose(y, left @ right, atol=1e-4)
