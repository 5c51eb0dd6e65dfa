"""Nodes that are run by themselves: what others read of them, and the one that cannot run."""

import numpy as np
import onnx

from onnxopt.graph.model import Model
from onnxopt.runtime.evaluate import evaluate


def model(text: str) -> Model:
    return Model.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["":17]> {text}'))


def test_what_others_read_is_computed() -> None:
    m = model("""g (float[2] x) => (float[2] z) <float[2] w = {1, 2}> {
        a = Neg (w)
        b = Exp (a)
        z = Add (x, b)
    }""")
    large = m.constant("large", np.arange(2.0**16, dtype=np.float32))
    m.graph.nodes[0].inputs[0] = large
    kept: dict = {}
    values = evaluate(m, list(m.nodes())[:2], kept)
    assert values is not None
    assert not kept
    assert values.keys() == {"b"}
    np.testing.assert_allclose(values["b"], np.exp(-large.values), rtol=1e-5)


def test_the_node_that_cannot_run_is_found() -> None:
    m = model("""g (double[1,1,2,2] x, double[1,1,4,4] w, double[1,1,3,3] k) => (double[1,1,2,2] z) {
        a = Neg (w)
        b = Abs (k)
        c = Conv (a, b)
        d = Abs (c)
        z = Add (x, d)
    }""")
    nodes = list(m.nodes())
    for node, size in zip(nodes, (4, 3), strict=False):
        node.inputs[0] = m.constant("ones", np.ones((1, 1, size, size)))
    kept: dict = {}
    assert evaluate(m, nodes[:4], kept) is None
    ((node, why),) = kept.items()
    assert node.op == "Conv"
    assert "Could not find an implementation for Conv" in why
