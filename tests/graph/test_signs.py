"""Which tensors are known not to be negative."""

import onnx
import pytest

from onnxopt.graph.model import Model
from onnxopt.graph.signs import never_negative


@pytest.mark.parametrize(
    ("nodes", "known"),
    [
        ("y = Relu (x)", True),
        ("a = Sigmoid (x) b = Relu (x) c = Concat <axis=1> (a, b) y = MaxPool <kernel_shape=[2]> (c)", True),
        ("a = Relu (x) b = Add (a, x) y = Flatten (b)", False),
        ("a = Relu (x) b = Add (a, a) y = Flatten (b)", True),
        ("y = Clip (x, zero)", True),
        ("y = Clip (x, less)", False),
        ("y = Clip (x, one)", True),
        ("y = Clip (x, , zero)", False),
        ("y = Tanh (x)", False),
        ("y = Identity (x)", False),
    ],
)
def test_operators(nodes: str, known: bool) -> None:
    header = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,2,8] x) => (y)'
    text = f"{header} <float zero = {{0}}, float less = {{-1}}, float[1] one = {{0}}> {{ {nodes} }}"
    model = Model.from_proto(onnx.parser.parse_model(text))
    assert never_negative(model.graph.outputs[0]) is known


def test_a_clip_of_an_old_opset() -> None:
    for least, known in (("0.0", True), ("-1.0", False)):
        text = f'<ir_version: 6, opset_import: ["" : 7]> g (float[2] x) => (y) {{ y = Clip <min={least}> (x) }}'
        model = Model.from_proto(onnx.parser.parse_model(text))
        assert never_negative(model.graph.outputs[0]) is known
