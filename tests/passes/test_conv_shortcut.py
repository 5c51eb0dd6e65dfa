"""Shortcuts of slices and pads as convolutions: the same numbers, and every guard."""

import numpy as np
import pytest

from onnxopt.core.context import Context
from onnxopt.data.dataset import open_dataset
from onnxopt.graph.model import Model
from onnxopt.passes.conv_shortcut import ConvShortcut
from onnxopt.runtime.session import Session

PASS = ConvShortcut()
SLICE = "s = Slice (x, from, to, axes, steps)"
PAD = "p = Pad (s, pads)"
WEIGHTS = (
    "int64[2] from = {0, 0}, int64[2] to = {2147483647, 2147483647}, int64[2] axes = {2, 3}, int64[2] steps = {2, 2}, "
    "int64[8] pads = {0, 4, 0, 0, 0, 4, 0, 0}"
)


@pytest.fixture
def block(parse):
    """A residual block that halves the size of eight channels; what its shortcut does is to choose."""

    def build(middle=f"{SLICE} {PAD}", *, more="", shape="N,8,9,7", opset=17, out=16, tail=""):
        nodes = (
            f"a = Conv (i, w0) x = Relu (a) c = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w1) {middle} "
            f"b = Add (p, c) z = Relu (b) {tail}"
        )
        channels = shape.split(",")[1]
        weights = f"float[{channels},{channels},1,1] w0, float[{out},{channels},3,3] w1, {WEIGHTS}{more}"
        outputs = "float[] z" + (", float[] t" if tail else "")
        return parse(f"g (float[{shape}] i) => ({outputs}) <{weights}> {{ {nodes} }}", opset)

    return build


def test_halved_and_padded(check_pass, block):
    found = check_pass(PASS, block(), ops="Conv Conv Conv Relu Relu Add", changed=1)
    assert np.array_equal(found.before["z"], found.after["z"])
    conv = next(n for n in found.model.nodes() if n.outputs[0].name == "p")
    assert (conv.name, conv.attrs) == ("p.conv", {"kernel_shape": [1, 1], "strides": [2, 2]})
    weight = found.constant("p.weight")
    assert weight.shape == (16, 8, 1, 1)
    assert np.array_equal(weight[4:12, :, 0, 0], np.eye(8))
    assert weight.sum() == 8


def test_with_the_runtimes_rewrites(block):
    before = Model.from_proto(block(shape="2,8,10,10"))
    after = before.clone()
    PASS.run(after, Context(before, open_dataset("synthetic", before.inputs, samples=2)))
    feed = {"i": np.random.default_rng(0).standard_normal((2, 8, 10, 10)).astype(np.float32)}
    np.testing.assert_allclose(Session(after).run(feed)["z"], Session(before).run(feed)["z"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("middle", "more"),
    [
        (f'{SLICE} p = Pad <mode="constant"> (s, pads, zero)', ", float zero = {0}"),
        (f"{SLICE} p = Pad (s, behind)", ", int64[8] behind = {0, 0, 0, 0, 0, 8, 0, 0}"),
        (
            f"s = Slice (x, from4, to4, all, steps4) {PAD}",
            ", int64[4] from4 = {0, 0, 0, 0}, int64[4] to4 = "
            "{9223372036854775807, 8, 9, 9223372036854775807}, int64[4] all = {0, 1, 2, -1}, "
            "int64[4] steps4 = {1, 1, 2, 2}",
        ),
    ],
)
def test_ways_to_say_it(check_pass, block, middle, more):
    check_pass(PASS, block(middle, more=more), ops="Conv Conv Conv Relu Relu Add", changed=1)


def test_pads_as_attributes(check_pass, block):
    middle = f"{SLICE} p = Pad <pads=[0,4,0,0,0,4,0,0], value=0.0> (s)"
    check_pass(PASS, block(middle, opset=10), ops="Conv Conv Conv Relu Relu Add", changed=1)
    other = block(middle.replace("0.0", "0.5"), opset=10)
    check_pass(PASS, other, changed=0, skipped=["something else than zeros"])


def test_other_steps_and_a_reader_that_is_a_convolution(check_pass, parse):
    text = (
        "g (float[2,4,9,9] i) => (float[] z) <float[4,4,1,1] w, float[4,8,1,1] v, int64[1] from = {0}, "
        "int64[1] to = {9}, int64[1] axis = {3}, int64[1] step = {3}, int64[8] pads = {0,0,0,0,0,4,0,0}> "
        "{ x = Conv (i, w) s = Slice (x, from, to, axis, step) p = Pad (s, pads) z = Conv (p, v) }"
    )
    found = check_pass(PASS, parse(text), ops="Conv Conv Conv", changed=1)
    assert [n.attrs["strides"] for n in found.model.nodes() if n.name == "p.conv"] == [[1, 3]]


@pytest.mark.parametrize(
    ("middle", "more", "shape", "out", "why"),
    [
        (
            "s = Slice (x, one, to, axes, steps) p = Pad (s, pads)",
            ", int64[2] one = {1, 1}",
            "N,8,8,8",
            16,
            "the whole",
        ),
        (
            "s = Slice (x, from, near, axes, steps) p = Pad (s, pads)",
            ", int64[2] near = {-1, -1}",
            "N,8,8,8",
            16,
            "the whole",
        ),
        (
            "s = Slice (x, last, out, axes, back) p = Pad (s, pads)",
            ", int64[2] last = {-1, -1}, int64[2] out = {-99, -99}, int64[2] back = {-2, -2}",
            "N,8,8,8",
            16,
            "the whole",
        ),
        (
            "s = Slice (x, from3, to3, ch, st3) p = Pad (s, pads)",
            ", int64[3] from3 = {0,0,0}, int64[3] to3 = {99,99,99}, int64[3] ch = {1,2,3}, int64[3] st3 = {2,2,2}",
            "N,16,8,8",
            16,
            "the whole",
        ),
        (
            "e = Add (from, from) s = Slice (x, e, to, axes, steps) p = Pad (s, pads)",
            "",
            "N,8,8,8",
            16,
            "computes what it takes",
        ),
        (
            f"{SLICE} e = Add (pads, nothing) p = Pad (s, e)",
            ", int64[8] nothing = {0,0,0,0,0,0,0,0}",
            "N,8,8,8",
            16,
            "computes how much",
        ),
        (
            f"{SLICE} p = Pad (s, off)",
            ", int64[8] off = {0,4,-1,0,0,4,1,0}",
            "N,8,8,8",
            16,
            "more than to add channels",
        ),
        (
            f"{SLICE} p = Pad (s, off)",
            ", int64[8] off = {0,-4,0,0,0,12,0,0}",
            "N,8,8,8",
            16,
            "more than to add channels",
        ),
        (f'{SLICE} p = Pad <mode="edge"> (s, pads)', "", "N,8,8,8", 16, "mode edge"),
        (f"{SLICE} p = Pad (s, pads, v)", ", float v = {0.5}", "N,8,8,8", 16, "something else than zeros"),
        (
            f"{SLICE} e = Add (v, v) p = Pad (s, pads, e)",
            ", float v = {0}",
            "N,8,8,8",
            16,
            "computes what it pads with",
        ),
        (f"{SLICE} p = Pad (s, pads)", "", "N,6,8,8", 14, "6 or 14 channels are no multiple of 4"),
        (f"{SLICE} p = Pad (s, pads)", "", "1,512,4,4", 520, "1064960 bytes"),
    ],
)
def test_what_stays(check_pass, block, middle, more, shape, out, why):
    check_pass(PASS, block(middle, more=more, shape=shape, out=out), changed=0, skipped=[why])


def test_a_slice_that_is_read_elsewhere_stays(check_pass, block):
    check_pass(PASS, block(tail="t = Relu (s)"), changed=0, skipped=["used elsewhere too"])


def test_behind_normalisations(check_pass, parse):
    norm = "BatchNormalization"
    text = (
        f"g (float[N,8,8,8] i) => (float[] z) <float[8,8,1,1] w0, float[16,8,1,1] w1, {WEIGHTS}, float[8] k, "
        f"float[16] m> {{ a = Conv (i, w0) n = {norm} (a, k, k, k, k) x = Relu (n) c = Conv <strides=[2,2]> (x, w1) "
        f"y = {norm} (c, m, m, m, m) {SLICE} {PAD} z = Add (y, p) }}"
    )
    check_pass(PASS, parse(text, k=1.0, m=1.0), ops=f"Conv Conv Conv Relu Add {norm} {norm}", changed=1)


def test_other_types_stay(check_pass, parse):
    text = f"g (double[2,8,8,8] i) => (double[] z) <{WEIGHTS}> {{ x = Relu (i) {SLICE} {PAD} z = Relu (p) }}"
    check_pass(PASS, parse(text), changed=0, skipped=["float32"])


def test_steps_of_one_are_no_shortcut(check_pass, parse):
    text = (
        f"g (float[2,8,8,8] i) => (float[] z) <float[8,8,1,1] w, float[4,16,1,1] v, {WEIGHTS}> "
        f"{{ x = Conv (i, w) {SLICE} {PAD} z = Conv (p, v) }}"
    )
    check_pass(PASS, parse(text.replace("steps = {2, 2}", "steps = {1, 1}")), changed=0)


@pytest.mark.parametrize(
    ("before", "behind"),
    [("x = Relu (i)", "z = Conv (p, v)"), ("x = Conv (i, w)", "z = Relu (p)"), ("x = Conv (i, w)", "z = Add (p, k)")],
)
def test_away_from_convolutions_it_stays(check_pass, parse, before, behind):
    used = [t for t in ("float[8,8,1,1] w", "float[4,16,1,1] v", "float[16,1,1] k") if f", {t[-1]})" in before + behind]
    text = f"g (float[2,8,8,8] i) => (float[] z) <{', '.join([*used, WEIGHTS])}> {{ {before} {SLICE} {PAD} {behind} }}"
    check_pass(PASS, parse(text), changed=0, skipped=["no convolutions around it"])


def test_a_free_number_of_channels_stays(check_pass, parse):
    text = f"g (float[2,C,8,8] i) => (float[2,D,4,4] z) <{WEIGHTS}> {{ x = Relu (i) {SLICE} {PAD} z = Relu (p) }}"
    feed = {"i": np.ones((2, 8, 8, 8), np.float32)}
    check_pass(PASS, parse(text), changed=0, skipped=["fixed number of channels"], feed=feed)


def test_other_slices_and_pads_are_not_looked_at(check_pass, parse):
    flat = "g (float[8,8] x) => (float[] p) <int64[4] pads = {0,4,0,4}, int64[2] from = {0,0}, int64[2] to = {9,9}, "
    flat += f"int64[2] axes = {{0,1}}, int64[2] steps = {{2,2}}> {{ {SLICE} {PAD} }}"
    check_pass(PASS, parse(flat), changed=0)
    check_pass(
        PASS,
        parse(
            flat.replace(SLICE, "s = Slice (x, from, to)").replace(
                ", int64[2] axes = {0,1}, int64[2] steps = {2,2}", ""
            )
        ),
        changed=0,
    )
