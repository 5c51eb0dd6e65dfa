"""What does nothing goes; what might do something, or carries a name of the boundary, stays."""

import numpy as np
import onnx
import pytest

from onnxopt.passes.clean import Clean

CLEAN = Clean()


@pytest.fixture
def model(parse):
    """A model from nodes that make ``q`` of ``p``; a Relu before and one behind keep the boundary out of it."""

    def build(nodes, weights="", x="float[N,3,8]", **values):
        text = f"g ({x} x) => (float[] z) <{weights}> {{ p = Relu (x) {nodes} z = Relu (q) }}"
        return parse(text.replace("<>", ""), **values)

    return build


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("q = Identity (p)", ""),
        ("a = Identity (p) b = Identity (a) q = Identity (b)", ""),
        ("q = Dropout (p)", ""),
        ("q, mask = Dropout (p, r)", "float r = {0.5}"),
        ("q = Dropout (p, r, t)", "float r = {0.5}, bool t = {0}"),
        ("q = Cast <to=1> (p)", ""),
        ("q = Transpose <perm=[0,1,2]> (p)", ""),
        ("q = Reshape (p, s)", "int64[3] s = {0, 3, -1}"),
        ("q = Reshape (p, s)", "int64[3] s = {-1, 3, 8}"),
        ("a = Flatten (p) q = Flatten (a)", ""),
        ("q = Slice (p, s, e)", "int64[1] s = {0}, int64[1] e = {9223372036854775807}"),
        (
            "q = Slice (p, s, e, a, t)",
            "int64[2] s = {-8, 0}, int64[2] e = {8, 3}, int64[2] a = {2, -2}, int64[2] t = {1, 1}",
        ),
        ("q = Pad (p, s)", "int64[6] s = {0, 0, 0, 0, 0, 0}"),
        ("q = Tile (p, s)", "int64[3] s = {1, 1, 1}"),
        ("q = Expand (p, s)", "int64[2] s = {3, 1}"),
        ("q = Concat <axis=1> (p)", ""),
        ("q = Sum (p)", ""),
        ("q = Max (p)", ""),
        ("q = Mul (p, k)", "float[1,1] k = {1}"),
        ("q = Div (p, k)", "float k = {1}"),
        ("q = Add (p, k)", "float k = {0}"),
        ("q = Sub (p, k)", "float[1] k = {0}"),
    ],
)
def test_needless_nodes_go(check_pass, model, nodes, weights):
    found = check_pass(CLEAN, model(nodes, weights))
    flatten = ["Flatten"] if "Flatten" in nodes else []
    assert found.ops == [*flatten, "Relu", "Relu"]
    assert found.result.figures["needless_nodes"] == nodes.count(" = ") - len(flatten)
    assert found.model.constants() == []


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("a, mask = Dropout (p) b = Cast <to=1> (mask) q = Add (a, b)", ""),
        ("q = Dropout (p, r, t)", "float r = {0.0}, bool t = {1}"),
        ("q = Cast <to=11> (p)", ""),
        ("q = Transpose (p)", ""),
        ("q = Transpose <perm=[0,2,1]> (p)", ""),
        ("q = Reshape (p, s)", "int64[2] s = {0, -1}"),
        ("q = Reshape (p, s)", "int64[3] s = {3, 3, 8}"),  # fixes a size
        ("q = Reshape (p, s)", "int64[3] s = {0, 8, 3}"),
        ("s = Shape (p) q = Slice (p, s, s)", ""),
        ("q = Slice (p, s, e)", "int64[1] s = {0}, int64[1] e = {2}"),  # of a free size
        ("q = Slice (p, s, e, a)", "int64[1] s = {1}, int64[1] e = {8}, int64[1] a = {2}"),
        ("q = Slice (p, s, e, a)", "int64[1] s = {0}, int64[1] e = {-1}, int64[1] a = {2}"),
        ("q = Slice (p, s, e, a, t)", "int64[1] s = {7}, int64[1] e = {-9}, int64[1] a = {2}, int64[1] t = {-1}"),
        ("q = Pad (p, s)", "int64[6] s = {0, 0, 0, 0, 0, 1}"),
        ("q = Tile (p, s)", "int64[3] s = {1, 1, 2}"),
        ("q = Expand (p, s)", "int64[3] s = {3, 3, 8}"),
        ("q = Expand (p, s)", "int64[4] s = {1, 1, 1, 1}"),
        ("q = Concat <axis=1> (p, p)", ""),
        ("q = Sum (p, p)", ""),
        ("q = Mul (p, k)", "float[1,1,1,1] k = {1}"),  # one axis more
        ("q = Mul (p, k)", "float k = {2}"),
        ("q = Add (p, k)", "float[8] k = {0,0,0,0,0,0,0,0}"),
    ],
)
def test_what_may_do_something_stays(check_pass, model, nodes, weights):
    check_pass(CLEAN, model(nodes, weights), changed=0)


@pytest.mark.parametrize(
    ("nodes", "ops"),
    [
        ("a = Transpose <perm=[1,2,0]> (p) q = Transpose <perm=[2,0,1]> (a)", ""),
        ("a = Transpose (p) q = Transpose (a)", ""),
        ("a = Transpose <perm=[1,2,0]> (p) q = Transpose <perm=[1,2,0]> (a)", "Transpose"),
        ("a = Transpose <perm=[1,2,0]> (p) b = Transpose <perm=[1,2,0]> (a) q = Transpose <perm=[1,2,0]> (b)", ""),
        ("a = Cast <to=11> (p) q = Cast <to=1> (a)", ""),
        ("a = Cast <to=11> (p) q = Cast <to=6> (a)", "Cast"),
        ("a = Cast <to=10> (p) q = Cast <to=1> (a)", "Cast Cast"),  # rounds
        (
            "a = Cast <to=7> (p) b = Cast <to=11> (a) c = Cast <to=7> (b) q = Cast <to=1> (c)",
            "Cast Cast Cast Cast",
        ),  # 53 bits for 64
        ("a = Cast <to=9> (p) b = Cast <to=6> (a) q = Cast <to=1> (b)", "Cast Cast"),
    ],
)
def test_doubled(check_pass, model, nodes, ops):
    check_pass(
        CLEAN, model(nodes), ops=f"Relu Relu {ops}", feed={"x": np.linspace(0, 9, 48, dtype="f").reshape(2, 3, 8)}
    )


@pytest.mark.parametrize(
    ("first", "target", "ops"),
    [
        ("Reshape (p, s)", "{-1, 6}", "Reshape"),
        ("Flatten (p)", "{-1, 6}", "Reshape"),
        ("Unsqueeze (p, u)", "{-1, 6}", "Reshape"),
        ("Reshape (p, s)", "{0, 24}", "Reshape Reshape"),
    ],
)
def test_doubled_reshapes(check_pass, model, first, target, ops):
    weights = f"int64[2] s = {{12, -1}}, int64[1] u = {{1}}, int64[2] t = {target}"
    check_pass(CLEAN, model(f"a = {first} q = Reshape (a, t)", weights), ops=f"Relu Relu {ops}", size=12)


def test_what_is_also_read_elsewhere_is_not_composed(check_pass, model):
    turn = "Transpose <perm=[1,2,0]>"
    check_pass(CLEAN, model(f"a = {turn} (p) b = {turn} (a) c = {turn} (a) q = Add (b, c)"), changed=0)


@pytest.mark.parametrize("opset", [7, 9])
def test_attributes_of_older_opsets(check_pass, parse, opset):
    before = parse(
        """g (float[N,3,8] x) => (float[] z) {
        a = Relu (x)
        b = Slice <starts=[0,0], ends=[9999999999,3], axes=[0,1]> (a)
        c = Pad <pads=[0,0,0,0,0,0]> (b)
        d = Dropout <ratio=0.5> (c)
        z = Neg (d)
    }""",
        opset=opset,
    )
    check_pass(CLEAN, before, ops="Neg Relu", changed=3)


def test_the_maker_takes_the_outputs_name(check_pass, parse):
    before = parse("g (float[N] x) => (float[] y, float[] z) { a = Relu (x) y = Identity (a) z = Neg (a) }")
    found = check_pass(CLEAN, before, ops="Relu Neg", changed=1)
    assert [t.name for t in found.model.graph.nodes[0].outputs] == ["y"]


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        ("g (float[N] x) => (float[] z) { z = Identity (x) }", "Identity"),
        ("g (float[N] x) => (float[] y, float[] z) { y = Relu (x) z = Identity (y) }", "Relu Identity"),
        ("g (float[N] x) => (float[] y, float[] z) { y = Identity (x) z = Identity (x) }", "Identity Identity"),
        ("g (float[2] x) => (float[] y, float[] z) <float[2] w> { y = Relu (x) z = Identity (w) }", "Relu Identity"),
    ],
)
def test_the_boundary_keeps_its_names(check_pass, parse, text, ops):
    check_pass(CLEAN, parse(text), ops=ops, changed=0, skipped=["the second name"] * ops.count("Identity"))


def test_two_names_for_one_tensor(check_pass, parse):
    before = parse("g (float[N] x) => (float[] y, float[] z) { a = Relu (x) y = Identity (a) z = Identity (a) }")
    check_pass(CLEAN, before, ops="Relu Identity", changed=1, skipped=["it gives 'y' the second name 'z'"])


BODIES = """g (float[N] x, bool c) => (float[N] z) <float[3] w = {{1,2,3}}, float[3] dead = {{0,0,0}}> {{
    a = Relu (x)
    {outside}
    z = If (c) <
        then_branch = t () => (float[N] tz) {{ {inside} }},
        else_branch = e () => (float[N] ez) <float[3] v = {{1,2,3}}> {{ ez = Add (a, v) }}
    >
}}"""


@pytest.mark.parametrize(
    ("outside", "inside", "ops", "skips"),
    [
        ("o = Identity (a)", "tz = Neg (o)", "Add If Neg Relu", []),  # a capture reads the source itself
        ("", "i = Identity (a) tz = Neg (i)", "Add If Neg Relu", []),
        ("", "i = Neg (a) tz = Identity (i)", "Add If Neg Relu", []),
        ("", "tz = Identity (a)", "Add Identity If Relu", ["'a' the second name 'tz'"]),
        ("", "i = Exp (a) tz = Neg (a)", "Add If Neg Relu", []),
    ],
)
def test_bodies(check_pass, parse, outside, inside, ops, skips):
    check_pass(CLEAN, parse(BODIES.format(outside=outside, inside=inside)), ops=ops, skipped=skips)


def test_duplicates_of_two_bodies_move_out(check_pass, parse):
    before = parse(
        BODIES.format(outside="", inside="tz = Mul (a, k)").replace(
            "(float[N] tz)", "(float[N] tz) <float[3] k = {1,2,3}>"
        )
    )
    found = check_pass(CLEAN, before, ops="Add If Mul Relu")
    assert found.result.figures["duplicate_constants"] == 1  # w is not read
    assert found.result.figures["duplicate_bytes"] == 12
    assert found.result.figures["unread_constants"] == 2
    assert len(found.model.to_proto().graph.initializer) == 1


def test_duplicates_differ_in_type_shape_or_value(check_pass, parse):
    before = parse("""g (float[N,4] x) => (float[] z)
        <float[4] a = {1,2,3,4}, float[4] b = {1,2,3,4}, float[1,4] c = {1,2,3,4}, float[4] d = {1,2,3,5},
         int32[4] i = {1,2,3,4}, float zero = {0}, float minus = {-0.0}> {
            j = Cast <to=1> (i)
            z = Sum (x, a, b, c, d, j, zero, minus)
        }""")
    found = check_pass(CLEAN, before, changed=1)
    assert sorted(c.name for c in found.model.constants()) == ["a", "c", "d", "i", "minus", "zero"]


def test_long_constants_are_compared_to_their_ends(check_pass, parse):
    long = np.zeros(5000)
    before = parse(
        "g (float[5000] x) => (float[] z) <float[5000] a, float[5000] b, float[5000] c> { z = Sum (x, a, b, c) }",
        a=long,
        b=long,
        c=np.append(long[1:], 1),
    )
    found = check_pass(CLEAN, before, changed=1)
    assert sorted(c.name for c in found.model.constants()) == ["a", "c"]


def test_a_constant_that_is_an_output_keeps_its_name(check_pass, parse):
    before = parse(
        "g (float[2] x) => (float[] z, float[2] b) <float[2] a = {1,2}, float[2] b = {1,2}> { z = Add (x, a) }"
    )
    check_pass(CLEAN, before, changed=0)


def test_dead_nodes_and_unread_constants(check_pass, parse):
    before = parse("g (float[N] x) => (float[] z) <float w, float v> { a = Exp (x) b = Mul (a, w) z = Relu (x) }")
    found = check_pass(CLEAN, before, ops="Relu", changed=4)
    assert found.result.figures["dead_nodes"] == 2
    assert found.result.figures["unread_constants"] == 2


def test_texts_are_left_alone(check_pass, parse):
    before = parse("g (float[2] x) => (float[] z) { z = Relu (x) }")
    for name in ("s", "t"):
        before.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.STRING, [1], [b"a"]))
        before.graph.output.append(onnx.helper.make_tensor_value_info("same_" + name, onnx.TensorProto.STRING, [1]))
        before.graph.node.append(onnx.helper.make_node("Concat", [name, name], ["two_" + name], axis=0))
    del before.graph.output[1:]
    check_pass(CLEAN, before)


def test_transposes_of_unknown_rank_stay(check_pass, parse):
    before = parse("""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[2,3] x) => (float[2,3] z) {
            y = com.microsoft.Gelu (x) a = Transpose (y) b = Transpose (a) z = Relu (b)
        }""")
    del before.graph.value_info[:]
    check_pass(CLEAN, before, changed=0)


def test_other_domains_are_left_alone(check_pass, parse):
    before = parse(
        """<ir_version: 8, opset_import: ["":17, "com.microsoft":1]>
        g (float[2] x) => (float[2] z) { z = com.microsoft.Gelu (x) }"""
    )
    check_pass(CLEAN, before, changed=0)
