"""Two small layers for a large one: the shapes that are left, what is lost, and where nothing is done."""

from pathlib import Path

import numpy as np
import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.io import load
from onnxopt.graph.model import Model
from onnxopt.numerics.low_rank import factorize
from onnxopt.passes.svd import Svd
from onnxopt.runtime.session import Session


def svd(**options):
    """Whatever the machine that it runs on makes of it."""
    how = {"ratio", "energy"} & options.keys()
    return Svd(timed=False, **({} if how else {"ratio": 0.5}), **options)


def low_rank(rows, columns, rank, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / np.sqrt(rank)
        + rng.standard_normal((rows, columns)) * noise
    )


@pytest.mark.parametrize(
    ("layer", "weights", "x"),
    [
        ("Gemm (x, w)", "float[80,96] w", "float[N,80]"),
        ("Gemm <transB=1, alpha=0.5, beta=2.0> (x, w, c)", "float[96,80] w, float[96] c", "float[N,80]"),
        ("Gemm <transA=1> (x, w, c)", "float[80,96] w, float c", "float[80,N]"),
        ("Gemm <transA=1, transB=1> (x, w)", "float[96,80] w", "float[80,N]"),
        ("MatMul (x, w)", "float[80,96] w", "float[N,80]"),
        ("MatMul (x, w)", "float[80,96] w", "float[2,N,80]"),
        ("MatMul (x, w)", "float[80,96] w", "float[80]"),
        ("MatMul (w, x)", "float[96,80] w", "float[80,N]"),
        ("MatMul (w, x)", "float[96,80] w", "float[2,80,N]"),
        ("Gemm (w, x)", "float[96,80] w", "float[80,N]"),
        ("Gemm <transA=1, transB=1, alpha=0.5> (w, x, c)", "float[80,96] w, float[96,1] c", "float[N,80]"),
        ("Gemm <transB=1, beta=0.5> (w, x, c)", "float[96,80] w, float c", "float[N,80]"),
    ],
)
@pytest.mark.parametrize("aware", [True, False])
def test_weights_of_low_rank_lose_nothing(check_pass, parse, layer, weights, x, aware):
    shape = (80, 96) if "[80,96]" in weights else (96, 80)
    before = parse(f"g ({x} x) => (float[] z) <{weights}> {{ z = {layer} }}", w=low_rank(*shape, 16))
    op = layer.split()[0]
    found = check_pass(svd(ratio=0.4, aware=aware), before, ops=f"{op} {op}", changed=1, size=300)
    assert found.deviation() < 1e-4
    assert found.result.figures["layers"]["z"]["rank"] == 16
    assert found.result.figures["parameters_before"] == 7680
    assert found.result.figures["parameters_after"] == 16 * 176
    assert found.result.figures["layers"]["z"]["relative_error"] < 1e-3
    assert ("plain_error" in found.result.figures["layers"]["z"]) == aware  # judged on samples held back


def test_old_gemm_needs_a_bias(check_pass, parse):
    before = parse(
        "g (float[N,80] x) => (float[] z) <float[80,96] w, float[96] c> { z = Gemm (x, w, c) }",
        opset=9,
        w=low_rank(80, 96, 8),
    )
    found = check_pass(svd(), before, ops="Gemm Gemm", changed=1)
    assert found.deviation() < 1e-4


@pytest.mark.parametrize(("kind", "worst"), [("double", 1e-9), ("float16", 2e-2)])
def test_types_stay(check_pass, parse, kind, worst):
    before = parse(
        f"g ({kind}[N,80] x) => ({kind}[] z) <{kind}[80,96] w> {{ z = MatMul (x, w) }}", w=low_rank(80, 96, 8)
    )
    assert check_pass(svd(ratio=0.2), before, changed=1).deviation() < worst


def test_float16_is_too_coarse_for_what_is_added_to_large_numbers(check_pass, parse):
    before = parse(
        """g (float16[N,80] x, float16[N,96] u) => (float16[] z) <float16[80,96] w> {
            y = MatMul (x, w)
            z = Add (y, u)
        }""",
        w=low_rank(80, 96, 8) / 100,
    )
    rng = np.random.default_rng(0)
    feed = {"x": rng.standard_normal((300, 80)), "u": 4096 * rng.standard_normal((300, 96))}
    found = check_pass(svd(ratio=0.2), before, changed=1, feed={k: v.astype(np.float16) for k, v in feed.items()})
    assert found.result.figures["layers"]["y"]["relative_error"] < 0.01


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({"ratio": 0.5}, 16),  # 21 by parameters, down to a multiple of eight
        ({"ratio": 0.1}, 4),
        ({"energy": 0.9}, 16),  # 10 of 12 equal singular values at least, up to a multiple of eight
        ({"energy": 0.5}, 8),
    ],
)
def test_ranks(check_pass, parse, options, rank):
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))
    spectrum = np.append(np.ones(12), np.full(52, 1e-3))
    before = parse(
        "g (float[N,64] x) => (float[] z) <float[64,128] w> { z = MatMul (x, w) }",
        w=np.hstack((q * spectrum, q * spectrum)),
    )
    found = check_pass(svd(**options, aware=False), before, changed=1)
    layer = found.result.figures["layers"]["z"]
    assert layer["rank"] == rank
    assert layer["relative_error"] == pytest.approx(np.sqrt(max(0, 12 - rank) / 12), abs=0.01)
    assert layer["measured_on"] == "weights"


def test_the_error_is_that_of_the_weights(check_pass, parse):
    before = parse("g (float[N,80] x) => (float[] z) <float[80,96] w> { z = MatMul (x, w) }", w=low_rank(80, 96, 80))
    found = check_pass(svd(aware=False), before, changed=1)
    w = low_rank(80, 96, 80).astype(np.float32)
    now = found.constant("w.1") @ found.constant("w.2")
    assert found.result.figures["layers"]["z"]["relative_error"] == pytest.approx(
        np.linalg.norm(w - now) / np.linalg.norm(w), rel=1e-3
    )


@pytest.mark.parametrize(
    ("layer", "bias"),
    [
        ("Gemm <transB=1> (x, w, b)", "96"),
        ("Gemm <transA=1, transB=1> (x, w, b)", "96"),
        ("Gemm (w, x, b)", "96,1"),
        ("Gemm <transB=1> (w, x)", ""),
        ("MatMul (w, x)", ""),
    ],
)
def test_data_says_what_may_be_lost(check_pass, parse, layer, bias):
    """Inputs that lie in 12 directions need no more than rank 12, whatever the weights."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 12)) @ rng.standard_normal((12, 80))).astype(np.float32)
    columns = layer in ("Gemm <transA=1, transB=1> (x, w, b)", "Gemm (w, x, b)", "MatMul (w, x)")
    x, shape = (x.T, "80,N") if columns else (x, "N,80")
    before = parse(
        f"g (float[{shape}] x) => (float[] z) <float[96,80] w{f', float[{bias}] b' if bias else ''}> {{ z = {layer} }}"
    )
    aware = check_pass(svd(ratio=0.4), before, changed=1, feed={"x": x})
    blind = check_pass(svd(ratio=0.4, aware=False), before, changed=1, feed={"x": x})
    assert aware.result.figures["layers"]["z"]["measured_on"] == "outputs"
    assert aware.deviation() < 1e-3
    assert blind.deviation() > 0.1


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_what_is_no_number_is_left_out(check_pass, parse, spoilt):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 12)) @ rng.standard_normal((12, 80))).astype(np.float32)
    x[7, 3] = spoilt
    before = parse("g (float[N,80] x) => (float[] z) <float[80,96] w, float[96] b> { z = Gemm (x, w, b) }")
    with np.errstate(invalid="ignore"):
        found = check_pass(svd(energy=0.99), before, changed=1, feed={"x": x})
    layer = found.result.figures["layers"]["z"]
    assert layer["rank"] <= 16
    assert layer["relative_error"] < 0.1


@pytest.mark.parametrize("samples", [1, 30])
def test_what_does_not_vary_tells_nothing(check_pass, parse, samples):
    """The bias can make the same of one input, so it is the weights that are kept, and their error is what it is."""
    x = np.broadcast_to(np.random.default_rng(0).standard_normal(80), (samples, 80)).astype(np.float32)
    before = parse("g (float[N,80] x) => (float[] z) <float[80,96] w, float[96] b> { z = Gemm (x, w, b) }")
    found = check_pass(svd(), before, changed=1, feed={"x": x})
    layer = found.result.figures["layers"]["z"]
    assert layer["relative_error"] == layer["plain_error"]
    assert 0.1 < layer["relative_error"] < 1


def test_made_up_data_says_nothing(parse):
    model = Model.from_proto(parse("g (float[N,80] x) => (float[] z) <float[80,96] w> { z = MatMul (x, w) }"))
    data = open_dataset("synthetic", model.inputs, samples=2)
    result = svd().run(model, Context(model.clone(), data))
    assert result.figures["layers"]["z"]["measured_on"] == "weights"


def test_wide_layers_are_watched_a_few_at_a_time(check_pass, parse, monkeypatch):
    monkeypatch.setattr("onnxopt.factoring.moments._BYTES", 8 * 80 * 80)
    before = parse("""g (float[N,80] x) => (float[] z) <float[80,80] v, float[80,80] w> {
        y = MatMul (x, v)
        r = Relu (y)
        z = MatMul (r, w)
    }""")
    found = check_pass(svd(), before, changed=2)
    assert {layer["measured_on"] for layer in found.result.figures["layers"].values()} == {"outputs"}


def test_full_rank_is_the_original():
    w = np.random.default_rng(0).standard_normal((40, 60))
    left, right = factorize(w, 40)
    np.testing.assert_allclose(left @ right, w, atol=1e-12)


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        ("z = MatMul (x, w)", "float[80,20] w", "it is small: 1600 parameters"),
        ("y = MatMul (x, w) v = MatMul (x, w) z = Add (y, v)", "float[80,80] w", "shared"),
        ("z = MatMul (x, w)", "float[1,80,80] w", "not a matrix"),
        ("z = MatMul (x, w)", "float[80,80] w", "keeps 100.00% of the energy and saves parameters"),
    ],
)
def test_skips(check_pass, parse, nodes, weights, reason):
    energy = 1.0 if "saves" in reason else None
    before = parse(f"g (float[3,80] x) => (float[] z) <{weights}> {{ {nodes} }}")
    check_pass(svd(energy=energy), before, changed=0, skipped=[reason] * (2 if reason == "shared" else 1))


def test_products_of_activations_are_no_places(check_pass, parse):
    check_pass(svd(), parse("g (float[80,80] x) => (float[] z) { z = MatMul (x, x) }"), changed=0)


def test_integers_are_left_alone(check_pass, parse):
    before = parse("g (int32[N,80] x) => (int32[] z) <int32[80,80] w> { z = MatMul (x, w) }")
    check_pass(svd(), before, changed=0, skipped=["of type int32"])


def test_quantized_layers_say_so(check_pass, parse):
    before = parse("""g (float[N,80] x) => (float[] z) <int8[80,80] q, float s = {0.01}> {
        w = DequantizeLinear (q, s)
        z = MatMul (x, w)
    }""")
    check_pass(svd(), before, changed=0, skipped=["its weights are integers already"])


def test_factors_are_not_split_again(check_pass, parse):
    head = "g (float[N,200] x) => (float[] z) <float[200,50] p, float[50,200] q>"
    pair = parse(f"{head} {{ y = MatMul (x, p) z = MatMul (y, q) }}")
    check_pass(svd(), pair, changed=0, skipped=["factors of a layer already"] * 2)
    check_pass(svd(), parse(f"{head} {{ y = MatMul (x, p) r = Relu (y) z = MatMul (r, q) }}"), changed=2)


def test_a_layer_that_makes_a_bias_is_no_factor(check_pass, parse):
    before = parse("""g (float[2,200] x, float[2,60] u) => (float[] z) <float[200,50] p, float[60,50] q> {
        y = MatMul (x, p)
        z = Gemm (u, q, y)
    }""")
    check_pass(svd(), before, changed=1, skipped=["it is small"])


def test_a_wide_middle_is_no_factorization(check_pass, parse):
    before = parse(
        "g (float[N,50] x) => (float[] z) <float[50,200] p, float[200,50] q> { y = MatMul (x, p) z = MatMul (y, q) }"
    )
    check_pass(svd(aware=False), before, changed=2)


def test_several_layers_and_a_body(check_pass, parse):
    before = parse("""g (float[N,80] x, bool c) => (float[N,96] z) <float[80,80] v, float[80,96] w, float[80,96] u> {
        y = MatMul (x, v)
        r = Relu (y)
        z = If (c) <
            then_branch = t () => (float[N,96] tz) { tz = MatMul (r, w) },
            else_branch = e () => (float[N,96] ez) { ez = MatMul (r, u) }
        >
    }""")
    found = check_pass(svd(), before, ops="MatMul MatMul MatMul MatMul MatMul MatMul Relu If", changed=3)
    layers = found.result.figures["layers"]
    assert {name: layer["measured_on"] for name, layer in layers.items()} == {
        "y": "outputs",
        "tz": "weights",
        "ez": "weights",
    }


@pytest.mark.parametrize("options", [{"ratio": 0}, {"ratio": 1.5}, {"energy": -1}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="above 0 and is at most 1"):
        Svd(**options)


@pytest.mark.slow
def test_what_data_is_worth_to_a_trained_transformer():
    """At half the parameters: over 30 dB, where the best matrices for the weights alone leave nothing."""
    folder = Path(__file__).parents[2] / "sample_models"
    original = load(folder / "digits_transformer.onnx")
    seen, new = (open_dataset(str(folder / f"digits_{part}.npz"), original.inputs) for part in ("calib", "test"))
    feed = next(iter(new.batches(200)))
    wanted = Session(original).run(feed)["logits"]
    ratios = []
    for aware in (True, False):
        model = original.clone()
        result = svd(aware=aware).run(model, Context(original, seen))
        model.tidy()
        assert result.figures["parameters_after"] <= 0.5 * result.figures["parameters_before"]
        error = Session(model).run(feed)["logits"] - wanted
        ratios.append(10 * np.log10(np.square(wanted).sum() / np.square(error).sum()))
    assert ratios[0] > 30
    assert ratios[0] > ratios[1] + 3
