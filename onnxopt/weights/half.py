"""Which nodes can compute in float16: what ONNX allows, and what the numbers allow.

float16 ends at 65504; below 6e-5 it gets coarser, and below 3e-8 it is 0. Its rounding alone is 70 dB below the signal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxopt.core.context import Context
from onnxopt.core.stream import modest_batch
from onnxopt.graph import shapes
from onnxopt.graph.ir import Constant, Node, Tensor, is_constant
from onnxopt.graph.model import Model
from onnxopt.graph.signature import Array

LARGEST = float(np.finfo(np.float16).max)
FLOAT, HALF = np.dtype(np.float32), np.dtype(np.float16)
# Data that calibration has not seen may be twice as large.
_ROOM = 2.0
# Of the energy; what rounding alone loses is a hundredth of it.
_LOST = 1e-5
# A constant of so few numbers is a bound, a mask or a small addend, each number of which counts.
_FEW = 16
_NAME = "tensor(float16)"
# Bounds and fillings, which may as well be the largest number there is.
_BOUNDS = {"Clip": (1, 2), "Min": (0, 1), "Max": (0, 1), "Where": (1, 2), "Pad": (2,)}
# Inputs that ONNX would allow and that place samples, too coarse in float16.
_EXACT = {"Resize": (1, 2), "GridSample": (1,), "RoiAlign": (1,)}
_CRASH = "ONNX Runtime crashes when it loads a float16 Transpose of the first axis to one of the last before a MatMul"
_FAILS = "ONNX Runtime fails when it runs it in float16"
# By operator, and whether it reduces what it writes twice.
_UNABLE = {
    ("BitCast", False): "it reads the bits of its numbers",
    ("MeanVarianceNormalization", False): _FAILS,
    ("ScatterElements", True): _FAILS,
    ("ScatterND", True): _FAILS,
}
_SEQUENCES = ("Sequence", "SplitToSequence", "ConcatFromSequence", "Optional")
INTEGERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger")


@dataclass(frozen=True)
class Slots:
    """Which inputs and outputs of a node are float32 and become float16; why none do, if ONNX or the numbers forbid."""

    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    why: str = ""


@dataclass
class Numbers:
    """Of a tensor over the data: the largest magnitude, the energy, how much of it rounding to float16 loses (both only
    until it overflows), and whether all of it is finite."""

    largest: float = 0.0
    energy: float = 0.0
    lost: float = 0.0
    finite: bool = True

    def add(self, values: Array) -> None:
        x = np.asarray(values, np.float32).reshape(-1)
        known = np.isfinite(x)
        if not known.all():
            self.finite, x = False, x[known]
        if x.size:
            self.largest = max(self.largest, float(np.abs(x).max()))
        if x.size and self.largest <= LARGEST:
            self.energy += float(np.vdot(x, x))
            self.lost += float(np.square(x - x.astype(np.float16)).sum())

    def fault(self) -> str:
        """Why float16 does not hold the tensor, to be read after its name; empty if it does."""
        if self.largest * _ROOM > LARGEST:
            return f"reaches {self.largest:.4g}, and float16 ends at {LARGEST:.0f}"
        if self.lost > _LOST * self.energy:
            return f"is so small that float16 loses {self.lost / self.energy:.1%} of it (it reaches {self.largest:.2g})"
        return ""


def types(model: Model, context: Context) -> dict[str, np.dtype[Any]]:
    """The type of every tensor that is known: inferred, or seen in a run."""
    known = {name: np.dtype(spec.dtype) for name, spec in shapes.specs(model).items()}
    known |= {c.name: np.dtype(c.dtype) for c in model.constants()}
    names = [t.name for n in model.graph.nodes for t in n.outputs if t.name and t.name not in known]
    if names:
        values = next(context.activations(model, names, samples=1, batch=1))
        known |= {name: value.dtype for name, value in values.items() if isinstance(value, np.ndarray)}
    return known


def survey(model: Model, names: Sequence[str], context: Context, samples: int) -> dict[str, Numbers]:
    """The numbers of these tensors, over at most so many samples."""
    found = {name: Numbers() for name in names}
    batch = modest_batch(context, context.shapes(model))
    for values in context.activations(model, names, samples=samples, batch=batch):
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                found[name].add(value)
    return found


def slots(node: Node, opset: int, known: Mapping[str, np.dtype[Any]]) -> Slots:
    """What of a node can be float16 by ONNX's rules."""
    if not any(known.get(t.name) == FLOAT for t in (*node.inputs, *node.outputs) if not t.is_empty()):
        return Slots()
    if any(True for _ in node.bodies()):
        return Slots(why="what its bodies compute stays float32")
    if not node.is_standard:
        return Slots(why=f"nothing is known of {node.kind}")
    if node.op == "Cast":
        return _cast(node, known)
    if node.op == "Transpose" and _crashes(node):
        return Slots(why=_CRASH)
    if why := _UNABLE.get((node.op, node.attrs.get("reduction", "none") != "none"), ""):
        return Slots(why=why)
    if node.op.startswith(_SEQUENCES):
        return Slots(why="it handles sequences")
    if "dtype" in node.attrs or node.op == "EyeLike":
        return Slots(why="its type is an attribute")
    try:
        schema = onnx.defs.get_schema(node.op, opset, "")
    except onnx.defs.SchemaError:
        return Slots(why=f"nothing is known of {node.op} in operator set {opset}")
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    inputs = list(_free(node.inputs, schema.inputs, known, allowed))
    bound = {kind for _, kind in inputs}
    outputs = [(i, kind) for i, kind in _free(node.outputs, schema.outputs, known, allowed) if kind in bound]
    if any(_NAME not in allowed[kind] for kind in bound):
        return Slots(why=f"ONNX has no float16 {node.op} in operator set {opset}")
    exact = _EXACT.get(node.op, ())
    free = [(i, kind) for i, kind in inputs if i not in exact]
    if {kind for _, kind in free} & {kind for i, kind in inputs if i in exact}:
        return Slots(why="it reads places where to sample, which float16 is too coarse for")
    return Slots(tuple(i for i, _ in free), tuple(i for i, _ in outputs))


def _free(
    tensors: Sequence[Tensor], formal: Sequence[Any], known: Mapping[str, np.dtype[Any]], allowed: Mapping[str, Any]
) -> Iterator[tuple[int, str]]:
    """The float32 tensors whose type is not fixed, each with the name that the operator has for its type."""
    for i, tensor in enumerate(tensors):
        kind = formal[min(i, len(formal) - 1)].type_str
        if not tensor.is_empty() and known.get(tensor.name) == FLOAT and kind in allowed:
            yield i, kind


def _crashes(node: Node) -> bool:
    """ONNX Runtime 1.31 joins a Transpose that moves the first axis to one of the last two to the MatMul behind it, and
    on x86 reads a shape that it need not know."""
    perm = list(node.attrs.get("perm", ()))
    rest = sorted(set(perm) - {0})
    joined = len(perm) > 2 and perm in ([*rest, 0], [*rest[:-1], 0, rest[-1]])
    return joined and any(n.op == "MatMul" for n in node.outputs[0].outputs)


def _cast(node: Node, known: Mapping[str, np.dtype[Any]]) -> Slots:
    """A Cast of integers to float32 can make float16 as well; one between floats is there on purpose."""
    source = known.get(node.inputs[0].name)
    between = source is None or source in (FLOAT, HALF)
    return Slots() if between or node.attrs.get("to") != onnx.TensorProto.FLOAT else Slots(outputs=(0,))


def constant_fault(node: Node, slot: int, constant: Constant) -> str:
    """Why a node cannot read this constant as float16; empty if it can."""
    values = np.asarray(constant.values)
    finite = values[np.isfinite(values)]
    numbers = Numbers()
    numbers.add(finite)
    if numbers.largest > LARGEST:
        if slot in _BOUNDS.get(node.op, ()):
            return ""
        return f"its constant '{constant.name}' reaches {numbers.largest:.4g}, and float16 ends at {LARGEST:.0f}"
    if finite.size <= _FEW and ((finite != 0) & (finite.astype(np.float16) == 0)).any():
        return f"its constant '{constant.name}' holds {np.abs(finite[finite != 0]).min():.2g}, which float16 makes 0"
    if numbers.lost > _LOST * numbers.energy:
        return f"float16 would lose {numbers.lost / numbers.energy:.1%} of its constant '{constant.name}'"
    return ""


def rounded(values: Array) -> Array:
    """As float16; finite numbers stay finite."""
    x = np.asarray(values, np.float32)
    return np.where(np.isfinite(x), np.clip(x, -LARGEST, LARGEST), x).astype(np.float16)


def is_float(tensor: Tensor, known: Mapping[str, np.dtype[Any]]) -> bool:
    """Is it a float32 tensor that a node makes, or an input?"""
    return not tensor.is_empty() and not is_constant(tensor) and known.get(tensor.name) == FLOAT
