"""Why a model answers otherwise on a target, and what would help, each at its price.

Each cause was seen with small models under onnxruntime 1.31: on masked x86 processors, and on emulated ARM ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from onnxopt.check.departure import Departure
from onnxopt.check.overflow import overflow_risk
from onnxopt.errors import ExecutionError
from onnxopt.graph import io, shapes
from onnxopt.graph.ir import Node, is_constant
from onnxopt.graph.model import Model
from onnxopt.report.report import Cause, Remedy
from onnxopt.runtime.exchange import Job
from onnxopt.runtime.local import run_in_child
from onnxopt.runtime.probe import saturates
from onnxopt.runtime.target import NATIVE, Target

SATURATION = "16-bit saturation"
FLOAT16 = "float16 sums"
TIES = "ties in rounding"
ACCURACY_LEVEL = "accuracy_level 4"

_EXACT_KEY = "session.x64quantprecision"
_LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TIED = ("Add", "AveragePool", "QLinearAdd", "QLinearAveragePool")
_NEEDED_FOR_NBITS = "avx2"


def find_causes(candidate: Model, target: Target, departure: Departure | None) -> tuple[Cause, ...]:
    """What makes such a model answer otherwise there; empty where nothing is known that would.

    With a departure, what lies behind it in the graph is no cause; of a device behind ssh, whose processor is not
    known, all that could be is told.
    """
    reached = _up_to(candidate, departure)
    causes: tuple[Callable[[], Cause | None], ...] = (
        lambda: _saturation(candidate, reached) if _saturates(target) else None,
        lambda: _float16(candidate, reached) if target.float16 or _unknown(target) else None,
        lambda: _accuracy_level(reached) if _lacks_kernels(target) else None,
        lambda: _ties(departure) if target.architecture == "arm64" or _unknown(target) else None,
    )
    return tuple(found for cause in causes if (found := cause()) is not None)


def _unknown(target: Target) -> bool:
    return target.architecture is None and target.name != NATIVE.name


def _saturates(target: Target) -> bool:
    return saturates(target) if not _unknown(target) else True


def _lacks_kernels(target: Target) -> bool:
    """Does it sum 4-bit and 8-bit weights otherwise than x86 processors since AVX2?"""
    return target.name != NATIVE.name and _NEEDED_FOR_NBITS not in target.instructions


def _up_to(model: Model, departure: Departure | None) -> list[Node]:
    """The nodes up to the one that departs, that one included; all where none is known."""
    nodes = list(model.nodes())
    label = departure.node if departure is not None else None
    place = next((i for i, node in enumerate(nodes) if label is not None and _label(node) == label), len(nodes))
    return nodes[: place + 1]


def _saturation(model: Model, reached: list[Node]) -> Cause | None:
    names = {_label(node) for node in reached}
    risks = overflow_risk(model)
    if not any(risk.node in names for risk in risks):
        return None
    channels = f"{sum(r.channels for r in risks)} of {sum(r.outputs for r in risks)} channels"
    why = (
        "x86 without VNNI adds the products of uint8 and int8 in pairs into 16 bits, where the weights of "
        f"{_some([r.node for r in risks])} overflow: pairs add up to {max(r.worst for r in risks)}, and 128 is safe"
    )
    remedies = [
        Remedy("quantize again with --target x86-64-avx2, or any", f"{channels} of those layers get up to a bit less"),
        Remedy(
            "uint8 weights",
            "several times slower where there is VNNI, which has no product of two unsigned numbers",
        ),
    ]
    if _loads_with(model, _EXACT_KEY):
        price = "slower, most of all where there is VNNI; whoever deploys must set it"
        remedies.append(Remedy(f"run it with the session's entry {_EXACT_KEY}=1", price))
    return Cause(SATURATION, why, tuple(remedies))


def _float16(model: Model, reached: Iterable[Node]) -> Cause | None:
    proven = shapes.proven(model)
    half = np.dtype(np.float16)

    def is_half(node: Node) -> bool:
        given = (t for t in node.inputs if not t.is_empty())
        return any(t.dtype == half or (t.name in proven and proven[t.name].dtype == half) for t in given)

    found = [_label(node) for node in reached if node.op in _PRODUCTS and is_half(node)]
    if not found:
        return None
    why = f"this processor sums float16 products in float16, others in float32: {_some(found)}"
    return Cause(
        FLOAT16,
        why,
        (Remedy("keep these layers in float32", "their weights take twice the room, and run slower there"),),
    )


def _accuracy_level(reached: Iterable[Node]) -> Cause | None:
    written = [_label(node) for node in reached if node.op == "MatMulNBits" and node.attrs.get("accuracy_level") == 4]
    fused = [_label(node) for node in reached if _becomes_nbits(node)]
    if not written and not fused:
        return None
    why = (
        f"accuracy_level 4 lets {_some(written + fused)} quantize what it reads to 8 bits where there are kernels for "
        "that, in blocks that are not the same everywhere, and compute in float32 elsewhere"
    )
    price = "slower where there are such kernels"
    remedies = []
    if written:
        remedies.append(Remedy("set accuracy_level to 1 in these nodes", price))
    if fused:
        remedies.append(
            Remedy(f"run it with the session's entry {_LEVEL_KEY}=1", f"{price}; whoever deploys must set it")
        )
    return Cause(ACCURACY_LEVEL, why, tuple(remedies))


def _becomes_nbits(node: Node) -> bool:
    """Is it a product with weights in blocks, of which ONNX Runtime makes a MatMulNBits with accuracy_level 4?"""
    if node.op != "MatMul" or len(node.inputs) < 2 or not node.inputs[1].inputs:
        return False
    made_by = node.inputs[1].inputs[0]
    return made_by.op == "DequantizeLinear" and bool(made_by.attrs.get("block_size")) and is_constant(made_by.inputs[0])


def _ties(departure: Departure | None) -> Cause | None:
    if departure is None or departure.op not in _TIED or not departure.steps or departure.largest > 1:
        return None
    why = (
        f"{departure.op} of quantized numbers rounds what lies halfway between two steps another way on ARM: "
        f"'{departure.node}' differs by one step, and what follows may let that grow"
    )
    return Cause(TIES, why, (Remedy("none is needed: both are as near", "one step of that tensor"),))


def _loads_with(model: Model, key: str) -> bool:
    """Can the model be loaded with this entry set? Not where quantized layers share a zero point."""
    with tempfile.TemporaryDirectory(prefix="onnxopt-") as folder:
        path = Path(folder) / "model.onnx"
        io.save(model, path)
        try:
            run_in_child(Job(models=(path,), feeds=[], settings={key: "1"}, keep=False))
        except ExecutionError:
            return False
    return True


def _label(node: Node) -> str:
    return str(node.name or next((t.name for t in node.outputs if t.name), node.op))


def _some(names: list[str]) -> str:
    """The first few names of many."""
    listed = ", ".join(f"'{name}'" for name in names[:3])
    return f"{listed} and {len(names) - 3} more" if len(names) > 3 else listed
