"""Which nodes are placed in integers where cost decides, and which tensors that asks for."""

import pytest

from onnxopt.graph import shapes
from onnxopt.quantization.placement import place

SHUFFLED = "a = DepthToSpace <blocksize=2> (x) b = SpaceToDepth <blocksize=2> (a) y = DepthToSpace <blocksize=2> (b)"


def placed(net, **kwargs):
    specs = shapes.specs(net)
    return place(net, {name: s.shape for name, s in specs.items() if s.shape is not None}, specs, **kwargs)


def ops(placement):
    return [u.node.op for u in placement.units]


@pytest.fixture
def between(build):
    """Nodes that make z of h, between a convolution that makes h and one that reads z."""

    def run(nodes, weights=""):
        first, last = "h = Conv <pads=[1,1,1,1]> (x, w)", "y = Conv <pads=[1,1,1,1]> (z, v)"
        return build(f"{first} {nodes} {last}", f"float[8,8,3,3] w, float[8,8,3,3] v, {weights}".rstrip(", "))

    return run


@pytest.mark.parametrize(
    "nodes",
    [
        "z = Add (h, x)",
        "z = Mul (h, h)",
        "t = Sigmoid (h) z = Mul (h, t)",
        "z = AveragePool <kernel_shape=[2,2]> (h)",
        "z = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (h)",
        "z = Transpose <perm=[0,1,3,2]> (h)",
        "z = Identity (h)",
        "a, b = Split <axis=1> (h) z = Concat <axis=1> (b, a)",
    ],
)
def test_light_operators_between_layers_run_in_integers(between, nodes):
    placement = placed(between(nodes))
    assert len(placement.units) == 2 + nodes.count(" = ")
    assert set(placement.roots) == set(placement.read) | set(placement.made)


@pytest.mark.parametrize("nodes", ["z = Add (x, x) y = Exp (z)", "y = Transpose (x)", SHUFFLED])
def test_light_operators_alone_stay_float(build, nodes):
    assert ops(placed(build(nodes))) == []


def test_a_light_operator_between_a_layer_and_float_readers_stays_float(build):
    nodes = "h = Gemm (x, w) a = Add (h, x) y = Exp (a)"
    assert ops(placed(build(nodes, "float[16,16] w", "float[64,16] x"))) == ["Gemm"]


def test_a_float_operator_is_surrounded(between):
    placement = placed(between("t = Tanh (h) z = Add (t, h)"))
    assert "Tanh" not in ops(placement)
    assert {"h", "x", "y"} <= set(placement.roots)


def test_what_moves_numbers_shares_a_scale(between):
    pool, turn = "MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]>", "Transpose <perm=[0,1,3,2]>"
    placement = placed(between(f"a = Relu (h) p = {pool} (a) z = {turn} (p)"))
    assert placement.roots["z"] == placement.roots["p"] == placement.roots["a"] == "a"
    assert "h" not in placement.roots  # the quantizer stands behind the Relu
    assert placement.units[0].clamp.op == "Relu"


@pytest.mark.parametrize(
    ("clamp", "taken"),
    [
        ("Relu (h)", True),
        ("Clip (h, lo, hi)", True),
        ("Clip (h, , hi)", True),
        ("Clip (h)", True),
        ("Clip (h, hi)", False),
        ("Clip (h, m)", False),
        ("LeakyRelu (h)", False),
    ],
)
def test_clamps(between, clamp, taken):
    net = between(f"m = ReduceMax <keepdims=0> (x) z = {clamp}", "float lo = {-1.0}, float hi = {6.0}")
    unit = placed(net).units[0]
    assert (unit.clamp is not None) == taken
    assert unit.writes[0].name == ("z" if taken else "h")


def test_a_clamp_that_others_read_around_is_not_taken(between):
    assert placed(between("a = Relu (h) z = Add (a, h)")).units[0].clamp is None


def test_outputs_of_products_are_integers_only_for_integer_readers(build):
    dense = "float[8,8] w, float[8,8] v"
    alone = placed(build("h = Gemm (x, w) y = Exp (h)", dense, "float[64,8] x"))
    assert set(alone.made) == set()
    both = placed(build("h = Gemm (x, w) y = Gemm (h, v) z = Exp (h)", dense, "float[64,8] x"))
    assert set(both.made) == {"h"}


def test_a_product_with_a_relu_gives_integers_or_the_runtime_would_join_both_in_floats(build):
    net = build("h = Gemm (x, w) r = Relu (h) y = Exp (r)", "float[8,8] w", "float[64,8] x")
    assert set(placed(net).made) == {"r"}


def test_left_out_and_unfit(between):
    net = between("z = Relu (h)")
    assert [s.why for s in placed(net, left_out={"y": "excluded"}).skips] == ["excluded"]
    unfit = placed(net, unfit={"z": "is zero"})
    assert [s.why for s in unfit.skips] == ["'z' is zero", "'z' is zero"]
    assert not unfit.units


def test_placing_twice_gives_the_same(between):
    net = between("a = Relu (h) t = Tanh (a) b = Add (t, a) z = MaxPool <kernel_shape=[2,2]> (b)")
    first, second = placed(net), placed(net)
    assert [u.node for u in first.units] == [u.node for u in second.units]
    assert first.roots == second.roots
