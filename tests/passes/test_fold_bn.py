"""BatchNormalization into its neighbours: every layer, every guard."""

import numpy as np
import onnx
import pytest

from onnxopt.passes.fold_bn import FoldBatchNorm

FOLD = FoldBatchNorm()


@pytest.fixture
def model(parse):
    """A model from nodes that make ``z`` of ``x``, with parameters s, b, m, v of one normalisation of four channels."""

    def build(nodes, weights="", x="float[N,4,8,8]", z="float[]", **values):
        text = f"g ({x} x) => ({z} z) <float[4] s, float[4] b, float[4] m, float[4] v, {weights}> {{ {nodes} }}"
        return parse(text.replace(", >", ">"), **{"v": np.linspace(0.3, 2, 4)} | values)

    return build


BN = "BatchNormalization <epsilon=0.01>"


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        ("Conv <pads=[1,1,1,1]> (x, w)", "float[4,4,3,3] w"),
        ("Conv <strides=[2,2]> (x, w, wb)", "float[4,4,3,3] w, float[4] wb"),
        ("Conv <group=2> (x, w, wb)", "float[4,2,3,3] w, float[4] wb"),
        ("ConvTranspose <strides=[2,2], output_padding=[1,1]> (x, w, wb)", "float[4,4,3,3] w, float[4] wb"),
        ("ConvTranspose <group=2> (x, w)", "float[4,2,2,2] w"),
        ("ConvTranspose <group=4> (x, w)", "float[4,1,2,2] w"),
    ],
)
def test_behind_convolutions(check_pass, model, layer, weights):
    before = model(f"y = {layer} z = {BN} (y, s, b, m, v)", weights)
    check_pass(FOLD, before, ops=layer.split()[0], changed=1)


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        ("Gemm (x, w)", "float[5,4] w"),
        ("Gemm <transB=1, alpha=0.5> (x, w, c)", "float[4,5] w, float[4] c"),
        ("Gemm <alpha=2.0, beta=0.3> (x, w, c)", "float[5,4] w, float[1,4] c"),
        ("Gemm <beta=0.3> (x, w, c)", "float[5,4] w, float c"),
        ("Gemm (x, w, c)", "float[5,4] w, float[3,1] c"),
        ("Gemm <beta=0.0> (x, w, c)", "float[5,4] w, float[3,4] c"),
        ("MatMul (x, w)", "float[5,4] w"),
    ],
)
def test_behind_dense_layers(check_pass, model, layer, weights):
    before = model(f"y = {layer} z = {BN} (y, s, b, m, v)", weights, "float[N,5]", "float[N,4]")
    check_pass(FOLD, before, ops="Gemm", changed=1)


def test_transposed_input_of_gemm(check_pass, model):
    before = model(f"y = Gemm <transA=1> (x, w) z = {BN} (y, s, b, m, v)", "float[5,4] w", "float[5,N]", "float[N,4]")
    check_pass(FOLD, before, ops="Gemm", changed=1)


def test_matmul_with_bias(check_pass, model):
    before = model(
        f"y = MatMul (x, w) a = Add (k, y) z = {BN} (a, s, b, m, v)",
        "float[5,4] w, float[4] k",
        "float[N,5]",
        "float[N,4]",
    )
    check_pass(FOLD, before, ops="Gemm", changed=1)


@pytest.mark.parametrize("constant", ["float[1,4,1,1] k", "float[4,1,1] k", "float k", "float[1] k"])
@pytest.mark.parametrize("step", ["Mul (y, k)", "Add (k, y)", "Sub (y, k)", "Sub (k, y)", "Div (y, k)"])
def test_constants_per_channel(check_pass, model, step, constant):
    before = model(f"y = Conv (x, w) z = {step}", f"float[4,4,3,3] w, {constant}", m=0)
    check_pass(FOLD, before, ops="Conv", changed=1)


def test_a_chain_of_constants_and_a_normalisation(check_pass, model):
    before = model(
        f"y = Conv (x, w) a = Add (y, k) n = {BN} (a, s, b, m, v) q = Mul (n, k) z = Relu (q)",
        "float[4,4,3,3] w, float[4,1,1] k",
    )
    check_pass(FOLD, before, ops="Conv Relu", changed=3)


def test_constants_behind_gemm(check_pass, model):
    before = model(
        "y = Gemm <transB=1> (x, w) a = Mul (y, k) z = Add (a, k)",
        "float[4,5] w, float[4] k",
        "float[N,5]",
        "float[N,4]",
    )
    check_pass(FOLD, before, ops="Gemm", changed=2)


@pytest.mark.parametrize(
    ("step", "constant"),
    [
        ("Mul (y, k)", "float[6] k"),  # along the last axis
        ("Mul (y, k)", "float[1,4,6,6] k"),
        ("Add (y, k)", "float[2,1,4,1,1] k"),  # one axis more
        ("Div (k, y)", "float[4,1,1] k"),
        ("Div (y, k)", "float[4,1,1] k = {1.0, 0.0, 1.0, 1.0}"),
        ("Mul (y, y)", ""),
    ],
)
def test_constants_that_stay(check_pass, model, step, constant):
    before = model(f"y = Conv (x, w) z = {step}", f"float[4,4,3,3] w, {constant}")
    check_pass(FOLD, before, ops=f"Conv {step[:3]}", changed=0)


@pytest.mark.parametrize(
    ("layer", "weights", "result"),
    [
        ("Conv (n, w, wb)", "float[6,4,3,3] w, float[6] wb", "Conv"),
        ("Conv <group=2> (n, w)", "float[6,2,3,3] w", "Conv"),
        ('Conv <auto_pad="VALID"> (n, w)', "float[6,4,3,3] w", "Conv"),
        ('Conv <auto_pad="SAME_UPPER", strides=[2,2]> (n, w)', "float[6,4,1,1] w", "Conv"),
        ("GlobalAveragePool (n) f = Flatten (y) y2 = MatMul (f, w)", "float[4,6] w", "GlobalAveragePool Flatten Gemm"),
        ("GlobalAveragePool (n) y2 = Conv (y, w)", "float[6,4,1,1] w", "GlobalAveragePool Conv"),
        ("Flatten (n) y2 = Gemm <alpha=0.5> (y, w)", "float[256,6] w", "Flatten Gemm"),
        ("Flatten (n) y2 = Gemm <transB=1, beta=2.0> (y, w, c)", "float[6,256] w, float[6] c", "Flatten Gemm"),
    ],
)
def test_in_front(check_pass, model, layer, weights, result):
    last = "y2" if "y2" in layer else "y"
    before = model(f"n = {BN} (x, s, b, m, v) y = {layer} z = Relu ({last})", weights)
    check_pass(FOLD, before, ops=f"{result} Relu", changed=1)


def test_in_front_of_dense_layers(check_pass, model):
    matmul = model(f"n = {BN} (x, s, b, m, v) z = MatMul (n, w)", "float[4,6] w", "float[N,4]")
    check_pass(FOLD, matmul, ops="Gemm", changed=1)
    gemm = model(f"n = {BN} (x, s, b, m, v) z = Gemm (n, w, c)", "float[4,6] w, float[3,1] c", "float[N,4]")
    check_pass(FOLD, gemm, ops="Gemm", changed=1)


def test_in_front_of_padding_without_shift(check_pass, model):
    before = model(f"n = {BN} (x, s, b, m, v) z = Conv <pads=[1,1,1,1]> (n, w)", "float[6,4,3,3] w", b=0, m=0)
    check_pass(FOLD, before, ops="Conv", changed=1)


def test_behind_wins_over_in_front(check_pass, model):
    weights = "float[4,4,3,3] w, float[4,4,3,3] w2"
    before = model(f"y = Conv (x, w) n = {BN} (y, s, b, m, v) z = Conv (n, w2)", weights)
    found = check_pass(FOLD, before, ops="Conv Conv", changed=1)
    assert "w2" in {c.name for c in found.model.constants()}


@pytest.mark.parametrize("kind", ["double", "float16"])
def test_other_precisions(check_pass, parse, kind):
    before = parse(
        f"""g ({kind}[N,5] x) => ({kind}[] z)
        <{kind}[5,4] w, {kind}[4] s, {kind}[4] b, {kind}[4] m, {kind}[4] v> {{
            y = Gemm (x, w)
            z = BatchNormalization (y, s, b, m, v)
        }}""",
        v=[1, 2, 3, 4],
    )
    found = check_pass(FOLD, before, ops="Gemm", changed=1)
    assert {str(c.dtype) for c in found.model.constants()} == {{"double": "float64"}.get(kind, kind)}


@pytest.mark.parametrize("values", [{"s": 6e4, "v": 0.5}, {"w": 60000, "s": 2}, {"c": 60000, "s": 2}])
def test_short_range_of_float16(check_pass, parse, values):
    before = parse(
        """g (float16[N,5] x) => (float16[] z)
        <float16[5,4] w, float16[4] c, float16[4] s, float16[4] b, float16[4] m, float16[4] v> {
            y = Gemm (x, w, c)
            z = BatchNormalization (y, s, b, m, v)
        }""",
        **{"v": 1} | values,
    )
    check_pass(FOLD, before, changed=0, skipped=["would overflow float16"], numbers=False)


CONV = "float[4,4,3,3] w"


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        (f"z = {BN} (x, s, b, m, v)", "", "follows no layer"),
        (f"y = Relu (x) z = {BN} (y, s, b, m, v)", "", "it follows Relu 'y', which has no weights; its output is used"),
        (f"y = {BN} (x, s, b, m, v) z = Relu (y)", "", "it feeds Relu 'z'"),
        (
            f'w = Abs (x) y = Conv <auto_pad="SAME_LOWER"> (x, w) z = {BN} (y, s, b, m, v)',
            "",
            "weights that are not constant",
        ),
        (f"q = Abs (s) y = Conv (x, w, q) z = {BN} (y, s, b, m, v)", CONV, "'y' has a bias that is not constant"),
        (f"q = Abs (s) y = Conv (x, w) z = {BN} (y, q, b, m, v)", CONV, "parameters are not constant"),
        (f"y = Conv (x, w) a = Relu (y) n = {BN} (y, s, b, m, v) z = Sum (a, n)", CONV, "'y' is used elsewhere too"),
        (f"y = Conv (x, w) q = Conv (x, w) n = {BN} (y, s, b, m, v) z = Sum (q, n)", CONV, "shares its weights"),
        (f"y = MatMul (x, w) z = {BN} (y, s, b, m, v)", "float[8,5] w", "makes more than two axes"),
        (f"y = MatMul (x, w) z = {BN} (y, s, b, m, v)", "float[1,4,8,5] w", "weights that are not a matrix"),
        (
            f"y = MatMul (x, w) q = Sum (x) a = Add (y, q) z = {BN} (a, s, b, m, v)",
            "float[8,8] w",
            "it follows Add 'a'",
        ),
        (f"y = {BN} (x, s, b, m, v) z = MatMul (y, w)", "float[8,5] w", "reads more than two axes"),
        (f"y = {BN} (x, s, b, m, v) z = MatMul (w, y)", "float[5,8] w", "no weights for it"),
        (f"y = {BN} (x, s, b, m, v) z = Conv <pads=[0,1,0,1]> (y, w)", CONV, "pads with zeros"),
        (f'y = {BN} (x, s, b, m, v) z = Conv <auto_pad="SAME_UPPER"> (y, w)', CONV, "pads with zeros"),
        (f"y = {BN} (x, s, b, m, v) a = Conv (y, w) c = Conv (y, w) z = Sum (a, c)", CONV, "used more than once"),
        (f"y = {BN} (x, s, b, m, v) z = ConvTranspose (y, w)", CONV, "it feeds ConvTranspose"),
        (f"y = {BN} (x, s, b, m, v) f = Flatten <axis=2> (y) z = Gemm (f, w)", "float[64,3] w", "it feeds Flatten"),
        (
            f"y = {BN} (x, s, b, m, v) f = Flatten (y) z = Gemm <transA=1> (f, w)",
            "float[4,3] w",
            "transposes its input",
        ),
    ],
)
def test_skips(check_pass, model, nodes, weights, reason):
    check_pass(FOLD, model(nodes, weights), changed=0, skipped=[reason], size=4)


def test_what_stands_before_a_layer_that_cannot_change(check_pass, model):
    before = model(f"w = Abs (x) y = {BN} (x, s, b, m, v) z = Conv <pads=[4,4,4,4]> (y, w)")
    check_pass(FOLD, before, changed=0, skipped=["Conv 'z' has weights that are not constant"], size=4)


def test_short_range_of_float16_in_front(check_pass, parse):
    before = parse(
        """g (float16[N,4] x) => (float16[] z)
        <float16[4,5] w, float16[4] s, float16[4] b, float16[4] m, float16[4] v> {
            y = BatchNormalization (x, s, b, m, v)
            z = Gemm (y, w)
        }""",
        s=3e4,
        v=0.2,
    )
    check_pass(FOLD, before, changed=0, skipped=["Gemm 'z' would overflow float16"], numbers=False)


def test_other_domains_are_left_alone(check_pass, parse):
    before = parse("""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[2,4] x) => (float[2,4] z) <float[4,4] w> { y = MatMul (x, w) z = com.microsoft.Gelu (y) }""")
    check_pass(FOLD, before, changed=0)


def test_training_mode_is_left_alone(check_pass, model):
    before = model("y = Conv (x, w) z, mean, variance = BatchNormalization <training_mode=1> (y, s, b, m, v)", CONV)
    check_pass(FOLD, before, changed=0, skipped=["training mode"])


def test_a_negative_variance_is_left_alone(check_pass, model):
    before = model(f"y = Conv (x, w) z = {BN} (y, s, b, m, v)", CONV, v=[1, -1, 1, 1])
    check_pass(FOLD, before, changed=0, skipped=["variances are not all positive"], numbers=False)


def test_old_normalisations(check_pass, model):
    spatial = model("y = Conv (x, w) z = BatchNormalization <spatial=1> (y, s, b, m, v)", CONV, opset=7)
    check_pass(FOLD, spatial, ops="Conv", changed=1)
    training = model("y = Conv (x, w) z, q, r, t, u = BatchNormalization (y, s, b, m, v)", CONV, opset=9)
    check_pass(FOLD, training, changed=0, skipped=["training mode"], numbers=False)


def test_positions_normalised_by_themselves(check_pass, parse):
    before = parse(
        """g (float[N,4,3,3] x) => (float[] z)
        <float[4,4,1,1] w, float[4,3,3] s, float[4,3,3] b, float[4,3,3] m, float[4,3,3] v> {
            y = Conv (x, w)
            z = BatchNormalization <spatial=0> (y, s, b, m, v)
        }""",
        opset=7,
        v=1,
    )
    check_pass(FOLD, before, changed=0, skipped=["spatial=0"], numbers=False)


def test_an_output_of_the_graph_keeps_its_maker(check_pass, model):
    before = model(f"y = Conv (x, w) z = {BN} (y, s, b, m, v)", CONV)
    before.graph.output.append(onnx.helper.make_tensor_value_info("y", 1, ["N", 4, 6, 6]))
    check_pass(FOLD, before, changed=0, skipped=["the output of Conv 'y' is used elsewhere too"])


def test_shared_parameters_do_not_matter(check_pass, model):
    weights = "float[4,4,3,3] w, float[4,4,1,1] w2"
    before = model(f"y = Conv (x, w) n = {BN} (y, s, b, m, v) a = Conv (n, w2) z = {BN} (a, s, s, s, v)", weights)
    check_pass(FOLD, before, ops="Conv Conv", changed=2)


def test_a_weight_with_a_default_may_be_fed(check_pass, model):
    before = model(f"y = Conv (x, w) z = {BN} (y, s, b, m, v)", CONV)
    before.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [4, 4, 3, 3]))
    check_pass(FOLD, before, changed=0, skipped=["weights that are not constant"])


BODIES = """g (float[N,4,8,8] x, bool c) => (float[N,4,6,6] z)
    <float[4,4,3,3] w, float[4] s, float[4] b, float[4] m, float[4] v> {{
        {outside}
        z = If (c) <
            then_branch = t () => (float[N,4,6,6] tz) {{ {inside} }},
            else_branch = e () => (float[N,4,6,6] ez) {{ ez = Identity (y) }}
        >
    }}"""


def test_inside_a_body(check_pass, parse):
    inside = f"ty = Conv (x, w) tz = {BN} (ty, s, b, m, v)"
    before = parse(BODIES.format(outside="y = MaxPool <kernel_shape=[3,3]> (x)", inside=inside), v=1)
    check_pass(FOLD, before, ops="Conv Identity If MaxPool", changed=1)


def test_a_capture_is_a_use(check_pass, parse):
    outside = f"y = Conv (x, w) o = {BN} (y, s, b, m, v)"
    before = parse(BODIES.format(outside=outside, inside="tz = Identity (o)"), v=1)
    check_pass(FOLD, before, changed=0, skipped=["the output of Conv 'y' is used elsewhere too"])


def test_a_layer_outside_is_not_changed_from_inside(check_pass, parse):
    before = parse(BODIES.format(outside="y = Conv (x, w)", inside=f"tz = {BN} (y, s, b, m, v)"), v=1)
    check_pass(FOLD, before, changed=0, skipped=["follows no layer of this graph"])
