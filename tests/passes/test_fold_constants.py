"""What every run computes to the same is computed once; what is random, foreign or big is not."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from onnxopt.errors import ExecutionError
from onnxopt.graph.model import Model
from onnxopt.passes.fold_constants import FoldConstants

FOLD = FoldConstants()


def test_a_chain_of_constants(check_pass, parse):
    before = parse("""g (float[N,3] x) => (float[] z) <float[4,3] w, int64[1] axes = {0}, float two = {2}> {
        t = Transpose (w)
        s = Mul (t, two)
        u = ReduceSum <keepdims=0> (s, axes)
        y = MatMul (x, s)
        z = Add (y, u)
    }""")
    found = check_pass(FOLD, before, ops="Add MatMul", changed=3)
    np.testing.assert_array_equal(found.constant("s"), 2 * onnx.numpy_helper.to_array(before.graph.initializer[2]).T)
    assert {c.name for c in found.model.constants()} == {"s", "u"}


@pytest.mark.parametrize(
    ("nodes", "weights", "value"),
    [
        ("k = Shape (x)", "", None),  # has a free size
        ("k = Shape <start=1> (x)", "", [3, 8]),
        ("k = Shape <start=-2, end=-1> (x)", "", [3]),
        ("k = Size (x)", "", None),
        ("s = Shape (x) k = Gather (s, i)", "int64 i = {1}", 3),
        ("s = Shape (x) k = Gather (s, i)", "int64[2] i = {-1, 1}", [8, 3]),
        ("s = Shape (x) k = Gather (s, i)", "int64 i = {0}", None),
        ("s = Shape (x) k = Slice (s, i, e)", "int64[1] i = {1}, int64[1] e = {9}", [3, 8]),
        (
            "s = Shape (x) k = Slice (s, i, e, a, t)",
            "int64[1] i = {2}, int64[1] e = {0}, int64[1] a = {0}, int64[1] t = {-1}",
            [8, 3],
        ),
        ("s = Shape (x) k = Slice (s, i, e)", "int64[1] i = {0}, int64[1] e = {1}", None),
        ("s = Shape (x) i = NonZero (s) r = ReduceMax <axes=[0], keepdims=0> (i) k = Gather (s, r)", "", None),
        ("s = Shape (x) i = Slice (s, a, e) k = Slice (s, a, i)", "int64[1] a = {0}, int64[1] e = {1}", None),
        ("r = Relu (x) f = Flatten (r) s = Shape (f) k = Gather (s, i)", "int64 i = {1}", 24),
    ],
)
def test_sizes(check_pass, parse, nodes, weights, value):
    graph = f"{nodes} c = Cast <to=1> (k) m = ReduceMax <keepdims=0> (x) z = Min (m, c)"
    found = check_pass(FOLD, parse(f"g (float[N,3,8] x) => (float[] z) <{weights}> {{ {graph} }}".replace("<>", "")))
    if value is None:
        assert found.result.changed == 0
    else:
        np.testing.assert_array_equal(found.constant("c"), np.asarray(value, np.float32))


def test_whole_shapes(check_pass, parse):
    before = parse("""g (float[2,2] x) => (float[] z) {
        a = Shape (x)
        b = Size (x)
        c = Add (a, b)
        d = Cast <to=1> (c)
        z = Mul (x, d)
    }""")
    found = check_pass(FOLD, before, ops="Mul", changed=4)
    np.testing.assert_array_equal(found.constant("d"), [6, 6])


def test_shapes_follow_from_shapes(check_pass, parse):
    before = parse("""g (float[2,12] x) => (float[] z) <int64[1] half = {2}, int64[1] rest = {-1}> {
        s = Shape <start=1> (x)
        h = Div (s, half)
        t = Concat <axis=0> (half, h, rest)
        y = Reshape (x, t)
        u = Shape (y)
        v = Cast <to=1> (u)
        m = ReduceMax <keepdims=0> (y)
        z = Mul (m, v)
    }""")
    found = check_pass(FOLD, before, ops="Mul ReduceMax Reshape", changed=5)
    np.testing.assert_array_equal(found.constant("v"), [2, 6, 2])


def test_what_the_file_says_of_inner_shapes_is_not_believed(check_pass, parse):
    before = parse("g (float[N,3] x) => (float[] z) { r = Relu (x) s = Shape (r) c = Cast <to=1> (s) z = Neg (c) }")
    before.graph.value_info.append(onnx.helper.make_tensor_value_info("r", 1, [1, 3]))
    check_pass(FOLD, before, changed=0, size=5)


def with_default(proto, *names):
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return proto


def test_a_default_is_not_a_constant(check_pass, parse):
    before = parse("""g (float[2] x) => (float[n] z) <int64[2] s = {1, 2}, float w> {
            r = Expand (x, s)
            k = Shape (r)
            c = Cast <to=1> (k)
            z = Mul (c, w)
        }""")
    before.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
    check_pass(FOLD, with_default(before, "s"), changed=0, skipped=["it is an input with a default"])


def test_an_identity_hands_the_constant_on(check_pass, parse):
    before = parse("g (float[N] x) => (float[] z) <float[1] w> { i = Identity (w) n = Neg (i) z = Add (x, n) }")
    check_pass(FOLD, before, ops="Add", changed=2)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("RandomNormalLike (w)", "random"),
        ("RandomUniform <shape=[3]> ()", "random"),
        ("Dropout (w, half, yes)", "random"),
    ],
)
def test_chance_stays_chance(check_pass, parse, node, reason):
    before = parse(
        f"""g (float[3] x) => (float[] z) <float[3] w, float half = {{0.5}}, bool yes = {{1}}> {{
            r = {node} z = Add (x, r)
        }}"""
    )
    check_pass(FOLD, before, changed=0, skipped=[reason], numbers=False)


def test_outputs_keep_their_makers(check_pass, parse):
    before = parse("g (float[N] x) => (float[] y, float[] z) <float[2] w> { n = Abs (w) y = Neg (n) z = Relu (x) }")
    check_pass(FOLD, before, ops="Neg Relu", changed=1, skipped=["makes an output"])
    sized = parse("g (float[3] x) => (int64[] z) { z = Shape (x) }")
    check_pass(FOLD, sized, ops="Shape", changed=0)


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("k = ConstantOfShape (s)", "int64[2] s = {1000, 1000}"),
        ("k = Expand (w, s)", "int64[2] s = {1000, 1000}, float[1000] w"),
        ("c = Cast <to=11> (w) k = Cast <to=1> (c)", "float[600, 1000] w"),  # twice the bytes
        ("n = NonZero (m) k = Cast <to=1> (n)", "float[500, 1000] m"),  # of a size that is not known before
    ],
)
def test_what_grows_the_file_stays(check_pass, parse, nodes, weights):
    before = parse(f"g (float[1] x) => (float[] z) <{weights}> {{ {nodes} z = Add (x, k) }}", m=1)
    check_pass(FOLD, before, changed=0, skipped=["MB bigger"])


def test_a_weight_that_is_read_as_it_is_as_well_is_not_doubled(check_pass, parse):
    text = """g (float[N,600] x) => (float[] z) <float[600,600] w> {{
        t = Transpose (w) y = MatMul (x, t) z = MatMul (y, {again})
    }}"""
    check_pass(FOLD, parse(text.format(again="w")), changed=0, skipped=["would make the file 1.4 MB bigger"])
    check_pass(FOLD, parse(text.format(again="t")), ops="MatMul MatMul", changed=1)


def test_large_results_of_large_constants(check_pass, parse):
    before = parse("""g (float[N,800] x) => (float[] z) <float[900,800] w, float[900] b> {
        t = Transpose (w) m = MatMul (x, t) c = Neg (b) z = Add (m, c)
    }""")
    check_pass(FOLD, before, ops="Add MatMul", changed=2)


def test_small_growth_is_taken(check_pass, parse):
    before = parse(
        """g (float[N,10] x) => (float[] z) <int64[2] s = {500, 10}> {
            k = ConstantOfShape (s) z = Gemm <transB=1> (x, k)
        }"""
    )
    check_pass(FOLD, before, ops="Gemm", changed=1)


def test_quantization_stays(check_pass, parse):
    before = parse("""g (float[N,4] x) => (float[] z) <int8[4,3] w, float s = {0.1}, int8 p = {0}, float[3] b> {
        d = DequantizeLinear (w, s, p)
        q = QuantizeLinear (b, s, p)
        e = DequantizeLinear (q, s, p)
        z = Gemm (x, d, e)
    }""")
    check_pass(FOLD, before, changed=0)


def test_several_outputs(check_pass, parse):
    before = parse(
        """g (float[N,2] x) => (float[] z) <float[6,2] w> {
        a, b, c = Split <axis=0, num_outputs=3> (w)
        y = MatMul (x, a)
        z = MatMul (y, c)
    }""",
        opset=18,
    )
    found = check_pass(FOLD, before, ops="MatMul MatMul", changed=1)
    assert {c.name for c in found.model.constants()} == {"a", "c"}


def test_what_the_runtime_cannot_run_stays(parse, check_pass):
    before = parse("""g (float[N,2] x) => (float[] z) <double[1,1,4,4] w, double[1,1,3,3] k> {
        a = Neg (w)
        b = Abs (k)
        c = Conv (a, b)
        d = Abs (c)
        e = Cast <to=1> (b)
        s = ReduceSum <keepdims=0> (e)
        z = Add (x, s)
        dead = Exp (d)
    }""")
    before.graph.output.append(onnx.helper.make_tensor_value_info("dead", 11, [1, 1, 2, 2]))
    with pytest.raises(ExecutionError, match="Could not find an implementation for Conv"):
        check_pass(FOLD, before)  # neither can the whole model be run
    model = Model.from_proto(before)
    result = FOLD.run(model, SimpleNamespace())
    assert result.changed == 4
    assert [s.node for s in result.skips] == ["c"]
    assert "Could not find an implementation for Conv" in result.skips[0].why
    assert sorted(n.op for n in model.nodes()) == ["Abs", "Add", "Conv", "Exp"]


BODIES = """g (float[N] x, bool c) => (float[N] z) <float[1] w = {{2}}> {{
    o = Neg (w)
    z = If (c) <
        then_branch = t () => (float[N] tz) {{ a = Mul (o, w) tz = Add (x, a) }},
        else_branch = e () => (float[N] ez) <float[1] v = {{3}}> {{ {inside} }}
    >
}}"""


def test_bodies(check_pass, parse):
    before = parse(BODIES.format(inside="b = Exp (v) d = Abs (b) ez = Add (x, d)"))
    check_pass(FOLD, before, ops="Add Add If", changed=4)


def test_the_output_of_a_body_keeps_its_maker(check_pass, parse):
    before = parse(BODIES.format(inside="ez = Neg (v)"))
    check_pass(FOLD, before, changed=2, skipped=["makes an output"], size=1)


def test_foreign_operators_stay(check_pass, parse):
    before = parse("""<ir_version: 8, opset_import: ["":17, "com.microsoft":1]>
        g (float[2] x) => (float[2] z) <float[2] w = {1, 2}> { y = com.microsoft.Gelu (w) z = Add (x, y) }""")
    check_pass(FOLD, before, changed=0, skipped=["operators of the domain com.microsoft"])


STORED = [
    ("c = Cast <to=1> (w)", "float16[30, 20] w", "stored as float16 already, 1110 bytes less"),
    ("c = Cast <to=1> (w) t = Transpose (c) k = Mul (t, t)", "float16[30, 20] w", "stored as float16"),
    ("c = Cast <to=1> (w) k = Mul (c, s)", "int8[30, 20] w, float s", "stored as int8"),
    (
        "i = Cast <to=6> (w) l = Gather (s, i) k = Reshape (l, r)",
        "uint8[600] w, float[9] s, int64[2] r = {30, 20}",
        "codes",
    ),
]


@pytest.mark.parametrize(("nodes", "weights", "reason"), STORED)
def test_what_is_stored_in_few_bits_stays_so_unless_asked_for(check_pass, parse, nodes, weights, reason):
    name = nodes.rpartition(" = ")[0].rpartition(" ")[2]
    before = parse(f"g (float[1] x) => (float[] z) <{weights}> {{ {nodes} z = Add (x, {name}) }}", w=1, i=3)
    check_pass(FOLD, before, changed=0, skipped=[reason], size=1)
    check_pass(FoldConstants(decode=True), before, ops="Add", changed=nodes.count("("), size=1)


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("k = Cast <to=1> (w)", "float16[30] w"),  # 60 bytes and a node
        ("k = Cast <to=1> (w)", "bool[30, 20] w"),  # a mask
        ("c = Cast <to=1> (w) k = ReduceSum <keepdims=0> (c)", "float16[30, 20] w"),
        ("k = Gather (s, i)", "float[9,20] s, int64[40] i"),  # relative positions
        ("i = Cast <to=7> (w) k = Gather (s, i)", "int32[4] w, float[9,20] s"),
    ],
)
def test_what_gets_no_bigger_is_not_stored_in_few_bits(check_pass, parse, nodes, weights):
    before = parse(f"g (float[1] x) => (float[] z) <{weights}> {{ {nodes} z = Add (x, k) }}", w=1, i=3)
    check_pass(FOLD, before, ops="Add", size=1)


def test_large_stored_weights_are_decoded_too(check_pass, parse):
    before = parse("g (float[1,1000] x) => (float[] z) <float16[1000,900] w> { c = Cast <to=1> (w) z = MatMul (x, c) }")
    check_pass(FOLD, before, changed=0, skipped=["1799910 bytes less"])
    check_pass(FoldConstants(decode=True), before, ops="MatMul", changed=1)


def test_a_table_that_several_weights_share_counts_once(check_pass, parse):
    before = parse(
        """g (float[1] x) => (float[] z) <uint8[80] w, uint8[80] v, float[99] s> {
        a = Cast <to=6> (w) b = Gather (s, a) c = Cast <to=6> (v) d = Gather (s, c) e = Add (x, b) z = Add (e, d)
    }""",
        w=3,
        v=4,
    )
    check_pass(FOLD, before, changed=0, skipped=["60 bytes less"] * 2, size=1)
