"""ONNX Runtime's own quantizer: `python use_onnxruntime.py MODEL OUTPUT default|hqq`. Needs onnx_ir, no data."""

from __future__ import annotations

import sys

import onnx
from onnxruntime.quantization import matmul_nbits_quantizer as quantizer


def main(source: str, output: str, method: str) -> None:
    config = None
    if method == "hqq":
        config = quantizer.HQQWeightOnlyQuantConfig(block_size=32, bits=4)
    made = quantizer.MatMulNBitsQuantizer(
        onnx.load(source), bits=4, block_size=32, is_symmetric=False, accuracy_level=4, algo_config=config
    )
    made.process()
    made.model.save_model_to_file(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
