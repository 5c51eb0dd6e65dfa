"""Why a product between QuantizeLinear and DequantizeLinear gets no integer kernel, and what would mend that.

The rules are those of ONNX Runtime 1.31's CPU provider, found by trying every combination. Before it looks for kernels,
it makes a signed tensor unsigned where one QuantizeLinear writes it and one node reads it through a DequantizeLinear;
ARM builds do not. After that, Conv, Gemm and MatMul want their factors, and their result if it is quantized, in 8-bit
types that match.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np

from onnxopt.graph.ir import Node, Scope, Tensor, is_constant

Rules: TypeAlias = Literal["native", "arm"]

QUANTIZE = ("QuantizeLinear", "DynamicQuantizeLinear")
DEQUANTIZE = "DequantizeLinear"
_MATCHED = ("Conv", "Gemm", "MatMul")
_CLAMPS = ("Relu", "Clip")
# A QuantizeLinear or DequantizeLinear with one scale is moved through these to the product.
_MOVES = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")
_U8, _S8, _S32 = (np.dtype(t) for t in (np.uint8, np.int8, np.int32))
_BIAS_SCALE = "give the bias the scale input x weight"
_INT32_BIAS = "give it as int32 on the scale input x weight"
_RECURRENT = "quantize its weights dynamically (DynamicQuantizeLSTM)"
_MENDS: Mapping[str, str] = MappingProxyType({"LSTM": _RECURRENT, "MatMulNBits": "give its weights 8 bits"})


@dataclass(frozen=True)
class Obstacle:
    """What stands in the way of an integer kernel, and what would remove it (empty: nothing would)."""

    why: str
    mend: str = ""


def obstacle(node: Node, scope: Scope, rules: Rules) -> Obstacle | None:
    """The first rule that a product breaks; None where ONNX Runtime makes an integer kernel of it."""
    if node.op not in _MATCHED or not node.is_standard:
        return Obstacle(f"there is no integer kernel for {node.op} with static scales", _MENDS.get(node.op, ""))
    reasons = (*_factors(node, scope), *_bias(node, scope), *_types(node, scope, rules), *_reader(node, scope))
    return next(iter(reasons), None)


def flaw(node: Node, scope: Scope) -> Obstacle | None:
    """Why the integer kernel of a product gives other numbers than the file says, or none; None where all is well.

    ONNX Runtime takes many scales to be those of the output channels, and the bias of a Gemm to be on the scale of
    input times weight, without looking; and it quantizes float weights between quantized tensors itself.
    """
    if node.op not in _MATCHED or not node.is_standard:
        return None
    x, weight = (dequantizer(t, scope) for t in node.inputs[:2])
    if weight is None and is_constant(node.inputs[1]):
        return Obstacle(
            "its weight is float in the file, but is quantized when the model is loaded",
            "quantize its weight, or let it write floats",
        )
    if x is None or weight is None:
        return None
    if (
        weight is scope.producer(node.inputs[1])
        and _scales(weight) > 1
        and (weight.attrs.get("block_size") or _axis(weight) != _channel_axis(node))
    ):
        return Obstacle(
            "WRONG: its weight scales are not those of the output channels, but are taken for these",
            "give its weight one scale for each output channel",
        )
    bias = dequantizer(node.inputs[2], scope) if len(node.inputs) > 2 else None
    if node.op == "Gemm" and bias is not None and not _on_product_scale(x, weight, bias):
        return Obstacle(
            "WRONG: its bias is not on the scale of input times weight, but is taken to be",
            _BIAS_SCALE,
        )
    return None


def _factors(node: Node, scope: Scope) -> Iterator[Obstacle]:
    """Both factors must come from a DequantizeLinear, of 8 bits, to float32."""
    factors = [(t, dequantizer(t, scope), _part(i, t)) for i, t in enumerate(node.inputs[:2])]
    floats = [(t, part) for t, made_by, part in factors if made_by is None]
    if floats:
        (tensor, part), *more = floats
        outside = tensor.inputs and tensor.inputs[0].op == DEQUANTIZE
        if outside:
            mend = "put that DequantizeLinear into the body"
            yield Obstacle(f"its {part} '{tensor.name}' is dequantized outside of the body", mend)
        too = "".join(f", and its {part} '{t.name}' too" for t, part in more)
        mend = " and ".join(f"its {part}" for _, part in floats)
        yield Obstacle(f"its {part} '{tensor.name}' is float{too}", f"quantize {mend}")
    for _, made_by, part in factors:
        if made_by is None:
            continue
        if (real := _of(made_by.inputs[1])) is not None and real != np.float32:
            yield Obstacle(f"its {part} is {real}, and integer kernels give float32", "give scales in float32")
        if node.op == "Gemm" and len(made_by.inputs) < 3:
            yield Obstacle(f"its {part} has no zero point", "write its zero point down, also if it is 0")
        if (stored := _dtype(made_by)) is not None and stored not in (_U8, _S8):
            yield Obstacle(f"its {part} is {stored}, and integer kernels take 8 bits", f"quantize its {part} to 8 bits")


def _part(i: int, tensor: Tensor) -> str:
    """What to call the first or second input of a product."""
    while tensor.inputs and (tensor.inputs[0].op in _MOVES or tensor.inputs[0].op == DEQUANTIZE):
        tensor = tensor.inputs[0].inputs[0]
    return "input" if i == 0 else "weight" if is_constant(tensor) else "second input"


def _bias(node: Node, scope: Scope) -> Iterator[Obstacle]:
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return
    if node.attrs.get("beta", 1.0) != 1.0:
        yield Obstacle(f"its beta is {node.attrs['beta']:g}, not 1", "multiply the bias by beta")
    x, weight, bias = (dequantizer(t, scope) for t in node.inputs[:3])
    if bias is None:
        if weight is None or not _bias_is_quantized(node, weight, scope):
            yield Obstacle(f"its bias '{node.inputs[2].name}' is float", _INT32_BIAS)
        return
    if (stored := _dtype(bias)) is not None and stored != _S32:
        yield Obstacle(f"its bias is {stored}, not int32", _INT32_BIAS)
    if node.op == "Conv" and x is not None and weight is not None and not _on_product_scale(x, weight, bias):
        yield Obstacle(
            "the scale of its bias is not that of input times weight", "give the bias the scale input x weight"
        )


def _bias_is_quantized(node: Node, weight: Node, scope: Scope) -> bool:
    """Does ONNX Runtime quantize a float bias when it loads the model? It does so where the output is quantized."""
    bias = node.inputs[2]
    channels = _scales(weight) == 1 or (_axis(weight) == _channel_axis(node) and len(weight.inputs) > 2)
    return is_constant(bias) and len(bias.shape) == 1 and channels and quantizer(node, scope) is not None


def _types(node: Node, scope: Scope, rules: Rules) -> Iterator[Obstacle]:
    """Signed or unsigned, after what is made unsigned at load time."""
    x, weight = (dequantizer(t, scope) for t in node.inputs[:2])
    if x is None or weight is None:
        return
    into, by = type_read(x, scope, rules), type_read(weight, scope, rules)
    unsigned = "quantize activations unsigned (uint8)" if rules == "native" else "quantize all activations in one type"
    if into == _S8 and rules == "native" and node.op != "Gemm":
        yield Obstacle("its input is signed, and stays so, since it is not one node alone that reads it", unsigned)
    if into == _S8 and by == _U8:
        yield Obstacle("its input is signed, but its weight is not", "quantize its weight signed (int8)")
    behind = quantizer(node, scope)
    if behind is not None and into in (_U8, _S8) and (out := _type_written(behind, scope, rules)) not in (None, into):
        yield Obstacle(f"its input is computed in {into}, its output in {out}", unsigned)


def _reader(node: Node, scope: Scope) -> Iterator[Obstacle]:
    """What may stand behind: one QuantizeLinear, or, for Gemm and MatMul, whatever reads floats."""
    out = node.outputs[0]
    readers = list(out.outputs)
    if any(r.op == "QuantizeLinear" for r in readers) and not scope.used_once(out):
        yield Obstacle(
            "its output is read by others beside the QuantizeLinear", "let them read behind that QuantizeLinear"
        )
        return
    behind = only_reader(node, scope)
    if behind is not None and behind.op in _CLAMPS and only_reader(behind, scope) and not _absorbed(behind, scope):
        yield Obstacle(
            f"the {behind.op} behind it does more than the quantizer behind that",
            f"let the range that the quantizer behind the {behind.op} covers end where the {behind.op} ends",
        )
    elif node.op == "Conv" and quantizer(node, scope) is None:
        yield Obstacle(
            "its output is read as float, and its integer kernel gives integers only", "put a QuantizeLinear behind it"
        )
    elif node.op == "Gemm" and behind is not None and behind.op == "Transpose" and len(node.inputs) < 3:
        yield Obstacle(
            "the Transpose behind it is fused with it before integer kernels are looked for",
            "put a QuantizeLinear between them",
        )
    elif node.op == "MatMul" and behind is not None and behind.op == "Add" and _is_bias(node, behind, scope):
        yield Obstacle(
            "the Add behind it is fused with it before integer kernels are looked for",
            "give what is added as int32 on the scale input x weight",
        )


def only_reader(node: Node, scope: Scope) -> Node | None:
    """The node of this graph that alone reads what the node makes."""
    made = next((t for t in node.outputs if not t.is_empty()), None)
    return made.outputs[0] if made is not None and scope.used_once(made) else None


def quantizer(node: Node, scope: Scope) -> Node | None:
    """The QuantizeLinear behind a product, or behind the clamp that it takes over."""
    reader = only_reader(node, scope)
    while reader is not None and (reader.op in _MOVES or (reader.op in _CLAMPS and _absorbed(reader, scope))):
        reader = only_reader(reader, scope)
    return reader if reader is not None and reader.op == "QuantizeLinear" else None


def _absorbed(clamp: Node, scope: Scope) -> bool:
    """Does the quantizer behind a Relu or Clip cover no more than what that lets through?"""
    behind = only_reader(clamp, scope)
    if behind is None or behind.op != "QuantizeLinear" or not all(is_constant(t) for t in behind.inputs[1:]):
        return False
    scale = np.asarray(behind.inputs[1].values, np.float64)
    stored: np.iinfo[Any] = np.iinfo(_written(behind) or _U8)
    zero = float(np.asarray(behind.inputs[2].values).flat[0]) if len(behind.inputs) > 2 else 0.0
    if scale.size != 1:
        return False
    low, high = (float((end - zero) * scale.flat[0]) for end in (stored.min, stored.max))
    least, most = (0.0, np.inf) if clamp.op == "Relu" else _bounds(clamp)
    return least <= low and high <= most


def _bounds(clip: Node) -> tuple[float, float]:
    """What a Clip lets through; nothing at all where it is computed."""
    found = [float(clip.attrs.get("min", -np.inf)), float(clip.attrs.get("max", np.inf))]
    for i, tensor in enumerate(clip.inputs[1:3]):
        if not tensor.is_empty():
            found[i] = float(np.asarray(tensor.values).flat[0]) if is_constant(tensor) else np.nan
    return found[0], found[1]


def _is_bias(node: Node, add: Node, scope: Scope) -> bool:
    """Is one float number for each column added, so that both are a Gemm?"""
    other = next((t for t in add.inputs if t is not node.outputs[0]), None)
    if other is None or ((made_by := dequantizer(other, scope)) is not None and _dtype(made_by) == _S32):
        return False
    product, added = (scope.spec(t).shape for t in (node.outputs[0], other))
    if not product or not added or (len(added) > 1 and len(product) > 2) or len(added) > 2:
        return False
    return added[-1] == product[-1]


def dequantizer(tensor: Tensor, scope: Scope) -> Node | None:
    """The DequantizeLinear of this graph that makes a tensor, if one does."""
    made_by = scope.producer(tensor)
    while made_by is not None and made_by.op in _MOVES:
        made_by = scope.producer(made_by.inputs[0])
    return made_by if made_by is not None and made_by.op == DEQUANTIZE else None


def type_read(dequantize: Node, scope: Scope, rules: Rules) -> np.dtype[Any] | None:
    """The type that a kernel reads."""
    written = scope.producer(dequantize.inputs[0])
    if written is not None and written.op == "QuantizeLinear":
        return _type_written(written, scope, rules)
    return _dtype(dequantize)


def _type_written(quantize: Node, scope: Scope, rules: Rules) -> np.dtype[Any] | None:
    """The type that a QuantizeLinear ends up with."""
    dtype = _written(quantize)
    reader = only_reader(quantize, scope)
    if rules == "arm" or dtype != _S8 or reader is None or reader.op != DEQUANTIZE:
        return dtype
    real = reader.outputs[0]  # each that reads it first gets a DequantizeLinear of its own
    return _U8 if len(real.outputs) + scope.is_output(real) <= 1 else _S8


def _written(quantize: Node) -> np.dtype[Any] | None:
    if len(quantize.inputs) > 2 and not quantize.inputs[2].is_empty():
        return _of(quantize.inputs[2])
    return _of(quantize.outputs[0]) or _U8


def _dtype(dequantize: Node) -> np.dtype[Any] | None:
    """The type that a DequantizeLinear reads: its zero point tells where nothing else does."""
    return _of(dequantize.inputs[0]) or (_of(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None)


def _of(tensor: Tensor) -> np.dtype[Any] | None:
    return None if tensor.dtype is None else np.dtype(tensor.dtype)


def _scales(dequantize: Node) -> int:
    return int(np.prod(dequantize.inputs[1].shape or (), dtype=np.int64))


def _axis(dequantize: Node) -> int:
    axis, rank = int(dequantize.attrs.get("axis", 1)), len(dequantize.inputs[0].shape or ())
    return axis % rank if rank else axis


def _channel_axis(node: Node) -> int:
    """The axis of the weight that makes output channels."""
    if node.op == "Conv":
        return 0
    return 0 if node.attrs.get("transB") else len(node.inputs[1].inputs[0].inputs[0].shape or (0, 0)) - 1


def _on_product_scale(x: Node, weight: Node, bias: Node) -> bool:
    scales = [n.inputs[1] for n in (x, weight, bias)]
    if not all(map(is_constant, scales)):
        return False
    a, b, c = (np.asarray(s.values, np.float64) for s in scales)
    return bool(np.allclose(a * b, c, rtol=1e-5, atol=0))
