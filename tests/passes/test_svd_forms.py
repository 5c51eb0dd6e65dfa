"""Convolutions, tables, budgets and times: what becomes of each, and where nothing is done."""

import numpy as np
import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.factoring import trial
from onnxopt.graph.model import Model
from onnxopt.passes.svd import Svd
from onnxopt.runtime.target import find_target
from onnxopt.runtime.timing import Timing


def svd(**options):
    """Whatever the machine that it runs on makes of it."""
    how = {"ratio", "energy", "rank", "macs", "params", "latency"} & options.keys()
    return Svd(timed=False, **({} if how else {"ratio": 0.5}), **options)


def images(*shape, rank=6, seed=0):
    """Inputs whose channels lie in few directions."""
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((shape[0], rank, *shape[2:]))
    return np.einsum("nr...,rc->nc...", few, rng.standard_normal((rank, shape[1]))).astype(np.float32)


CONV = "g (float[N,32,8,8] x) => (float[] z) <float[160,32,{k},{k}] w, float[160] b> {{ z = Conv <pads=[{p},{p},{p},{p}]> (x, w, b) }}"  # noqa: E501 as ONNX writes it


@pytest.mark.parametrize(
    ("k", "options", "ops", "form"),
    [
        (1, {}, 2, "matrix"),
        (3, {"conv": "tucker"}, 3, "tucker"),
        (3, {"conv": "spatial"}, 2, "spatial"),
    ],
)
def test_convolutions(check_pass, parse, k, options, ops, form):
    x = images(24, 32, 8, 8)
    before = parse(CONV.format(k=k, p=k // 2))
    aware = check_pass(svd(ratio=0.4, **options), before, ops="Conv " * ops, changed=1, feed={"x": x})
    blind = check_pass(svd(ratio=0.4, **options, aware=False), before, ops="Conv " * ops, changed=1, feed={"x": x})
    layer = aware.result.figures["layers"]["z"]
    assert layer["form"] == form
    assert layer["measured_on"] == "outputs"
    assert layer["parameters_after"] <= 0.4 * layer["parameters_before"]
    assert aware.deviation() < 0.5 * blind.deviation()
    made, wanted = aware.after["z"], aware.before["z"]
    assert np.linalg.norm(made - wanted) / np.linalg.norm(wanted) == pytest.approx(layer["relative_error"], abs=0.05)


def test_canonical_products(check_pass, parse):
    x = images(24, 16, 6, 6, rank=3)
    before = parse("g (float[N,16,6,6] x) => (float[] z) <float[32,16,3,3] w> { z = Conv (x, w) }")
    found = check_pass(svd(ratio=0.5, conv="cp"), before, ops="Conv Conv Conv", changed=1, feed={"x": x})
    layer = found.result.figures["layers"]["z"]
    assert (layer["form"], layer["rank"]) == ("cp", 32)
    assert layer["relative_error"] < 0.5 * layer["plain_error"]


def test_inputs_in_few_directions_need_few_ranks(check_pass, parse):
    found = check_pass(svd(energy=0.97, conv="tucker"), parse(CONV.format(k=3, p=1)), feed={"x": images(24, 32, 8, 8)})
    outer, inner = found.result.figures["layers"]["z"]["rank"]
    assert inner == 8
    assert outer > 16


def test_wide_kernels_are_left_alone_by_default(check_pass, parse):
    check_pass(svd(), parse(CONV.format(k=3, p=1)), changed=0, skipped=["more than one position"])


def test_groups_are_left_alone(check_pass, parse):
    before = parse("g (float[N,64,8,8] x) => (float[] z) <float[128,32,3,3] w> { z = Conv <group=2> (x, w) }")
    check_pass(svd(conv="tucker"), before, changed=0, skipped=["in groups"])


def test_a_first_convolution_at_all_positions_may_cost_more(check_pass, parse):
    """With a stride of four, the 1 x 1 convolution before works sixteen times as often."""
    before = parse("g (float[N,64,32,32] x) => (float[] z) <float[64,64,3,3] w> { z = Conv <strides=[4,4]> (x, w) }")
    check_pass(svd(conv="tucker", rank="32"), before, changed=0, skipped=["multiplications instead of"], size=1)
    before = parse("g (float[N,64,32,32] x) => (float[] z) <float[64,64,3,3] w> { z = Conv <strides=[1,4]> (x, w) }")
    why = "14,745,600 multiplications instead of 8,847,360"
    check_pass(svd(conv="spatial", rank="64"), before, changed=0, skipped=[why], size=1)


TABLE = "g (int64[N,6] x) => (float[] z) <float[200,64] w> { z = Gather (w, x) }"


def test_tables(check_pass, parse):
    check_pass(svd(), parse(TABLE), changed=0)
    feed = {"x": np.random.default_rng(0).integers(0, 12, (50, 6))}
    aware = check_pass(svd(embeddings=True), parse(TABLE), ops="Gather MatMul", changed=1, feed=feed)
    blind = check_pass(svd(embeddings=True, aware=False), parse(TABLE), ops="Gather MatMul", changed=1, feed=feed)
    layer = aware.result.figures["layers"]["z"]
    assert (layer["form"], layer["measured_on"]) == ("table", "outputs")
    assert layer["parameters_after"] <= 6400
    assert aware.deviation() < 0.1 < blind.deviation()


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("float[200,64] w> { z = Gather <axis=1> (w, x)", "looks up columns"),
        ("float[20,64] w> { z = Gather (w, x)", "small"),
    ],
)
def test_tables_that_stay(check_pass, parse, table, why):
    check_pass(svd(embeddings=True), parse(f"g (int64[N,6] x) => (float[] z) <{table} }}"), changed=0, skipped=[why])


TWO = """g (float[N,96] x) => (float[] z) <float[96,96] v, float[96,96] w> {
    y = MatMul (x, v)
    r = Relu (y)
    z = MatMul (r, w)
}"""


def spectra():
    """Two matrices, one of almost rank 8."""
    rng = np.random.default_rng(0)
    q, p = (np.linalg.qr(rng.standard_normal((96, 96)))[0] for _ in range(2))
    return {"v": (q * np.append(np.ones(8), np.full(88, 1e-3))) @ p, "w": q}


@pytest.mark.parametrize("options", [{"params": "11060"}, {"macs": "33180"}])
def test_budgets_take_where_least_is_lost(check_pass, parse, options):
    found = check_pass(svd(**options, aware=False), parse(TWO, **spectra()), changed=1, skipped=None)
    assert found.result.skips[0].why == "the budget is met without it"
    assert found.result.figures["layers"]["y"]["rank"] == 8
    reached = found.result.figures["budget"]
    assert reached["before"] == 2 * 96 * 96 * (3 if "macs" in options else 1)
    assert reached["after"] <= reached["limit"] == float(*options.values())
    assert "notes" not in found.result.figures


def test_budgets_that_cannot_be_met(check_pass, parse):
    found = check_pass(svd(params="-97%", aware=False), parse(TWO, **spectra()), changed=2, skipped=None)
    (note,) = found.result.figures["notes"]
    assert "the budget is not met" in note
    assert "3% wanted" in note


def test_a_budget_of_time(parse, check_pass):
    before = parse("g (float[64,512] x) => (float[] z) <float[512,512] w> { z = MatMul (x, w) }")
    found = check_pass(svd(latency="-30%", aware=False), before, changed=1, skipped=None)
    assert found.result.figures["layers"]["z"]["speedup"] > 1
    assert found.result.figures["budget"]["before"] > 0


def test_a_budget_of_time_on_another_processor(parse):
    model = Model.from_proto(parse(TWO))
    data = open_dataset("synthetic", model.inputs, samples=2)
    result = svd(latency="-30%").run(model, Context(model.clone(), data, target=find_target("arm64-cortex-a76")))
    assert result.changed == 0
    assert "timed on this machine only" in result.figures["notes"][0]


def test_what_is_faster_is_timed(check_pass, parse):
    before = parse("g (float[64,1024] x) => (float[] z) <float[1024,1024] w> { z = MatMul (x, w) }")
    found = check_pass(Svd(ratio=0.25, aware=False), before, changed=1)
    assert found.result.figures["layers"]["z"]["speedup"] > 1.5


def test_what_would_not_be_faster_is_left_whole(check_pass, parse, monkeypatch):
    slower = Timing.of(np.full(9, 0.010), np.full(9, 0.012))
    monkeypatch.setattr(trial, "interleave", lambda *_, **__: slower)
    check_pass(
        Svd(ratio=0.5), parse(TWO), changed=0, skipped=["it would run 0.83 times as fast, 12 us instead of 10"] * 2
    )


def test_what_the_layers_behind_make_good(check_pass, parse):
    """A layer that was too small to factor knows what the one before it lost."""
    text = """g (float[N,80] x) => (float[] z) <float[80,80] v, float[80,10] w, float[10] b> {
        y = MatMul (x, v)
        r = Sigmoid (y)
        z = Gemm (r, w, b)
    }"""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 80)).astype(np.float32)
    v = rng.standard_normal((80, 80)) * np.geomspace(1, 0.1, 80) / 4
    errors = []
    for repair in (True, False):
        before = parse(text, v=v)
        found = check_pass(svd(repair=repair, samples=2000), before, changed=1, skipped=["small"], feed={"x": x})
        errors.append(np.linalg.norm(found.after["z"] - found.before["z"]))
        repaired = found.result.figures.get("repaired", [])
        assert [r["layer"] for r in repaired] == (["z"] if repair else [])
    assert errors[0] < errors[1]


def test_exclude(check_pass, parse):
    found = check_pass(svd(exclude="y+q*"), parse(TWO), changed=1, skipped=["excluded", "exclude names no node"])
    assert list(found.result.figures["layers"]) == ["z"]


def test_rank_is_one_for_all_or_what_stands_out(check_pass, parse):
    fixed = check_pass(svd(rank="20", aware=False), parse(TWO), changed=2)
    assert {layer["rank"] for layer in fixed.result.figures["layers"].values()} == {20}
    check_pass(svd(rank="60"), parse(TWO), changed=0, skipped=["rank 60 of 96 x 96 saves nothing"] * 2)
    noise = 0.02 * np.random.default_rng(1).standard_normal((96, 96))
    found = check_pass(svd(rank="auto", aware=False), parse(TWO, v=spectra()["v"] + noise), skipped=None)
    assert found.result.figures["layers"]["y"]["rank"] == 8


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rank": "some"}, "a number from 1 on, or auto"),
        ({"rank": "0"}, "a number from 1 on, or auto"),
        ({"rank": "auto", "conv": "cp"}, "cannot tell"),
        ({"samples": 0}, "at least 1"),
        ({"ratio": 0.5, "energy": 0.9}, "ratio and energy are given"),
        ({"macs": "-30%", "rank": "4"}, "rank and macs are given"),
        ({"params": "30%"}, "write for example"),
    ],
)
def test_options_that_do_not_fit(options, why):
    with pytest.raises(ValueError, match=why):
        Svd(**options)


def test_without_a_word_the_outputs_keep_their_energy(check_pass, parse):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((400, 12)) @ rng.standard_normal((12, 96))).astype(np.float32)
    found = check_pass(Svd(timed=False), parse(TWO), changed=None, skipped=None, feed={"x": x})
    assert found.result.figures["layers"]["y"]["rank"] == 16
    assert found.result.figures["layers"]["y"]["relative_error"] < 0.005**0.5
    assert "keeps 99.50% of the energy" in found.reasons[0]


def test_few_samples_do_not_tell_what_may_go(check_pass, parse):
    """Twenty inputs in 96 directions need no more than rank 20, but the next ones do."""
    x = np.random.default_rng(0).standard_normal((20, 96)).astype(np.float32)
    one = "g (float[N,96] x) => (float[] z) <float[96,96] w> { z = MatMul (x, w) }"
    check_pass(svd(energy=0.9), parse(one), changed=0, skipped=["on samples held back"], feed={"x": x})
