"""Resize and Pad that name all axes, instead of some in ``axes``; exact.

When ONNX Runtime changes the layout around integer convolutions it turns the axes of what lies between them, but not
those that are listed in ``axes``: the model would no longer load, or fail when it is run.
"""

from __future__ import annotations

from math import floor

import numpy as np

from onnxopt.graph.ir import Node, Tensor, is_constant
from onnxopt.graph.model import Model
from onnxopt.quantization.eligible import Sizes, Specs

_ROI, _SCALES, _RESIZED = 1, 2, 3
_PADS, _AXES = 1, 3


def name_all_axes(model: Model, sizes: Sizes, specs: Specs) -> None:
    """Rewrite what can be; ``sizes`` are observed shapes, ``specs`` inferred types, both by tensor."""
    for node in model.graph.nodes:
        if not node.is_standard or node.inputs[0].name not in sizes:
            continue
        rank = len(sizes[node.inputs[0].name])
        if node.op == "Resize" and "axes" in node.attrs:
            _resize(model, node, rank, specs)
        if node.op == "Pad" and len(node.inputs) > _AXES and not node.inputs[_AXES].is_empty():
            _pad(model, node, rank)


def _resize(model: Model, node: Node, rank: int, specs: Specs) -> None:
    if _given(node, _ROI) is not None or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return
    axes = [a % rank for a in node.attrs["axes"]]
    scales, resized = _given(node, _SCALES), _given(node, _RESIZED)
    found: list[float] | None = None
    if scales is not None and is_constant(scales):
        found = [float(s) for s in scales.values]
    elif resized is not None and is_constant(resized) and node.inputs[0].name in specs:
        shape = specs[node.inputs[0].name].shape or ()
        before = [shape[a] for a in axes if a < len(shape)]
        found = [_scale(int(a), b) for a, b in zip(resized.values, before, strict=False) if isinstance(b, int)]
    if found is None or len(found) != len(axes):
        return
    every = np.ones(rank, np.float32)
    every[axes] = found
    empty = node.inputs[_ROI]
    node.inputs = [node.inputs[0], empty, model.constant(f"{node.outputs[0].name}_scales", every)]
    del node.attrs["axes"]


def _scale(after: int, before: int) -> float:
    """The least float32 near the ratio with which the runtime comes to the size, which it rounds down."""
    scale = np.float32(after / before)
    while floor(np.float32(before) * scale) < after:
        scale = np.nextafter(scale, np.float32(np.inf))
    return float(scale)


def _pad(model: Model, node: Node, rank: int) -> None:
    pads, axes = node.inputs[_PADS], node.inputs[_AXES]
    if not (is_constant(pads) and is_constant(axes)):
        return
    every = np.zeros((2, rank), np.int64)
    every[:, axes.values % rank] = pads.values.reshape(2, -1)
    node.inputs = [node.inputs[0], model.constant(f"{node.outputs[0].name}_pads", every.reshape(-1)), *node.inputs[2:3]]


def _given(node: Node, i: int) -> Tensor | None:
    return node.inputs[i] if i < len(node.inputs) and not node.inputs[i].is_empty() else None
