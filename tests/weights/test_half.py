"""What float16 holds, and what it does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxopt.graph.ir import Constant, Node, Variable
from onnxopt.weights import half
from onnxopt.weights.half import Numbers, Slots, slots

PLACES = "it reads places where to sample, which float16 is too coarse for"
F32, I64 = np.dtype(np.float32), np.dtype(np.int64)


@given(arrays(np.float32, 20, elements=st.floats(width=32)))
@settings(max_examples=60, deadline=None)
def test_finite_numbers_stay_finite(values) -> None:
    found = half.rounded(values)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(values))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))


@pytest.mark.parametrize(
    ("scale", "why"),
    [(1.0, ""), (1e-4, ""), (1e-6, "so small that float16 loses"), (2e4, "float16 ends at 65504"), (0.0, "")],
)
def test_numbers_say_what_float16_does_not_hold(scale, why) -> None:
    numbers = Numbers()
    for part in np.random.default_rng(0).standard_normal((4, 500)):
        numbers.add(scale * part)
    assert (why in numbers.fault()) if why else (numbers.fault() == "")
    assert numbers.finite
    numbers.add(np.array([np.inf, np.nan, 0.0]))
    assert not numbers.finite


def node(op: str, inputs: list[str], outputs: list[str], **attrs) -> Node:
    return Node(op, "", [Variable(n) for n in inputs], [Variable(n) for n in outputs], attrs)


@pytest.mark.parametrize(
    ("made", "opset", "found"),
    [
        (node("Add", ["f", "g"], ["h"]), 17, Slots((0, 1), (0,))),
        (node("Gather", ["f", "i"], ["h"]), 17, Slots((0,), (0,))),
        (node("Gather", ["i", "i"], ["j"]), 17, Slots()),
        (node("Concat", ["f", "g", "h"], ["k"], axis=0), 17, Slots((0, 1, 2), (0,))),
        (node("Shape", ["f"], ["i"]), 17, Slots((0,), ())),
        (node("Cast", ["i"], ["f"], to=1), 17, Slots((), (0,))),
        (node("Cast", ["f"], ["i"], to=7), 17, Slots()),
        (node("LayerNormalization", ["f", "g"], ["h", "k"]), 17, Slots((0, 1), (0,))),
        (node("Range", ["f", "g", "h"], ["k"]), 17, Slots(why="ONNX has no float16 Range in operator set 17")),
        (node("Transpose", ["f"], ["m"], perm=[1, 2, 0, 3]), 17, Slots(why=half._CRASH)),
        (node("Transpose", ["f"], ["m"], perm=[1, 2, 3, 0]), 17, Slots(why=half._CRASH)),
        (node("Transpose", ["f"], ["m"], perm=[0, 2, 1, 3]), 17, Slots((0,), (0,))),
        (node("BitCast", ["f"], ["i"], to=6), 26, Slots(why="it reads the bits of its numbers")),
        (node("ScatterND", ["f", "i", "g"], ["h"], reduction="min"), 18, Slots(why=half._FAILS)),
        (node("ScatterND", ["f", "i", "g"], ["h"], reduction="none"), 18, Slots((0, 2), (0,))),
        (node("Nothing", ["f"], ["h"]), 17, Slots(why="nothing is known of Nothing in operator set 17")),
        (node("RoiAlign", ["f", "g", "i"], ["h"]), 16, Slots(why=PLACES)),
        (node("GridSample", ["f", "g"], ["h"]), 16, Slots((0,), (0,))),
        (node("RandomNormalLike", ["f"], ["h"], dtype=1), 17, Slots(why="its type is an attribute")),
    ],
)  # fmt: skip
def test_slots_follow_the_rules_of_each_operator(made, opset, found) -> None:
    known = dict.fromkeys("fghkm", F32) | {"i": I64, "j": I64}
    made.outputs[0].outputs += [node("MatMul", [], [])] if made.outputs[0].name == "m" else []
    assert slots(made, opset, known) == found


@pytest.mark.parametrize(
    ("op", "slot", "values", "why"),
    [
        ("Clip", 2, [3.4e38], ""),
        ("Add", 1, [-1e9], "reaches 1e+09"),
        ("Add", 1, [1e-12], "holds 1e-12"),
        ("Add", 1, [-np.inf, 0.0], ""),
        ("MatMul", 1, np.full(64, 1e-8), "would lose"),
        ("MatMul", 1, np.linspace(-1, 1, 64), ""),
    ],
)
def test_constants_that_count_are_looked_at(op, slot, values, why) -> None:
    constant = Constant("c", np.array(values, np.float32))
    found = half.constant_fault(node(op, ["f"], ["g"]), slot, constant)
    assert (why in found) if why else (found == "")
