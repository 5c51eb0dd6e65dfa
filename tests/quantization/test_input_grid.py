"""Pictures of 8 bits read as the integers they are: which numbers are on a grid, that nothing changes in floats, and
that not one level is lost in integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.core.context import Context
from onnxopt.data.dataset import Dataset, from_feeds
from onnxopt.graph import shapes
from onnxopt.graph.model import Model
from onnxopt.quantization.candidate import Builder, Candidate, Settings
from onnxopt.quantization.equalization import equalize
from onnxopt.quantization.input_grid import align, grid_of, restore
from onnxopt.runtime.session import Session
from onnxopt.runtime.target import ARM64, NATIVE

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,) * 3, (0.5,) * 3
UNIT = (0.0,) * 3, (1.0,) * 3
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def levels(*shape: int, low: int = 0, high: int = 255, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, shape)


def scaled(n: np.ndarray, mean, std) -> np.ndarray:
    """What preprocessing makes of pixels, in float32 as libraries do it."""
    column = (-1, *[1] * (n.ndim - 2))
    x = n.astype(np.float32) / np.float32(255)
    return (x - np.float32(mean).reshape(column)) / np.float32(std).reshape(column)


@pytest.mark.parametrize(("mean", "std"), [IMAGENET, HALF, UNIT, CLIP, ((0.1307,), (0.3081,)), ((0.5, 0.2), (1, 0.1))])
def test_pictures_are_on_a_grid(mean, std):
    x = scaled(levels(8, len(mean), 32, 32), mean, std)
    grid = grid_of([x])
    assert grid is not None
    np.testing.assert_allclose(grid.step, 1 / (255 * np.array(std)), rtol=1e-4)
    np.testing.assert_allclose(grid.zero, 255 * np.array(mean), atol=0.01)


pixels = st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 4.0), st.integers(0, 90), st.integers(150, 255))


@settings(max_examples=40, deadline=None)
@given(st.lists(pixels, min_size=1, max_size=4), st.integers(0, 9))
def test_every_value_is_one_of_256_levels(channels, seed):
    mean, std, low, high = zip(*channels, strict=True)
    n = np.stack([levels(3, 24, 24, low=a, high=b, seed=seed) for a, b in zip(low, high, strict=True)], axis=1)
    x = scaled(n, mean, std)
    grid = grid_of([x[:2], x[2:]])
    if grid is None:  # the zero of a channel lies outside
        return
    step, zero = grid.step.reshape(-1, 1, 1), grid.zero.reshape(-1, 1, 1)
    at = x / step + zero
    assert np.abs(at - np.rint(at)).max() < 0.02
    assert 0 <= np.rint(at).min() <= np.rint(at).max() <= 255
    assert np.ptp(np.rint(at) - n, axis=(0, 2, 3)).max() == 0


NORMAL = np.random.default_rng(0).standard_normal((4, 1, 16, 16)).astype(np.float32)
PICTURE = scaled(levels(4, 1, 16, 16), (0.4,), (0.2,))


def spoiled(value: float) -> np.ndarray:
    x = PICTURE.copy()
    x[2, 0, 3, 3] = value
    return x


@pytest.mark.parametrize(
    "x",
    [
        NORMAL,
        np.ones((4, 1, 16, 16), np.float32),
        (NORMAL > 0).astype(np.float32),
        np.rint(NORMAL * 4) / 4,  # some 25 levels, between which there may be others
        np.linspace(0, 1, 300, dtype=np.float32).reshape(1, 1, 15, 20),
        (PICTURE[..., ::2, :] * 0.3 + PICTURE[..., 1::2, :] * 0.7),  # as after resizing
        spoiled(np.nan),
        spoiled(np.inf),
        spoiled(-np.inf),
        spoiled(1e4),
        PICTURE + 30,  # zero is none of the 256
        PICTURE - 30,
        PICTURE[:0],
        PICTURE[..., :0],
        np.concatenate([PICTURE, np.zeros_like(PICTURE)], axis=1),
    ],
)
def test_other_numbers_are_on_none(x):
    assert grid_of([x]) is None


def test_no_samples():
    assert grid_of([]) is None


@pytest.mark.parametrize("later", [NORMAL, spoiled(np.nan), PICTURE[:0], PICTURE + 0.5, PICTURE * 2])
def test_what_comes_later_must_be_on_the_grid_too(later):
    first = [PICTURE] * 16
    assert grid_of(first) is not None
    assert grid_of([*first, later]) is None


def test_levels_that_come_later_widen_the_range():
    dark, bright = (scaled(levels(64, 1, 8, 8, low=a, high=b), (0.4,), (0.2,)) for a, b in ((20, 90), (60, 250)))
    narrow, wide = grid_of([dark]), grid_of([dark, bright])
    assert narrow is not None
    assert wide is not None
    assert np.rint(bright / narrow.step[0] + narrow.zero[0]).max() > 255
    assert np.rint(bright / wide.step[0] + wide.zero[0]).min() >= 0
    assert np.rint(bright / wide.step[0] + wide.zero[0]).max() <= 255


def test_levels_that_no_sample_has_are_left_on_both_sides_but_not_below_zero():
    middle, from_zero = (levels(4, 1, 16, 16, low=a, high=a + 155) for a in (40, 0))
    both, above = grid_of([scaled(middle, (0.4,), (0.2,))]), grid_of([scaled(from_zero, (0.0,), (1.0,))])
    assert both is not None
    assert above is not None
    assert np.rint(both.zero[0] - 102) == 50 - 40
    np.testing.assert_allclose(above.zero, 0, atol=0.01)


def test_channels_share_a_grid_if_it_has_room():
    n = np.concatenate([levels(4, 1, 16, 16, low=a, high=b) for a, b in ((0, 255), (30, 200), (0, 60))], axis=1)
    shared, own = grid_of([scaled(n, *UNIT)]), grid_of([scaled(n, *IMAGENET)])
    assert shared is not None
    assert own is not None
    assert np.ptp(shared.step) == np.ptp(shared.zero) == 0
    assert np.ptp(own.step) > 0


CONVS = [
    ("float[N,3,9,8]", "float[8,3,3,3] w", ""),
    ("float[N,3,9,8]", "float[8,3,3,3] w, float[8] b", "<pads=[1,0,2,1]>"),
    ("float[N,3,9,8]", "float[8,3,3,3] w", "<pads=[1,1,1,1], strides=[2,2]>"),
    ("float[N,3,9,8]", "float[8,3,2,3] w", "<pads=[2,1,1,0], dilations=[2,1]>"),
    ("float[N,3,20]", "float[8,3,5] w, float[8] b", "<pads=[2,1]>"),
    ("float[N,3,5,6,4]", "float[8,3,3,3,3] w", "<pads=[1,0,1,0,1,2]>"),
    ("float[N,4,9,8]", "float[8,4,1,1] w, float[8] b", ""),
    ("float[N,2,9,8]", "float[8,2,3,3] w", "<pads=[1,1,1,1]>"),
    ("float[N,1,9,8]", "float[8,1,3,3] w", "<pads=[1,1,1,1]>"),
    ("float[N,5,9,8]", "float[8,5,3,3] w", "<pads=[1,1,1,1]>"),
    ("float[4,3,9,8]", "float[8,3,3,3] w", "<pads=[1,1,1,1]>"),
    ("float[N,C,H,W]", "float[8,3,3,3] w", "<pads=[1,1,1,1]>"),
]


@pytest.fixture
def conv_of(build):
    """A model of ``x``: one convolution, or ``nodes``; ``w`` are values of the first one's weights."""

    def make(x: str, weights: str, attributes: str = "", nodes: str = "", opset: int = 17, w=None) -> Model:
        given = ", b" if " b" in weights else ""
        model = build(nodes or f"[one] y = Conv {attributes} (x, w{given})", weights, f"{x} x", opset=opset)
        if w is not None:
            model.graph.nodes[0].inputs[1] = model.constant("weight", np.asarray(w, np.float32))
        return model

    return make


def pictures(model: Model, mean, std, count: int = 64, seed: int = 0) -> tuple[Dataset, np.ndarray, np.ndarray]:
    """A dataset, and one batch of it: as it is, and its pixels."""
    (spec,) = model.inputs
    given = [d if isinstance(d, int) else 8 for d in spec.shape]
    channels = model.graph.nodes[0].inputs[1].shape[1]
    n = levels(count, channels, *given[2:], seed=seed)
    repeat = -(-channels // len(mean))
    x = scaled(n, (mean * repeat)[:channels], (std * repeat)[:channels])
    batch = given[0] if isinstance(spec.shape[0], int) else count
    feeds = [{"x": x[i : i + batch]} for i in range(0, count, batch)]
    return from_feeds(feeds, model.inputs), x[:batch], n[:batch]


def aligned(model: Model, data: Dataset, left_out=None):
    context = Context(model.clone(), data)
    return align(model, context, context.shapes(model), shapes.specs(model), left_out or {})


@pytest.mark.parametrize("grid", [IMAGENET, HALF])
@pytest.mark.parametrize(("x", "weights", "attributes"), CONVS)
def test_the_float_model_computes_the_same_and_can_be_restored(conv_of, x, weights, attributes, grid):
    model = conv_of(x, weights, attributes)
    data, feed, _ = pictures(model, *grid)
    changed = model.clone()
    ((name, found),) = aligned(changed, data).items()
    expected = Session(model).run({"x": feed})["y"]
    onnx.checker.check_model(changed.to_proto(), full_check=True)
    np.testing.assert_allclose(Session(changed).run({"x": feed})["y"], expected, atol=1e-5 * np.abs(expected).max())
    if found.source is not None:
        made = Session(changed, outputs=[name]).run({"x": feed})[name] / (found.range.hi / 255)
        assert np.abs(made - np.rint(made)).max() < 0.6 if any(model.graph.nodes[0].attrs.get("pads", ())) else 0.02
        restore(changed, name)
        changed.tidy()
    assert [n.op for n in changed.graph.nodes] == ["Conv"]
    assert not any(model.graph.nodes[0].attrs.get("pads", ())) or (
        changed.graph.nodes[0].attrs["pads"] == model.graph.nodes[0].attrs["pads"]
    )
    np.testing.assert_allclose(Session(changed).run({"x": feed})["y"], expected, atol=1e-5 * np.abs(expected).max())


def built(model: Model, data: Dataset, target=NATIVE, left_out=None, **settings) -> tuple[Builder, Candidate]:
    builder = Builder(model.clone(), Context(model, data, target=target), Settings(**settings), left_out or {})
    candidate = builder.build({})
    assert isinstance(candidate, Candidate)
    return builder, candidate


def integers(candidate: Candidate, feed: np.ndarray) -> np.ndarray:
    """What the quantizer makes that the first convolution's input comes from."""
    nodes = candidate.model.graph.nodes
    first = next(n for n in nodes if n.op == "QuantizeLinear" and "Conv" not in {m.op for m in _before(n)})
    (made,) = first.outputs
    return Session(candidate.model, outputs=[made.name], optimize=False).run({"x": feed})[made.name]


def _before(node):
    found = []
    while node.inputs and node.inputs[0].inputs:
        node = node.inputs[0].inputs[0]
        found.append(node)
    return found


@pytest.mark.parametrize("target", [NATIVE, ARM64])
@pytest.mark.parametrize("grid", [IMAGENET, HALF, UNIT, CLIP])
@pytest.mark.parametrize(("x", "weights", "attributes"), [c for c in CONVS if "N,C" not in c[0]])
def test_no_level_is_lost(conv_of, x, weights, attributes, grid, target):
    model = conv_of(x, weights, attributes)
    data, feed, n = pictures(model, *grid)
    builder, candidate = built(model, data, target)
    assert len(builder.aligned) == 1
    made = integers(candidate, feed).astype(np.int64)
    pads = model.graph.nodes[0].attrs.get("pads", [0] * 2 * (n.ndim - 2))
    if made.shape != n.shape:
        inside = [slice(p, p + d) for p, d in zip(pads, n.shape[2:], strict=False)]
        made = made[(slice(None), slice(n.shape[1]), *inside)]
    off = made - n
    assert np.ptp(off, axis=tuple(k for k in range(n.ndim) if k != 1)).max() == 0
    assert len(candidate.executed.integer) == 1
    assert {m.op for m in candidate.model.graph.nodes}.isdisjoint({"Mul"})


def few_levels() -> np.ndarray:
    """Weights (8, 3, 3, 3) that lose nothing by rounding."""
    w = levels(8, 3, 3, 3, low=-127, high=127) / 127
    w[:, 0, 0, 0] = 1
    return w


def test_the_answers_come_nearer(conv_of):
    model = conv_of("float[N,3,16,16]", "float[8,3,3,3] w", w=few_levels())
    data, feed, _ = pictures(model, *HALF)
    expected = Session(model).run({"x": feed})["y"]
    noise = []
    for correct in (True, False):  # without corrected biases the input is quantized as any other tensor
        _, candidate = built(model, data, bias_correction=correct)
        noise.append(np.square(Session(candidate.model).run({"x": feed})["y"] - expected).mean())
    assert noise[0] < noise[1]


def test_nothing_but_the_output_is_rounded(conv_of):
    model = conv_of("float[N,3,16,16]", "float[8,3,3,3] w", w=few_levels())
    data, feed, _ = pictures(model, *HALF)
    expected = Session(model).run({"x": feed})["y"]
    _, candidate = built(model, data, method="minmax")
    found = Session(candidate.model, optimize=False).run({"x": feed})["y"]
    last = next(
        n
        for n in candidate.model.graph.nodes
        if n.op == "QuantizeLinear" and n.inputs[0].name != "x" and any(m.op == "Conv" for m in _before(n))
    )
    half = float(last.inputs[1].values) / 2
    assert np.abs(found - expected).max() < half * 1.01


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ("y = Conv <group=3> (x, w)", "float[6,1,3,3] w"),
        ('y = Conv <auto_pad="SAME_UPPER"> (x, w)', "float[6,3,3,3] w"),
        ("a = Conv (x, w) c = Conv (x, v) y = Add (a, c)", "float[6,3,3,3] w, float[6,3,3,3] v"),
        ("a = Conv (x, w) m = GlobalMaxPool (x) c = Conv (m, v) y = Add (a, c)", "float[6,3,3,3] w, float[6,3,1,1] v"),
        ("h = Relu (x) y = Conv (h, w)", "float[6,3,3,3] w"),
        ("h = Conv <pads=[1,1,1,1]> (x, w) y = Conv (h, w)", "float[3,3,3,3] w"),
        ("y = ConvTranspose (x, w)", "float[3,3,3,3] w"),
        ("w = ReduceMean <axes=[0], keepdims=0> (u) y = Conv (x, w)", "float[2,6,3,3,3] u"),
        ("y = MatMul (x, w)", "float[8,3] w"),
    ],
)
def test_what_does_not_take_integers_reads_the_input_as_it_is(build, nodes, weights):
    model = build(nodes, weights, "float[N,3,8,8] x")
    x = scaled(levels(64, 3, 8, 8), *IMAGENET)
    before = model.digest()
    assert aligned(model, from_feeds([{"x": x}], model.inputs)) == {}
    assert model.digest() == before


def test_an_input_that_a_body_reads(build):
    model = build(
        """h = Conv <pads=[1,1,1,1]> (x, w)
        y = If (go) <
            then_branch = yes () => (float[N,3,8,8] t) { t = Add (h, x) },
            else_branch = no () => (float[N,3,8,8] e) { e = Neg (h) }
        >""",
        "float[3,3,3,3] w",
        "float[N,3,8,8] x, bool go",
    )
    feed = {"x": scaled(levels(64, 3, 8, 8), *IMAGENET), "go": np.array(True)}
    assert aligned(model, from_feeds([feed], model.inputs)) == {}


def test_float16_and_infinite_weights(conv_of):
    half = conv_of("float16[N,3,8,8]", "float16[6,3,3,3] w")
    x = scaled(levels(64, 3, 8, 8), *UNIT)
    assert aligned(half, from_feeds([{"x": x.astype(np.float16)}], half.inputs)) == {}
    w = np.zeros((6, 3, 3, 3))
    w[0, 0] = np.inf
    infinite = conv_of("float[N,3,8,8]", "float[6,3,3,3] w", w=w)
    assert aligned(infinite, from_feeds([{"x": x}], infinite.inputs)) == {}


def test_excluded_convolutions_stay_as_they_are(conv_of):
    model = conv_of("float[N,3,8,8]", "float[6,3,3,3] w")
    data, *_ = pictures(model, *IMAGENET)
    assert aligned(model.clone(), data, {"one": "excluded"}) == {}
    assert list(aligned(model, data)) == ["x_Pad_Mul_Add"]


@pytest.mark.parametrize("settings", [{"per_channel": False}, {"bias_correction": False}])
def test_settings_that_rule_it_out(conv_of, settings):
    model = conv_of("float[N,3,8,8]", "float[6,3,3,3] w")
    data, *_ = pictures(model, *IMAGENET)
    assert built(model, data, **settings)[0].aligned == {}


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_old_opsets_have_no_scales_by_channel(conv_of, opset):
    model = conv_of("float[N,3,8,8]", "float[6,3,3,3] w", opset=opset)
    data, *_ = pictures(model, *IMAGENET)
    assert built(model, data)[0].aligned == {}


TWO = "[one] h = Conv <pads=[1,1,1,1]> (x, w) r = Relu (h) [two] y = Conv (r, v)"


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("grid", [IMAGENET, HALF])
def test_a_convolution_left_float_reads_the_input_itself(conv_of, grid, refined):
    model = conv_of("float[N,3,8,8]", "float[8,3,3,3] w, float[6,8,3,3] v", nodes=TWO)
    data, feed, _ = pictures(model, *grid)
    builder, _ = built(model, data)
    candidate = builder.build({"one": "the answers"})
    assert isinstance(candidate, Candidate)
    candidate = builder.refine(candidate, 16) if refined else candidate
    conv = next(n for n in candidate.model.graph.nodes if n.name == "one")
    assert conv.inputs[0].name == "x"
    assert conv.attrs["pads"] == [1, 1, 1, 1]
    assert {n.op for n in candidate.model.graph.nodes}.isdisjoint({"Pad", "Mul", "Add"})
    expected, found = (
        Session(m, outputs=["h"], optimize=False).run({"x": feed})["h"] for m in (model, candidate.model)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_another_float_model_keeps_its_integers(conv_of):
    w = np.random.default_rng(0).standard_normal((8, 3, 3, 3)) * np.geomspace(0.01, 1, 8).reshape(-1, 1, 1, 1)
    model = conv_of("float[N,3,8,8]", "float[8,3,3,3] w, float[6,8,3,3] v", nodes=TWO, w=w)
    data, feed, n = pictures(model, *IMAGENET)
    builder, candidate = built(model, data)
    changed = builder.plain.clone()
    tensors = {**candidate.placement.read, **candidate.placement.made}.keys() - builder.aligned.keys()
    assert equalize(changed, builder.context, tensors, builder.sizes)
    other = builder.of(changed)
    assert other.aligned == builder.aligned
    again = other.build({})
    assert isinstance(again, Candidate)
    assert np.array_equal(integers(again, feed), integers(candidate, feed))
    assert np.ptp(integers(again, feed)[:, :3, 1:-1, 1:-1].astype(np.int64) - n, axis=(0, 2, 3)).max() == 0


def test_one_sample_and_nodes_without_names(conv_of):
    model = conv_of("float[1,3,32,32]", "float[6,3,3,3] w", nodes="h = Conv (x, w) y = Relu (h)")
    assert {n.name for n in model.graph.nodes} == {""}
    data, feed, n = pictures(model, *IMAGENET, count=1)
    builder, candidate = built(model, data)
    assert len(builder.aligned) == 1
    assert np.ptp(integers(candidate, feed)[:, :3].astype(np.int64) - n, axis=(0, 2, 3)).max() == 0
