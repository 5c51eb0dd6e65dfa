"""The one scorer: a quantized file against the float model, on the evaluation samples, in ONNX Runtime, one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reference import Reference, or_error

from onnxopt import load
from onnxopt.core.context import Context
from onnxopt.graph.cost import PRODUCTS
from onnxopt.graph.ir import Constant, Node, Tensor
from onnxopt.graph.model import Model
from onnxopt.runtime.audit import INTEGER_KERNELS, audit


def quality(reference: Reference, candidate: Path) -> dict[str, Any]:
    """How far the candidate's answers are from the float model's, what of it runs in integers, and its size.

    With ``error`` alone where it does not run.
    """

    def measured() -> dict[str, Any]:
        found = reference.compare(candidate)
        model = load(candidate)
        executed = audit(model, shapes_of=Context(model, reference.dataset).shapes(model))
        return {
            "sqnr_db": found.sqnr_db,
            "outputs": {o.name: o.sqnr_db for o in found.outputs},
            "cosine": found.cosine,
            "agreement": found.agreement,
            "accuracy": found.accuracy,
            "accuracy_float": found.accuracy_reference,
            "bytes": candidate.stat().st_size,
            "bytes_float": reference.path.stat().st_size,
            "quantized_share": quantized_share(model),
            "integer_share": executed.integer_share,
            "integer_products": len(executed.integer),
            "float_products": len(executed.islands),
            "conversions": executed.conversions,
        }

    return or_error(measured)


def quantized_share(model: Model) -> float | None:
    """Of the products with constant weights, the share whose weights are 8-bit integers, whatever kernel they run in.

    Each counts as many times as it has weights. None if there are none.
    """
    weights = quantized = 0
    for node in model.nodes():
        size, integer = _weights(node)
        weights += size
        quantized += size * integer
    return quantized / weights if weights else None


def _weights(node: Node) -> tuple[int, bool]:
    """How many constant weights a product has, and whether they are integers."""
    if node.op not in INTEGER_KERNELS and node.op not in PRODUCTS:
        return 0, False
    found = [_source(t) for t in node.inputs]
    matrices = [(c.values.size, dequantized) for c, dequantized in found if c is not None and len(c.shape) > 1]
    return sum(size for size, _ in matrices), node.op in INTEGER_KERNELS or any(d for _, d in matrices)


def _source(tensor: Tensor) -> tuple[Constant | None, bool]:
    """The constant that a tensor is, behind what only converts or moves it, and whether that dequantizes."""
    dequantized = False
    while not isinstance(tensor, Constant):
        made_by = next(iter(tensor.inputs), None)
        if made_by is None or made_by.op not in _CARRIERS:
            return None, False
        dequantized |= made_by.op == "DequantizeLinear"
        tensor = made_by.inputs[0]
    return tensor, dequantized


_CARRIERS = ("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Identity", "Cast", "Unsqueeze", "Squeeze")
