"""onnxopt itself: passes with the calibration samples or without, and the result not judged."""

from __future__ import annotations

from adapter import Request, run

from onnxopt import load, open_dataset, save
from onnxopt.core.manager import PassManager
from onnxopt.core.spec import parse


def quantize(request: Request) -> None:
    """What ``passes`` says; ``data`` is whether there are samples."""
    model = load(request.source)
    samples = open_dataset(request.samples, model.inputs) if request.options["data"] else None
    PassManager(parse(request.options["passes"])).run(model, samples)
    save(model, request.output)


if __name__ == "__main__":
    run(quantize, "onnxopt")
