"""onnxsim: simplify, then quantize the whole graph."""

from __future__ import annotations

import onnx
import onnxsim
from adapter import Request, first_line, run


def quantize(request: Request) -> None:
    """Its defaults with ``full_graph``."""
    model = onnx.load(request.model)
    try:
        model, _ = onnxsim.simplify(model)
    except Exception as error:  # whatever it raises, the plain model is left
        request.notes.append(f"simplify: {first_line(error)}")
    onnx.save(onnxsim.quantize_static(model, list(request.feeds()), full_graph=True), request.output)


if __name__ == "__main__":
    run(quantize, "onnxsim")
