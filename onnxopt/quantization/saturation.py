"""Weights with which no pair of products overflows, for processors that add such pairs into 16 bits.

x86 without VNNI multiplies unsigned activations by signed weights and adds two neighbours at once (VPMADDUBSW):

    a1 * w1 + a2 * w2, saturated to -32768..32767, with a1 and a2 in 0..255

That is exact for all activations if the positive weights of each pair add up to 128 at most, the negative ones to -128
at least. Neighbours are the 1st and 2nd, the 3rd and 4th, ... in the order in which the kernels sum: the rows of a
matrix product; in each group of a convolution, the channels at one place of the window, then those at the next.
Depthwise convolutions do not use the instruction. All this was found with layers that hold one pair of large weights,
at every place in turn, under onnxruntime 1.31 with its kernels for AVX2 and AVX-512 (those for SSE4, VNNI and ARM are
exact).

Everything here takes weights as ``pairs``: (channels, count, 2), or (channels, count, 1) where nothing is added in
pairs.
"""

from __future__ import annotations

from math import prod

import numpy as np

from onnxopt.graph.ir import Node
from onnxopt.graph.signature import Array

# 255 * 128 fits into 16 bits, 255 * 129 does not.
LIMIT = 128
# Quotients are rounded to float32 before they are rounded to integers.
_SLACK = 1 + 1e-6
# How much more than the least scale is tried. With the least itself the heaviest weights, which count most, are always
# rounded badly; on three nets this won back most of what the guard costs.
_FACTORS = (1 + np.arange(13) / 100).astype(np.float32)


def pairs(node: Node, weight: Array, added: int = 0) -> Array:
    """The weight of a Conv, Gemm or MatMul as the pairs that meet, behind it ``added`` input channels of zeros."""
    rows = np.ascontiguousarray(_inputs_last(node, weight))
    rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, added)]) if added else rows
    if node.op == "Conv" and weight.shape[1] == 1 and weight.shape[0] == node.attrs.get("group", 1):
        return rows.reshape(len(rows), -1, 1)
    return paired(rows.reshape(len(rows), -1))


def paired(rows: Array) -> Array:
    """Pairs of (channels, inputs), filled up with zeros."""
    return np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)


def unpaired(node: Node, values: Array, shape: tuple[int, ...], added: int = 0) -> Array:
    """The weight of this shape that has these pairs: what undoes ``pairs``."""
    outputs, *window, inputs = _inputs_last(node, np.empty(shape, np.bool_)).shape
    turned = (outputs, *window, inputs + added)
    rows = values.reshape(outputs, -1)[:, : prod(turned[1:])].reshape(turned)[..., :inputs]
    return np.moveaxis(rows, -1, 1) if node.op == "Conv" else _inputs_last(node, rows)


def can_saturate(steps: Array) -> Array:
    """Which output channels can overflow, bool (channels,); ``steps`` are pairs of integers."""
    return heaviest(steps) > LIMIT


def safe_scale(weight: Array, scale: Array) -> Array:
    """The scale with which weights rounded to nearest cannot overflow, float32 of the shape of ``scale``.

    ``weight`` are pairs of float32 numbers that ``scale``, () or (channels,), covers with -127..127. Channels that
    cannot overflow keep their scale. The others get what their heaviest pair needs to add up to 128, which is at most
    what 7 bits would have, or up to 12 % more where that rounds all of their weights better.
    """
    weight = weight if scale.ndim else weight.reshape(1, -1, weight.shape[2])
    safe = scale.reshape(-1).copy()
    overflows = can_saturate(np.rint(weight / safe[:, None, None]))
    # Two numbers that add up to less than 128 are never rounded to two that add up to more than 128.
    needed = np.maximum(safe, heaviest(weight) * (_SLACK / LIMIT)).astype(np.float32)
    safe[overflows] = _closest(weight[overflows], needed[overflows])
    return safe.reshape(scale.shape)


def relieve(steps: Array) -> Array:
    """Pairs of integers, those that could overflow moved towards zero just so far that they cannot."""
    if steps.shape[2] == 1:
        return steps
    first, second = steps[..., 0].astype(np.int16), steps[..., 1].astype(np.int16)
    excess = np.where(first * second > 0, np.abs(first + second) - LIMIT, 0).clip(0)
    share = excess // 2
    moved = [first - np.sign(first) * (excess - share), second - np.sign(second) * share]
    return np.stack(moved, axis=-1).astype(steps.dtype)


def _closest(weight: Array, least: Array) -> Array:
    """The scales not below ``least`` with which rounding moves the weights of each channel least."""
    best, error = least, np.full(len(least), np.inf)
    for factor in _FACTORS:
        scale = least * factor
        unit = scale[:, None, None]
        missed = np.square(weight - unit * np.rint(weight / unit)).sum(axis=(1, 2), dtype=np.float64)
        best, error = np.where(missed < error, scale, best), np.minimum(missed, error)
    return best


def heaviest(values: Array) -> Array:
    """The largest sum, in magnitude, that weights of one sign have in a pair, (channels,)."""
    wide = values.astype(np.int16) if values.dtype == np.int8 else values
    sums = (np.maximum(sign * wide, 0).sum(axis=2).max(axis=1, initial=0) for sign in (1, -1))
    return np.asarray(np.maximum(*sums))


def _inputs_last(node: Node, weight: Array) -> Array:
    """(output channels, ..., input channels)"""
    if node.op == "Conv":
        return np.moveaxis(weight, 1, -1)
    return weight if node.attrs.get("transB", 0) else weight.T
