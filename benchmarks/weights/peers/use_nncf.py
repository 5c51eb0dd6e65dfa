"""nncf.compress_weights on ONNX: groups of 32, in what it can write so that ONNX Runtime runs it.

It gets opset 21, because for older ones it writes zero points that ONNX Runtime refuses; MatMul for Gemm, because it
cuts a transposed weight into blocks along the wrong axis; no Conv, for the same reason; and leaves alone what 32 does
not divide.
"""

from __future__ import annotations

import nncf
import onnx
import onnx.version_converter
from adapter import Request, run
from onnxruntime.quantization.onnx_model import ONNXModel


def quantize(request: Request) -> None:
    """``mode``; ``all``: the last layer and embeddings too, which its default keeps in 8 bits; ``aware``: with data."""
    options = request.options
    model = ONNXModel(onnx.version_converter.convert_version(onnx.load(request.source), 21))
    model.replace_gemm_with_matmul()
    settings = {}
    if options.get("aware"):
        feeds = list(request.feeds())
        settings = {"dataset": nncf.Dataset(feeds), "subset_size": len(feeds), "awq": True, "scale_estimation": True}
    made = nncf.compress_weights(
        model.model,
        mode=nncf.CompressWeightsMode(options["mode"]),
        group_size=32,
        all_layers=options.get("all", False),
        ignored_scope=nncf.IgnoredScope(types=["Conv"], validate=False),
        advanced_parameters=nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.IGNORE
        ),
        **settings,
    )
    onnx.save(made, request.output)


if __name__ == "__main__":
    run(quantize, "nncf")
