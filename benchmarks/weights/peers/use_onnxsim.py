"""onnxsim's weights of 4 bits: blocks of 32, no zero points."""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnxsim
from adapter import Request, run


def quantize(request: Request) -> None:
    """By ``method``: in ONNX Runtime's operator, in standard ONNX, or that with weights rounded for data."""
    method = request.options["method"]
    model = onnx.version_converter.convert_version(onnx.load(request.source), 21)
    if method == "nbits":
        made = onnxsim.quantize_weight_only_matmul_nbits(model)
    else:
        made = onnxsim.quantize_weight_only_int4(model)
    if method == "gptq":
        made = onnxsim.apply_gptq(model, made, calibration_data=list(request.feeds()))
    _sweep(made.graph)
    onnx.save(made, request.output)


def _sweep(graph: onnx.GraphProto) -> None:
    """Without the float weights, which it leaves in the file."""
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


if __name__ == "__main__":
    run(quantize, "onnxsim")
