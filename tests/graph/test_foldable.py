"""Nodes that depend on constants only: in order, and why some of them stay."""

import onnx

from onnxopt.graph import foldable, shapes
from onnxopt.graph.model import Model


def model(text: str) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["":17, "x":1]> {text}')
    return Model.from_proto(proto)


def test_nodes_come_in_order_and_others_say_why_they_stay() -> None:
    m = model("""g (float[2] x) => (float[2] z, float[2] o) <float[2] w = {1, 2}> {
        a = Neg (w)
        b = Abs (a)
        r = RandomNormalLike (a)
        f = x.Thing (a)
        o = Neg (b)
        s = Sum (x, b, r, f)
        z = Neg (s)
    }""")
    kept: dict = {}
    found = foldable.candidates(m, shapes.proven(m), kept, False)
    assert [n.outputs[0].name for n in found] == ["a", "b"]
    assert [t.name for t in foldable.read_elsewhere(found)] == ["a", "b"]
    assert {n.outputs[0].name: why for n, why in kept.items()} == {
        "r": "its result is random",
        "f": "operators of the domain x may do more than compute",
        "o": "it makes an output of its graph",
    }
    assert foldable.boundary_ids(m) == {id(t) for t in m.graph.outputs}


def test_what_grows_and_how_much_goes_at_a_time() -> None:
    m = model("""g (float[1] x) => (float[M, N] z) <int64[2] s = {1024, 1024}, float[1] w = {1}> {
        a = Expand (w, s)
        z = Mul (a, x)
    }""")
    specs = shapes.proven(m)
    (node,) = (n for n in m.nodes() if n.op == "Expand")
    assert foldable.growing([node], specs, False) == {node: "its result would make the file 4.0 MB bigger"}
    assert foldable.first([node] * 100, specs) == [node] * 64  # 256 MiB
