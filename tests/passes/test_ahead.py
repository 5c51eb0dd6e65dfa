"""What passes tell before they run is what they then do: how many places, which are left alone, and the bytes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from onnxopt.core import spec
from onnxopt.core.context import Context
from onnxopt.core.manager import PassManager
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.io import load
from onnxopt.graph.model import Model

SAMPLES = Path(__file__).parents[2] / "sample_models"
ODD = """g (float[N,96] x, int64[N] i, float[N,48,4] s, float[N,96] u) =>
        (float[N,64] a, float[64,N] b, float[N,64] c, float[64,64] d, float[N,64] e, float[] z)
    <float[96,64] w, float[64,96] v, float[500,64] t, float[96,64] n, float[32,48,3] k, float[8,4] m> {
    a = Gemm (x, w) b = Gemm <transA=1,transB=1> (w, u) c = Gather (t, i) e = MatMul (x, n)
    f = Conv <pads=[1,1]> (s, k) p = Relu (f) r = Transpose <perm=[1,0]> (m) z = MatMul (p, r) d = MatMul (v, w) }"""
PASSES = [
    "quant-weights",
    "quant-weights:bits=8:conv=false:form=qdq",
    "quant-dynamic",
    "sparsify",
    "cluster",
    "fp16:weights=true",
]


def told_and_done(model: Model, text: str, data: object) -> tuple:
    """Of a pass, and what it needs first."""
    (step,) = spec.parse(text)
    context = Context(model.clone(), data)
    PassManager([spec.make(name, {}) for name in step.needs()]).run(model, data)
    before = model.digest()
    ahead = step.preflight(model, context)
    assert model.digest() == before
    return ahead, step.run(model, context)


def agree(ahead, result) -> None:
    assert ahead.changed == result.changed
    assert Counter((node, why) for _, node, why in ahead.skips) == Counter((s.node, s.why) for s in result.skips)
    assert not [s for s in ahead.skips if s[0] == "other"]
    assert bool(ahead.refusal) == (not result.changed)
    assert ("weight_bytes" in ahead.figures) == ("weight_bytes" in result.figures)
    # With data a layer may get a bias that it had not.
    assert ahead.figures.get("weight_bytes", []) == pytest.approx(result.figures.get("weight_bytes", []), rel=0.005)


@pytest.mark.parametrize("text", ["sparsify", "quant-dynamic", "quant-weights:rounding=nearest"])
def test_on_a_sample_model(text):
    model = load(SAMPLES / "digits_mlp.onnx")
    agree(*told_and_done(model, text, open_dataset(SAMPLES / "digits_calib.npz", model.inputs, samples=16)))


@pytest.mark.parametrize("text", PASSES)
def test_on_an_odd_graph_with_data(parse, text, tmp_path):
    model = Model.from_proto(parse(ODD, n=np.nan))
    rng = np.random.default_rng(0)
    sizes = {"x": (96,), "s": (48, 4), "u": (96,)}
    values = {name: rng.standard_normal((32, *size)).astype(np.float32) for name, size in sizes.items()}
    np.savez(tmp_path / "data.npz", i=rng.integers(0, 500, 32), **values)
    agree(*told_and_done(model, text, open_dataset(tmp_path / "data.npz", model.inputs)))


def test_nothing_to_do_is_a_refusal(parse):
    model = Model.from_proto(parse("g (float[N,4] x) => (float[] y) <float[4,4] w> { y = MatMul (x, w) }"))
    ahead, _ = told_and_done(model, "quant-weights", open_dataset(None, model.inputs, samples=2))
    assert ahead.refusal == "no weights would be rounded: it is small: 16 weights"
    ahead, _ = told_and_done(model, "quant-weights:exclude=y", open_dataset(None, model.inputs, samples=2))
    assert ahead.skips == (("excluded", "y", "excluded"),)
