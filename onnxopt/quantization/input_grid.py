"""Inputs that are integers in disguise: pictures of 8 bits, scaled and shifted channel by channel.

x_c = step_c (n - zero_c) with n from 0 to 255 holds for nearly all that cameras and files give. One scale for all
channels rounds such numbers a second time; the integers n themselves lose nothing. QuantizeLinear gives them back, with
a scale for each channel; the convolution that reads them takes up the steps in its weights and the zeros in its bias.
What a convolution pads with is zero in x, not in n: padding comes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.pass_ import label
from onnxopt.graph import layer as layers
from onnxopt.graph.ir import Node, Scope, Variable
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.ranges import Range
from onnxopt.quantization.eligible import column_bias

_LEVELS = 256
_SAMPLES = 64
# Of a step: how far values may lie from their grid (rounding of floats), and how near to half a zero may lie before
# rounding it tells values apart that are equal.
_TOLERANCE = 0.02
_UNDECIDED = 0.01
_CHANNEL_STEP = 4


@dataclass(frozen=True)
class Grid:
    """``step`` and ``zero`` of each channel, (channels,): x = step (n - zero), n = 0 ... 255."""

    step: Floats
    zero: Floats


@dataclass(frozen=True)
class Aligned:
    """A tensor of integers, of ``range``. Where channels have grids of their own it was scaled and shifted, and
    ``source`` is the same before that; None for a ``grid`` that all channels share."""

    grid: Grid
    source: str | None
    range: Range


def grid_of(samples: Iterable[Array]) -> Grid | None:
    """The grid of (batch, channels, ...) values; None where some channel has none of 256 levels."""
    seen: list[Array] | None = None
    for value in samples:
        parts = [np.unique(value[:, c]) for c in range(value.shape[1])]
        seen = parts if seen is None else [np.union1d(a, b) for a, b in zip(seen, parts, strict=True)]
        # Floats of one level may differ in their last bit: by far not as much as levels do.
        if any(len(s) > 4 * _LEVELS for s in seen):
            return None
    found = [_line(s.astype(np.float64)) for s in seen or []]
    if not found or any(f is None for f in found):
        return None
    step, first, count = np.array([f for f in found if f is not None]).T
    # One grid for all channels where it has room: levels that no sample has are then the same everywhere.
    at = first / step.mean()
    lowest, highest = float(at.min()), float((at + count).max())
    shared = np.ptp(step) < _TOLERANCE / _LEVELS * step.mean() and np.ptp(at - np.rint(at)) < _TOLERANCE
    if shared and highest - lowest < _LEVELS - 0.5:
        step = np.full_like(step, step.mean())
        zero = np.full_like(step, (_LEVELS - 1 - round(highest - lowest)) // 2 - lowest)
    else:
        zero = (_LEVELS - 1 - count) // 2 - first / step
    near_half = np.abs(zero - np.floor(zero) - 0.5) < _UNDECIDED
    outside = (zero < -_UNDECIDED) | (zero > _LEVELS - 1 + _UNDECIDED)
    return None if near_half.any() or outside.any() else Grid(step, zero)


def align(model: Model, context: Context) -> dict[str, Aligned]:
    """Let the convolutions that read such inputs read the integers, in place; what was made, by tensor.

    The model computes the same up to float rounding.
    """
    scope, made = Scope(model.graph), dict[str, Aligned]()
    for x in list(model.graph.inputs):
        conv = x.outputs[0] if scope.used_once(x) else None
        if conv is None or not _can_take(conv, x):
            continue
        feeds = context.dataset.batches(context.batch, stop=_SAMPLES)
        grid = grid_of(feed[x.name] for feed in feeds if x.name in feed)
        if grid is not None and len(grid.step) == layers.layout(conv).inputs:
            made |= _align(model, conv, grid)
    return made


def _line(levels: Floats) -> tuple[float, float, float] | None:
    """Step, first value and number of steps of sorted values on a grid."""
    gaps = np.diff(levels)
    gaps = gaps[gaps > (levels[-1] - levels[0]) * 1e-5]
    if len(gaps) < 2:
        return None
    at = np.rint((levels - levels[0]) / gaps.min())
    if at[-1] >= _LEVELS:
        return None
    step, first = np.polyfit(at, levels, 1)
    if step <= 0 or np.abs(levels - (first + step * at)).max() > _TOLERANCE * step:
        return None
    return float(step), float(first), float(at[-1])


def _can_take(conv: Node, x: Variable) -> bool:
    return bool(
        conv.op == "Conv"
        and conv.is_standard
        and conv.inputs[0] is x
        and not layers.fault(conv)
        and conv.inputs[1].dtype == np.float32
        and conv.attrs.get("group", 1) == 1
        and conv.attrs.get("auto_pad", "NOTSET") == "NOTSET"
        and column_bias(conv) is not None
    )


def _align(model: Model, conv: Node, grid: Grid) -> dict[str, Aligned]:
    x, rank = conv.inputs[0], len(conv.inputs[1].shape) - 2
    if np.ptp(grid.step) == np.ptp(grid.zero) == 0:
        step, zero = grid.step[0], np.rint(grid.zero[0])
        return {x.name: Aligned(grid, None, Range(-zero * step, (_LEVELS - 1 - zero) * step))}
    pads = list(conv.attrs.get("pads", [0] * 2 * rank))
    # The quick integer convolution takes input channels by fours.
    extra = -len(grid.step) % _CHANNEL_STEP
    extra = extra if extra <= len(grid.step) else 0
    grid = Grid(np.append(grid.step, np.full(extra, grid.step.mean())), np.append(grid.zero, np.zeros(extra)))
    common = float(grid.step.mean())
    source: Variable = x
    if any(pads) or extra:
        source = _append(model, "Pad", x, np.array([0, 0, *pads[:rank], 0, extra, *pads[rank:]], np.int64))
    column = (-1, *(1,) * rank)
    scaled = _append(model, "Mul", source, (common / grid.step).astype(np.float32).reshape(column))
    shifted = _append(model, "Add", scaled, (common * grid.zero).astype(np.float32).reshape(column))
    weight, bias = conv.inputs[1].values.astype(np.float64), column_bias(conv)
    assert bias is not None
    weight = np.pad(weight, [(0, 0), (0, extra), *[(0, 0)] * rank]) * (grid.step / common).reshape(column)
    sums = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
    bias = bias - sums @ (common * grid.zero)
    stem = label(conv)
    constants = [
        model.constant(f"{stem}_{what}", v.astype(np.float32)) for what, v in (("weight", weight), ("bias", bias))
    ]
    conv.inputs = [shifted, *constants]
    conv.attrs = {**conv.attrs, "pads": [0] * 2 * rank}
    model.tidy()
    return {shifted.name: Aligned(grid, source.name, Range(0.0, common * (_LEVELS - 1)))}


def _append(model: Model, op: str, source: Variable, operand: Array) -> Variable:
    made = Variable(model.fresh_name(f"{source.name}_{op}"), np.dtype(np.float32))
    constant = model.constant(f"{made.name}_operand", operand)
    model.graph.nodes.append(Node(op, model.fresh_name(made.name), [source, constant], [made]))
    return made
