"""No integer model slower than float, as measured: gains are kept, losses undone with the figures."""

from __future__ import annotations

import re

import numpy as np
import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.passes.quant import Quant
from onnxopt.runtime.audit import audit
from onnxopt.runtime.target import X86_AVX512_VNNI

WIDE = "float[64,64,3,3] w, float[64,64,3,3] v"
CHAIN = "[one] h = Conv <pads=[1,1,1,1]> (x, w) r = Relu (h) [two] y = Conv <pads=[1,1,1,1]> (r, v)"
# Depthwise with a window that has no quick integer kernel.
SLOW = "float[16,1,7,7] w"


@pytest.fixture
def context_of(tmp_path):
    def run(model, **kwargs):
        (spec,) = model.inputs
        shape = [16 if i == 0 else d for i, d in enumerate(spec.shape)]
        np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=shape).astype(np.float32))
        return Context(model.clone(), open_dataset(tmp_path / "x.npy", model.inputs), **kwargs)

    return run


def test_what_pays_is_kept_and_what_it_gains_told(build, context_of):
    model = build(CHAIN, WIDE, "float[N,64,32,32] x")
    result = Quant().run(model, context_of(model))
    median, low, high = result.figures["speedup"]
    assert low <= median <= high
    assert median > 1.2
    assert result.figures["undone"] == []
    assert [n.kernel for n in audit(model).nodes] == ["QLinearConv"] * 2


def test_what_does_not_pay_changes_nothing_and_says_why(build, context_of):
    model = build("[one] y = Conv <group=16, pads=[3,3,3,3]> (x, w)", SLOW, "float[N,16,48,48] x")
    before = model.digest()
    result = Quant().run(model, context_of(model))
    assert result.changed == 0
    assert model.digest() == before
    (skip,) = (s for s in result.skips if s.node == "model")
    found = re.fullmatch(r"left float: as integers it would run (\d\.\d\d) times as fast at batch 1", skip.why)
    assert found is not None
    assert float(found[1]) < 0.99


def test_only_the_part_that_loses_is_undone(build, context_of):
    nodes = "[slow] a = Conv <group=16, pads=[3,3,3,3]> (x, s) [up] b = Conv (a, u) " + CHAIN.replace(
        "(x, w)", "(b, w)"
    )
    model = build(nodes, f"float[16,1,7,7] s, float[64,16,1,1] u, {WIDE}", "float[N,16,32,32] x")
    result = Quant().run(model, context_of(model))
    assert "slow" in result.figures["undone"]
    assert "one" not in result.figures["undone"]
    assert result.figures["speedup"][0] > 1.2
    (why,) = (s.why for s in result.skips if s.node == "slow")
    assert why.startswith("slower in integers: ")


def test_the_judged_batch_is_measured(build, context_of):
    model = build("[one] y = Conv <group=16, pads=[3,3,3,3]> (x, w)", SLOW, "float[N,16,48,48] x")
    result = Quant().run(model, context_of(model, latency_batch=3))
    assert result.skips[-1].why.endswith("at batch 3")


@pytest.mark.parametrize(("step", "target"), [(Quant(measure=False), None), (Quant(), X86_AVX512_VNNI)])
def test_nothing_is_measured_when_told_so_or_for_another_machine(build, context_of, step, target):
    model = build("[one] y = Conv <group=16, pads=[3,3,3,3]> (x, w)", SLOW, "float[N,16,48,48] x")
    result = step.run(model, context_of(model, **({"target": target} if target else {})))
    assert result.changed == 1
    assert "speedup" not in result.figures
