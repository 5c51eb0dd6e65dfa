"""ONNX Runtime's MatMulNBitsQuantizer: blocks of 32, what a layer reads rounded to 8 bits."""

from __future__ import annotations

import onnx
from adapter import Request, run
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization import matmul_nbits_quantizer as quantizer
from onnxruntime.quantization.onnx_model import ONNXModel

_BLOCK = 32


class Samples(CalibrationDataReader):
    """A list, because the quantizer copies what it is given."""

    def __init__(self, request: Request) -> None:
        self._feeds = list(request.feeds())[::-1]

    def get_next(self) -> dict | None:
        return self._feeds.pop() if self._feeds else None


def quantize(request: Request) -> None:
    """By ``method``, with zero points unless ``symmetric``.

    It takes no Gemm: they are made MatMul before, by a function of its own.
    """
    source = ONNXModel(onnx.load(request.source))
    source.replace_gemm_with_matmul()
    _named(source.model)
    method, symmetric = request.options["method"], request.options.get("symmetric", False)
    config = None
    if method == "hqq":
        config = quantizer.HQQWeightOnlyQuantConfig(block_size=_BLOCK, bits=4)
    elif method == "gptq":
        config = quantizer.GPTQWeightOnlyQuantConfig(calibration_data_reader=Samples(request))
    made = quantizer.MatMulNBitsQuantizer(
        source.model, bits=4, block_size=_BLOCK, is_symmetric=symmetric, accuracy_level=4, algo_config=config
    )
    made.process()
    onnx.save(made.model.model, request.output)


def _named(model: onnx.ModelProto) -> None:
    """It tells nodes apart by their names, which they need not have."""
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"


if __name__ == "__main__":
    run(quantize, "onnxruntime")
