"""Inputs that are integers in disguise: pictures of 8 bits, scaled and shifted channel by channel.

x_c = step_c (n - zero_c) with n from 0 to 255 holds for nearly all that cameras and files give. One scale for all
channels rounds such numbers a second time; the integers n themselves lose nothing. QuantizeLinear gives them back, with
a scale for each channel; the convolution that reads them takes up the steps in its weights and the zeros in its bias.
What a convolution pads with is zero in x, not in n: padding comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxopt.core.context import Context
from onnxopt.core.pass_ import label
from onnxopt.graph import layer as layers
from onnxopt.graph.ir import Node, Scope, Variable
from onnxopt.graph.layer import Floats
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array
from onnxopt.numerics.ranges import Range
from onnxopt.quantization.eligible import Reasons, Sizes, Specs, column_bias, fault

_LEVELS = 256
# Samples that tell a grid; all others must lie on it.
_SAMPLES = 64
_BATCH = 4
# Of fewer levels none can tell what lies between them, and numbers of any kind may seem to be on a grid.
_FEWEST = 32
# Of a step: how far values may lie from their grid (rounding of floats), and how near to half a zero may lie before
# rounding it tells values apart that are equal.
_TOLERANCE = 0.02
_UNDECIDED = 0.025
_CHANNEL_STEP = 4


@dataclass(frozen=True)
class Grid:
    """``step`` and ``zero`` of each channel, (channels,): x = step (n - zero), n = 0 ... 255."""

    step: Floats
    zero: Floats


@dataclass(frozen=True)
class Aligned:
    """A tensor of integers, of ``range``. Where channels have grids of their own it was scaled and shifted, and
    ``source`` is the same before that, on ``grid``; None for a grid that all channels share."""

    grid: Grid
    source: str | None
    range: Range


@dataclass(frozen=True)
class _Lines:
    """Of each channel, (channels,): the step, the value of level 0, and the lowest and the highest level."""

    step: Floats
    origin: Floats
    low: Floats
    high: Floats

    def extended(self, values: Array) -> _Lines | None:
        """The same with more values; None where they are not on the lines."""
        others = tuple(k for k in range(values.ndim) if k != 1)
        column = (-1, *(1,) * (values.ndim - 2))
        at = (values - self.origin.reshape(column)) / self.step.reshape(column)
        if not at.size or not np.isfinite(at).all() or np.abs(at - np.rint(at)).max() > _TOLERANCE:
            return None
        low, high = (np.rint(f(at, axis=others)) for f in (np.min, np.max))
        return replace(self, low=np.minimum(self.low, low), high=np.maximum(self.high, high))


def grid_of(batches: Iterable[Array]) -> Grid | None:
    """The grid of all (batch, channels, ...) values; None where some channel has none of 256 levels."""
    stream = iter(batches)
    lines = _lines(stream)
    for value in stream:
        lines = lines and lines.extended(value)
        if lines is None:
            return None
    return None if lines is None else _grid(lines)


def align(model: Model, context: Context, sizes: Sizes, specs: Specs, left_out: Reasons) -> dict[str, Aligned]:
    """Let the convolutions that read such inputs read the integers, in place; what was made, by tensor.

    The model computes the same up to float rounding. ``sizes`` are observed shapes, ``specs`` inferred types, both by
    tensor; nodes in ``left_out``, and those that cannot run in integers, stay as they are.
    """
    scope, made = Scope(model.graph), dict[str, Aligned]()
    for x in list(model.graph.inputs):
        conv = x.outputs[0] if scope.used_once(x) else None
        if conv is None or not _can_take(conv, x) or label(conv) in left_out or fault(conv, sizes, specs, model.opset):
            continue
        grid = grid_of(feed[x.name] for feed in context.dataset.batches(_BATCH) if x.name in feed)
        if grid is not None and len(grid.step) == layers.layout(conv).inputs:
            made |= _align(model, conv, grid)
    return made


def restore(model: Model, name: str) -> None:
    """Let the convolution that reads an aligned tensor read the input as it is again, in place: it stays float."""
    x = model.variables()[name]
    (conv,) = x.outputs
    rank = len(conv.inputs[1].shape) - 2
    scale, shift, pads = np.ones(1), np.zeros(1), np.zeros(2 * rank + 4, np.int64)
    while x.inputs:
        node = x.inputs[0]
        x, values = node.inputs[0], node.inputs[1].values
        match node.op:
            case "Pad":
                pads = values
            case "Mul":
                scale = scale * values.reshape(-1)
            case "Add":
                shift = shift + scale * values.reshape(-1)
    weight = np.asarray(conv.inputs[1].values, np.float64)
    bias = conv.inputs[2].values + _sums(weight) @ shift
    weight = (weight * _column(scale, rank))[:, : weight.shape[1] - pads[rank + 3]]
    _feed(model, conv, x, weight, bias)
    conv.attrs = {**conv.attrs, "pads": [int(p) for p in (*pads[2 : rank + 2], *pads[rank + 4 :])]}


def _lines(stream: Iterator[Array]) -> _Lines | None:
    """What the first samples tell."""
    seen: list[Array] | None = None
    samples = 0
    for value in stream:
        parts = [np.unique(value[:, c]) for c in range(value.shape[1])]
        seen = parts if seen is None else [np.union1d(a, b) for a, b in zip(seen, parts, strict=True)]
        # Floats of one level may differ in their last bit: by far not as much as levels do.
        if any(len(s) > 4 * _LEVELS for s in seen):
            return None
        samples += len(value)
        if samples >= _SAMPLES:
            break
    found = [_line(s.astype(np.float64)) for s in seen or []]
    if not found or any(f is None for f in found):
        return None
    step, origin, count = np.array([f for f in found if f is not None]).T
    return _Lines(step, origin, np.zeros_like(count), count)


def _line(levels: Floats) -> tuple[float, float, float] | None:
    """Step, first value and number of steps of sorted values on a grid."""
    if len(levels) < _FEWEST or not np.isfinite(levels).all():
        return None
    gaps = np.diff(levels)
    gaps = gaps[gaps > (levels[-1] - levels[0]) * 1e-5]
    if len(gaps) < _FEWEST - 1:
        return None
    at = np.rint((levels - levels[0]) / gaps.min())
    if at[-1] >= _LEVELS:
        return None
    step, first = np.polyfit(at, levels, 1)
    if step <= 0 or np.abs(levels - (first + step * at)).max() > _TOLERANCE * step:
        return None
    return float(step), float(first), float(at[-1])


def _grid(lines: _Lines) -> Grid | None:
    step, span = lines.step, lines.high - lines.low
    lowest = lines.origin / step + lines.low
    # One grid for all channels where it has room: levels that no sample has are then the same everywhere.
    at, common = lines.origin / step.mean() + lines.low, float(step.mean())
    shared = np.ptp(step) < _TOLERANCE / _LEVELS * common and np.ptp(at - np.rint(at)) < _TOLERANCE
    if shared and (whole := round(float((at + span).max() - at.min()))) < _LEVELS:
        step, span, lowest = (np.full_like(step, v) for v in (common, whole, at.min()))
    if (span >= _LEVELS).any():
        return None
    # Levels that no sample has lie on both sides, but not below zero where zero is the lowest.
    zero = np.where(np.abs(lowest) < _TOLERANCE, 0, (_LEVELS - 1 - span) // 2) - lowest
    outside = (zero < -_UNDECIDED) | (zero > _LEVELS - 1 + _UNDECIDED)
    return None if outside.any() else Grid(step, zero)


def _can_take(conv: Node, x: Variable) -> bool:
    return bool(
        conv.op == "Conv"
        and conv.is_standard
        and conv.inputs[0] is x
        and not layers.fault(conv)
        and conv.attrs.get("group", 1) == 1
        and conv.attrs.get("auto_pad", "NOTSET") == "NOTSET"
    )


def _align(model: Model, conv: Node, grid: Grid) -> dict[str, Aligned]:
    x, rank = conv.inputs[0], len(conv.inputs[1].shape) - 2
    # Rounded, such a zero would make one level of two.
    half = np.abs(grid.zero - np.floor(grid.zero) - 0.5) < _UNDECIDED
    if np.ptp(grid.step) == np.ptp(grid.zero) == 0 and not half.any():
        step, zero = grid.step[0], np.rint(grid.zero[0])
        return {x.name: Aligned(grid, None, Range(-zero * step, (_LEVELS - 1 - zero) * step))}
    pads = list(conv.attrs.get("pads", [0] * 2 * rank))
    # The quick integer convolution takes input channels by fours.
    extra = -len(grid.step) % _CHANNEL_STEP
    extra = extra if extra <= len(grid.step) else 0
    ahead = np.where(half, grid.zero - np.floor(grid.zero), 0.0)
    step, zero, ahead = (
        np.append(a, np.full(extra, v)) for a, v in ((grid.step, grid.step.mean()), (grid.zero, 0.0), (ahead, 0.0))
    )
    grid, common = Grid(step, zero - ahead), float(step.mean())
    source: Variable = x
    if any(pads) or extra:
        source = _append(model, "Pad", x, np.array([0, 0, *pads[:rank], 0, extra, *pads[rank:]], np.int64))
    if half.any():
        source = _append(model, "Add", source, _column(step * ahead, rank).astype(np.float32))
    scaled = _append(model, "Mul", source, _column(common / step, rank).astype(np.float32))
    shifted = _append(model, "Add", scaled, _column(common * grid.zero, rank).astype(np.float32))
    bias = column_bias(conv)
    assert bias is not None
    weight = np.pad(conv.inputs[1].values.astype(np.float64), [(0, 0), (0, extra), *[(0, 0)] * rank])
    weight *= _column(step / common, rank)
    _feed(model, conv, shifted, weight, bias - _sums(weight) @ (common * zero))
    conv.attrs = {**conv.attrs, "pads": [0] * 2 * rank}
    model.tidy()
    return {shifted.name: Aligned(grid, source.name, Range(0.0, common * (_LEVELS - 1)))}


def _feed(model: Model, conv: Node, x: Variable, weight: Floats, bias: Floats) -> None:
    """Let a convolution read another tensor with other weights."""
    values = {"weight": weight, "bias": bias}
    made = [model.constant(f"{label(conv)}_{what}", value.astype(np.float32)) for what, value in values.items()]
    conv.inputs = [x, *made]


def _sums(weight: Floats) -> Floats:
    """Over the kernel, (outputs, inputs)."""
    return np.asarray(weight.reshape(*weight.shape[:2], -1).sum(axis=2))


def _column(values: Floats, rank: int) -> Floats:
    """Along the channels of (batch, channels, ``rank`` more)."""
    return values.reshape(-1, *(1,) * rank)


def _append(model: Model, op: str, source: Variable, operand: Array) -> Variable:
    made = Variable(model.fresh_name(f"{source.name}_{op}"), np.dtype(np.float32))
    constant = model.constant(f"{made.name}_operand", operand)
    model.graph.nodes.append(Node(op, model.fresh_name(made.name), [source, constant], [made]))
    return made
