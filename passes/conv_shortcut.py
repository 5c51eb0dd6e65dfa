"""A shortcut without parameters, every s-th pixel and channels of zeros around, as one convolution.

    Pad(Slice(x)) = W x    with W a 1x1 convolution of strides s, ones from each channel to its new place, else zeros

Exact for finite numbers: each output is one input times 1, plus zeros. Residual networks halve their size so (He et
al., 2016, option A). ONNX Runtime keeps channels in blocks from one convolution to the next, through Add and Relu as
well; a Slice or Pad between takes the blocks apart for all that follows, which costs more than the products with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxopt.core.pass_ import Skip, label
from onnxopt.core.rewrite import RewritePass
from onnxopt.graph.ir import Node, Scope, Tensor, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.parameters import is_given, pads, slices

# ONNX Runtime's blocked kernels want a multiple of this many channels.
_BLOCK = 4
# Beyond so many bytes of weights the products with zeros cost more than taking blocks apart.
_LARGEST = 2**20
# Ends of slices from here on mean "to the end": exporters write the largest int32 or int64.
_TO_THE_END = 2**31 - 1
# What keeps channels in blocks, apart from convolutions.
_KEEPS_BLOCKS = ("Add", "Relu", "BatchNormalization")


@dataclass(frozen=True)
class Match:
    """``pad`` reads ``slice_``: channels (``before``, those of x, ``behind``), and every ``strides``-th pixel."""

    slice_: Node
    pad: Node
    strides: tuple[int, int]
    channels: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ConvShortcut(RewritePass[Match]):
    """A shortcut that takes every second pixel and adds channels of zeros becomes a 1x1 Conv; exact."""

    name: ClassVar[str] = "conv-shortcut"
    exact: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("inline-functions", "freeze-defaults", "fold-constants", "clean", "fold-bn")

    def match(self, node: Node, scope: Scope) -> Match | Skip | None:
        slice_ = scope.producer(node.inputs[0]) if node.op == "Pad" and node.is_standard else None
        if slice_ is None or slice_.op != "Slice" or not slice_.is_standard or not is_given(slice_, 4, "steps"):
            return None
        spec = scope.spec(slice_.inputs[0])
        if spec.shape is None or len(spec.shape) != 4:
            return None
        strides = _strides(slice_, spec.shape)
        if isinstance(strides, str):
            return Skip(label(node), f"Slice '{label(slice_)}' {strides}")
        if strides == (1, 1):
            return None
        amounts = _channels_added(node)
        if isinstance(amounts, str):
            return Skip(label(node), amounts)
        channels = spec.shape[1]
        if spec.dtype != np.float32 or not isinstance(channels, int):
            return Skip(label(node), "its input is not known to be float32 with a fixed number of channels")
        before, behind = amounts
        total = before + channels + behind
        if channels % _BLOCK or total % _BLOCK:
            return Skip(label(node), f"{channels} or {total} channels are no multiple of {_BLOCK}")
        if 4 * channels * total > _LARGEST:
            return Skip(label(node), f"a convolution would need {4 * channels * total} bytes of weights")
        if not scope.used_once(slice_.outputs[0]):
            return Skip(label(node), f"the output of Slice '{label(slice_)}' is used elsewhere too")
        if not _between_convolutions(slice_.inputs[0], node.outputs[0], scope):
            return Skip(label(node), "no convolutions around it keep channels in blocks")
        return Match(slice_, node, strides, (before, channels, behind))

    def rewrite(self, match: Match, model: Model) -> None:
        before, channels, behind = match.channels
        weight = np.eye(before + channels + behind, channels, -before, np.float32)[:, :, None, None]
        conv, stem = match.pad, label(match.pad)
        conv.op, conv.name = "Conv", model.fresh_name(f"{stem}.conv")
        conv.inputs = [match.slice_.inputs[0], model.constant(f"{stem}.weight", weight)]
        conv.attrs = {"kernel_shape": [1, 1], "strides": list(match.strides)}


def _strides(node: Node, shape: tuple[int | str | None, ...]) -> tuple[int, int] | str:
    """The steps along height and width, or why it is no such shortcut."""
    taken = slices(node, 4)
    if taken is None or None in taken.values():
        return "computes what it takes"
    for axis, part in taken.items():
        size = shape[axis]
        end = size if isinstance(size, int) else _TO_THE_END
        if part is None or part.start != 0 or part.stop < end or part.step < 1 or (axis < 2 and part.step != 1):
            return "takes something else than every so many pixels of the whole"
    return _step(taken, 2), _step(taken, 3)


def _step(taken: Mapping[int, slice | None], axis: int) -> int:
    part = taken.get(axis)
    return 1 if part is None else int(part.step)


def _channels_added(pad: Node) -> tuple[int, int] | str:
    """How many channels of zeros come before and behind, or why it is no such shortcut."""
    mode = pad.attrs.get("mode", "constant")
    if mode != "constant":
        return f"it pads with mode {mode}"
    amounts = pads(pad, 4)
    if amounts is None:
        return "it computes how much it pads"
    if any(min(both) < 0 or (axis != 1 and any(both)) for axis, both in amounts.items()):
        return "it does more than to add channels"
    if is_given(pad, 2, "value"):
        value = pad.inputs[2] if len(pad.inputs) > 2 else None
        if value is not None and not is_constant(value):
            return "it computes what it pads with"
        if np.any(pad.attrs["value"] if value is None else value.values):
            return "it pads with something else than zeros"
    return amounts.get(1, (0, 0))


def _between_convolutions(x: Tensor, y: Tensor, scope: Scope) -> bool:
    """Does x come in blocks, and does what reads y work on blocks?"""
    if not _in_blocks(x, scope):
        return False
    for reader in (n for n in y.outputs if scope.holds(n) and n.is_standard):
        others = [t for t in reader.inputs if t is not y]
        if reader.op == "Conv" or (reader.op == "Add" and any(_in_blocks(t, scope) for t in others)):
            return True
    return False


def _in_blocks(tensor: Tensor, scope: Scope) -> bool:
    """Does a convolution make the tensor, or additions, rectifiers and normalisations of what one makes?"""
    seen: set[int] = set()
    waiting = [tensor]
    while waiting:
        maker = scope.producer(waiting.pop())
        if maker is None or id(maker) in seen or not maker.is_standard:
            continue
        seen.add(id(maker))
        if maker.op == "Conv":
            return True
        if maker.op in _KEEPS_BLOCKS:
            waiting += maker.inputs
    return False
