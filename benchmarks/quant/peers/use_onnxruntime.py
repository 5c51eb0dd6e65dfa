"""onnxruntime.quantization, static and dynamic, after its own pre-processing where that works."""

from __future__ import annotations

from pathlib import Path

from adapter import Reader, Request, first_line, run
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


def quantize(request: Request) -> None:
    """Options left out are the tool's defaults."""
    options = request.options
    types = {f"{what}_type": QuantType[options[what]] for what in ("activation", "weight") if what in options}
    settings = {**types, "per_channel": options.get("per_channel", False)}
    model = _prepared(request)
    if options.get("dynamic"):
        quantize_dynamic(model, request.output, **settings)
        return
    method = CalibrationMethod[options.get("calibration", "MinMax")]
    quantize_static(model, request.output, Reader(request), calibrate_method=method, **settings)


def _prepared(request: Request) -> Path:
    """Pre-processed, without symbolic shapes where they fail, or as it is where all fails."""
    for skip in (False, True):
        try:
            quant_pre_process(request.model, "prepared.onnx", skip_symbolic_shape=skip)
        except Exception as error:  # whatever it raises, the plain model is left
            request.notes.append(f"quant_pre_process{' without symbolic shapes' * skip}: {first_line(error)}")
        else:
            return Path("prepared.onnx")
    return request.model


if __name__ == "__main__":
    run(quantize, "onnxruntime")
