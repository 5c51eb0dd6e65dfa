"""Patches times weights is ONNX Runtime's Conv, for random geometry."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxopt.numerics.patches import output_size, patches, rows_at, same_pads, sample_positions


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray, **attributes: Any) -> np.ndarray:
    node = onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)
    infos = [onnx.helper.make_tensor_value_info(n, 1, a.shape) for n, a in (("x", x), ("w", w), ("b", b))]
    graph = onnx.helper.make_graph([node], "g", infos, [onnx.helper.make_tensor_value_info("y", 1, [None] * x.ndim)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x, "w": w, "b": b})[0])


@st.composite
def geometry(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int, count: int = rank) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    return {
        "size": each(1, 9),
        "kernel": each(1, 3),
        "strides": each(1, 3),
        "pads": each(0, 2, 2 * rank),
        "dilations": each(1, 2),
        "groups": draw(st.integers(1, 3)),
        "in_group": draw(st.integers(1, 2)),
        "seed": draw(st.integers(0, 9)),
    }


def multiply(rows: np.ndarray, w: np.ndarray, b: np.ndarray, groups: int) -> np.ndarray:
    parts = rows.reshape(len(rows), groups, -1), w.reshape(groups, len(w) // groups, -1)
    return np.einsum("ngk,gok->ngo", *parts).reshape(len(rows), -1) + b


@given(g=geometry())
@settings(max_examples=60, deadline=None)
def test_rows_times_weights_is_conv(g: dict[str, Any]) -> None:
    size = output_size(g["size"], g["kernel"], g["strides"], g["pads"], g["dilations"])
    assume(min(size) > 0)
    rng, groups = np.random.default_rng(g["seed"]), g["groups"]
    x = rng.normal(size=(2, groups * g["in_group"], *g["size"])).astype(np.float32)
    w = rng.normal(size=(groups * 2, g["in_group"], *g["kernel"])).astype(np.float32)
    b = rng.normal(size=groups * 2).astype(np.float32)
    y = conv(x, w, b, strides=g["strides"], pads=g["pads"], dilations=g["dilations"], group=groups)
    assert y.shape[2:] == size
    where = g["kernel"], g["strides"], g["pads"], g["dilations"]
    np.testing.assert_allclose(multiply(patches(x, *where), w, b, groups), rows_at(y), atol=1e-4)
    some = sample_positions(2 * int(np.prod(size)), 5, rng)
    np.testing.assert_allclose(multiply(patches(x, *where, some), w, b, groups), rows_at(y, some), atol=1e-4)


@given(g=geometry(), upper=st.booleans())
@settings(max_examples=60, deadline=None)
def test_same_pads_are_those_of_auto_pad(g: dict[str, Any], upper: bool) -> None:
    dilations = [1] * len(g["kernel"])  # ONNX Runtime refuses others with auto_pad
    pads = same_pads(g["size"], g["kernel"], g["strides"], dilations, upper=upper)
    rng = np.random.default_rng(g["seed"])
    x = rng.normal(size=(1, 2, *g["size"])).astype(np.float32)
    w, b = rng.normal(size=(2, 2, *g["kernel"])).astype(np.float32), np.zeros(2, np.float32)
    y = conv(x, w, b, strides=g["strides"], auto_pad="SAME_UPPER" if upper else "SAME_LOWER")
    assert output_size(g["size"], g["kernel"], g["strides"], pads, dilations) == y.shape[2:]
    rows = patches(x, g["kernel"], g["strides"], pads, dilations)
    np.testing.assert_allclose(multiply(rows, w, b, 1), rows_at(y), atol=1e-4)


def test_positions_are_sampled_without_repetition_and_repeatably() -> None:
    first, second = (sample_positions(1000, 50, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first)) == 50
    assert (np.diff(first) > 0).all()
    assert first.max() < 1000
    np.testing.assert_array_equal(sample_positions(3, 50, np.random.default_rng(3)), [0, 1, 2])


def test_the_image_is_left_as_it_was_and_types_are_kept() -> None:
    x = np.arange(2 * 3 * 5, dtype=np.float16).reshape(1, 2, 3, 5).transpose(0, 1, 3, 2)
    before = x.copy()
    rows = patches(x, (2, 2), (1, 1), (1, 0, 0, 1), (1, 1))
    rows[:] = -1
    assert rows.dtype == np.float16
    np.testing.assert_array_equal(x, before)


def test_a_kernel_larger_than_the_image_has_no_rows() -> None:
    rows = patches(np.zeros((1, 2, 2), np.float32), (5,), (1,), (0, 0), (1,))
    assert rows.shape == (0, 10)


def test_mismatched_geometry_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        patches(np.zeros((1, 2, 4, 4), np.float32), (3,), (1, 1), (0, 0, 0, 0), (1, 1))
