"""Nodes with weights, y = W x + b, whichever operator spells them: Conv, ConvTranspose, Gemm, MatMul."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.graph.decoding import already
from onnxopt.graph.ir import Constant, Node, Tensor, is_constant
from onnxopt.graph.signature import Array

Floats: TypeAlias = npt.NDArray[np.float64]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layout:
    """A weight seen as (group, out, in, rest) or (group, in, out, rest); ``out`` and ``into`` are the two axes."""

    shape: tuple[int, int, int, int]
    out: int
    into: int

    @property
    def outputs(self) -> int:
        """Output channels, M."""
        return self.shape[0] * self.shape[self.out]

    @property
    def inputs(self) -> int:
        """Input channels, C."""
        return self.shape[0] * self.shape[self.into]

    def scale(self, weight: Array, factor: Floats, axis: int) -> Array:
        """The weight times one factor per channel of ``axis``, rounded once; a single new array is made."""
        shape = [self.shape[0], 1, 1, 1]
        shape[axis] = self.shape[axis]
        result = np.empty(self.shape, weight.dtype)
        # In float64, but only inside the small buffers in which numpy converts.
        np.multiply(weight.reshape(self.shape), factor.reshape(shape), result, dtype=np.float64, casting="same_kind")
        return result.reshape(weight.shape)

    def respond(self, weight: Array, level: Floats) -> Floats:
        """What constant inputs give: for ``level`` (C,), the sums over inputs and kernel of W * level, (M,) float64."""
        letters = "goik,gi->go" if self.out == 1 else "giok,gi->go"
        parts = np.einsum(letters, weight.reshape(self.shape), level.reshape(self.shape[0], -1), dtype=np.float64)
        return np.asarray(parts.reshape(-1))


def layout(layer: Node) -> Layout:
    """Conv has (M, C/g, ...), ConvTranspose (C, M/g, ...), MatMul and Gemm (K, N), with transB (N, K)."""
    stored = stored_weight(layer)
    shape = tuple(layer.inputs[1].shape if stored is None else stored.shape)
    if layer.op in ("Gemm", "MatMul"):
        transposed = layer.op == "Gemm" and layer.attrs.get("transB", 0)
        return Layout((1, *shape, 1), 1, 2) if transposed else Layout((1, *shape, 1), 2, 1)
    groups = layer.attrs.get("group", 1)
    view = (groups, shape[0] // groups, shape[1], int(np.prod(shape[2:])))
    return Layout(view, 1, 2) if layer.op == "Conv" else Layout(view, 2, 1)


def stored_weight(layer: Node) -> Constant | None:
    """The constant that holds the weight: the layer's own input, or what a DequantizeLinear makes it of; if any."""
    tensor: Tensor = layer.inputs[1]
    if is_constant(tensor):
        return tensor
    source = tensor.inputs[0] if tensor.inputs else None
    if source is None or source.op != "DequantizeLinear" or not source.is_standard:
        return None
    integers: Tensor = source.inputs[0]
    return integers if all(is_constant(t) or t.is_empty() for t in source.inputs) else None


def weight(layer: Node) -> Array:
    """The weight as the layer reads it, of a floating type. Raises ValueError where it is computed."""
    stored = stored_weight(layer)
    if stored is None:
        raise ValueError(f"'{layer.name}' has weights that are not constant")
    if stored is layer.inputs[1]:
        return np.asarray(stored.values)
    return dequantized(layer.inputs[1].inputs[0])


def dequantized(source: Node) -> Array:
    """What a DequantizeLinear of constants makes."""
    stored = source.inputs[0]
    axis, block = (int(source.attrs.get(name, default)) for name, default in (("axis", 1), ("block_size", 0)))
    scale, *zero = (_along(t.values, stored.shape, axis, block) for t in source.inputs[1:] if not t.is_empty())
    return np.asarray((stored.values.astype(scale.dtype) - (zero[0].astype(scale.dtype) if zero else 0)) * scale)


def _along(parameter: Array, shape: Sequence[int], axis: int, block: int) -> Array:
    """A scale or zero point, so that it broadcasts: one for all, for each index of the axis, or for blocks of them."""
    if block:
        return parameter.take(np.arange(shape[axis]) // block, axis)
    return parameter.reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])


def bias(layer: Node) -> Floats:
    """The bias as it is added, float64: (M,), or whatever broadcasts over a Gemm's output."""
    if len(layer.inputs) < 3 or layer.inputs[2].is_empty():
        return np.zeros(layout(layer).outputs)
    return np.asarray(layer.inputs[2].values * np.float64(layer.attrs.get("beta", 1.0)))


def fault(layer: Node) -> str:
    """Why the weights of a layer cannot be replaced, to be read after its name; empty if they can."""
    if len(layer.inputs) < 2 or not is_constant(layer.inputs[1]):
        if len(layer.inputs) > 1 and stored_weight(layer) is not None:
            return "is quantized, which has to come after"
        return f"has weights {(len(layer.inputs) > 1 and already(layer.inputs[1])) or 'that are not constant'}"
    weight = layer.inputs[1]
    if weight.dtype not in (np.float16, np.float32, np.float64):
        return f"has weights of type {weight.dtype}"
    if len(weight.outputs) != 1:
        return "shares its weights with another node"
    if layer.op in ("Gemm", "MatMul") and len(weight.shape) != 2:
        return "has weights that are not a matrix"
    if len(layer.inputs) > 2 and not layer.inputs[2].is_empty() and not is_constant(layer.inputs[2]):
        return "has a bias that is not constant"
    return ""
