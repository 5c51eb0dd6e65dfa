"""aimet-onnx: BatchNormalization folded, 8-bit simulation with scales per channel, exported as QDQ."""

from __future__ import annotations

from pathlib import Path

import aimet_onnx.common.quantsim_config
import onnx
from adapter import Request, first_line, run
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.quantsim import QuantizationSimModel

CONFIGURATION = Path(aimet_onnx.common.quantsim_config.__path__[0]) / "default_config_per_channel.json"


def quantize(request: Request) -> None:
    """Its defaults otherwise."""
    model = onnx.load(request.model)
    try:
        fold_all_batch_norms_to_weight(model)
    except Exception as error:  # whatever it raises, what is folded is folded
        request.notes.append(f"fold_all_batch_norms_to_weight: {first_line(error)}")
    simulation = QuantizationSimModel(model, config_file=str(CONFIGURATION), providers=["CPUExecutionProvider"])
    simulation.compute_encodings(list(request.feeds()))
    onnx.save(simulation.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), request.output)


if __name__ == "__main__":
    run(quantize, "aimet-onnx")
