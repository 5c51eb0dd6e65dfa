"""Attention, in one node and written out: whole heads, query heads within groups, widths, by the proof of every cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.graph.coupling import Coupling
from onnxopt.graph.model import Model

Halve = Callable[..., Any]
Finish = Callable[..., onnx.ModelProto]


def linear(n: Any, x: str, into: int, out: int) -> str:
    """A layer of the last axis."""
    return str(n.op("Add", n.op("MatMul", x, n.normal(into, out)), n.constant(n.rng.standard_normal(out) * 0.3)))


def written_out(n: Any, repeat: str, finished: Finish) -> onnx.ModelProto:
    """Four heads of queries, two of keys and values that are repeated in one of several ways; width 6."""
    q = n.op("Transpose", n.op("Reshape", linear(n, "x", 8, 24), n.ints(0, 0, 4, 6)), perm=[0, 2, 1, 3])
    k, v = (
        n.op("Transpose", n.op("Reshape", linear(n, "x", 8, 12), n.ints(0, 0, 2, 6)), perm=[0, 2, 1, 3])
        for _ in range(2)
    )
    if repeat == "Expand":
        wide = [n.op("Expand", n.op("Unsqueeze", t, n.ints(2)), n.ints(2, 2, 2, 5, 6)) for t in (k, v)]
        k, v = (n.op("Reshape", t, n.ints(2, 4, 5, 6)) for t in wide)
    elif repeat == "Tile":
        k, v = (n.op("Tile", t, n.ints(1, 2, 1, 1)) for t in (k, v))
    elif repeat == "Gather":
        k, v = (n.op("Gather", t, n.ints(0, 0, 1, 1), axis=1) for t in (k, v))
    elif repeat == "batches":
        q = n.op("Reshape", q, n.ints(0, 2, 2, 5, 6))
        k, v = (n.op("Unsqueeze", t, n.ints(2)) for t in (k, v))
    axes = [0, 1, 2, 4, 3] if repeat == "batches" else [0, 1, 3, 2]
    scores = n.op("Mul", n.op("MatMul", q, n.op("Transpose", k, perm=axes)), n.constant(6**-0.5))
    y = n.op("MatMul", n.op("Softmax", scores, axis=-1), v)
    if repeat == "batches":
        y = n.op("Reshape", y, n.ints(0, 4, 5, 6))
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, 0, 24))
    return finished(n, linear(n, y, 24, 8), 2, 5, 8)


@pytest.mark.parametrize(
    ("repeat", "fold", "classes"),
    [
        ("Expand", "outer", 2),
        ("Expand", "inner", 12),
        ("Tile", "outer", 2),
        ("Tile", "inner", 12),
        ("Gather", "outer", 2),
        ("Gather", "inner", 12),
        ("batches", "outer", 2),
        ("batches", "inner", 12),
    ],
)
def test_grouped_queries_written_out(
    repeat: str, fold: str, classes: int, net: Any, halve: Halve, finished: Finish
) -> None:
    assert halve(written_out(net(2, 5, 8), repeat, finished), fold=fold).classes == classes


@pytest.mark.parametrize(("fold", "shapes"), [("outer", [1, 16]), ("inner", [2, 8]), ("longest", [2, 8])])
def test_heads_or_widths_of_the_zoo(fold: str, shapes: list[int], zoo: Any, halve: Halve) -> None:
    outcome = halve(zoo["attention"](), fold=fold)
    targets = [m.inputs[1].values.tolist() for m in outcome.cut.graph.nodes if m.op == "Reshape"]
    assert targets[:3] == [[0, 0, *shapes]] * 3


def projected(n: Any, sizes: tuple[int, int, int]) -> tuple[str, str, str]:
    """Queries, keys and values of (batch, length, channels)."""
    q, k, v = (linear(n, "x", 8, size) for size in sizes)
    return q, k, v


FOLDS = {"outer": (2, {"heads": 1}), "inner": (6 + 4, {"heads": 2})}


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention(fold: str, bias: bool, net: Any, halve: Halve, finished: Finish) -> None:
    n = net(2, 5, 8)
    more = [n.constant(n.rng.standard_normal(32))] if bias else []
    y = n.op("MultiHeadAttention", *projected(n, (12, 12, 8)), *more, num_heads=2, domain="com.microsoft")
    outcome = halve(finished(n, linear(n, y, 8, 8), 2, 5, 8), fold=fold)
    node = next(m for m in outcome.cut.graph.nodes if m.op == "MultiHeadAttention")
    assert outcome.classes == FOLDS[fold][0]
    assert node.attrs["num_heads"] == FOLDS[fold][1]["heads"]
    assert node.attrs.get("scale") == (pytest.approx(6**-0.5) if fold == "inner" else None)


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("sizes", [(12, 12, 8), (8, 8, 8)])
def test_attention_with_weights(
    fold: str, sizes: tuple[int, int, int], net: Any, halve: Halve, finished: Finish
) -> None:
    n = net(2, 5, 8)
    x, total = linear(n, "x", 8, 10), sum(sizes)
    more = {} if sizes[0] == sizes[2] else {"qkv_hidden_sizes": list(sizes)}
    weights = n.normal(10, total), n.constant(n.rng.standard_normal(total))
    y = n.op("Attention", x, *weights, num_heads=2, domain="com.microsoft", **more)
    outcome = halve(finished(n, linear(n, y, sizes[2], 8), 2, 5, 8), fold=fold)
    assert outcome.classes == 10 + (2 if fold == "outer" else (sizes[0] + sizes[2]) // 2)


def test_group_query_attention(net: Any, halve: Halve, finished: Finish) -> None:
    n = net(1, 5, 8)
    q, k, v = projected(n, (64, 32, 32))
    ends = n.constant([4], np.int32), n.constant(5, np.int32)
    heads = {"num_heads": 4, "kv_num_heads": 2}
    y = n.op("GroupQueryAttention", q, k, v, "", "", *ends, outputs=3, domain="com.microsoft", **heads)[0]
    outcome = halve(finished(n, linear(n, y, 64, 8), 1, 5, 8), fold="outer")
    node = next(m for m in outcome.cut.graph.nodes if m.op == "GroupQueryAttention")
    assert (outcome.classes, node.attrs["num_heads"], node.attrs["kv_num_heads"]) == (2, 2, 1)


def test_query_heads_go_where_keys_must_stay(net: Any, halve: Halve, finished: Finish) -> None:
    n = net(1, 5, 8)
    q, k, v = projected(n, (64, 32, 32))
    ends = n.constant([4], np.int32), n.constant(5, np.int32)
    heads = {"num_heads": 4, "kv_num_heads": 2}
    made = n.op("GroupQueryAttention", q, k, v, "", "", *ends, outputs=3, domain="com.microsoft", **heads)
    proto = finished(n, linear(n, made[0], 64, 8), 1, 5, 8)
    proto.graph.output.append(helper.make_tensor_value_info(made[1], TensorProto.FLOAT, (1, 2, 5, 16)))
    outcome = halve(proto, fold="outer")
    node = next(m for m in outcome.cut.graph.nodes if m.op == "GroupQueryAttention")
    assert (outcome.classes, node.attrs["num_heads"], node.attrs["kv_num_heads"]) == (2, 2, 2)


@pytest.mark.parametrize(("fold", "classes"), [("outer", 2), ("inner", 6 + 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(fold: str, classes: int, masked: bool, net: Any, halve: Halve, finished: Finish) -> None:
    n = net(2, 5, 8)
    more = [n.constant(n.rng.standard_normal((1, 4, 5, 5)))] if masked else []
    y = n.op("Attention", *projected(n, (24, 12, 8)), *more, q_num_heads=4, kv_num_heads=2)
    outcome = halve(finished(n, linear(n, y, 16, 8), 2, 5, 8, opset=23), fold=fold)
    node = next(m for m in outcome.cut.graph.nodes if m.op == "Attention")
    assert outcome.classes == classes
    assert (node.attrs["q_num_heads"], node.attrs["kv_num_heads"]) == ((2, 1) if fold == "outer" else (4, 2))


@pytest.mark.parametrize(("fold", "classes"), [("outer", 2), ("inner", 6 + 4)])
def test_attention_of_four_axes(fold: str, classes: int, net: Any, halve: Halve, finished: Finish) -> None:
    n = net(2, 5, 8)
    q, k, v = (
        n.op("Transpose", n.op("Reshape", t, n.ints(0, 0, heads, -1)), perm=[0, 2, 1, 3])
        for t, heads in zip(projected(n, (24, 12, 8)), (4, 2, 2), strict=True)
    )
    y = n.op("Transpose", n.op("Attention", q, k, v), perm=[0, 2, 1, 3])
    y = linear(n, n.op("Reshape", y, n.ints(0, 0, -1)), 16, 8)
    assert halve(finished(n, y, 2, 5, 8, opset=23), fold=fold).classes == classes


@pytest.mark.parametrize("contrib", [False, True])
def test_turned_heads_go_whole(contrib: bool, net: Any, halve: Halve, finished: Finish) -> None:
    n = net(2, 5, 8)
    angles = n.constant(n.rng.uniform(-1, 1, (5, 3))), n.constant(n.rng.uniform(-1, 1, (5, 3)))
    places = n.constant(np.tile(np.arange(5), (2, 1)), np.int64)
    domain = {"domain": "com.microsoft"} if contrib else {}
    inputs = [places, *angles] if contrib else [*angles, places]
    y = n.op("RotaryEmbedding", linear(n, "x", 8, 24), *inputs, num_heads=4, **domain)
    assert halve(finished(n, linear(n, y, 24, 8), 2, 5, 8, opset=23), fold="inner").classes == 4


@pytest.mark.parametrize("apart", ["Split", "Gather", "Slice"])
@pytest.mark.parametrize(("fold", "classes"), [("outer", 4), ("inner", 6)])
def test_queries_keys_and_values_of_one_layer(
    apart: str, fold: str, classes: int, net: Any, halve: Halve, finished: Finish
) -> None:
    n = net(2, 5, 8)
    x = n.op("Transpose", n.op("Reshape", linear(n, "x", 8, 72), n.ints(0, 0, 3, 4, 6)), perm=[2, 0, 3, 1, 4])
    if apart == "Split":
        q, k, v = (n.op("Squeeze", t, n.ints(0)) for t in n.op("Split", x, outputs=3, axis=0))
    elif apart == "Gather":
        q, k, v = (n.op("Gather", x, n.constant(i, int), axis=0) for i in range(3))
    else:
        q, k, v = (n.op("Squeeze", n.op("Slice", x, n.ints(i), n.ints(i + 1), n.ints(0)), n.ints(0)) for i in range(3))
    scores = n.op("Softmax", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = n.op("Transpose", n.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    assert (
        halve(finished(n, linear(n, n.op("Reshape", y, n.ints(0, 0, -1)), 24, 8), 2, 5, 8), fold=fold).classes
        == classes
    )


def test_widths_that_are_turned_in_pairs_go_in_pairs(net: Any, halve: Halve, finished: Finish) -> None:
    n = net(2, 5, 8)
    x = n.op("Transpose", n.op("Reshape", linear(n, "x", 8, 24), n.ints(0, 0, 4, 6)), perm=[0, 2, 1, 3])
    first, second = (n.op("Slice", x, n.ints(a), n.ints(b), n.ints(3)) for a, b in ((0, 3), (3, 6)))
    other = n.op("Concat", n.op("Neg", second), first, axis=-1)
    cos, sin = n.normal(5, 6), n.normal(5, 6)
    y = n.op("Add", n.op("Mul", x, cos), n.op("Mul", other, sin))
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, 0, 24))
    assert halve(finished(n, linear(n, y, 24, 8), 2, 5, 8), fold="inner").classes == 3


@pytest.mark.parametrize(
    ("op", "more"),
    [
        ("MultiHeadAttention", {"num_heads": 2}),
        ("GroupQueryAttention", {"num_heads": 2, "kv_num_heads": 2}),
        ("RotaryEmbedding", {}),
    ],
)
def test_packed_forms_are_frozen(op: str, more: dict[str, int], net: Any, finished: Finish) -> None:
    n = net(2, 5, 8)
    y = n.op(op, n.op("MatMul", "x", n.normal(8, 24)), domain="com.microsoft", **more)
    model = Model.from_proto(finished(n, n.op("MatMul", y, n.normal(8, 8)), 2, 5, 8))
    coupling = Coupling(model, {"x": (2, 5, 8), "matmul0": (2, 5, 24), y: (2, 5, 8), "matmul2": (2, 5, 8)}, {})
    why = f"com.microsoft.{op} '{op}1' has a form that its rule does not know"
    assert (coupling.count, coupling.why_frozen(model.graph.nodes[0], 2)) == (0, why)
