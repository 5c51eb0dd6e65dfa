"""Which form the weights of a site get, and what is left as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxopt.graph.model import Model
from onnxopt.numerics.blocks import Format
from onnxopt.runtime.target import CORTEX_A53, NATIVE
from onnxopt.weights.weight_only_coding import Coding

FOUR = Coding(Format(4, symmetric=False), 32, "auto", NATIVE)


def model(nodes: str, opset: int = 21, **shapes: tuple[int, ...]) -> Model:
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    inputs = "float[N,64] x, int64[M] i, float[1,8,9,9] p"
    proto = onnx.parser.parse_model(f"{header} g ({inputs}) => (float[] y) {{ {nodes} }}")
    rng = np.random.default_rng(0)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), k) for k, s in shapes.items()
    )
    return Model.from_proto(proto)


@pytest.mark.parametrize(
    ("nodes", "shape", "changes", "form", "bits", "block"),
    [
        ("y = MatMul(x, w)", (64, 64), {}, "nbits", 4, 32),
        ("y = MatMul(x, w)", (64, 64), {"block": 0}, "qdq", 4, 0),  # the runtime makes the same of it
        ("y = MatMul(x, w)", (64, 64), {"block": 0, "target": CORTEX_A53}, "nbits", 4, 0),
        ("y = MatMul(x, w)", (64, 64), {"form": "qdq"}, "qdq", 4, 32),
        ("y = Conv(p, w)", (64, 8, 3, 3), {"form": "nbits"}, "qdq", 4, 32),
        ("y = Gather(w, i)", (90, 64), {}, "nbits", 4, 32),
        ("y = Gather(w, i)", (90, 64), {"form": "qdq"}, "qdq", 8, 0),  # rows of the standard operators
    ],
)
def test_forms(nodes: str, shape: tuple[int, ...], changes: dict, form: str, bits: int, block: int) -> None:
    ((chosen,), left) = replace(FOUR, **changes).choose(model(nodes, w=shape), {})
    assert not left
    assert (chosen.form, chosen.format.bits, chosen.block) == (form, bits, block)
    before, after = chosen.bytes
    assert before == 4 * np.prod(shape)
    assert after < 0.3 * before


def test_what_is_left_alone_says_why() -> None:
    old = model("y = MatMul(x, w)", 17, w=(64, 64))
    coding = replace(FOUR, form="qdq")
    assert coding.oldest_opset(old, {}) == 21
    assert coding.choose(old, {}) == ([], {"y": "its form needs a newer opset than the model could be given"})
    assert coding.oldest_opset(old, {"y": "no"}) == 0
    assert coding.choose(old, {"y": "no"}) == ([], {"y": "no"})


@pytest.mark.parametrize(("target", "level"), [(NATIVE, 4), (CORTEX_A53, 0)])
def test_the_accuracy_level_is_what_the_target_has_kernels_for(target, level: int) -> None:
    assert replace(FOUR, target=target).level == level
