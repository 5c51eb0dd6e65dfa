"""Counts and factors that follow the number of channels: groups, heads, hidden units, what a mean divides by."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod, sqrt
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.graph.ir import Node, Variable
from onnxopt.graph.model import Model

if TYPE_CHECKING:
    from onnxopt.graph.cutting import Cut

Mask: TypeAlias = npt.NDArray[np.bool_]


def _groups(model: Model, node: Node, cut: Cut, *, weight: int = 1) -> None:
    if node.attrs.get("group", 1) > 1:
        side = cut.output(node, 1) if node.op == "ConvTranspose" else cut.input(node, 0, 1)
        node.attrs["group"] = int(side.sum() // cut.input(node, weight, 1).sum())


def _norm_groups(model: Model, node: Node, cut: Cut) -> None:
    stays = cut.input(node, 0, 1)
    node.attrs["num_groups"] = int(stays.reshape(node.attrs["num_groups"], -1).any(1).sum())


def _mean(model: Model, node: Node, cut: Cut) -> list[Node]:
    """A mean over what is left, times its share, is the sum over what is left by the number there was."""
    share = 1.0
    for place in cut.coupling.contractions:
        if place.node is node:
            share *= float(cut.input(node, place.slot, place.axis).mean())
    if share == 1:
        return []
    y = node.outputs[0]
    mean = Variable(model.fresh_name(f"{y.name}_mean"), y.dtype)
    factor = model.constant(f"{y.name}_share", np.array(share, cut.dtype(y)))
    node.outputs[0] = mean
    return [Node("Mul", model.fresh_name(f"{node.name}_share"), [mean, factor], [y])]


def _root_mean_square(model: Model, node: Node, cut: Cut, *, scale: int = 1, epsilon: float = 1e-5) -> None:
    """Over d of D channels, with Q the sum of squares: sqrt(Q / D + e) = sqrt(d / D) sqrt(Q / d + e D / d)."""
    rank = cut.coupling.rank(node.inputs[0])
    stays = [cut.input(node, 0, k) for k in range(range(rank)[int(node.attrs.get("axis", -1))], rank)]
    grown = prod(len(s) for s in stays) / prod(int(s.sum()) for s in stays)
    if grown == 1:
        return
    node.attrs["epsilon"] = float(node.attrs.get("epsilon", epsilon)) * grown
    old = node.inputs[scale]
    values = old.values[np.ix_(*(cut.input(node, scale, k) for k in range(len(old.shape))))]
    node.inputs[scale] = model.constant(old.name, (values * sqrt(grown)).astype(old.dtype))


def _hidden(model: Model, node: Node, cut: Cut) -> None:
    node.attrs["hidden_size"] = int(cut.input(node, 2, 2).sum())


def _heads(node: Node, stays: Mask, attribute: str) -> None:
    """Whole heads or widths have gone from folded channels: count heads; scores keep the scale of the old width."""
    left = stays.reshape(node.attrs[attribute], -1)
    node.attrs[attribute] = int(left.any(1).sum())
    _scale(node, np.asarray(left.any(0)))


def _scale(node: Node, width: Mask) -> None:
    if not width.all() and not node.attrs.get("scale"):
        node.attrs["scale"] = 1 / sqrt(len(width))


def _attention(model: Model, node: Node, cut: Cut) -> None:
    if cut.coupling.rank(node.inputs[0]) == 4:
        _scale(node, cut.input(node, 0, 3))
    else:
        _query_and_key_heads(model, node, cut, names=("q_num_heads", "kv_num_heads"))


def _query_and_key_heads(
    model: Model, node: Node, cut: Cut, *, names: tuple[str, str] = ("num_heads", "kv_num_heads")
) -> None:
    for slot, name in enumerate(names):
        _heads(node, cut.input(node, slot, 2), name)


def _query_heads(model: Model, node: Node, cut: Cut) -> None:
    if node.attrs.get("num_heads") and cut.coupling.rank(node.inputs[0]) == 3:
        _heads(node, cut.input(node, 0, 2), "num_heads")


def _packed_heads(model: Model, node: Node, cut: Cut) -> None:
    stays = cut.input(node, 1, 1)
    sizes = node.attrs.get("qkv_hidden_sizes") or [len(stays) // 3] * 3
    parts = np.split(stays, np.cumsum(sizes)[:-1])
    _heads(node, parts[0], "num_heads")
    if not stays.all():
        node.attrs["qkv_hidden_sizes"] = [int(p.sum()) for p in parts]


table: dict[str, Callable[[Model, Node, Cut], list[Node] | None]] = {
    "Attention": _attention,
    "Conv": _groups,
    "ConvInteger": _groups,
    "ConvTranspose": _groups,
    "GRU": _hidden,
    "GroupNormalization": _norm_groups,
    "LSTM": _hidden,
    "QLinearConv": partial(_groups, weight=3),
    "RMSNormalization": _root_mean_square,
    "RNN": _hidden,
    "ReduceMean": _mean,
    "RotaryEmbedding": _query_heads,
    "SimplifiedLayerNormalization": _root_mean_square,
    "com.microsoft.Attention": _packed_heads,
    "com.microsoft.FusedConv": _groups,
    "com.microsoft.GroupQueryAttention": _query_and_key_heads,
    "com.microsoft.MultiHeadAttention": _query_heads,
    "com.microsoft.RotaryEmbedding": _query_heads,
    "com.microsoft.SkipSimplifiedLayerNormalization": partial(_root_mean_square, scale=2, epsilon=1e-12),
}
