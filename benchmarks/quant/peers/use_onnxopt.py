"""onnxopt itself: passes on the calibration samples, without judging the result."""

from __future__ import annotations

from adapter import Request, run

from onnxopt import load, open_dataset, save
from onnxopt.core.manager import PassManager
from onnxopt.core.spec import parse


def quantize(request: Request) -> None:
    """What ``passes`` says."""
    model = load(request.source)
    PassManager(parse(request.options["passes"])).run(model, open_dataset(request.samples, model.inputs))
    save(model, request.output)


if __name__ == "__main__":
    run(quantize, "onnxopt")
