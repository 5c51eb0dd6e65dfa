"""An exact pass is held to rounding: to that of the table, or to what the model itself makes of it."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from onnxopt.core.reference import Reference
from onnxopt.errors import PassError
from onnxopt.graph.model import Model
from onnxopt.passes.fold_bn import FoldBatchNorm
from onnxopt.progress import silent


def model(text, **weights):
    proto = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>' + text)
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
    return Model.from_proto(proto)


def context(**feed):
    return SimpleNamespace(dataset=SimpleNamespace(batches=lambda size, stop: [feed]))


X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
SCALED = "g (float[3,4] x) => (float[3,4] z) { z = Mul (x, k) }"


def test_deviations_are_told():
    before = Reference(model(SCALED, k=2), context(x=X))
    assert before.compare(model(SCALED, k=2), "step", exact=True) == {"z": 0.0}
    assert before.compare(model(SCALED, k=1), "step", exact=False) == {"z": pytest.approx(0.5)}


def test_an_exact_pass_may_not_change_results():
    before = Reference(model(SCALED, k=2), context(x=X))
    with pytest.raises(PassError, match=r"the exact pass step changed the output 'z' by 0.5 of its range"):
        before.compare(model(SCALED, k=1), "step", exact=True)


def test_rounding_that_the_model_magnifies_is_no_change():
    text = """g (float[1,3,8,8] x) => (float[1,4,6,6] z) {
        c = Conv (x, w) n = BatchNormalization (c, s, s, s, s) m = Mul (n, k) z = Sin (m)
    }"""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3, 3, 3)), "s": rng.uniform(1, 2, 4), "k": 1e4}
    feed = context(x=rng.standard_normal((1, 3, 8, 8)).astype(np.float32))
    reference, folded = Reference(model(text, **weights), feed), model(text, **weights)
    assert FoldBatchNorm().run(folded, SimpleNamespace(track=silent)).changed == 2
    assert reference.compare(folded, "fold-bn", exact=True)["z"] > 1e-4
    with pytest.raises(PassError):
        reference.compare(model(text, **(weights | {"s": weights["s"] * 1.5})), "fold-bn", exact=True)
