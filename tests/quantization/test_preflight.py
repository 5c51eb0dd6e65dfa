"""What would be done, told from a few samples: layers, reasons by code, memory and time, and refusals."""

from __future__ import annotations

import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.passes.clean import Clean
from onnxopt.passes.quant import Quant


def look(build, nodes, weights, **options):
    model = build(nodes, weights, x="float[N,8,16,16] x")
    context = Context(model.clone(), open_dataset(None, model.inputs, samples=32))
    before = model.digest()
    found = Quant(**options).preflight(model, context)
    assert model.digest() == before
    return found


TWO = "h = Conv (x, w) y = Conv (h, v)", "float[8,8,3,3] w, float[8,8,3,3] v"


def test_what_would_run_in_integers_and_what_not(build):
    found = look(build, *TWO, exclude="h")
    assert found.changed == 1
    assert found.refusal == ""
    assert found.skips == (("excluded", "h", "excluded"),)
    why = "exclude names no node: none is called so, or it was folded away"
    assert look(build, *TWO, exclude="h+haed").skips == (("excluded", "haed", why), ("excluded", "h", "excluded"))
    assert found.figures["integer_share"] == pytest.approx(12**2 / (12**2 + 14**2))
    assert found.figures["samples"] == 32
    assert found.figures["seconds"] >= 0
    assert found.figures["peak_bytes"] > 2**26


def test_nothing_to_gain_is_a_refusal(build):
    found = look(build, *TWO, exclude="*")
    assert (found.changed, found.refusal) == (0, "no layer would run in integers: excluded")
    none = look(build, "y = Relu (x)", "")
    assert none.refusal == "no layer would run in integers: it has none"


def test_a_quantized_model_is_refused(build):
    nodes = "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)"
    found = look(build, nodes, "float s = {0.1}, uint8 z = {0}")
    assert found.refusal == "the model is quantized already: it holds QuantizeLinear"


def test_no_calibration_where_nothing_is_gained(build, monkeypatch):
    model = build(*TWO, x="float[N,8,16,16] x")
    context = Context(model.clone(), open_dataset(None, model.inputs, samples=8))
    monkeypatch.setattr(Context, "statistics", lambda *_: pytest.fail("calibrated"))
    result = Quant(exclude="*").run(model, context)
    assert result.changed == 0
    assert [s.why for s in result.skips] == ["excluded", "excluded"]


def test_other_passes_say_nothing(build):
    model = build("y = Relu (x)")
    assert Clean().preflight(model, Context(model, open_dataset(None, model.inputs))) is None
