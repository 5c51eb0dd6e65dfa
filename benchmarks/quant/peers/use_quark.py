"""amd-quark: unsigned activations, signed weights with a scale per channel; on demand with learned rounding."""

from __future__ import annotations

from adapter import Reader, Request, run
from onnxruntime.quantization import CalibrationDataReader
from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, QuantGranularity, UInt8Spec


class QuarkReader(Reader, CalibrationDataReader):  # type: ignore[misc]  # the base class has no types
    """Quark asks for the type."""


def quantize(request: Request) -> None:
    """Its defaults otherwise."""
    layers = QLayerConfig(
        activation=UInt8Spec(), weight=Int8Spec(symmetric=True, quant_granularity=QuantGranularity.Channel)
    )
    learned = [AdaRoundConfig()] if request.options.get("adaround") else []
    quantizer = ModelQuantizer(QConfig(layers, algo_config=learned))
    quantizer.quantize_model(str(request.model), str(request.output), QuarkReader(request))


if __name__ == "__main__":
    run(quantize, "amd-quark")
