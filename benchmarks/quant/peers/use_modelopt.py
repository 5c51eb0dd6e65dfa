"""nvidia-modelopt, on the CPU, with float32 for what stays float."""

from __future__ import annotations

from adapter import Reader, Request, run
from modelopt.onnx.quantization import quantize as modelopt_quantize


def quantize(request: Request) -> None:
    """Its defaults otherwise."""
    modelopt_quantize(
        str(request.model),
        quantize_mode="int8",
        calibration_data_reader=Reader(request),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(request.output),
    )


if __name__ == "__main__":
    run(quantize, "nvidia-modelopt")
