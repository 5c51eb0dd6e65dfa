"""nncf, plain or after folding with onnxslim, because it does not fold BatchNormalization itself."""

from __future__ import annotations

import nncf
import onnx
import onnxslim
from adapter import Request, run


def quantize(request: Request) -> None:
    """Its defaults, on all samples."""
    model = onnx.load(request.model)
    if request.options.get("fold"):
        model = onnxslim.slim(model)
    feeds = list(request.feeds())
    onnx.save(nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds)), request.output)


if __name__ == "__main__":
    run(quantize, "nncf")
